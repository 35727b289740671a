"""Protocols: which events are targets of training, validation and test, and which may be learned from.

A target is an event; its history is what its user did before its time, or before its place in the log's order.
Protocols never read files and never look at anything but the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from deepinterest.config import (
    HistoryTies,
    LabelledConfig,
    LastEventConfig,
    LeaveLastOutConfig,
    ProtocolConfig,
    TemporalConfig,
)
from deepinterest.data.log import Log
from deepinterest.errors import UserError

SPLITS = ("train", "validation", "test")
CHUNK = 2_000_000  # events or targets at a time
# Of a user: fewer give no target. Under last_event a lone event still is in the whole pool of negatives.
MINIMUM_EVENTS = {"temporal": 2, "leave_last_out": 3, "last_event": 1, "labelled": 1}


@dataclass
class Split:
    seen: np.ndarray  # (E,) bool: training may learn from it
    targets: dict[str, np.ndarray]  # split -> events, int64, ascending
    dropped: dict[str, int] = field(default_factory=dict)


def split(log: Log, config: ProtocolConfig, seed: int) -> Split:
    """Cut the log; then keep at most `targets_per_user` targets and no evaluation target that training never saw.

    last_event keeps all of them: a user has one, and the published rows hold items that training never saw.
    Impressions are cut elsewhere (data/labelled.py).
    """
    keep_all = isinstance(config, LastEventConfig)
    if isinstance(config, TemporalConfig):
        part, seen = _temporal(log, config)
    elif isinstance(config, LeaveLastOutConfig):
        part, seen = _leave_last_out(log)
    elif isinstance(config, LastEventConfig):
        part, seen = _last_event(log, config, seed)
    else:
        raise UserError(
            f"protocol.name={config.name} is not a protocol; take temporal, leave_last_out, last_event or labelled."
        )
    preceded = has_history(log, HistoryTies.order)
    known = np.zeros(log.items, dtype=bool)
    known[log.item[seen]] = True
    result = Split(seen, {})
    fit = has_history(log, config.ties)
    for number, name in enumerate(SPLITS):
        result.dropped[f"{name}, without a history"] = int(np.count_nonzero((part == number) & ~fit))
        # Those that lack a history under `strict` alone are drawn, too, and then left out: both rules choose the same.
        targets = np.flatnonzero((part == number) & preceded)
        if name != "train" and not keep_all:
            unseen = ~known[log.item[targets]]
            result.dropped[f"{name}, unseen in training"] = int((unseen & fit[targets]).sum())
            targets = targets[~unseen]
        chosen, most = targets[fit[targets]], getattr(config.targets_per_user, name)
        if most is not None and not keep_all:
            before = len(chosen)
            rng = np.random.default_rng([seed, 2, number])
            chosen = sample_per_user(log.user[targets], targets, most, rng, fit[targets])
            if len(chosen) < before:
                result.dropped[f"{name}, beyond targets_per_user"] = before - len(chosen)
        targets = chosen
        refuse_empty(name, len(targets), log, config)
        result.targets[name] = targets
    return result


def has_history(log: Log, ties: HistoryTies) -> np.ndarray:
    """(E,) bool: whether the history of an event as a target would hold an event."""
    found = np.empty(len(log), dtype=bool)
    for begin in range(0, len(log), CHUNK):
        events = np.arange(begin, min(begin + CHUNK, len(log)))
        first = log.user_offsets[log.user[events]]
        found[events] = first < events if ties is HistoryTies.order else log.time[first] < log.time[events]
    return found


def refuse_empty(name: str, targets: int, log: Log, config: ProtocolConfig) -> None:
    """Raise UserError if a split has no target."""
    if targets == 0:
        raise UserError(
            f"protocol={config.name} leaves no {name} target in a log of {len(log):,} events of "
            f"{len(log.user_offsets) - 1:,} users; give it more data or another protocol."
        )


def hold_out(users: np.ndarray, share: float, split: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(n,) users -> the users that are left and the held-out ones, at least one, both ascending."""
    shuffled = np.random.default_rng([seed, 6, SPLITS.index(split)]).permutation(users)
    held = max(1, round(share * len(users)))
    return np.sort(shuffled[held:]), np.sort(shuffled[:held])


def _temporal(log: Log, config: TemporalConfig) -> tuple[np.ndarray, np.ndarray]:
    cuts = time_cuts(log.time, config)
    return np.searchsorted(cuts, log.time, side="right").astype(np.int8), log.time < cuts[0]


def time_cuts(time: np.ndarray, config: TemporalConfig | LabelledConfig) -> np.ndarray:
    """(n,) times -> when validation and when test begin: (2,). What happens at one time stays on one side."""
    ordered = np.sort(time)
    shares = (config.train_share, config.train_share + config.validation_share)
    return np.array([ordered[min(int(share * len(time)), len(time) - 1)] for share in shares])


def _leave_last_out(log: Log) -> tuple[np.ndarray, np.ndarray]:
    part = np.zeros(len(log), dtype=np.int8)
    part[log.user_offsets[1:] - 1] = 2
    part[(log.user_offsets[1:] - 2)[np.diff(log.user_offsets) >= 2]] = 1
    return part, part == 0


def _last_event(log: Log, config: LastEventConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Users are split; the last event of each is its one target, the last few of those that train."""
    length = np.diff(log.user_offsets)
    rest, test = hold_out(np.flatnonzero(length >= 2), config.test_share, "test", seed)
    train, validation = hold_out(rest, config.validation_share, "validation", seed)
    part = np.full(len(log), -1, dtype=np.int8)
    for number, users in enumerate((train, validation, test)):
        part[log.user_offsets[users + 1] - 1] = number
    seen = np.isin(np.arange(len(length)), train)[log.user]
    part[seen & (events_after(log) < config.train_targets)] = 0
    return part, seen


def events_after(log: Log) -> np.ndarray:
    """(E,) int64: how many events of the user come after."""
    after = log.user_offsets[1:][log.user]
    after -= np.arange(1, len(log) + 1)
    return after


def sample_per_user(
    user: np.ndarray, targets: np.ndarray, most: int, rng: np.random.Generator, fit: np.ndarray | None = None
) -> np.ndarray:
    """At most so many of each user's targets (n,), ascending; user (n,) says whose they are, fit (n,) which may be."""
    chosen, begin = [], 0
    while begin < len(user):
        end = len(user)
        if begin + CHUNK < end:
            end = int(np.searchsorted(user, user[begin + CHUNK], side="right"))
        part = user[begin:end]
        key = rng.random(len(part))
        if fit is not None:
            key[~fit[begin:end]] = 1  # after all others
        order = np.lexsort((key, part))
        first = np.searchsorted(part, part, side="left")  # part[order] is part
        rows = begin + order[np.arange(len(part)) - first < most]
        chosen.append(np.sort(targets[rows if fit is None else rows[fit[rows]]]))
        begin = end
    return np.concatenate(chosen) if chosen else targets
