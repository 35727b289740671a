"""Events: who touched which item when, in an order that depends on the data and a seed and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from deepinterest.config import Ties
from deepinterest.errors import UserError

REQUIRED = ("user", "item", "timestamp")


def refuse_nulls(values: pl.Series, where: str, called: str) -> None:
    """Raise UserError with the first row (counted from 1) at which `values` is null."""
    if values.null_count():
        row = int(values.is_null().arg_max() or 0) + 1
        raise UserError(
            f"{where}: {called} has no value in row {row} ({values.null_count()} such rows): fill it in or drop it."
        )


@dataclass
class PublishedRows:
    """Labelled rows and vocabularies that a source's files fix; protocol=last_event takes them as they are.

    `train` and `test`, in the files' order: user and item (raw), label (UInt8, 0 or 1) and history (Int64, how many
    of the user's events come before the target; they are the history).
    `vocabularies` of "user", "item" and "category": raw values by id. Users' ids start at 0, the others' at 1, as their
    0 is the unknown.
    `items`: item and category (null: not known) of every item the files describe, with events or without.
    """

    train: pl.DataFrame
    test: pl.DataFrame
    vocabularies: dict[str, pl.Series]
    items: pl.DataFrame | None = None


@dataclass
class Events:
    """One row per event, sorted by user and time.

    `frame` has the columns user, item (integers or strings), timestamp (Int64, milliseconds since 1970 UTC) and then
    `item_features`, whose nulls mean: not known. A feature has one value per item.
    `dropped` counts the rows a source left out, by reason; `notes` counts other repairs.
    `rows` are labelled rows about these events, of a source that brings its own.
    """

    frame: pl.DataFrame
    item_features: list[str]
    name: str
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    rows: PublishedRows | None = None

    @classmethod
    def build(
        cls,
        frame: pl.DataFrame,
        item_features: list[str],
        name: str,
        dropped: Mapping[str, int] | None = None,
        seed: int = 0,
        limit_users: int | None = None,
        ties: Ties = Ties.random,
    ) -> Events:
        """Check, sample and sort `frame`; raises UserError for a missing column, no rows, or a null.

        `ties` orders a user's events at one time: at random by `seed`, or as `frame` has them.
        """
        columns = [*REQUIRED, *item_features]
        for column in columns:
            if column not in frame.columns:
                raise UserError(
                    f"{name}: there is no column {column!r}, only {', '.join(frame.columns) or 'none'}: add it."
                )
        frame = frame.select(columns)
        if frame.is_empty():
            raise UserError(f"{name}: there are no events{_left_out(dropped)}: check the source.")
        for column in REQUIRED:
            refuse_nulls(frame[column], name, f"column {column!r}")
        if not frame["timestamp"].dtype.is_integer():
            raise UserError(
                f"{name}: column 'timestamp' is of type {frame['timestamp'].dtype}: give whole milliseconds since 1970."
            )
        frame = frame.with_columns(pl.col("timestamp").cast(pl.Int64)).with_row_index("__row")

        # A feature is a fact about the item, so it is settled on all events, before users are sampled.
        notes: dict[str, int] = {}
        for feature in item_features:
            frame, several = _one_value_per_item(frame, feature)
            if several:
                notes[f"items with several values of {feature}"] = several
        if limit_users is not None:
            frame = _sample_users(frame, limit_users, seed)
        frame = frame.sort("user", "timestamp", "__row") if ties is Ties.file else _shuffle_ties(frame, seed)
        frame = frame.select(columns)
        return cls(frame, list(item_features), name, {k: n for k, n in (dropped or {}).items() if n}, notes)


def _left_out(dropped: Mapping[str, int] | None) -> str:
    reasons = ", ".join(f"{reason}: {rows}" for reason, rows in (dropped or {}).items() if rows)
    return f" left (rows dropped: {reasons})" if reasons else ""


def _one_value_per_item(frame: pl.DataFrame, feature: str) -> tuple[pl.DataFrame, int]:
    """Give each item its most frequent known value of `feature` (ties: the smallest); count items that had several."""
    known = frame.lazy().filter(pl.col(feature).is_not_null()).group_by("item", feature).len()
    chosen = (
        known.sort("item", "len", feature, descending=[False, True, False])
        .group_by("item", maintain_order=True)
        .agg(pl.col(feature).first(), pl.len().alias("values"))
        .collect()
    )
    several = int((chosen["values"] > 1).sum())
    if several == 0 and frame[feature].null_count() == 0:
        return frame, 0
    return frame.drop(feature).join(chosen.drop("values"), on="item", how="left"), several


def _sample_users(frame: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    # Sorted first, so that the sample does not depend on the order of the file.
    users = frame["user"].unique().sort()
    if limit >= len(users):
        return frame
    rows = np.random.default_rng(seed).choice(len(users), size=limit, replace=False)
    return frame.join(users[np.sort(rows)].to_frame(), on="user", how="semi")


def _shuffle_ties(frame: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Sort by user and time; events of one user at one time get a random order.

    A file's own order within a basket can give the answer away (by product id, by price, target last), and the order
    of items would do the same. The canonical sort first makes the random keys independent of the file's order.
    """
    frame = frame.sort("user", "timestamp", "item")
    keys = np.random.default_rng([seed, 1]).random(frame.height)
    return frame.with_columns(pl.Series("__key", keys)).sort("user", "timestamp", "__key").drop("__key")
