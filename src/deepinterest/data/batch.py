"""The ragged batch that every network reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass
class Batch:
    """Histories laid one after the other, and the candidates to score against them; nothing is padded.

    Items and users are rows of their catalogues (`data/store.py`), int64; row 0 is the unknown one.
    Row b of the batch asks: would the user of history `history_index[b]` touch `candidates[b]` next?
    """

    history: Tensor  # (N,)   items of all histories, oldest first
    offsets: Tensor  # (G+1,) history g is history[offsets[g]:offsets[g+1]]; it may be empty
    user: Tensor  # (G,)   whose history it is
    candidates: Tensor  # (B,)   items to score
    history_index: Tensor  # (B,)   which history a candidate belongs to, ascending
    label: Tensor  # (B,)   float32, 1 for a touch
    auxiliary_negatives: Tensor | None = None  # (N, K) items not touched at that step, for the auxiliary loss
    context: Tensor | None = None  # (B, C) ids within the vocabulary of each context feature, such as hour and device
    # (2,) of one of several processes: how much its mean over rows, and that over pairs of neighbouring events, counts
    # in the mean of all processes' batches; 1 where it has as many of them as the others.
    share: Tensor | None = None

    def __len__(self) -> int:
        return len(self.candidates)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        present = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        return replace(self, **{name: function(value) for name, value in present.items()})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(Tensor.pin_memory)
