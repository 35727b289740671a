"""Times of any kind as milliseconds since 1970: numbers in their unit, text in its format, dates in their zone."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo

import polars as pl

from deepinterest.config import EventFileConfig, TimestampUnit
from deepinterest.data.events import refuse_nulls
from deepinterest.data.where import Where
from deepinterest.errors import UserError

MAX_MS = 253_402_300_800_000  # the year 10000
PLAUSIBLE = (631_152_000_000, 4_102_444_800_000)  # milliseconds: the years 1990 to 2100
PER_MS = {TimestampUnit.s: 1 / 1000, TimestampUnit.ms: 1, TimestampUnit.us: 1_000, TimestampUnit.ns: 1_000_000}
LIMITS = ((1e11, TimestampUnit.s), (1e14, TimestampUnit.ms), (1e17, TimestampUnit.us))  # of numbers; beyond: ns
DAYS = (19_000_101, 21_001_231)  # numbers that are dates, such as 20240131
REMEDY = "set data.timestamp_unit to s, ms, us or ns, or mend the row"


def milliseconds(values: pl.Series, where: Where, called: str, config: EventFileConfig) -> pl.Series:
    """Milliseconds since 1970 (Int64); a time without a zone is one of `config.timezone`.

    Raises UserError with the row of the first value that is missing, no time, or beyond the year 9999.
    """
    found = numbers(values, where, called, config)
    if found is not None:
        return from_numbers(found, where, called, config.timestamp_unit)
    if config.timestamp_unit is not TimestampUnit.auto:
        raise UserError(
            f"{where}: {called} holds {values[0]!r} in {where.row(0)}, which is no number, so "
            f"data.timestamp_unit={config.timestamp_unit.name} does nothing: leave it out."
        )
    if config.timestamp_format is not None:
        return _from_format(values, where, called, config.timestamp_format, config.timezone)
    if values.dtype == pl.String:
        return _from_text(values, where, called, config.timezone)
    return _from_dates(values, where, called, config.timezone)


def numbers(values: pl.Series, where: Where, called: str, config: EventFileConfig) -> pl.Series | None:
    """Times that are numbers, also as text; None for others. Raises UserError with the row of one that is missing."""
    if values.dtype.is_float():
        values = values.fill_nan(None)
    refuse_nulls(values, where, called)
    if config.timestamp_format is not None:
        return None
    if values.dtype.is_numeric():
        return values
    if values.dtype != pl.String:
        return None
    text = values.str.strip_chars()
    whole = text.cast(pl.Int64, strict=False)
    if not whole.null_count():
        return whole
    found = text.cast(pl.Float64, strict=False).fill_nan(None)
    if 2 * found.null_count() >= len(found):  # text, so far
        return None
    if found.null_count():
        row = int(found.is_null().arg_max() or 0)
        raise UserError(
            f"{where}: {called} holds {values[row]!r} in {where.row(row)}, which is no number as most of them are: "
            "mend the row."
        )
    large = text.cast(pl.UInt64, strict=False)
    return found if large.null_count() else large


def from_numbers(values: pl.Series, where: Where, called: str, unit: TimestampUnit, remedy: str = REMEDY) -> pl.Series:
    """Milliseconds (Int64) of numbers without nulls; raises UserError with the row of one beyond the year 9999."""
    size = values.cast(pl.Float64).abs()
    if unit is TimestampUnit.auto:
        unit = unit_of(values, where, called)
    else:
        _refuse_another_unit(size, where, called, unit)
    beyond = ~(size / PER_MS[unit] < MAX_MS)
    if beyond.any():
        row = int(beyond.arg_max() or 0)
        raise UserError(
            f"{where}: {called} holds {values[row]} in {where.row(row)}, which in {unit.value} lies beyond the year "
            f"9999: {remedy}."
        )
    if values.dtype.is_integer():  # exact: nanoseconds don't fit a float
        whole = values if values.dtype == pl.UInt64 else values.cast(pl.Int64)
        return (whole * 1000 if unit is TimestampUnit.s else whole // int(PER_MS[unit])).cast(pl.Int64)
    return (values.cast(pl.Float64) / PER_MS[unit]).round().cast(pl.Int64)


def unit_of(values: pl.Series, where: Where, called: str) -> TimestampUnit:
    """One unit for all of the numbers, by their middle: a stray zero or a slip must not change it.

    Raises UserError where others are times in another unit, and where the numbers are dates such as 20240131.
    """
    size = values.cast(pl.Float64).abs()
    middle = size.median()
    assert isinstance(middle, float)
    unit = next((unit for limit, unit in LIMITS if middle < limit), TimestampUnit.ns)
    if size.is_between(*DAYS).all() and _is_day(values[0]):
        raise UserError(
            f"{where}: {called} holds {values[0]} in {where.row(0)}, which looks like a date: set "
            f"'data.timestamp_format=\"%Y%m%d\"', or data.timestamp_unit where it is a number of {unit.value}."
        )
    own = _plausible(size, unit)
    if own.all() or not own.any():
        return unit
    for other in PER_MS:
        mixed = _plausible(size, other)
        if other is not unit and mixed.any():
            row, one = int(mixed.arg_max() or 0), int(own.arg_max() or 0)
            raise UserError(
                f"{where}: {called} holds {values[one]} in {where.row(one)}, a time in {unit.value}, and {values[row]} "
                f"in {where.row(row)}, a time in {other.value}: write all in one unit, or set data.timestamp_unit."
            )
    return unit


def _refuse_another_unit(size: pl.Series, where: Where, called: str, unit: TimestampUnit) -> None:
    """Raise UserError where all numbers are times of our days in another unit, and none is in this one."""
    if _plausible(size, unit).any():
        return
    for other in PER_MS:
        if _plausible(size, other).all():
            first = float(size[0])
            raise UserError(
                f"{where}: {called} holds {first:.0f} in {where.row(0)}, which lies in {_year(first, unit)} by "
                f"data.timestamp_unit={unit.value} and in {_year(first, other)} by {other.value}: set "
                f"data.timestamp_unit={other.value}."
            )


def _plausible(size: pl.Series, unit: TimestampUnit) -> pl.Series:
    first, last = (limit * PER_MS[unit] for limit in PLAUSIBLE)
    return size.is_between(first, last)


def _year(size: float, unit: TimestampUnit) -> str:
    milliseconds = size / PER_MS[unit]
    if milliseconds >= MAX_MS:
        return "a year beyond 9999"
    return str(datetime.fromtimestamp(milliseconds / 1000, UTC).year)


def _is_day(value: int | float) -> bool:
    try:
        datetime.strptime(f"{value:.0f}", "%Y%m%d")
        return True
    except ValueError:
        return False


# ------------------------------------------------------------------------------------------------------ text and dates


def _from_format(values: pl.Series, where: Where, called: str, given: str, zone: str) -> pl.Series:
    if values.dtype.is_integer():  # 20240131
        values = values.cast(pl.String)
    if values.dtype != pl.String:
        raise UserError(
            f"{where}: {called} is of type {values.dtype}, and data.timestamp_format={given} is for text: leave it out."
        )
    parsed = values.str.strip_chars().str.to_datetime(given, strict=False, time_unit="us")
    if parsed.null_count():
        row = int(parsed.is_null().arg_max() or 0)
        raise UserError(
            f"{where}: {called} holds {values[row]!r} in {where.row(row)}, which isn't written as "
            f"data.timestamp_format={given}: correct it, or mend the row."
        )
    return _from_dates(parsed, where, called, zone)


def _from_dates(values: pl.Series, where: Where, called: str, zone: str) -> pl.Series:
    if values.dtype == pl.Date:
        values = values.cast(pl.Datetime("ms"))
    if not isinstance(values.dtype, pl.Datetime):
        raise UserError(f"{where}: {called} is of type {values.dtype}: use numbers, dates or ISO 8601 text.")
    if values.dtype.time_zone is None:
        values = values.to_frame("local").select(_in_zone(pl.col("local"), zone)).to_series()
    return values.dt.timestamp("ms")


def _in_zone(local: pl.Expr, zone: str) -> pl.Expr:
    """Local times as instants. Of an hour that comes twice the first is taken; one that is left out counts on."""
    if zone == "UTC":
        return local.dt.replace_time_zone("UTC")
    found = local.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    later = local.dt.offset_by("1h").dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
    return pl.coalesce(found, later).dt.convert_time_zone("UTC")


def _from_text(values: pl.Series, where: Where, called: str, zone: str) -> pl.Series:
    # Each format as a whole column, which is fast; Python's own reader then settles the few it did not cover.
    text = pl.col("text").str.strip_chars().str.replace(r"^(\S{10}) ", "${1}T").str.replace("Z$", "+00:00")
    local, zoned = "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f%:z"
    trimmed = pl.col("text")
    parsed = values.alias("text").to_frame().lazy().select(text).select(
        trimmed,
        pl.coalesce(
            _in_zone(trimmed.str.to_datetime(local, time_unit="us", strict=False), zone),
            _in_zone(trimmed.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")), zone),
            trimmed.str.to_datetime(zoned, time_unit="us", strict=False),
        ).dt.timestamp("ms").alias("ms"),
    ).collect()  # fmt: skip
    if not parsed["ms"].null_count():
        return parsed["ms"]
    known: tzinfo = UTC if zone == "UTC" else ZoneInfo(zone)
    milliseconds = parsed["ms"].to_list()
    for row in parsed["ms"].is_null().arg_true().to_list():
        try:
            time = datetime.fromisoformat(parsed["text"][row])
        except ValueError:
            raise UserError(
                f"{where}: {called} holds {values[row]!r} in {where.row(row)}, which is no time: use numbers, ISO 8601 "
                "text such as 2024-05-31T18:30:00, or say by data.timestamp_format how it is written."
            ) from None
        time = time if time.tzinfo else time.replace(tzinfo=known)
        milliseconds[row] = int(time.timestamp() * 1000 // 1)
    return pl.Series("ms", milliseconds, dtype=pl.Int64)
