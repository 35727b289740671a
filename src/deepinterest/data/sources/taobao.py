"""Taobao's UserBehavior.csv: user, item, category, behaviour and time in seconds, without a header line.

Its 100 million lines are read once and in pieces, counted and kept at the same time: memory holds kept events only.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from deepinterest.config import Behaviour, TaobaoConfig
from deepinterest.data import paths
from deepinterest.data.download import raw_folder
from deepinterest.data.events import Events
from deepinterest.data.sources import raw_files
from deepinterest.data.sources.raw_files import Column, RawFile, RawFiles, Table
from deepinterest.errors import UserError, some

FILE = "UserBehavior.csv"
SITE = "https://tianchi.aliyun.com/dataset/649"
DIGITS = 10  # of a time in seconds

COLUMNS = (
    Column("user", pl.Int32),
    Column("item", pl.Int32),
    Column("category", pl.Int32),
    Column("behaviour", pl.String, choices=[behaviour.value for behaviour in Behaviour]),
    Column("time", pl.Int64),
)


def load(config: TaobaoConfig) -> Events:
    """The chosen behaviours in the chosen time as events; raises UserError for a bad file, line or setting."""
    first, last = _limits(config)
    chosen = {behaviour.value for behaviour in config.behaviours}
    path = _path(config)
    with RawFiles(path) as files:
        file = files.file(_name(files))
        _refuse_cut_time(file)
        table = Table([file], COLUMNS)
        time, behaviour = pl.col("time"), pl.col("behaviour")
        early = time < first if first is not None else pl.lit(False)
        late = time > last if last is not None else pl.lit(False)
        inside = ~(early | late)
        skipped = [name.value for name in Behaviour if name.value not in chosen]
        with table.naming_lines():
            rows = table.scan()
            counted = rows.select(
                pl.col("good").all().alias("good"),  # blank lines, null, are passed over
                pl.col("good").is_null().sum().alias("blank lines"),
                early.sum().alias("before data.first_time"),
                late.sum().alias("after data.last_time"),
                *((inside & (behaviour == name)).sum().alias(f"behaviour {name}") for name in skipped),
            )
            kept = rows.filter(inside & behaviour.is_in(sorted(chosen))).select(
                "user", "item", (time * 1000).alias("timestamp"), "category"
            )
            counts, frame = pl.collect_all([counted, kept], engine="streaming")
        if not counts["good"][0]:
            table.refuse()
    dropped = counts.drop("good").row(0, named=True)
    return Events.build(frame, ["category"], path.name, dropped, config.seed, config.limit_users, config.ties)


def _refuse_cut_time(file: RawFile) -> None:
    """Raise UserError where the last line has no end and too few digits of a time: the file is cut within it."""
    last = file.last_line()
    fields = last.decode(errors="replace").split(",")
    if not last.endswith(b"\n") and len(fields) == len(COLUMNS) and len(fields[-1].strip()) < DIGITS:
        raise UserError(
            f"{file.where}, line {file.lines()}: time is {fields[-1]!r}, less than {DIGITS} digits, and the last line "
            "has no end: the file is cut short. Fetch the file anew or mend the line."
        )


def fingerprint(config: TaobaoConfig) -> dict[str, Any]:
    """Of the file; raises UserError if it is missing."""
    _limits(config)
    return raw_files.fingerprint(_path(config), config.name, lambda name: name.startswith(FILE))


def _path(config: TaobaoConfig) -> Path:
    if config.path is not None:
        return paths.file_or_folder(config.path, "data.path")
    folder = raw_folder(config.name)
    for ending in ("", ".zip", ".gz"):
        if (folder / f"{FILE}{ending}").is_file():
            return folder / f"{FILE}{ending}"
    raise UserError(
        f"{FILE} is not in {folder}: put it there, plain, as zip or as gz, or name it by data.path. It is to be had, "
        f"with an account, at {SITE}."
    )


def _name(files: RawFiles) -> str:
    """The log's name in a folder or archive, whatever a single file is called."""
    tables = [name for name in files.names if name.endswith(".csv") and not name.startswith(".")]
    if FILE in files:
        return FILE
    if len(files.names) == 1:
        return files.names[0]
    if len(tables) == 1:
        return tables[0]
    raise UserError(f"{files.path} holds no {FILE}, only {some(files.names)}: correct data.path.")


def _limits(config: TaobaoConfig) -> tuple[int | None, int | None]:
    """First and last second, both kept."""
    first, last = _second(config, "first_time"), _second(config, "last_time")
    if first is not None and last is not None and first > last:
        raise UserError(
            f"data.first_time={config.first_time} is after data.last_time={config.last_time}: nothing lies between."
        )
    return first, last


def _second(config: TaobaoConfig, key: str) -> int | None:
    text: str | None = getattr(config, key)
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"data.{key}={text} is no time: write a date such as 2017-11-25, or a time such as 2017-11-25T18:00:00."
        ) from None
    if key == "last_time" and len(text) <= len("2017-11-25"):
        time += timedelta(days=1, seconds=-1)
    time = time if time.tzinfo else time.replace(tzinfo=ZoneInfo(config.timezone))
    return int(time.astimezone(UTC).timestamp())
