"""Data of the published pipeline: its events, and its labelled rows and vocabularies as they are (data/layout.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from deepinterest.config import ReferenceDataConfig, Ties, TimestampUnit
from deepinterest.data import layout, paths
from deepinterest.data.events import Events, PublishedRows
from deepinterest.data.times import from_numbers
from deepinterest.data.where import Where
from deepinterest.errors import UserError

OTHER_RUN = "the files belong to different runs of the pipeline: take all seven from one run"


def load(config: ReferenceDataConfig) -> Events:
    """Events of reviews-info, with the rows of both row files as `rows`.

    Raises UserError for whatever is wrong with the files, or where rows and events disagree. Times are read as seconds,
    milliseconds and so on by their size. With ties=random the events are in another order than the rows' histories, so
    the rows are left out, which `notes` tells.
    """
    path = Path(config.path).expanduser()
    files = layout.read(path)
    items = layout.items(*files[layout.ITEM_INFO])
    reviews = layout.reviews(*files[layout.REVIEWS])
    time = from_numbers(
        reviews["time"], Where(files[layout.REVIEWS].where), "time", TimestampUnit.auto, "mend the line"
    )
    # By the file's own numbers: microseconds are finer than the milliseconds kept.
    events = (
        reviews.with_columns(time.alias("timestamp"))
        .sort("user", "time", maintain_order=True)
        .join(items, on="item", how="left", maintain_order="left")
        .select("user", "item", "timestamp", pl.col("category").fill_null(layout.UNKNOWN_CATEGORY))
    )
    parts = {}
    for name in (layout.TRAIN, layout.TEST):
        rows = layout.rows(*files[name])
        _check(rows, files[name].where, events, items)
        lengths = pl.col("items").list.len().cast(pl.Int64).alias("history")
        parts[name] = rows.select("user", "item", "label", lengths)
    vocabularies = {kind: layout.vocabulary(*files[name], kind) for kind, name in layout.VOCABULARIES.items()}

    known = pl.when(pl.col("category") != layout.UNKNOWN_CATEGORY).then(pl.col("category")).alias("category")
    result = Events.build(
        events.with_columns(known), ["category"], path.name, {}, config.seed, config.limit_users, config.ties
    )
    if config.ties is Ties.random:
        result.notes["labelled rows left out, as data.ties is random"] = sum(part.height for part in parts.values())
        return result
    users = result.frame["user"].unique()
    train, test = (part.filter(pl.col("user").is_in(users.implode())) for part in parts.values())
    result.rows = PublishedRows(train, test, vocabularies, items.with_columns(known))
    return result


def fingerprint(config: ReferenceDataConfig) -> dict[str, Any]:
    """Path, sizes (bytes) and times of change (ns) of the files or the tar; raises UserError if one is missing."""
    path = paths.file_or_folder(config.path, "data.path").resolve()
    files = list(layout.folder_files(path).values()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return {
        "name": "reference",
        "path": str(path),
        "size": [stat.st_size for stat in stats],
        "mtime_ns": [stat.st_mtime_ns for stat in stats],
    }


def _check(rows: pl.DataFrame, where: str, events: pl.DataFrame, items: pl.DataFrame) -> None:
    """Raise UserError unless histories, positives and categories of `rows` are those of `events` and item-info.

    `events` is sorted by user and time; its category, default_cat where item-info has none, is never null.
    """
    runs = events["user"].rle()
    length = runs.struct.field("len").cast(pl.Int64)
    spans = pl.DataFrame({"user": runs.struct.field("value"), "events": length, "begin": length.cum_sum() - length})
    rows = rows.join(spans, on="user", how="left", maintain_order="left")

    def refuse(row: int, said: str) -> None:
        raise UserError(f"{where}, line {row + 1}, user {rows['user'][row]!r}: {said}; {OTHER_RUN}.")

    count = rows["items"].list.len().cast(pl.Int64)
    beyond = rows["begin"].is_null() | (count >= rows["events"]).fill_null(True)
    if beyond.any():
        row = int(beyond.arg_max() or 0)
        held = rows["events"][row] or 0
        refuse(row, f"the history has {count[row]} items and no event comes after: {layout.REVIEWS} has {held} events")

    begin, lengths = rows["begin"].to_numpy(), count.to_numpy()
    ends = np.cumsum(lengths)
    event = np.arange(ends[-1]) + np.repeat(begin - (ends - lengths), lengths)
    for column, of_event, called in (("items", "item", "item"), ("categories", "category", "category")):
        found, expected = rows[column].explode(), events[of_event].gather(event)
        differ = found != expected
        if differ.any():
            entry = int(differ.arg_max() or 0)
            row = int(np.searchsorted(ends, entry, side="right"))
            place = entry - int(ends[row] - lengths[row]) + 1
            source = layout.REVIEWS if column == "items" else layout.ITEM_INFO
            refuse(
                row, f"{called} {place} of the history is {found[entry]!r} and by {source} it is {expected[entry]!r}"
            )

    target = events["item"].gather(begin + lengths)
    differ = (rows["label"] == 1) & (rows["item"] != target)
    if differ.any():
        row = int(differ.arg_max() or 0)
        said = f"the item with label 1 is {rows['item'][row]!r} and the event after the history is of {target[row]!r}"
        refuse(row, said)

    category = rows.select("item").join(items, on="item", how="left", maintain_order="left")["category"]
    category = category.fill_null(layout.UNKNOWN_CATEGORY)
    differ = rows["category"] != category
    if differ.any():
        row = int(differ.arg_max() or 0)
        item, found = rows["item"][row], rows["category"][row]
        refuse(row, f"item {item!r} has the category {found!r} and by {layout.ITEM_INFO} it is {category[row]!r}")
