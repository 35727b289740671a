"""BatchLoader: ragged batches of whole groups, in a seeded order, without worker processes.

A group is a history with its candidates. One batch is a handful of vectorised gathers from the memory-mapped store, so
a worker process would cost more in transfer than it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from deepinterest.data.batch import Batch
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.errors import UserError

PUBLISHED_BUFFER = 20  # batches that the published code sorts at a time


@dataclass
class Samples:
    """One split: G groups, each a history with its candidates.

    A row happens at its group's positive, `history_end`; impressions have a time and a context of their own.
    """

    user: np.ndarray  # (G,)   int32
    history_end: np.ndarray  # (G,)   int64: the history ends before this event; without `time` it is the positive
    candidate_offsets: np.ndarray  # (G+1,) int64
    candidates: np.ndarray  # (R,)   int32, catalogue rows
    label: np.ndarray  # (R,)   uint8
    position: np.ndarray  # (G,)   int64: place among the groups that splits are made of
    time: np.ndarray | None = None  # (R,)   int64, milliseconds, of impressions; None: that of the positive
    context: np.ndarray | None = None  # (R, C) int32, vocabulary ids, of impressions; None: that of the positive

    def __post_init__(self) -> None:
        for name in ("time", "context"):
            values = getattr(self, name)
            if values is not None and len(values) != self.rows:
                raise ValueError(f"{len(values)} values of {name} for {self.rows} rows: take groups by `take`")

    @classmethod
    def of_targets(cls, log: Log, targets: np.ndarray, negatives: np.ndarray) -> Samples:
        """(G,) target events and their (G, K) negatives; the positive comes first in its group."""
        candidates = np.concatenate([log.item[targets][:, None], negatives], axis=1)
        label = np.zeros(candidates.shape, dtype=np.uint8)
        label[:, 0] = 1
        offsets = np.arange(len(targets) + 1, dtype=np.int64) * candidates.shape[1]
        return cls(log.user[targets], targets, offsets, candidates.reshape(-1), label.reshape(-1), targets)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def rows(self) -> int:
        return len(self.candidates)

    def row_time(self, log: Log, groups: slice = slice(None)) -> np.ndarray:
        """Milliseconds at which each row of consecutive groups (default: all) was asked: int64."""
        begin, end, _ = groups.indices(len(self))
        offsets = self.candidate_offsets[begin : max(begin, end) + 1]
        if self.time is not None:
            return self.time[offsets[0] : offsets[-1]]
        return np.repeat(log.time[self.history_end[groups]], np.diff(offsets))

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
            None if self.time is None else both("time"),
            None if self.context is None else both("context"),
        )
        return one_after_the_other.take(np.argsort(one_after_the_other.position, kind="stable"))


def ranges(start: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """start[0], start[0]+1, … of `length[0]` numbers, then start[1], …; and the offsets (n+1,) of each range."""
    offsets = np.zeros(len(length) + 1, dtype=np.int64)
    np.cumsum(length, out=offsets[1:])
    return np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1]), offsets


class BatchLoader:
    """Iterates a split in batches of about `batch_size` rows; each group stays whole.

    Groups are shuffled anew each epoch from (seed, epoch) and split evenly, so that no batch is short and none is
    dropped. What is drawn for a batch comes from (seed, epoch, batch). `state_dict` tells epoch and position: a loader
    that loads it goes on with the very next batch.

    Under several processes each takes every `world`-th group of the shuffled order; when shuffling, the few groups
    beyond a multiple of `world` sit out that epoch, so that all processes take the same number of steps.

    `length_sorted` is the published code's order instead (quirk 16): every row a group of its own, in the given order,
    but each run of 20 batches sorted by length of history, longest first; the last batch may be short.
    """

    def __init__(
        self,
        log: Log,
        samples: Samples,
        *,
        batch_size: int,
        max_history: int | None,  # None takes whole histories
        seed: int,
        shuffle: bool = False,
        length_sorted: bool = False,
        redraw: NegativeSampler | None = None,  # training negatives drawn anew each epoch
        auxiliary: NegativeSampler | None = None,  # negatives of each history step
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if length_sorted and world > 1:
            raise UserError(
                f"quirks.length_sorted needs one process, here are {world}: the published order has no shares. "
                "Set trainer.devices=1 or quirks.length_sorted=false."
            )
        self.log, self.max_history = log, max_history
        self.samples = samples.apart() if length_sorted else samples
        self.seed, self.shuffle, self.redraw, self.auxiliary = seed, shuffle, redraw, auxiliary
        self.rank, self.world = rank, world
        self._sorted = self._published_order(batch_size) if length_sorted else None
        groups_per_batch = max(1, round(batch_size * len(samples) / samples.rows))
        mine = len(samples) // world if shuffle else len(range(rank, len(samples), world))
        self._cuts = np.linspace(0, mine, max(1, -(-mine // groups_per_batch)) + 1).round().astype(np.int64)
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return len(self._cuts) - 1 if self._sorted is None else len(self._sorted)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.epoch, self.position
        batches = self._batches(epoch)
        for number in range(first, len(self)):
            # Before the yield: a consumer may stop at the last batch without asking for more.
            last = number + 1 == len(self)
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, number + 1)
            yield self.batch(batches[number], np.random.default_rng([self.seed, 4, epoch, number, self.rank]))

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The groups of each batch of an epoch."""
        if self._sorted is not None:
            return self._sorted
        groups = np.arange(len(self.samples), dtype=np.int32 if len(self.samples) < 2**31 else np.int64)
        if self.shuffle:
            np.random.default_rng([self.seed, 3, epoch]).shuffle(groups)
        return np.split(groups[self.rank :: self.world][: self._cuts[-1]], self._cuts[1:-1])

    def _published_order(self, batch_size: int) -> list[np.ndarray]:
        length = self.samples.history_end - self.log.user_offsets[self.samples.user]
        batches = []
        for begin in range(0, len(length), PUBLISHED_BUFFER * batch_size):
            buffer = np.argsort(length[begin : begin + PUBLISHED_BUFFER * batch_size])[::-1] + begin
            batches += np.split(buffer, range(batch_size, len(buffer), batch_size))
        return batches

    def row_order(self) -> np.ndarray:
        """(R,) the split's rows as all processes yield them, one process after the other; not of a shuffled loader."""
        if self._sorted is not None:
            return np.concatenate(self._sorted)
        samples = self.samples
        groups = np.concatenate([np.arange(rank, len(samples), self.world) for rank in range(self.world)])
        first = samples.candidate_offsets[groups]
        return ranges(first, samples.candidate_offsets[groups + 1] - first)[0]

    def batch(self, groups: np.ndarray, rng: np.random.Generator) -> Batch:
        """The batch of the given groups (n,)."""
        samples, log = self.samples, self.log
        user, end = samples.user[groups], samples.history_end[groups]
        start = log.user_offsets[user]
        if self.max_history is not None:
            start = np.maximum(start, end - self.max_history)
        events, offsets = ranges(start, end - start)
        first = samples.candidate_offsets[groups]
        count = samples.candidate_offsets[groups + 1] - first
        rows, _ = ranges(first, count)
        candidates, label = samples.candidates[rows], samples.label[rows]
        if self.redraw is not None:
            candidates[label == 0] = self.redraw.draw(rng, np.repeat(end, count)[label == 0], 1)[:, 0]
        context = None
        if samples.context is not None:
            context = samples.context[rows]
        elif log.context is not None:
            context = log.context[np.repeat(end, count)]
        negatives = None
        if self.auxiliary is not None:
            negatives = _tensor(self.auxiliary.draw(rng, events, self.auxiliary.config.per_positive))
        return Batch(
            history=_tensor(log.item[events]),
            offsets=_tensor(offsets),
            user=_tensor(user) + 1,
            candidates=_tensor(candidates),
            history_index=_tensor(np.repeat(np.arange(len(groups)), count)),
            label=torch.from_numpy(label.astype(np.float32)),
            auxiliary_negatives=negatives,
            context=None if context is None else _tensor(context),
        )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))
