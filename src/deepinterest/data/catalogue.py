"""Catalogues of items and users, and the context of events, as ids within vocabularies of what training knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from deepinterest.config import DataConfig, LastEventConfig, ProtocolConfig
from deepinterest.data.events import Events, PublishedRows, plain
from deepinterest.data.labelled import Labelled, occurrences
from deepinterest.data.log import Log
from deepinterest.data.vocabulary import Buckets, Vocabulary
from deepinterest.errors import UserError


@dataclass
class Catalogue:
    """`vocabularies` are those of the item, its features, the user, its features and the context, in this order."""

    items: pl.DataFrame  # item and its features, raw, of catalogue rows 1, 2, …
    users: pl.DataFrame  # user and its features, raw, of users 0, 1, …
    context_features: list[str]
    vocabularies: dict[str, Vocabulary | Buckets]
    item_rows: np.ndarray  # (items, F) int32; row 0 is the unknown item
    user_rows: np.ndarray  # (U+1, F') int32; row 0 is the unknown user
    context: np.ndarray | None  # (rows of the events' frame, C) int32

    def sizes(self) -> dict[str, list[int]]:
        """Vocabulary sizes, the unknown ids included."""
        names = {"items": self.items.columns, "users": self.users.columns, "context": self.context_features}
        return {kind: [len(self.vocabularies[name]) for name in held] for kind, held in names.items()}

    def known(self) -> dict[str, int]:
        """Items and their categories, those of the whole log and those that training knows, for the card."""
        counts: dict[str, int] = {}
        for name, title in (("item", "items"), ("category", "categories")):
            there = name in self.items.columns
            counts[title] = self.items[name].drop_nulls().n_unique() if there else 0
            counts[f"{title}_known"] = len(self.vocabularies[name].values) if there else 0
        return counts

    def described(self) -> dict[str, str]:
        """The features and how many values each has, for the card; the category has a line of its own there."""
        names = {"item": self.items.columns[1:], "user": self.users.columns[1:], "context": self.context_features}
        lines = {}
        for kind, held in names.items():
            features = {name: self.vocabularies[name] for name in held if (kind, name) != ("item", "category")}
            if features:
                lines[f"{kind} features"] = ", ".join(
                    f"{name} ({len(known.values)} {'buckets' if isinstance(known, Buckets) else 'values'})"
                    for name, known in features.items()
                )
        return lines


def raw(
    events: Events, items: pl.Series, users: pl.Series, rows: PublishedRows | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Items and users with their features, of catalogue rows 1, 2, … and of users 0, 1, ….

    Args:
        items, users: their raw values.
    """
    per_user = pl.DataFrame({"user": users})
    if events.user_features:
        known = events.frame.group_by("user").agg(pl.col(name).first() for name in events.user_features)
        per_user = per_user.join(known.select(map(plain, known)), on="user", how="left", maintain_order="left")
    return _per_item(events, items, rows), per_user


def build(
    events: Events,
    log: Log,
    result: Labelled,
    per_item: pl.DataFrame,
    per_user: pl.DataFrame,
    rows: PublishedRows | None,
    data: DataConfig,
    protocol: ProtocolConfig,
) -> Catalogue:
    """Args:
    per_item, per_user: what `raw` gives.
    rows: of the published files, where they say what is learned from; None otherwise.
    """
    vocabularies: dict[str, Vocabulary | Buckets] = {}
    if rows:
        if data.min_item_count > 1:
            raise UserError(
                f"data.min_item_count={data.min_item_count} is not possible with {data.name}: its files fix the "
                "vocabularies. Set data.min_item_count=1."
            )
        vocabularies |= {name: Vocabulary(rows.vocabularies[name]) for name in (*per_item.columns, "user")}
    else:
        of_item, of_user = _counts(log, result, protocol)
        least = {"item": data.min_item_count}
        for held, counts in ((per_item, of_item[1:]), (per_user, of_user)):
            for name in held.columns:
                vocabularies[name] = _vocabulary(held[name], counts, least.get(name, 1), data.buckets)
    context = None
    if events.context_features:
        learned = result.seen if result.impressions is None else result.impressions.train
        for name in events.context_features:
            vocabularies[name] = _vocabulary(events.frame[name], learned.astype(np.int64), 1, data.buckets)
        context = _encode(events.frame.select(events.context_features), vocabularies)
    return Catalogue(
        per_item,
        per_user,
        events.context_features,
        vocabularies,
        _with_unknown(_encode(per_item, vocabularies)),
        _with_unknown(_encode(per_user, vocabularies)),
        context,
    )


def _per_item(events: Events, items: pl.Series, rows: PublishedRows | None) -> pl.DataFrame:
    columns = ["item", *events.item_features]
    known = events.frame.select(columns)
    if rows and rows.items is not None:  # a negative may have no event
        known = pl.concat([known, rows.items.select(columns)])
    known = known.group_by("item").agg(pl.col(name).first() for name in events.item_features)
    known = known.select(map(plain, known))
    return pl.DataFrame({"item": items}).join(known, on="item", how="left", maintain_order="left")


def _counts(log: Log, result: Labelled, protocol: ProtocolConfig) -> tuple[np.ndarray, np.ndarray]:
    """How often each catalogue row (items,) and each user (U,) occurs in training: its vocabularies hold no other.

    Counted are the events training may learn from, or its impressions. Under last_event it is the rows of train and
    validation, negatives included, counted as the published code counts: a history once for each of its rows.
    """
    users = len(log.user_offsets) - 1
    if isinstance(protocol, LastEventConfig):
        return occurrences(log, [result.samples["train"], result.samples["validation"]])
    if result.impressions is not None:
        shown = result.impressions
        item, user = shown.item[shown.train], shown.user[shown.train]
    else:
        item, user = log.item[result.seen], log.user[result.seen]
    return np.bincount(item, minlength=log.items), np.bincount(user, minlength=users)


def _vocabulary(values: pl.Series, counts: np.ndarray, min_count: int, buckets: int) -> Vocabulary | Buckets:
    if values.dtype.is_float():
        return Buckets.of_counts(values, counts, buckets)
    return Vocabulary.of_counts(values, counts, min_count)


def _encode(raw: pl.DataFrame, vocabularies: dict[str, Vocabulary | Buckets]) -> np.ndarray:
    return np.stack([vocabularies[name].encode(raw[name]) for name in raw.columns], axis=1)


def _with_unknown(ids: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, ids.shape[1]), np.int32), ids])
