"""Items and users as the embeddings of their features, side by side."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepinterest.kernels import add_rows
from deepinterest.nn.sharded import Shard, lookup


@dataclass
class Features:
    """What is known of each item and each user: ids within each feature's vocabulary. Row 0 is the unknown one.

    A user's first feature is the user itself. Context comes with each row of a batch, so only its sizes are known here.
    """

    catalogue: Tensor  # (I, F) feature ids of each item, such as [item, category]
    sizes: list[int]  # (F,) vocabulary of each feature
    user_catalogue: Tensor  # (U, F') feature ids of each user
    user_sizes: list[int]  # (F',)
    context_sizes: list[int] = field(default_factory=list)  # (C,) of each feature of a row itself, such as the hour
    sharded: bool = False  # whether the tables are split over the processes: nn/sharded.py

    def without_unknown_user(self) -> Features:
        """The same with no id for the unknown user, who reads the first user's, as in the published code (quirk 2)."""
        users = self.user_catalogue.clone()
        users[:, 0] = (users[:, 0] - 1).clamp(min=0)
        return replace(self, user_catalogue=users, user_sizes=[self.user_sizes[0] - 1, *self.user_sizes[1:]])

    def of_users(self, itself: bool) -> tuple[Tensor, list[int]]:
        """Catalogue and sizes of users: all features, or without the user itself."""
        first = 0 if itself else 1
        return self.user_catalogue[:, first:], self.user_sizes[first:]


class FeatureEmbedding(nn.Module):
    """Looks up rows of a catalogue: each distinct row once, one lookup per table."""

    catalogue: Tensor
    place: np.ndarray | None = None  # room to find distinct rows on a CPU

    def __init__(self, catalogue: Tensor, sizes: list[int], dim: int, sharded: bool = False) -> None:
        super().__init__()
        self.width = len(sizes) * dim
        self.register_buffer("catalogue", catalogue, persistent=False)  # (I, F)
        self.tables = _tables(sizes, dim, sharded)

    def forward(self, *rows: Tensor) -> list[Tensor]:
        """Catalogue rows of any shape (...), int64 -> for each its embeddings (..., width).

        Raises ValueError for another type, IndexError for a row that the catalogue doesn't have.
        """
        if any(row.dtype is not torch.int64 for row in rows):
            raise ValueError(f"Catalogue rows must be int64, and are {', '.join(str(row.dtype) for row in rows)}.")
        distinct, inverse = self._distinct(torch.cat([row.flatten() for row in rows]))  # (R,), (n,)
        features = self.catalogue.index_select(0, distinct)  # (R, F)
        vectors = lookup(self.tables, features)  # (R, width)
        parts = _Gather.apply(vectors, *inverse.split([row.numel() for row in rows]))
        return [part.view(*row.shape, self.width) for part, row in zip(parts, rows, strict=True)]

    def _distinct(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The distinct rows (R,), and where each of `rows` (n,) is among them (n,)."""
        if rows.device.type != "cpu":
            return torch.unique(rows, return_inverse=True)
        from deepinterest.kernels.rows import distinct  # imported when first used: numba takes a while

        if self.place is None:
            self.place = np.full(len(self.catalogue), -1, np.int32)
        found, inverse = torch.empty_like(rows), torch.empty_like(rows)
        count = distinct(rows.numpy(), self.place, found.numpy(), inverse.numpy())
        if count < 0:
            raise IndexError(
                f"Rows reach from {rows.min()} to {rows.max()}; the catalogue has the rows 0 to {len(self.place) - 1}."
            )
        return found[:count], inverse


class _Gather(torch.autograd.Function):
    """Rows of one matrix (R, W) in several parts, (n,) indices each -> (n, W) each; one gradient is filled for all."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*parts)
        ctx.rows = len(vectors)
        return tuple(vectors.index_select(0, part) for part in parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total = grads[0].new_zeros(ctx.rows, grads[0].shape[1])
        for part, grad in zip(ctx.saved_tensors, grads, strict=True):
            add_rows(total, grad, part)
        return total, *(None for _ in grads)


class ContextEmbedding(nn.Module):
    """The features of each row itself, side by side: ids (B, C) -> (B, width)."""

    def __init__(self, sizes: list[int], dim: int, sharded: bool = False) -> None:
        super().__init__()
        self.sizes = sizes
        self.width = len(sizes) * dim
        self.tables = _tables(sizes, dim, sharded)

    def forward(self, ids: Tensor) -> Tensor:
        return lookup(self.tables, ids)


def _tables(sizes: list[int], dim: int, sharded: bool) -> nn.ModuleList:
    tables = nn.ModuleList(Shard(size, dim) if sharded else nn.Embedding(size, dim, sparse=True) for size in sizes)
    for table in tables:
        if isinstance(table, Shard):
            table.draw()
        else:
            assert isinstance(table, nn.Embedding)
            nn.init.xavier_uniform_(table.weight)
    return tables
