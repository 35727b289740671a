"""BatchLoader: ragged batches of whole groups, in a seeded order, without worker processes.

A group is a history with its candidates. One batch is a handful of vectorised gathers from the memory-mapped store, so
a worker process would cost more in transfer than it saves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from deepinterest.data.batch import Batch
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler


@dataclass
class Samples:
    """One split: G groups, each a history with its candidates."""

    user: np.ndarray  # (G,)   int32
    history_end: np.ndarray  # (G,)   int64: the history ends before this event, the positive itself
    candidate_offsets: np.ndarray  # (G+1,) int64
    candidates: np.ndarray  # (R,)   int32, catalogue rows
    label: np.ndarray  # (R,)   uint8

    @classmethod
    def of_targets(cls, log: Log, targets: np.ndarray, negatives: np.ndarray) -> Samples:
        """(G,) target events and their (G, K) negatives; the positive comes first in its group."""
        candidates = np.concatenate([log.item[targets][:, None], negatives], axis=1)
        label = np.zeros(candidates.shape, dtype=np.uint8)
        label[:, 0] = 1
        offsets = np.arange(len(targets) + 1, dtype=np.int64) * candidates.shape[1]
        return cls(log.user[targets], targets, offsets, candidates.reshape(-1), label.reshape(-1))

    def __len__(self) -> int:
        return len(self.user)

    @property
    def rows(self) -> int:
        return len(self.candidates)


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
    """

    def __init__(
        self,
        log: Log,
        samples: Samples,
        *,
        batch_size: int,
        max_history: int,
        seed: int,
        shuffle: bool = False,
        redraw: NegativeSampler | None = None,  # training negatives drawn anew each epoch
        auxiliary: NegativeSampler | None = None,  # negatives of each history step
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.log, self.samples, self.max_history = log, samples, max_history
        self.seed, self.shuffle, self.redraw, self.auxiliary = seed, shuffle, redraw, auxiliary
        self.rank, self.world = rank, world
        groups_per_batch = max(1, round(batch_size * len(samples) / samples.rows))
        mine = len(samples) // world if shuffle else len(range(rank, len(samples), world))
        self._cuts = np.linspace(0, mine, max(1, -(-mine // groups_per_batch)) + 1).round().astype(np.int64)
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.epoch, self.position
        groups = np.arange(len(self.samples))
        if self.shuffle:
            groups = np.random.default_rng([self.seed, 3, epoch]).permutation(groups)
        mine = groups[self.rank :: self.world][: self._cuts[-1]]
        for number in range(first, len(self)):
            # Before the yield: a consumer may stop at the last batch without asking for more.
            last = number + 1 == len(self)
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, number + 1)
            rng = np.random.default_rng([self.seed, 4, epoch, number, self.rank])
            yield self.batch(mine[self._cuts[number] : self._cuts[number + 1]], rng)

    def batch(self, groups: np.ndarray, rng: np.random.Generator) -> Batch:
        """The batch of the given groups (n,)."""
        samples, log = self.samples, self.log
        user, end = samples.user[groups], samples.history_end[groups]
        start = np.maximum(log.user_offsets[user], end - self.max_history)
        events, offsets = ranges(start, end - start)
        first = samples.candidate_offsets[groups]
        count = samples.candidate_offsets[groups + 1] - first
        rows, _ = ranges(first, count)
        candidates, label = samples.candidates[rows], samples.label[rows]
        if self.redraw is not None:
            fresh = self.redraw.draw(rng, end, self.redraw.config.per_positive)
            candidates[label == 0] = fresh.reshape(-1)
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
        )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))
