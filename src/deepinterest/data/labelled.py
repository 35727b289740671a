"""Labelled rows of the three splits: drawn by a protocol, as the published files give them, or your own impressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from deepinterest.config import LabelledConfig, LastEventConfig, ProtocolConfig
from deepinterest.data.events import LABEL, PublishedRows
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.protocols import (
    SPLITS,
    events_after,
    has_history,
    hold_out,
    refuse_empty,
    sample_per_user,
    split,
    time_cuts,
)
from deepinterest.data.samples import Samples, ranges
from deepinterest.data.vocabulary import Vocabulary
from deepinterest.errors import UserError
from deepinterest.machine import check_memory

ROW = 13  # bytes: a target's event, its candidate, its label
CHUNK = 50_000  # groups at a time


@dataclass
class Impressions:
    """The F rows of the events' frame: what was shown to whom, touched or not."""

    user: np.ndarray  # (F,) int32
    item: np.ndarray  # (F,) int32, catalogue row
    train: np.ndarray  # (F,) bool: training may learn from it
    rows: dict[str, np.ndarray]  # split -> which impression each of its rows is, (R,) int64


@dataclass
class Labelled:
    seen: np.ndarray  # (E,) bool: what training may learn from
    samples: dict[str, Samples]
    dropped: dict[str, int] = field(default_factory=dict)
    impressions: Impressions | None = None


def draw(log: Log, protocol: ProtocolConfig, seed: int, stage: Callable[[str], object]) -> Labelled:
    """Targets by `protocol`, each with its negatives."""
    stage("splitting")
    cut = split(log, protocol, seed)
    stage("drawing negatives")
    rows = sum(map(len, cut.targets.values())) * (1 + protocol.negatives.per_positive)
    check_memory(ROW * rows, f"{rows:,} rows", "set protocol.negatives.per_positive or targets_per_user lower")
    sampler = NegativeSampler(log, cut.seen, protocol.negatives)
    samples = {}
    for number, name in enumerate(SPLITS):
        rng = np.random.default_rng([seed, 5, number])
        negatives = sampler.draw(rng, cut.targets[name], protocol.negatives.per_positive)
        samples[name] = Samples.of_targets(log, cut.targets[name], negatives, protocol.ties)
    return Labelled(cut.seen, samples, cut.dropped)


def impressions(log: Log, items: pl.Series, frame: pl.DataFrame, protocol: LabelledConfig, seed: int) -> Labelled:
    """Every impression of `frame` is a row; its history is what its user touched strictly before it.

    Consecutive impressions of a user with one history form a group. Raises UserError where a split has one label only.

    Args:
        log: the touches of `frame`, in its order.
        items: raw values of catalogue rows 1, 2, ….
    """
    lengths = frame["user"].rle().struct.field("len").to_numpy()
    user = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    item, label, time = Vocabulary(items).encode(frame["item"]), frame[LABEL].to_numpy(), frame["timestamp"].to_numpy()
    # Touches before the first impression of the same user at the same time: the log holds them in this order.
    first = np.ones(len(user), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (time[1:] != time[:-1])
    begin = np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
    touches = np.concatenate([[0], np.cumsum(label, dtype=np.int64)])
    history_end = touches[begin]

    cuts = time_cuts(time, protocol)
    part = np.searchsorted(cuts, time, side="right")
    shown = Impressions(user, item, part == 0, {})
    result = Labelled(log.time < cuts[0], {}, impressions=shown)
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(part == number)
        most = getattr(protocol.targets_per_user, name)
        if most is not None:
            before = len(rows)
            rows = sample_per_user(user[rows], rows, most, np.random.default_rng([seed, 2, number]))
            if len(rows) < before:
                result.dropped[f"{name}, beyond targets_per_user"] = before - len(rows)
        refuse_empty(name, len(rows), log, protocol)
        _refuse_one_class(name, label[rows])
        starts = np.ones(len(rows), dtype=bool)
        starts[1:] = (user[rows][1:] != user[rows][:-1]) | (history_end[rows][1:] != history_end[rows][:-1])
        of_group = rows[starts]
        shown.rows[name] = rows
        result.samples[name] = Samples(
            user=user[of_group],
            history_end=history_end[of_group],
            candidate_offsets=np.append(np.flatnonzero(starts), len(rows)),
            candidates=item[rows],
            label=label[rows],
            position=of_group,
            time=time[rows],
        )
    return result


def _refuse_one_class(split: str, label: np.ndarray) -> None:
    if label.min() == label.max():
        raise UserError(
            f"protocol=labelled leaves only label {label[0]} in the {len(label):,} rows of {split}, which need both: "
            "give it more data, or move the cuts (protocol.train_share, protocol.validation_share)."
        )


def published(
    log: Log, items: pl.Series, users: pl.Series, rows: PublishedRows, protocol: LastEventConfig, seed: int
) -> Labelled:
    """The files' rows in the files' order; only the users that validate are drawn, from those of the training file.

    Earlier targets of the training users (`protocol.train_targets`), which no file has, come before their user's rows.

    Args:
        items, users: raw values of catalogue rows 1, 2, … and of users 0, 1, ….
    """
    item_index, user_index = Vocabulary(items), Vocabulary(users)
    training = _groups(log, rows.train, item_index, user_index)
    train, validation = hold_out(np.unique(training.user), protocol.validation_share, "validation", seed)
    held_out = np.isin(training.user, validation)
    samples = {
        "train": training.take(np.flatnonzero(~held_out)),
        "validation": training.take(np.flatnonzero(held_out)),
        "test": _groups(log, rows.test, item_index, user_index),
    }
    for name in SPLITS:
        refuse_empty(name, len(samples[name]), log, protocol)
    seen = np.isin(np.arange(len(users)), train)[log.user]
    if protocol.train_targets > 1:
        earlier = _earlier(log, samples["train"], seen, protocol, seed)
        samples["train"] = earlier.merged(samples["train"])
    return Labelled(seen, samples)


def _earlier(log: Log, rows: Samples, seen: np.ndarray, protocol: LastEventConfig, seed: int) -> Samples:
    """The training users' targets before those of `rows`, each at the place of its user's first row."""
    users, first = np.unique(rows.user, return_index=True)
    wanted = seen & (events_after(log) < protocol.train_targets) & has_history(log, protocol.ties)
    wanted[rows.history_end] = False
    targets = np.flatnonzero(wanted)
    rng = np.random.default_rng([seed, 5, SPLITS.index("train")])
    negatives = NegativeSampler(log, seen, protocol.negatives).draw(rng, targets, protocol.negatives.per_positive)
    samples = Samples.of_targets(log, targets, negatives, protocol.ties)
    samples.position = rows.position[first[np.searchsorted(users, samples.user)]]
    return samples


def occurrences(log: Log, samples: list[Samples]) -> tuple[np.ndarray, np.ndarray]:
    """How often each catalogue row and each user stands in labelled rows: (items,) and (U,) int64.

    A row counts its user, its candidate and its whole history, so a history counts once for each of its candidates.
    """
    items = np.zeros(log.items, dtype=np.int64)
    users = np.zeros(len(log.user_offsets) - 1, dtype=np.int64)
    for one in samples:
        rows = np.diff(one.candidate_offsets)
        items += np.bincount(one.candidates, minlength=log.items)
        users += np.bincount(one.user, rows, minlength=len(users)).astype(np.int64)
        for begin in range(0, len(one), CHUNK):
            part = slice(begin, begin + CHUNK)
            start = log.user_offsets[one.user[part]]
            events, offsets = ranges(start, one.history_end[part] - start)
            weight = np.repeat(rows[part], np.diff(offsets))
            items += np.bincount(log.item[events], weight, minlength=log.items).astype(np.int64)
    return items, users


def _groups(log: Log, rows: pl.DataFrame, items: Vocabulary, users: Vocabulary) -> Samples:
    """Consecutive rows of one user and one length of history are a group."""
    user = users.encode(rows["user"]) - 1
    history = rows["history"].to_numpy().astype(np.int64)
    length = np.diff(log.user_offsets)[user]
    wrong = (user < 0) | (history < 1) | (history >= length)
    if wrong.any():
        row = int(wrong.argmax())
        raise UserError(
            f"Row {row + 1} of the published rows has a history of {history[row]} events of user "
            f"{rows['user'][row]}, and the log has no event after it: take rows and events from one run."
        )
    first = np.ones(len(user), dtype=bool)
    first[1:] = (user[1:] != user[:-1]) | (history[1:] != history[:-1])
    begin = np.flatnonzero(first)
    return Samples(
        user=user[begin],
        history_end=log.user_offsets[user[begin]] + history[begin],
        candidate_offsets=np.append(begin, len(user)).astype(np.int64),
        candidates=items.encode(rows["item"]),
        label=rows["label"].to_numpy().astype(np.uint8),
        position=np.arange(len(begin)),
    )
