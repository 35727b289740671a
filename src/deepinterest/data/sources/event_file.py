"""Your own log of events: CSV, TSV and other text, Parquet, NDJSON or Arrow, in one file or in many."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset

from deepinterest.config import EventFileConfig
from deepinterest.data import columns, paths
from deepinterest.data.events import LABEL, Events, labels, refuse_nulls
from deepinterest.data.text_file import TextFile, no_column, refuse_binary, said
from deepinterest.data.times import milliseconds
from deepinterest.data.values import feature, ids
from deepinterest.data.where import Where
from deepinterest.errors import UserError, some


def _scan_ndjson(path: Path) -> pl.LazyFrame:
    # The whole file tells the types: an id that is a number in the first lines may be text later.
    refuse_binary(path, str(path))
    return pl.scan_ndjson(glob.escape(str(path)), infer_schema_length=None)  # it takes no glob=False


def _scan_ipc(path: Path) -> pl.LazyFrame:
    # Polars maps such files into memory: a file cut short while it is read would end the process by a signal.
    return pl.scan_pyarrow_dataset(pyarrow.dataset.dataset(path, format="ipc"))


SCANNERS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": lambda path: pl.scan_parquet(path, glob=False),
    ".ndjson": _scan_ndjson,
    ".jsonl": _scan_ndjson,
    ".arrow": _scan_ipc,
    ".feather": _scan_ipc,
    ".ipc": _scan_ipc,
}
EXTENSIONS = (*columns.SEPARATORS, *SCANNERS)


def load(config: EventFileConfig) -> Events:
    """Read `config.path`; raises UserError for whatever is wrong with a file, its columns or its values."""
    found = files(config)
    held = {str(path): frame for path in found if (frame := read(path, config, len(found) > 1)) is not None}
    frames = list(held.values())
    refuse_all_empty(config, len(frames))
    frame = frames[0]
    if len(frames) > 1:
        types = common([types_of(frame) for frame in frames], list(held))
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
        config.repeats,
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
    if part and path.stat().st_size == 0:
        return None
    text = TextFile.of(path, config)
    frame = _read(path, config, text, part)
    if frame.is_empty():
        return None
    where, keys = Where(str(path), text), columns.keys(config)

    def called(role: str) -> str:
        return f"column {keys[role]!r} (data.columns.{role})"

    if text:  # an empty field, quoted or not, is no value
        frame = frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
    found: dict[str, pl.Series] = {}
    for role in ("user", "item", "category"):
        if role in keys:
            found[role] = ids(frame[role], where, called(role))
    for role in ("user", "item"):
        refuse_nulls(found[role], where, called(role))
    found["timestamp"] = milliseconds(frame["timestamp"], where, called("timestamp"), config)
    if "category" in keys and config.category_missing is not None:
        missing = (found["category"].cast(pl.String) == config.category_missing).fill_null(False)
        found["category"] = pl.select(pl.when(~missing).then(found["category"])).to_series()
    for name in columns.features(config):
        found[name] = feature(frame[name], where, name in config.columns.numeric)
    if "label" in keys:
        found[LABEL] = labels(frame[LABEL], where, called("label"), both=not part)
    return pl.DataFrame(found)


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
    """The file that `config.path` names, or those that fit it as a pattern, by name; raises UserError.

    A name of a file that is there is no pattern, whatever characters it has.
    """
    if not glob.has_magic(config.path) or Path(config.path).expanduser().exists():
        return [_existing(config)]
    found = [Path(name) for name in sorted(glob.glob(str(Path(config.path).expanduser()), recursive=True))]
    found = [path for path in found if path.is_file()]
    if not found:
        raise UserError(f"data.path is {config.path!r}, and no file fits this pattern: correct it.")
    kinds = sorted({path.suffix.lower() for path in found})
    if len(kinds) > 1 or kinds[0] not in EXTENSIONS:
        raise UserError(
            f"data.path is {config.path!r}, and the files that fit it end in {', '.join(map(repr, kinds))}: they must "
            f"have one extension, of {', '.join(EXTENSIONS)}."
        )
    return found


def _existing(config: EventFileConfig) -> Path:
    pattern = f"{Path(config.path).expanduser()}/*.parquet"
    path = paths.file(config.path, "data.path", f"give one file, or a pattern such as '{pattern}'")
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"data.path is {str(path)!r}, of unknown extension {path.suffix!r}: use one of {', '.join(EXTENSIONS)}."
        )
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty: data.path must name a file with events.")
    return path


def _read(path: Path, config: EventFileConfig, text: TextFile | None, may_be_empty: bool) -> pl.DataFrame:
    """The columns the settings name, under the names of their roles."""
    keys, features = columns.keys(config), columns.features(config)
    named = {**{column: f"data.columns.{role}" for role, column in keys.items()},
             **{name: f"data.columns.{role}" for name, role in features.items()}}  # fmt: skip
    try:
        scan = _scan_text(text) if text else SCANNERS[path.suffix.lower()](path)
        present = scan.collect_schema().names()
        for column, key in named.items():
            if column not in present:
                raise no_column(path, column, key, present, text)
        if text:
            _refuse_twice(text, named)
        chosen = [*(pl.col(column).alias(role) for role, column in keys.items()), *(pl.col(name) for name in features)]
        frame = scan.select(chosen).collect()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError, ValueError) as error:
        reason = (text.fault() if text else None) or said(error)
        raise UserError(
            f"{path} cannot be read as {path.suffix.lower()} ({reason}): write it anew or correct data.path."
        ) from error
    if frame.is_empty() and not may_be_empty:
        raise UserError(f"{path} is empty: it has columns ({some(present)}) and no rows.")
    return frame


def _scan_text(text: TextFile) -> pl.LazyFrame:
    # As text: a guess of types would read the ids "007" and "7" as one number.
    def names(found: list[str]) -> list[str]:
        return found if text.header else [f"column_{number}" for number in range(1, len(found) + 1)]

    return pl.scan_csv(
        text.path,
        separator=text.separator,
        has_header=text.header,
        with_column_names=names,
        glob=False,
        infer_schema=False,
    )


def _refuse_twice(text: TextFile, named: dict[str, str]) -> None:
    names = text.names()
    for column, key in named.items():
        if names.count(column) > 1:
            raise UserError(
                f"{text.path} has {names.count(column)} columns {column!r}, the name that {key} gives: rename all but "
                "one."
            )
