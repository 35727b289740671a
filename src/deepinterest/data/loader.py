"""BatchLoader: ragged batches of whole groups, in a seeded order, without worker processes.

A group is a history with its candidates. One batch is a handful of vectorised gathers from the memory-mapped store, so
a worker process would cost more in transfer than it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from deepinterest.data.batch import Batch
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.samples import Samples, ranges
from deepinterest.errors import UserError

PUBLISHED_BUFFER = 20  # batches that the published code sorts at a time


class BatchLoader:
    """Iterates a split in batches of about `batch_size` rows; each group stays whole.

    Groups are shuffled anew each epoch from (seed, epoch) and split evenly, so that no batch is short and none is
    dropped. What is drawn for a batch comes from (seed, epoch, batch). `state_dict` tells epoch and position: a loader
    that loads it goes on with the very next batch.

    Under several processes each takes every `world`-th group of the shuffled order; when shuffling, the few groups
    beyond a multiple of `world` sit out that epoch, so that all processes take the same number of steps.

    `length_sorted` is the published code's order instead (quirk 16): every row a group of its own, in the given order,
    but each run of 20 batches sorted by length of history, longest first; the last batch may be short.

    With `prefetch` a thread makes the next batch while this one is used. The batches are the same, and so is the state:
    it counts those handed out.
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
        prefetch: bool = False,
    ) -> None:
        if length_sorted and world > 1:
            raise UserError(
                f"quirks.length_sorted needs one process, here are {world}: the published order has no shares. "
                "Set trainer.devices=1 or quirks.length_sorted=false."
            )
        self.log, self.max_history = log, max_history
        self.samples = samples.apart() if length_sorted else samples
        self.seed, self.shuffle, self.redraw, self.auxiliary = seed, shuffle, redraw, auxiliary
        self.rank, self.world, self.prefetch = rank, world, prefetch
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

        def make(number: int) -> Batch:
            return self.batch(batches[number], np.random.default_rng([self.seed, 4, epoch, number, self.rank]))

        made = _ahead(make, range(first, len(self))) if self.prefetch else map(make, range(first, len(self)))
        for number, batch in enumerate(made, first):
            # Before the yield: a consumer may stop at the last batch without asking for more.
            last = number + 1 == len(self)
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, number + 1)
            yield batch

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


def _ahead(make: Callable[[int], Batch], numbers: range) -> Iterator[Batch]:
    """The batches of `numbers`, each made by a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="batch") as thread:
        waiting = None
        for number in numbers:
            following = thread.submit(make, number)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64))
