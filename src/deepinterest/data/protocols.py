"""Protocols: which events are targets of training, validation and test, and which may be learned from.

A target is an event; its history is what its user did before it in the log's order, so it strictly precedes.
Protocols never read files and never look at anything but the log.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from deepinterest.config import LeaveLastOutConfig, ProtocolConfig, TemporalConfig
from deepinterest.data.log import Log
from deepinterest.errors import UserError

SPLITS = ("train", "validation", "test")
MINIMUM_EVENTS = {"temporal": 2, "leave_last_out": 3}  # of a user: fewer give no target


@dataclass
class Split:
    seen: np.ndarray  # (E,) bool: training may learn from it
    targets: dict[str, np.ndarray]  # split -> events, int64, ascending
    dropped: dict[str, int] = field(default_factory=dict)


def split(log: Log, config: ProtocolConfig, seed: int) -> Split:
    """Cut the log; then keep at most `targets_per_user` targets and no evaluation target that training never saw."""
    if isinstance(config, TemporalConfig):
        part, seen = _temporal(log, config)
    elif isinstance(config, LeaveLastOutConfig):
        part, seen = _leave_last_out(log)
    else:
        raise UserError(f"protocol.name={config.name} is not a protocol; take temporal or leave_last_out.")
    known = np.zeros(log.items, dtype=bool)
    known[log.item[seen]] = True
    result = Split(seen, {})
    for number, name in enumerate(SPLITS):
        targets = np.flatnonzero((part == number) & (log.position >= 1))
        if name != "train":
            unseen = ~known[log.item[targets]]
            result.dropped[f"{name} targets unseen in training"] = int(unseen.sum())
            targets = targets[~unseen]
        most = getattr(config.targets_per_user, name)
        if most is not None:
            targets = _sample_per_user(log.user[targets], targets, most, np.random.default_rng([seed, 2, number]))
        if len(targets) == 0:
            raise UserError(
                f"protocol={config.name} leaves no {name} target in a log of {len(log):,} events of "
                f"{len(log.user_offsets) - 1:,} users; give it more data or another protocol."
            )
        result.targets[name] = targets
    return result


def _temporal(log: Log, config: TemporalConfig) -> tuple[np.ndarray, np.ndarray]:
    """Global cuts; events at one time stay on one side."""
    ordered = np.sort(log.time)
    shares = (config.train_share, config.train_share + config.validation_share)
    cuts = [ordered[min(int(share * len(log)), len(log) - 1)] for share in shares]
    return np.searchsorted(np.array(cuts), log.time, side="right"), log.time < cuts[0]


def _leave_last_out(log: Log) -> tuple[np.ndarray, np.ndarray]:
    from_the_end = log.user_offsets[1:][log.user] - 1 - np.arange(len(log))
    part = np.select([from_the_end == 0, from_the_end == 1], [2, 1], default=0)
    return part, part == 0


def _sample_per_user(user: np.ndarray, targets: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    order = np.lexsort((rng.random(len(targets)), user))
    first = np.searchsorted(user[order], user[order], side="left")
    return np.sort(targets[order[np.arange(len(order)) - first < most]])
