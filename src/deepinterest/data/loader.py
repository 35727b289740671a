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
from deepinterest.data.places import Places
from deepinterest.data.samples import Samples, ranges
from deepinterest.errors import UserError

PUBLISHED_BUFFER = 20  # batches that the published code sorts at a time


class BatchLoader:
    """Iterates a split in batches of about `batch_size` rows; each group stays whole.

    Groups are shuffled anew each epoch from (seed, epoch) and split evenly, so that no batch is short and none is
    dropped. What is drawn for a group comes from (seed, epoch, group). `state_dict` tells epoch and position: a loader
    that loads it goes on with the very next batch.

    Of several processes each has `batch_size` rows, and their batches together are what one process would have with a
    batch size of the sum: each takes every `world`-th group of it. All groups are used, and the processes' batches may
    differ by a group; in training `Batch.share` says how much each counts, and each has one at every step.

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
        groups = len(samples)
        if shuffle and groups < world:
            raise UserError(
                f"Training has {groups} histories for {world} processes: each needs one at every step. "
                "Set trainer.devices=1."
            )
        together = max(world, round(world * batch_size * groups / max(1, samples.rows)))  # groups of all processes
        count = max(1, -(-groups // together))
        if shuffle:
            count = min(count, max(1, groups // world))
        self._cuts = np.linspace(0, groups, count + 1).round().astype(np.int64)
        self.epoch = self.position = 0

    def __len__(self) -> int:
        return len(self._cuts) - 1 if self._sorted is None else len(self._sorted)

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position, "batches": len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if state.get("batches", len(self)) != len(self):
            raise UserError(
                f"The run was saved with {state['batches']:,} batches an epoch, here are {len(self):,}: "
                f"go on with as many processes as it had (here {self.world}), each with the same trainer.batch_size."
            )
        if not (type(state["epoch"]) is type(state["position"]) is int) or not 0 <= state["position"] <= len(self):
            raise ValueError(f"The place in the data is {state}, of {len(self):,} batches.")
        self.epoch, self.position = state["epoch"], state["position"]

    def __iter__(self) -> Iterator[Batch]:
        epoch, first = self.epoch, self.position
        batches = self._batches(epoch)

        def make(number: int) -> Batch:
            return self.batch(batches[number][self.rank :: self.world], epoch, of=batches[number])

        made = _ahead(make, range(first, len(self))) if self.prefetch else map(make, range(first, len(self)))
        for number, batch in enumerate(made, first):
            # Before the yield: a consumer may stop at the last batch without asking for more.
            last = number + 1 == len(self)
            self.epoch, self.position = (epoch + 1, 0) if last else (epoch, number + 1)
            yield batch

    def _batches(self, epoch: int) -> list[np.ndarray]:
        """The groups of each batch of an epoch, those of all processes."""
        if self._sorted is not None:
            return self._sorted
        groups = np.arange(len(self.samples), dtype=np.int32 if len(self.samples) < 2**31 else np.int64)
        if self.shuffle:
            np.random.default_rng([self.seed, 3, epoch]).shuffle(groups)
        return np.split(groups, self._cuts[1:-1])

    def _published_order(self, batch_size: int) -> list[np.ndarray]:
        length = self.samples.history_end - self.log.user_offsets[self.samples.user]
        batches = []
        for begin in range(0, len(length), PUBLISHED_BUFFER * batch_size):
            buffer = np.argsort(length[begin : begin + PUBLISHED_BUFFER * batch_size])[::-1] + begin
            batches += np.split(buffer, range(batch_size, len(buffer), batch_size))
        return batches

    def row_order(self) -> np.ndarray:
        """(R,) the split's rows as all processes yield them, one process after the other; not of a shuffled loader."""
        batches = self._batches(0)
        groups = np.concatenate([batch[rank :: self.world] for rank in range(self.world) for batch in batches])
        return ranges(*self._candidates(groups))[0]

    def batch(self, groups: np.ndarray, epoch: int = 0, of: np.ndarray | None = None) -> Batch:
        """The batch of the given groups (n,); of several processes `of` are the groups of all."""
        samples, log = self.samples, self.log
        user, end = samples.user[groups], samples.history_end[groups]
        start = self._starts(groups)
        events, offsets = ranges(start, end - start)
        first, count = self._candidates(groups)
        rows, _ = ranges(first, count)
        candidates, label = samples.candidates[rows], samples.label[rows]
        if self.redraw is not None:
            negative = np.flatnonzero(label == 0)
            places = Places([self.seed, 4, epoch], np.repeat(groups, count)[negative], rows[negative])
            candidates[negative] = self.redraw.draw(places, np.repeat(samples.positive[groups], count)[negative], 1)[
                :, 0
            ]
        context = None
        if samples.context is not None:
            context = samples.context[rows]
        elif log.context is not None:
            context = log.context[np.repeat(samples.positive[groups], count)]
        negatives = None
        if self.auxiliary is not None:
            each = self.auxiliary.config.per_positive
            number = (events[:, None] * each + np.arange(each)).ravel()
            places = Places([self.seed, 5, epoch], np.repeat(groups, each * (end - start)), number)
            negatives = _tensor(self.auxiliary.draw(places, events, each))
        batch = Batch(
            history=_tensor(log.item[events]),
            offsets=_tensor(offsets),
            user=_tensor(user) + 1,
            candidates=_tensor(candidates),
            history_index=_tensor(np.repeat(np.arange(len(groups)), count)),
            label=torch.from_numpy(label.astype(np.float32)),
            auxiliary_negatives=negatives,
            context=None if context is None else _tensor(context),
            share=None if self.world == 1 or of is None or not self.shuffle else self._share(groups, of),
        )
        batch.checked = True
        return batch

    def _starts(self, groups: np.ndarray) -> np.ndarray:
        """The first event of each group's history: (n,)."""
        start = self.log.user_offsets[self.samples.user[groups]]
        if self.max_history is None:
            return start
        return np.maximum(start, self.samples.history_end[groups] - self.max_history)

    def _candidates(self, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first row of each group, and how many it has: (n,) each."""
        first = self.samples.candidate_offsets[groups]
        return first, self.samples.candidate_offsets[groups + 1] - first

    def _share(self, groups: np.ndarray, of: np.ndarray) -> torch.Tensor:
        """`Batch.share` of `groups`, a process's, `of` the groups of all."""

        def counts(groups: np.ndarray) -> np.ndarray:
            steps = np.maximum(self.samples.history_end[groups] - self._starts(groups) - 1, 0)
            return np.array([self._candidates(groups)[1].sum(), steps.sum()])

        # Where nobody has two events there is no mean over pairs.
        return torch.from_numpy((self.world * counts(groups) / np.maximum(counts(of), 1)).astype(np.float32))


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
