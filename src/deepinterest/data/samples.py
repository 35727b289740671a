"""Samples: the labelled rows of a split, in groups that share a history. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deepinterest.config import HistoryTies
from deepinterest.data.log import Log


@dataclass
class Samples:
    """One split: G groups, each a history with its candidates.

    A row happens at its group's positive; impressions have a time and a context of their own.
    """

    user: np.ndarray  # (G,)   int32
    history_end: np.ndarray  # (G,)   int64: the history ends before this event
    candidate_offsets: np.ndarray  # (G+1,) int64
    candidates: np.ndarray  # (R,)   int32, catalogue rows
    label: np.ndarray  # (R,)   uint8
    position: np.ndarray  # (G,)   int64: place among the groups that splits are made of
    target: np.ndarray | None = None  # (G,)   int64: the positive's event; None: it is `history_end`
    time: np.ndarray | None = None  # (R,)   int64, milliseconds, of impressions; None: that of the positive
    context: np.ndarray | None = None  # (R, C) int32, vocabulary ids, of impressions; None: that of the positive

    def __post_init__(self) -> None:
        for name in ("time", "context"):
            values = getattr(self, name)
            if values is not None and len(values) != self.rows:
                raise ValueError(f"{len(values)} values of {name} for {self.rows} rows: take groups by `take`")

    @classmethod
    def of_targets(
        cls, log: Log, targets: np.ndarray, negatives: np.ndarray, ties: HistoryTies = HistoryTies.order
    ) -> Samples:
        """(G,) target events and their (G, K) negatives; the positive comes first in its group."""
        candidates = np.concatenate([log.item[targets][:, None], negatives], axis=1)
        label = np.zeros(candidates.shape, dtype=np.uint8)
        label[:, 0] = 1
        offsets = np.arange(len(targets) + 1, dtype=np.int64) * candidates.shape[1]
        return cls(
            log.user[targets],
            log.history_end(targets, ties),
            offsets,
            candidates.reshape(-1),
            label.reshape(-1),
            targets,
            None if ties is HistoryTies.order else targets,
        )

    def __len__(self) -> int:
        return len(self.user)

    @property
    def rows(self) -> int:
        return len(self.candidates)

    @property
    def positive(self) -> np.ndarray:
        """(G,) the positive's event; not of impressions."""
        return self.history_end if self.target is None else self.target

    def row_time(self, log: Log, groups: slice = slice(None)) -> np.ndarray:
        """Milliseconds at which each row of consecutive groups (default: all) was asked: int64."""
        begin, end, _ = groups.indices(len(self))
        offsets = self.candidate_offsets[begin : max(begin, end) + 1]
        if self.time is not None:
            return self.time[offsets[0] : offsets[-1]]
        return np.repeat(log.time[self.positive[groups]], np.diff(offsets))

    def take(self, groups: np.ndarray) -> Samples:
        """Only the given groups (n,), in that order."""
        first = self.candidate_offsets[groups]
        rows, offsets = ranges(first, self.candidate_offsets[groups + 1] - first)
        return Samples(
            self.user[groups],
            self.history_end[groups],
            offsets,
            self.candidates[rows],
            self.label[rows],
            self.position[groups],
            None if self.target is None else self.target[groups],
            None if self.time is None else self.time[rows],
            None if self.context is None else self.context[rows],
        )

    def apart(self) -> Samples:
        """Each row as a group of its own, in the same order."""
        groups = np.repeat(np.arange(len(self)), np.diff(self.candidate_offsets))
        return replace(
            self,
            user=self.user[groups],
            history_end=self.history_end[groups],
            candidate_offsets=np.arange(self.rows + 1, dtype=np.int64),
            position=self.position[groups],
            target=None if self.target is None else self.target[groups],
        )

    def merged(self, other: Samples) -> Samples:
        """The groups of both, by their position."""

        def both(name: str) -> np.ndarray:
            return np.concatenate([getattr(self, name), getattr(other, name)])

        offsets = np.concatenate([self.candidate_offsets, other.candidate_offsets[1:] + self.rows])
        one_after_the_other = Samples(
            both("user"),
            both("history_end"),
            offsets,
            both("candidates"),
            both("label"),
            both("position"),
            None if self.target is None and other.target is None else both("positive"),
            None if self.time is None else both("time"),
            None if self.context is None else both("context"),
        )
        return one_after_the_other.take(np.argsort(one_after_the_other.position, kind="stable"))


def ranges(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """start[0], start[0]+1, … of `length[0]` numbers, then start[1], …; and the offsets (n+1,) of each range."""
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    return np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1]), offsets
