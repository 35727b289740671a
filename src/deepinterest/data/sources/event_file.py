"""Your own log of events: CSV, TSV, Parquet, NDJSON or Arrow, in one file or in many."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from deepinterest.config import EventFileConfig, TimestampUnit
from deepinterest.data.events import LABEL, REQUIRED, Events, labels, refuse_nulls
from deepinterest.errors import UserError, nearest


def _scan_text(separator: str) -> Callable[[Path], pl.LazyFrame]:
    # As text: a guess of types would read the ids "007" and "7" as one number.
    return lambda path: pl.scan_csv(path, separator=separator, glob=False, infer_schema=False)


def _scan_ndjson(path: Path) -> pl.LazyFrame:
    # The whole file tells the types: an id that is a number in the first lines may be text later.
    return pl.scan_ndjson(glob.escape(str(path)), infer_schema_length=None)  # it takes no glob=False


SCANNERS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".csv": _scan_text(","),
    ".tsv": _scan_text("\t"),
    ".parquet": lambda path: pl.scan_parquet(path, glob=False),
    ".ndjson": _scan_ndjson,
    ".jsonl": _scan_ndjson,
    ".arrow": lambda path: pl.scan_ipc(path, glob=False),
    ".feather": lambda path: pl.scan_ipc(path, glob=False),
    ".ipc": lambda path: pl.scan_ipc(path, glob=False),
}
FEATURE_ROLES = ("item_features", "user_features", "context_features")
MAX_MS = 253_402_300_800_000  # the year 10000
PER_MS = {TimestampUnit.s: 1 / 1000, TimestampUnit.ms: 1, TimestampUnit.us: 1_000, TimestampUnit.ns: 1_000_000}


def load(config: EventFileConfig) -> Events:
    """Read `config.path`; raises UserError for whatever is wrong with a file, its columns or its values."""
    paths = files(config)
    held = {path: frame for path in paths if (frame := read(path, config, len(paths) > 1)) is not None}
    paths, frames = list(held), list(held.values())
    refuse_all_empty(config, len(frames))
    frame = frames[0]
    if len(frames) > 1:
        types = common([types_of(frame) for frame in frames], [str(path) for path in paths])
        frame = pl.concat([frame.cast(types) for frame in frames])  # type: ignore[arg-type]
    del frames, held
    return Events.build(
        frame,
        item_features(config),
        Path(config.path).name,
        {},
        config.seed,
        config.limit_users,
        config.ties,
        user_features=config.columns.user_features,
        context_features=config.columns.context_features,
        label=LABEL if LABEL in frame.columns else None,
    )


def item_features(config: EventFileConfig) -> list[str]:
    """The category, where there is one, and the others."""
    return [*(["category"] if config.columns.category is not None else []), *config.columns.item_features]


def read(path: Path, config: EventFileConfig, part: bool = False) -> pl.DataFrame | None:
    """The columns of one file by their roles; raises UserError.

    Args:
        part: the file is one of several. Then it may be empty, which gives None, and may hold labels of one kind.
    """
    features = _features(config)
    if part and path.stat().st_size == 0:
        return None
    frame = _read(path, config, part)
    if frame.is_empty():
        return None
    where, keys = str(path), _keys(config)

    def called(role: str) -> str:
        return f"column {keys[role]!r} (data.columns.{role})"

    is_text = path.suffix.lower() in (".csv", ".tsv")
    if is_text:  # an empty field, quoted or not, is no value
        frame = frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
    columns: dict[str, pl.Series] = {}
    for role in ("user", "item", "category"):
        if role in keys:
            columns[role] = _ids(frame[role], where, called(role), is_text)
    for role in ("user", "item"):
        refuse_nulls(columns[role], where, called(role))
    columns["timestamp"] = _milliseconds(frame["timestamp"], where, called("timestamp"), config.timestamp_unit)
    if "category" in keys and config.category_missing is not None:
        category = columns["category"]
        missing = (category.cast(pl.String) == config.category_missing).fill_null(False)
        columns["category"] = pl.select(pl.when(~missing).then(category)).to_series()
    for name in features:
        columns[name] = _feature(frame[name], where, name in config.columns.numeric, is_text)
    if "label" in keys:
        columns[LABEL] = labels(frame[LABEL], where, called("label"), both=not part)
    return pl.DataFrame(columns)


def refuse_all_empty(config: EventFileConfig, held: int) -> None:
    """Raise UserError where no file of a pattern holds an event."""
    if held == 0:
        raise UserError(f"data.path is {config.path!r}, and every file that fits it is empty: correct the pattern.")


def types_of(frame: pl.DataFrame) -> dict[str, pl.DataType]:
    """The type of each column; Null for one without a value."""
    return {
        name: pl.Null() if frame[name].null_count() == frame.height else kind for name, kind in frame.schema.items()
    }


def common(schemas: Sequence[dict[str, pl.DataType]], where: Sequence[str]) -> dict[str, pl.DataType]:
    """The type of each column that holds the values of all files; raises UserError where there is none.

    An id that is a number in one file and text in another is text.
    """
    types: dict[str, pl.DataType] = {}
    for column in schemas[0]:
        found = [schema[column] for schema in schemas]
        at = [place for place, kind in enumerate(found) if kind != pl.Null]
        floats = [found[place].is_float() for place in at]
        if any(floats) and not all(floats):
            one, other = where[at[floats.index(True)]], where[at[floats.index(False)]]
            raise UserError(
                f"column {column!r} holds quantities in {one} and whole numbers or text in {other}: name it in "
                "data.columns.numeric, or write one of the files anew."
            )
        kinds = {found[place] for place in at}
        types[column] = kinds.pop() if len(kinds) == 1 else pl.String()
    return types


def fingerprint(config: EventFileConfig) -> dict[str, Any]:
    """Absolute path, size (bytes) and time of change (ns) of the file, or a hash of those of all files.

    Raises UserError if there is none.
    """
    found = [(path.resolve(), path.stat()) for path in files(config)]
    states = [{"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in found]
    if len(states) == 1:
        return {"name": "events", **states[0]}
    digest = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return {"name": "events", "files": len(states), "states": digest}


def files(config: EventFileConfig) -> list[Path]:
    """The file that `config.path` names, or those that fit it as a pattern, by name; raises UserError."""
    if not glob.has_magic(config.path) or Path(config.path).expanduser().exists():
        return [_existing(config)]
    found = [Path(name) for name in sorted(glob.glob(str(Path(config.path).expanduser()), recursive=True))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError(f"data.path is {config.path!r}, and no file fits this pattern: correct it.")
    kinds = sorted({path.suffix.lower() for path in found})
    if len(kinds) > 1 or kinds[0] not in SCANNERS:
        raise UserError(
            f"data.path is {config.path!r}, and the files that fit it end in {', '.join(map(repr, kinds))}: they must "
            f"have one extension, of {', '.join(SCANNERS)}."
        )
    return found


def _keys(config: EventFileConfig) -> dict[str, str]:
    """The file's column of each role that has one."""
    columns = config.columns
    roles = {
        "user": columns.user,
        "item": columns.item,
        "timestamp": columns.timestamp,
        "category": columns.category,
        "label": columns.label,
    }
    return {role: column for role, column in roles.items() if column is not None}


def _features(config: EventFileConfig) -> list[str]:
    """The columns that are features; raises UserError where the settings contradict themselves."""
    columns = config.columns
    roles: dict[str, list[str]] = {role: getattr(columns, role) for role in FEATURE_ROLES}
    taken: dict[str, str] = {column: role for role, column in _keys(config).items()}
    reserved = (*REQUIRED, LABEL, *(["category"] if columns.category is not None else []))
    for role, names in roles.items():
        for name in names:
            if name in taken:
                raise UserError(
                    f"data.columns.{role} names {name!r}, which data.columns.{taken[name]} names already: a column has "
                    "one part to play, so leave it out of one of them."
                )
            if name in reserved or name.startswith("__"):
                raise UserError(
                    f"data.columns.{role} names {name!r}, a name that means something else here: rename the column."
                )
            taken[name] = role
    features = [name for names in roles.values() for name in names]
    for name in columns.numeric:
        if name not in features:
            raise UserError(
                f"data.columns.numeric names {name!r}, and the features are {', '.join(features) or 'none'}: "
                "add it to user_features, item_features or context_features."
            )
    return features


def _existing(config: EventFileConfig) -> Path:
    path = Path(config.path).expanduser()
    if path.is_dir():
        raise UserError(
            f"data.path is {str(path)!r}, a folder: give one file, or a pattern such as '{path}/*.parquet'."
        )
    if not path.is_file():
        raise UserError(f"data.path is {str(path)!r}, and there is no such file: correct the path.")
    if path.suffix.lower() not in SCANNERS:
        raise UserError(
            f"data.path is {str(path)!r}, of unknown extension {path.suffix!r}: use one of {', '.join(SCANNERS)}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: data.path must name a file with events.")
    return path


def _read(path: Path, config: EventFileConfig, may_be_empty: bool) -> pl.DataFrame:
    """The columns the settings name, under the names of their roles."""
    kind = path.suffix.lower()
    keys = _keys(config)
    features = {name: role for role in FEATURE_ROLES for name in getattr(config.columns, role)}
    try:
        scan = SCANNERS[kind](path)
        present = scan.collect_schema().names()
        for role, column in keys.items():
            if column not in present:
                raise UserError(
                    f"{path} has no column {column!r}, only {', '.join(present)}: "
                    f"set data.columns.{role} to the column that holds the {role}."
                )
        for name, role in features.items():
            if name not in present:
                raise UserError(
                    f"{path} has no column {name!r}, only {', '.join(present)}: correct data.columns.{role}"
                    f"{nearest(name, present) or '.'}"
                )
        chosen = [*(pl.col(column).alias(role) for role, column in keys.items()), *(pl.col(name) for name in features)]
        frame = scan.select(chosen).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200]
        raise UserError(f"{path} cannot be read as {kind} ({reason}): write it anew or correct data.path.") from error
    if frame.is_empty() and not may_be_empty:
        raise UserError(f"{path} is empty: it has columns ({', '.join(present)}) and no rows.")
    return frame


def _ids(values: pl.Series, where: str, called: str, is_text: bool) -> pl.Series:
    """Ids as Int64 or String; raises UserError for types that cannot be ids."""
    dtype = values.dtype
    if dtype == pl.Null:
        return values.cast(pl.String)
    if dtype == pl.String and is_text:
        numbers = values.cast(pl.Int64, strict=False)
        same = (numbers.cast(pl.String) == values) | values.is_null()
        return numbers if same.fill_null(False).all() else values
    if dtype.is_float():  # integers with gaps often arrive as floats
        values = values.fill_nan(None)
        odd = (values.is_infinite() | (values != values.floor())).fill_null(False)
        if odd.any():
            row = int(odd.arg_max() or 0)
            raise UserError(f"{where}: {called} holds {values[row]} in row {row + 1}: use whole numbers or text.")
        return values.cast(pl.Int64)
    if dtype.is_integer():
        wide = values.cast(pl.Int64, strict=False)
        return wide if wide.null_count() == values.null_count() else values.cast(pl.String)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return values.cast(pl.String)
    raise UserError(f"{where}: {called} is of type {dtype}: use whole numbers or text.")


def _feature(values: pl.Series, where: str, numeric: bool, is_text: bool) -> pl.Series:
    """A quantity as Float64, a category as Int64 or String; raises UserError with the row of what is neither."""
    called = f"column {values.name!r}"
    if values.dtype.is_nested() or values.dtype in (pl.Object, pl.Binary):
        raise UserError(f"{where}: {called} is of type {values.dtype}: features are numbers or text.")
    if not numeric and not values.dtype.is_float():
        if values.dtype == pl.Boolean or values.dtype.is_temporal() or values.dtype.is_decimal():
            return values.cast(pl.String)
        return _ids(values, where, called, is_text)
    text = values.str.strip_chars() if values.dtype == pl.String else values
    numbers = text.cast(pl.Float64, strict=False)
    wrong = numbers.is_null() & values.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise UserError(
            f"{where}: {called} holds {values[row]!r} in row {row + 1}, which is no number: mend it, leave it empty, "
            "or take the column out of data.columns.numeric."
        )
    return numbers


# ---------------------------------------------------------------------------------------------------------- timestamps


def _milliseconds(values: pl.Series, where: str, called: str, unit: TimestampUnit) -> pl.Series:
    """Milliseconds since 1970 (Int64); a time without a zone is taken as UTC.

    Raises UserError with the row of the first value that is missing, no time, or beyond the year 9999.
    """
    if values.dtype.is_float():
        values = values.fill_nan(None)
    refuse_nulls(values, where, called)
    if values.dtype == pl.String:
        for numeric in (pl.Int64, pl.Float64):
            numbers = values.str.strip_chars().cast(numeric, strict=False)
            if numbers.null_count() == 0:
                return from_numbers(numbers, where, called, unit)
        return _from_text(values, where, called)
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("ms"))
    if isinstance(values.dtype, pl.Datetime):
        return values.dt.timestamp("ms")
    if values.dtype.is_numeric():
        return from_numbers(values, where, called, unit)
    raise UserError(f"{where}: {called} is of type {values.dtype}: use numbers, dates or ISO 8601 text.")


def from_numbers(
    values: pl.Series,
    where: str,
    called: str,
    unit: TimestampUnit,
    remedy: str = "set data.timestamp_unit to s, ms, us or ns, or mend the row",
) -> pl.Series:
    """Milliseconds (Int64) of numbers without nulls; raises UserError with the row of one beyond the year 9999."""
    size = values.cast(pl.Float64).abs()
    if unit == TimestampUnit.auto:
        # One unit for the whole column, by its middle value: a stray zero or a slip must not change it.
        middle = size.median()
        assert isinstance(middle, float)
        units = ((1e11, TimestampUnit.s), (1e14, TimestampUnit.ms), (1e17, TimestampUnit.us))
        unit = next((name for limit, name in units if middle < limit), TimestampUnit.ns)
    beyond = ~(size / PER_MS[unit] < MAX_MS)
    if beyond.any():
        row = int(beyond.arg_max() or 0)
        raise UserError(
            f"{where}: {called} holds {values[row]} in row {row + 1}, which in {unit.value} lies beyond the year 9999: "
            f"{remedy}."
        )
    if values.dtype.is_integer():
        whole = values.cast(pl.Int64)  # exact: nanoseconds do not fit a float
        return whole * 1000 if unit == TimestampUnit.s else whole // int(PER_MS[unit])
    return (values.cast(pl.Float64) / PER_MS[unit]).round().cast(pl.Int64)


def _from_text(values: pl.Series, where: str, called: str) -> pl.Series:
    # Each format as a whole column, which is fast; Python's own reader then settles the few it did not cover.
    text = pl.col("text").str.strip_chars().str.replace(r"^(\S{10}) ", "${1}T").str.replace("Z$", "+00:00")
    local, zoned = "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%:z"
    trimmed = pl.col("text")
    parsed = values.alias("text").to_frame().lazy().select(text).select(
        trimmed,
        pl.coalesce(
            trimmed.str.to_datetime(local, time_unit="us", strict=False),
            trimmed.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
            trimmed.str.to_datetime(zoned, time_unit="us", strict=False).dt.replace_time_zone(None),
        ).dt.timestamp("ms").alias("ms"),
    ).collect()  # fmt: skip
    if not parsed["ms"].null_count():
        return parsed["ms"]
    milliseconds = parsed["ms"].to_list()
    for row in parsed["ms"].is_null().arg_true().to_list():
        try:
            time = datetime.fromisoformat(parsed["text"][row])
        except ValueError:
            raise UserError(
                f"{where}: {called} holds {values[row]!r} in row {row + 1}, which is no time: "
                "use numbers or ISO 8601 text such as 2024-05-31T18:30:00."
            ) from None
        time = time if time.tzinfo else time.replace(tzinfo=UTC)
        milliseconds[row] = int(time.timestamp() * 1000 // 1)
    return pl.Series("ms", milliseconds, dtype=pl.Int64)
