"""Events: who touched which item when, in an order that depends on the data and a seed and on nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl

from deepinterest.config import Repeats, Ties
from deepinterest.data.where import Where
from deepinterest.errors import UserError, some

REQUIRED = ("user", "item", "timestamp")
LABEL = "label"
LABEL_KEY = "data.columns.label"  # the setting that names it, but with data=movielens
COUNT, KINDS = "__count", "__kinds"  # columns of `value_counts` and `most_frequent`; no feature is called so
DRAWS = 1 << 16  # random numbers at a time
NOT_SAMPLED = "of users that data.limit_users leaves out"
REPEATS = "repeats of user, item and time"


def refuse_nulls(values: pl.Series, where: Where, called: str) -> None:
    """Raise UserError with the first row (counted from 1) at which `values` is null."""
    if count := values.null_count():
        row = where.row(int(values.is_null().arg_max() or 0))
        more = f" (and in {count - 1:,} more rows)" if count > 1 else ""
        raise UserError(f"{where}: {called} has no value in {row}{more}: fill it in or drop it.")


def plain(values: pl.Series) -> pl.Series:
    """Strings in place of a Categorical; others as they are."""
    return values.cast(pl.String) if isinstance(values.dtype, pl.Categorical) else values


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

    `frame` has the columns user, item (integers, strings or Categorical), timestamp (Int64, milliseconds since 1970
    UTC) and then `item_features`, `user_features` and `context_features`, whose nulls mean: not known. An item's
    feature has one value per item, a user's one per user, and context belongs to the event. A feature of floats is a
    quantity, which is cut into buckets later (data/vocabulary.py); any other is a category.
    Events that are impressions end with a column `label` (UInt8): 1 for a touch, 0 for an item shown in vain.
    `dropped` counts the rows a source left out, by reason; `notes` counts other repairs.
    `rows` are labelled rows about these events, of a source that brings its own.
    """

    frame: pl.DataFrame
    item_features: list[str]
    name: str
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    rows: PublishedRows | None = None
    user_features: list[str] = field(default_factory=list)
    context_features: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether these are impressions with labels rather than touches."""
        return LABEL in self.frame.columns

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
        repeats: Repeats = Repeats.keep,
        *,
        user_features: Sequence[str] = (),
        context_features: Sequence[str] = (),
        label: str | None = None,
        label_key: str = LABEL_KEY,
    ) -> Events:
        """Check, sample and sort `frame`; raises UserError for a missing column, no rows, or a null.

        Args:
            dropped: rows that the source left out, by reason.
            ties: orders a user's events at one time: at random by `seed`, or as `frame` has them.
            repeats: of user, item and time are kept, or dropped; a source drops its own where it knows better.
            limit_users: keep a sample of so many users, of those with a positive where there is a label.
            user_features, context_features: columns of `frame`, like item_features; floats for a quantity.
            label_key: the setting that chose the label, for errors.
            label: the column (0 and 1, or booleans, no nulls) that tells touches from impressions in vain. With it
                `frame` keeps both, for protocol=labelled; all other protocols leave label 0 out and count it.
        """
        features = [*item_features, *user_features, *context_features]
        _refuse_names(features, name)
        columns = [*REQUIRED, *features, *([label] if label else [])]
        for column in columns:
            if column not in frame.columns:
                raise UserError(f"{name}: there is no column {column!r}, only {some(frame.columns)}: add it.")
        frame = frame.select(columns)
        if frame.is_empty():
            raise UserError(f"{name}: there are no events{_left_out(dropped)}: check the source.")
        for column in REQUIRED:
            refuse_nulls(frame[column], Where(name), f"column {column!r}")
        if not frame["timestamp"].dtype.is_integer():
            raise UserError(
                f"{name}: column 'timestamp' is of type {frame['timestamp'].dtype}: give whole milliseconds since 1970."
            )
        if label:
            frame = frame.with_columns(
                labels(frame[label], Where(name), f"column {label!r}", key=label_key).alias(LABEL)
            )
            columns = [*REQUIRED, *features, LABEL]
        for feature in features:
            frame = frame.with_columns(quantity(frame[feature], Where(name)))
        frame = frame.with_columns(pl.col("timestamp").cast(pl.Int64))
        if ties is Ties.file:
            frame = frame.with_row_index("__row")

        # A feature is a fact about the item or the user, so it is settled on all events, before users are sampled.
        notes: dict[str, int] = {}
        for owner, owned in (("item", item_features), ("user", user_features)):
            for feature in owned:
                frame, several = one_value_per(owner, frame, feature)
                if several:
                    notes[f"{owner}s with several values of {feature}"] = several
        lost, rows = dict(dropped or {}), frame.height
        if limit_users is not None:
            frame = _limited(frame, limit_users, seed)
            lost[NOT_SAMPLED] = rows - frame.height
        if ties is Ties.file:
            frame = frame.sort("__row")
        order, repeated = in_order(frame, ties, repeats, seed, context_features)
        (lost if repeats is Repeats.drop else notes)[REPEATS] = repeated
        unsorted = frame.select(columns).get_columns()
        del frame
        frame = pl.DataFrame([unsorted.pop(0).gather(order) for _ in columns])  # so one at a time is there twice
        return cls(
            frame,
            list(item_features),
            name,
            {reason: count for reason, count in lost.items() if count},
            {note: count for note, count in notes.items() if count},
            user_features=list(user_features),
            context_features=list(context_features),
        )

    def positives(self) -> Events:
        """Only the touches, without the label; the impressions in vain are counted in `dropped`.

        Raises UserError where there is no touch.
        """
        if not self.labelled:
            return self
        frame = self.frame.filter(pl.col(LABEL) == 1).drop(LABEL)
        if frame.is_empty():
            raise UserError(f"{self.name}: all {self.frame.height:,} rows have label 0: there is no touch to learn.")
        lost = self.frame["user"].n_unique() - frame["user"].n_unique()
        return replace(
            self,
            frame=frame,
            dropped={**self.dropped, "label 0": self.frame.height - frame.height},
            notes={**self.notes, **({"users lost, all of whose rows have label 0": lost} if lost else {})},
        )


def _refuse_names(features: list[str], name: str) -> None:
    """Raise UserError for a feature that is named twice, or that has a name with a meaning of its own."""
    for place, feature in enumerate(features):
        if feature in features[:place]:
            raise UserError(f"{name}: {feature!r} is named twice among the features: name each column once.")
        if feature in (*REQUIRED, LABEL) or feature.startswith("__"):
            raise UserError(
                f"{name}: a feature can't be called {feature!r}, a name that means something here: rename the column."
            )


def quantity(values: pl.Series, where: Where) -> pl.Series:
    """The same with null for not a number; raises UserError with the row of an infinite one."""
    if not values.dtype.is_float():
        return values
    infinite = values.is_infinite().fill_null(False)
    if infinite.any():
        row = int(infinite.arg_max() or 0)
        raise UserError(
            f"{where}: column {values.name!r} holds {values[row]} in {where.row(row)}: use numbers or nothing."
        )
    return values.fill_nan(None)


def labels(values: pl.Series, where: Where, called: str, both: bool = True, key: str = LABEL_KEY) -> pl.Series:
    """0 and 1 as UInt8; raises UserError with the row of anything else, and with `both` if only one of them occurs."""
    refuse_nulls(values, where, called)
    numbers = values.cast(pl.Float64, strict=False) if not values.dtype.is_nested() else pl.Series([None] * len(values))
    wrong = ~numbers.is_in([0.0, 1.0]).fill_null(False)
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise UserError(f"{where}: {called} holds {values[row]!r} in {where.row(row)}: labels must be 0 or 1.")
    if both:
        refuse_one_label(int(numbers.sum()), len(values), where, called, key)
    return numbers.cast(pl.UInt8)


def refuse_one_label(ones: int, rows: int, where: Where | str, called: str, key: str = LABEL_KEY) -> None:
    """Raise UserError where all labels are the same."""
    if ones in (0, rows):
        raise UserError(
            f"{where}: {called} is {int(ones > 0)} in all {rows} rows: a label needs both 0 and 1; "
            f"set {key} to null if every row is an event."
        )


def _left_out(dropped: Mapping[str, int] | None) -> str:
    reasons = ", ".join(f"{reason}: {rows}" for reason, rows in (dropped or {}).items() if rows)
    return f" left (rows dropped: {reasons})" if reasons else ""


def one_value_per(owner: str, frame: pl.DataFrame, feature: str) -> tuple[pl.DataFrame, int]:
    """Give each `owner` (item or user) its most frequent known value of `feature` (ties: the smallest).

    Also counts those that had several.
    """
    chosen = most_frequent(owner, value_counts(owner, frame, feature), feature)
    several = int((chosen[KINDS] > 1).sum())
    if several == 0 and frame[feature].null_count() == 0:
        return frame, 0
    return frame.drop(feature).join(chosen.drop(KINDS), on=owner, how="left"), several


def value_counts(owner: str, frame: pl.DataFrame, feature: str) -> pl.LazyFrame:
    """owner, feature and COUNT: how often each known value stands beside each owner."""
    return frame.lazy().filter(pl.col(feature).is_not_null()).group_by(owner, feature).len(COUNT)


def most_frequent(owner: str, counts: pl.LazyFrame, feature: str) -> pl.DataFrame:
    """owner, feature (its most frequent value; ties: the smallest) and KINDS (how many it had), of `value_counts`."""
    return (
        counts.sort(owner, COUNT, feature, descending=[False, True, False])
        .group_by(owner, maintain_order=True)
        .agg(pl.col(feature).first(), pl.len().alias(KINDS))
        .collect(engine="streaming")
    )


def _limited(frame: pl.DataFrame, limit: int, seed: int) -> pl.DataFrame:
    touches = frame.filter(pl.col(LABEL) == 1) if LABEL in frame.columns else frame
    users = sample_users(touches["user"], limit, seed)
    return frame if users is None else frame.join(users.to_frame(), on="user", how="semi")


def sample_users(users: pl.Series, limit: int, seed: int) -> pl.Series | None:
    """So many of `users`, each once, ascending; None where there are no more than that."""
    # Sorted first, so that the sample does not depend on the order of the file.
    users = users.unique().sort()
    if limit >= len(users):
        return None
    rows = np.random.default_rng(seed).choice(len(users), size=limit, replace=False)
    return users[np.sort(rows)]


def in_order(
    frame: pl.DataFrame,
    ties: Ties,
    repeats: Repeats,
    seed: int,
    context: Sequence[str],
    before: tuple[np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, int]:
    """(E,) uint32 rows by user and time, and how many repeat another in user, item and time.

    Events of one user at one time stay as `frame` has them, or get a random order. A file's own order within a basket
    can give the answer away (by product id, by price, target last), and the order of items would do the same. The
    canonical sort first makes the random keys independent of the file's order, and also of the partition: an event's
    key hangs on its place among all events.

    Args:
        repeats: with `drop` the rows hold one each of those that repeat: of label 1 where labels differ, else the first
            by context or in the file.
        before: where `frame` is a part of a log that holds whole users, 0 … U'-1: the place in the log's canonical
            order of the first touch of each, and of its first impression in vain, (U',) each. Touches come first.
    """
    labelled = LABEL in frame.columns
    key = _user_and_time(frame)
    order = np.argsort(key, kind="stable" if ties is Ties.file else None).astype(np.uint32)
    key = key[order]
    same = key[1:] == key[:-1]
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))  # only these have an order to choose
    distinct = ["item", *context, *([LABEL] if labelled else [])]  # rows equal in all of it are the same row
    rows = pl.DataFrame({"__key": key[tied], "__row": order[tied]}).with_columns(
        frame[name].gather(order[tied]) for name in distinct
    )
    del key, same
    if ties is Ties.random:
        rows = rows.sort("__key", *distinct)
        order[tied] = rows["__row"].to_numpy()
    first = _first_of_repeats(rows)
    repeated = len(first) - int(np.count_nonzero(first))
    if repeated and repeats is Repeats.drop:
        kept = np.ones(len(order), dtype=bool)
        kept[tied[~first]] = False
        order, rows, tied = order[kept], rows.filter(first), (np.cumsum(kept) - 1)[tied[first]]
    if ties is Ties.file:
        return order, repeated
    keys = draws_at([seed, 1], _places(frame, order, tied, before))
    rows = rows.with_columns(pl.Series("__random", keys)).sort("__key", "__random")
    order[tied] = rows["__row"].to_numpy()
    return order, repeated


def _first_of_repeats(rows: pl.DataFrame) -> np.ndarray:
    """(n,) bool: the first row of each __key and item, of those with label 1 where one has it."""
    placed = rows.select("__key", "item", *([LABEL] if LABEL in rows.columns else [])).with_row_index("__at")
    if LABEL in rows.columns:
        placed = placed.sort(LABEL, descending=True, maintain_order=True)
    first = np.zeros(rows.height, dtype=bool)
    first[placed.unique(["__key", "item"], keep="first")["__at"].to_numpy()] = True
    return first


def _places(
    frame: pl.DataFrame, order: np.ndarray, rows: np.ndarray, before: tuple[np.ndarray, np.ndarray] | None
) -> np.ndarray:
    """The places of `rows` of the ordered frame in the log; touches first: they have the same without the others."""
    labelled = LABEL in frame.columns
    if not labelled and before is None:
        return rows
    touch = frame[LABEL].gather(order).to_numpy() == 1 if labelled else np.ones(len(order), dtype=bool)
    count = np.concatenate([[0], np.cumsum(touch, dtype=np.int64)])  # touches before each row
    touch = touch[rows]
    if before is None:
        return np.where(touch, count[rows], count[-1] + rows - count[rows])
    user = frame["user"].gather(order).to_numpy()
    begin = np.searchsorted(user, user[rows])  # where the user's rows begin
    touches = count[rows] - count[begin]
    return np.where(touch, before[0][user[rows]] + touches, before[1][user[rows]] + rows - begin - touches)


def draws_at(seed: Sequence[int], places: np.ndarray) -> np.ndarray:
    """(n,) places -> (n,) float64: what default_rng(seed).random(…) holds there."""
    result = np.empty(len(places))
    if not len(places):
        return result
    order = np.argsort(places, kind="stable")
    block, begin = np.unique(places[order] // DRAWS, return_index=True)
    rng = np.random.default_rng(seed)
    at = 0
    for number, rows in zip(block.tolist(), np.split(order, begin[1:]), strict=True):
        rng.bit_generator.advance(number * DRAWS - at)  # type: ignore[attr-defined]
        result[rows] = rng.random(DRAWS)[places[rows] - number * DRAWS]
        at = (number + 1) * DRAWS
    return result


def _user_and_time(frame: pl.DataFrame) -> np.ndarray:
    """(E,) int64 that sort as (user, timestamp) do, and are equal where both are."""
    user, time = frame["user"], frame["timestamp"]
    if isinstance(user.dtype, pl.Categorical):
        user = _ranks(user)
    if not user.dtype.is_integer() or _span(user) * _span(time) >= 2**63:
        user = user.rank("dense").cast(pl.Int64)
    if _span(user) * _span(time) >= 2**63:
        time = time.rank("dense").cast(pl.Int64)
    if _span(user) * _span(time) >= 2**63:
        return frame.select(pl.struct("user", "timestamp").rank("dense").cast(pl.Int64)).to_series().to_numpy()
    key, moment = user.to_numpy().astype(np.int64), time.to_numpy()
    key -= key.min()
    key *= _span(time)
    key += moment
    key -= moment.min()
    return key


def _ranks(values: pl.Series) -> pl.Series:
    """UInt32 that sort as the texts of a Categorical do; the texts themselves are sorted once each."""
    known = values.unique()
    codes, ascending = known.to_physical().to_numpy(), known.cast(pl.String).arg_sort().to_numpy()
    rank = np.empty(int(codes.max()) + 1, np.uint32)
    rank[codes[ascending]] = np.arange(len(codes), dtype=np.uint32)
    return pl.Series(rank[values.to_physical().to_numpy()])


def _span(values: pl.Series) -> int:
    low, high = values.min(), values.max()
    assert isinstance(low, int) and isinstance(high, int)
    return high - low + 1
