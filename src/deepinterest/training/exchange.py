"""What several processes tell each other of their replicas of embedding tables: the rows they touched, no others.

An all-reduce of dense gradients would carry every row of every table at each step. Here each process sends the distinct
rows of its batch with their gradients; all merge them in the same order, and so update their replicas to the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, distributed


class Exchange:
    """The mean over processes of sparse gradients, by two all-gathers a step for all tables together.

    The first tells how many rows each process has of each table; the second carries them, padded to the longest. Gloo
    and NCCL do both. `steps` and `received` count steps and the bytes that came from other processes; as many are sent.
    """

    def __init__(self) -> None:
        self.steps = self.received = 0

    def mean(self, tables: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> list[Tensor]:
        """Gradients of tables (I, D), float32: this process's, sparse or None -> the mean over all processes, sparse.

        Every process must call it at the same step with the same tables. On a CPU the result isn't coalesced: a row is
        there once for each process that touched it.
        """
        device, world = tables[0].device, distributed.get_world_size()
        own = [_distinct(table, gradient) for table, gradient in zip(tables, gradients, strict=True)]
        counts = self._gathered(torch.tensor([len(rows) for rows, _ in own], device=device)).tolist()  # (W, T)
        # Words of 4 bytes: for each table the rows' numbers, then their gradients.
        sizes = [[n * width for n, t in zip(of, tables, strict=True) for width in (1, t.shape[1])] for of in counts]
        words = torch.cat([part for rows, values in own for part in (rows.int(), values.view(torch.int32).flatten())])
        message = words.new_zeros(max(map(sum, sizes)))
        message[: len(words)] = words
        messages = self._gathered(message)  # (W, longest)
        self.steps += 1
        parts = [
            [message[a:b] for a, b in pairwise(accumulate(of, initial=0))]
            for message, of in zip(messages, sizes, strict=True)
        ]
        return [
            merged(
                table.shape,
                [of[2 * t].long() for of in parts],
                [of[2 * t + 1].view(torch.float32).view(-1, table.shape[1]) / world for of in parts],
                coalesce=device.type != "cpu",
            )
            for t, table in enumerate(tables)
        ]

    def _gathered(self, own: Tensor) -> Tensor:
        """The tensors (n,) of all processes, of one shape: (W, n)."""
        everyone = own.new_empty(distributed.get_world_size(), len(own))
        distributed.all_gather(list(everyone), own)
        self.received += everyone.nbytes - own.nbytes
        return everyone


def _distinct(table: Tensor, gradient: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows (n,) and values (n, D) of a gradient, each row once."""
    if gradient is None:
        return torch.empty(0, dtype=torch.int64, device=table.device), table.new_empty(0, table.shape[1])
    gradient = gradient.coalesce()
    return gradient.indices()[0], gradient.values()


def merged(shape: torch.Size, rows: list[Tensor], values: list[Tensor], coalesce: bool) -> Tensor:
    """The sum of sparse gradients, each of distinct rows (n,) with values (n, D), as a gradient of that shape (I, D).

    Coalesced it is summed process after process: a GPU adds up rows that repeat in an order of its own every time.
    """
    all_rows, all_values = torch.cat(rows), torch.cat(values)
    if coalesce:
        all_rows, inverse = all_rows.unique(return_inverse=True)
        all_values = all_values.new_zeros(len(all_rows), shape[1])
        for place, part in zip(inverse.split([len(part) for part in rows]), values, strict=True):
            all_values.index_add_(0, place, part)
    return torch.sparse_coo_tensor(all_rows[None], all_values, shape, is_coalesced=coalesce, check_invariants=False)
