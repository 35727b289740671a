"""The ragged batch that every network reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from deepinterest.errors import UserError


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
    # Whether networks may read it without `check`: the loader's batches are right, and a look takes time.
    checked: bool = field(default=False, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.candidates)

    def check(self, items: int | None = None, users: int | None = None, contexts: Sequence[int] | None = None) -> None:
        """Raise a UserError for the first field that doesn't fit the others, or a number that is out of its range.

        Every number is looked at; on a GPU that waits for the device.

        Args:
            items, users: rows of the two catalogues; None: only that none is negative.
            contexts: the size of each context feature's vocabulary; None: context isn't read.
        """
        _check_shapes(self)
        events = len(self.history)
        _refuse("offsets", self.offsets[:1], self.offsets[:1] != 0, "the first history begins at 0")
        falls = torch.nn.functional.pad(self.offsets.diff() < 0, (1, 0))
        _refuse("offsets", self.offsets, falls, "it is less than the one before")
        if (end := int(self.offsets[-1])) != events:
            raise UserError(f"Batch.offsets ends at {end}: it must end at {events}, the length of Batch.history.")
        falls = torch.nn.functional.pad(self.history_index.diff() < 0, (1, 0))
        _refuse("history_index", self.history_index, falls[: len(self)], "it is less than the one before")
        _within("history_index", self.history_index, len(self.user), "histories")
        _within("user", self.user, users, "users in the catalogue")
        _within("history", self.history, items, "items in the catalogue")
        _within("candidates", self.candidates, items, "items in the catalogue")
        if self.auxiliary_negatives is not None:
            _within("auxiliary_negatives", self.auxiliary_negatives, items, "items in the catalogue")
        if self.context is not None:
            ids = self.context
            if contexts is not None and ids.shape[1] != len(contexts):
                raise UserError(f"Batch.context has {ids.shape[1]} columns, and the network reads {len(contexts)}.")
            highest = ids.new_tensor(contexts) if contexts else ids.amax(0, keepdim=True) + 1
            _refuse("context", ids, (ids < 0) | (ids >= highest), "the feature's vocabulary has no such id")
        _refuse("label", self.label, ~((self.label >= 0) & (self.label <= 1)), "it must lie between 0 and 1")

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        present = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        mapped = replace(self, **{name: function(value) for name, value in present.items()})  # type: ignore[arg-type]
        mapped.checked = self.checked
        return mapped

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        return self._map(Tensor.pin_memory)


INTEGERS, FLOATS = torch.int64, torch.float32
# Names of sizes, and the type; optional fields come last.
FIELDS: dict[str, tuple[tuple[str, ...], torch.dtype]] = {
    "history": (("N",), INTEGERS),
    "offsets": (("G+1",), INTEGERS),
    "user": (("G",), INTEGERS),
    "candidates": (("B",), INTEGERS),
    "history_index": (("B",), INTEGERS),
    "label": (("B",), FLOATS),
    "auxiliary_negatives": (("N", "K"), INTEGERS),
    "context": (("B", "C"), INTEGERS),
    "share": (("2",), FLOATS),
}
OPTIONAL = ("auxiliary_negatives", "context", "share")


def _check_shapes(batch: Batch) -> None:
    sizes = {"2": 2}
    for name, (shape, dtype) in FIELDS.items():
        value = getattr(batch, name)
        if value is None and name in OPTIONAL:
            continue
        wanted = f"Batch.{name} must be a tensor ({', '.join(shape)}) of {_word(dtype)}"
        if not isinstance(value, Tensor):
            raise UserError(f"{wanted}, and it is of type {type(value).__name__}.")
        found = f"it is {tuple(value.shape)} of {_word(value.dtype)}"
        if (
            value.dim() != len(shape)
            or value.dtype != dtype
            or 0 in value.shape[1:]
            or (name == "offsets" and not len(value))
        ):
            raise UserError(f"{wanted}, and {found}.")
        for letter, size in zip(shape, value.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise UserError(f"{wanted}, here with {letter}={sizes[letter]}, and {found}.")
        if name == "offsets":
            sizes["G"] = len(value) - 1


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _refuse(name: str, values: Tensor, wrong: Tensor, rule: str) -> None:
    """Raise a UserError where any of `values` is wrong, with the place and the value of the first."""
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise UserError(f"Batch.{name}{place} is {values[tuple(place)].item()}: {rule}.")


def _within(name: str, values: Tensor, size: int | None, what: str) -> None:
    high = "" if size is None else f", and there are {size:,} {what}"
    outside = (values < 0) if size is None else (values < 0) | (values >= size)
    _refuse(name, values, outside, f"numbers begin at 0{high}")
