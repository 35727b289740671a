"""Clicks on the news of Globo.com, October 2017 (Moreira, Ferreira, da Cunha, DLRS 2018, doi 10.1145/3270323.3270328).

Either as published, one clicks_hour_NNN.csv an hour with articles_metadata.csv, or as one table with a category column.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl

from deepinterest.config import EventColumns, EventFileConfig, GloboConfig, Repeats
from deepinterest.data import paths
from deepinterest.data.download import raw_folder
from deepinterest.data.events import Events
from deepinterest.data.sources import event_file, raw_files
from deepinterest.data.sources.raw_files import Column, RawFiles, Table
from deepinterest.errors import UserError, some

SITE = "https://www.kaggle.com/datasets/gspmoreira/news-portal-user-interactions-by-globocom"
HOUR = re.compile(r"clicks_hour_(\d+)\.csv")
ARTICLES = "articles_metadata.csv"
UNKNOWN = "-1"  # a table's category where it is not known
FIRST_TIME = 1_262_304_000_000  # 2010-01-01 UTC, in milliseconds

REMARK = ": milliseconds since 1970 are expected"
CLICKS = (
    Column("user_id", pl.Int32),
    Column("click_article_id", pl.Int32),
    Column("click_timestamp", pl.Int64, low=FIRST_TIME, high=10 * FIRST_TIME, remark=REMARK),
)
METADATA = (Column("article_id", pl.Int32), Column("category_id", pl.Int32))


def load(config: GloboConfig) -> Events:
    """Clicks as events; raises UserError for whatever is wrong with the files."""
    path = _path(config)
    if not _as_published(path):
        return event_file.load(_table(path, config))
    with RawFiles(path) as files:
        names = _hours(files)
        clicks = [files.file(name) for name in names]
        frames, blank = [], 0
        # One layout for the files of one first line, so that all of them are read at once.
        layouts: dict[tuple[str, ...], tuple[list[Column], list[raw_files.RawFile]]] = {}
        for file in clicks:
            columns = _with_last(raw_files.header(file, CLICKS))
            layouts.setdefault(tuple(column.name for column in columns), (columns, []))[1].append(file)
        for columns, alike in layouts.values():
            frame, lines = Table(alike, columns, header=True).collect()
            frames.append(
                frame.select(
                    pl.col("user_id").alias("user"),
                    pl.col("click_article_id").alias("item"),
                    pl.col("click_timestamp").alias("timestamp"),
                )
            )
            blank += lines
        articles = files.file(ARTICLES)
        columns = _with_last(raw_files.header(articles, METADATA))
        metadata, _ = Table([articles], columns, header=True).collect()

    category = metadata.select(pl.col("article_id").alias("item"), pl.col("category_id").alias("category"))
    frame = pl.concat(frames).join(category.unique("item", keep="first"), on="item", how="left", maintain_order="left")
    name = f"{path.name} ({len(names)} hours)"
    events = Events.build(
        frame, ["category"], name, {"blank lines": blank}, config.seed, config.limit_users, config.ties
    )
    numbers = [int(HOUR.fullmatch(name)[1]) for name in names]  # type: ignore[index]
    notes = {
        "hours missing between the first and the last": max(numbers) - min(numbers) + 1 - len(set(numbers)),
        f"articles that {ARTICLES} lacks": events.frame.filter(pl.col("category").is_null())["item"].n_unique(),
    }
    events.notes.update({note: count for note, count in notes.items() if count})
    return events


def fingerprint(config: GloboConfig) -> dict[str, Any]:
    """Of the file or files; raises UserError if there are none."""
    path = _path(config)
    if not _as_published(path):
        return {**event_file.fingerprint(_table(path, config)), "name": config.name}
    return raw_files.fingerprint(path, config.name, lambda name: name == ARTICLES or bool(HOUR.fullmatch(name)))


def _path(config: GloboConfig) -> Path:
    if config.path is not None:
        return paths.file_or_folder(config.path, "data.path")
    path = raw_folder(config.name)
    if not path.exists():
        raise UserError(
            f"There are no clicks of Globo.com in {path}: put clicks_hour_NNN.csv and {ARTICLES} there, or name their "
            f"folder or zip by data.path. They are to be had, with an account, at {SITE}."
        )
    return path


def _as_published(path: Path) -> bool:
    return path.is_dir() or path.suffix.lower() == ".zip" or bool(HOUR.fullmatch(path.name))


def _table(path: Path, config: GloboConfig) -> EventFileConfig:
    return EventFileConfig(
        path=str(path),
        seed=config.seed,
        limit_users=config.limit_users,
        ties=config.ties,
        repeats=Repeats.keep,  # as of the hourly files; the published clicks have none
        columns=EventColumns(category="category"),
        category_missing=UNKNOWN,
    )


def _hours(files: RawFiles) -> list[str]:
    """The hourly files, by hour."""
    names = sorted((name for name in files.names if HOUR.fullmatch(name)), key=lambda name: (len(name), name))
    for missing, there in (("clicks_hour_NNN.csv", bool(names)), (ARTICLES, ARTICLES in files)):
        if not there:
            raise UserError(
                f"{files.path} holds no {missing}, only {some(files.names)}: data.path must name a folder or zip with "
                f"clicks_hour_NNN.csv and {ARTICLES}, as at {SITE}, or one table of user, item, timestamp and category."
            )
    return names


def _with_last(columns: list[Column]) -> list[Column]:
    """Read the last column, too: a line that is cut short lacks it."""
    last = columns[-1]
    return columns if last.type else [*columns[:-1], Column(last.name, pl.String)]
