"""The recurrence of GRU, AGRU and AUGRU over ragged sequences (DIEN, equations 2-5 and 9-12), and who computes it.

All of them are one. With reset gate r, update gate u and candidate c, each of (H,):

    r = sigmoid(xr + h Ur)    u = sigmoid(xu + h Uu)
    c = tanh(xc + (r*h) Uc)   [ResetGate.before]   or   tanh(xc + r*(h Uc))   [ResetGate.after]
    h' = k*h + (1-k)*c        k = base + slope*u: how much of the old state is kept

    GRU            k = u                 base 0      slope 1
    AGRU           k = 1-a               base 1-a    slope 0
    AUGRU, code    k = (1-a) u           base 0      slope 1-a
    AUGRU, paper   k = 1 - a (1-u)       base 1-a    slope a

u is the gate that keeps, as in the published code and in torch.nn.GRU; the paper's u is 1-u. The first h is zero.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepinterest.config import KernelName, ResetGate
from deepinterest.kernels import choice
from deepinterest.kernels.dense import add_rows

_MODULES = {KernelName.torch: "portable", KernelName.cpu: "cpu", KernelName.gpu: "gpu"}


@dataclass
class Sequences:
    """S ragged sequences and the weights they share. Sequence s has the M steps offsets[s]:offsets[s+1].

    Step m reads row source[m] of x, or row m without a source: candidates of one history share its inputs.
    """

    x: Tensor  # (N, 3H) the inputs' share [xr, xu, xc]
    source: Tensor | None  # (M,) int64
    base: Tensor | None  # (M,), with slope; none of both is the plain GRU
    slope: Tensor | None  # (M,)
    offsets: Tensor  # (S+1,) int64, ascending from 0 to M
    gates: Tensor  # (H, 2H) [Ur, Uu]
    candidate: Tensor  # (H, H) Uc
    reset: ResetGate
    bf16: bool = False  # products may round their factors to bfloat16; sums and states keep their precision

    @property
    def steps(self) -> int:
        """M."""
        return len(self.x) if self.source is None else len(self.source)

    def check(self) -> None:
        """Raise ValueError for parts that don't fit each other, IndexError for a row that x doesn't have.

        Kernels read whatever is at an address. The numbers in offsets and source are looked at on a CPU alone, as
        elsewhere that would wait for the device.
        """
        parts = {name: getattr(self, name) for name in DIMENSIONS}
        for name, part in parts.items():
            if part is None and name in OPTIONAL:
                continue
            if not isinstance(part, Tensor) or part.dim() != DIMENSIONS[name]:
                raise ValueError(
                    f"{name} must be a tensor with {DIMENSIONS[name]} dimensions, and it is {_told(part)}."
                )
        x, S, H, M = self.x, len(self.offsets) - 1, len(self.candidate), self.steps
        if S < 0 or H == 0 or not x.is_floating_point():
            raise ValueError(f"x must hold floats, offsets and candidate something, and x is {_told(x)}.")
        if (self.base is None) != (self.slope is None):
            raise ValueError("base and slope go together: give both or none.")
        if not isinstance(self.reset, ResetGate):
            raise ValueError(f"reset must be a ResetGate, and it is {self.reset!r}.")
        shapes = {"x": (len(x), 3 * H), "gates": (H, 2 * H), "candidate": (H, H), "offsets": (S + 1,)}
        for name, part in parts.items():
            shape, dtype = shapes.get(name, (M,)), torch.int64 if name in INTEGERS else x.dtype
            if part is not None and (part.shape != shape or part.dtype is not dtype or part.device != x.device):
                wanted = f"{shape} of {dtype} on {x.device}"
                raise ValueError(f"{name} must be {wanted} beside the other arguments, and it is {_told(part)}.")
        if x.device.type == "cpu":
            self._check_numbers()

    def _check_numbers(self) -> None:
        offsets, M = self.offsets.numpy(), self.steps
        falls = offsets[1:] < offsets[:-1]
        if offsets[0] != 0 or offsets[-1] != M or falls.any():
            fall = f" and fall after place {falls.argmax()}" if falls.any() else ""
            raise ValueError(
                f"offsets run from {offsets[0]} to {offsets[-1]}{fall}; they must rise from 0 to {M}, the steps."
            )
        if self.source is not None and M:
            source = self.source.numpy()
            if source.min() < 0 or source.max() >= len(self.x):
                raise IndexError(
                    f"source reaches from {source.min()} to {source.max()}; x has the rows 0 to {len(self.x) - 1}."
                )


DIMENSIONS = {"x": 2, "source": 1, "base": 1, "slope": 1, "offsets": 1, "gates": 2, "candidate": 2}
OPTIONAL = ("source", "base", "slope")
INTEGERS = ("source", "offsets")


def _told(part: Any) -> str:
    return f"{tuple(part.shape)} of {part.dtype} on {part.device}" if isinstance(part, Tensor) else repr(type(part))


@dataclass
class Gradients:
    """What the backward walk through the steps finds."""

    z: Tensor  # (M, 3H) of what goes into the two sigmoids and the tanh
    base: Tensor | None  # (M,)
    slope: Tensor | None  # (M,)
    gates: Tensor  # (H, 2H)
    candidate: Tensor  # (H, H)


class Kernel(Protocol):
    """One way to walk through the steps. Results are in the order of the steps."""

    def forward(self, of: Sequences, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """States (M, H), and what `backward` needs of this walk; nothing of that if not `keep`."""

    def backward(self, of: Sequences, states: Tensor, kept: tuple[Tensor, ...], grad: Tensor) -> Gradients:
        """The gradients of the states (M, H), carried back."""


def recurrence(
    x: Tensor,
    offsets: Tensor,
    gates: Tensor,
    candidate: Tensor,
    *,
    source: Tensor | None = None,
    base: Tensor | None = None,
    slope: Tensor | None = None,
    reset: ResetGate = ResetGate.before,
    bf16: bool = False,
) -> Tensor:
    """All states (M, H) of the sequences; see `Sequences` for the arguments. Differentiable, once, in all of them.

    Raises ValueError for arguments that don't fit each other or the kernel asked for, IndexError for a row that x
    doesn't have.
    """
    of = Sequences(x, source, base, slope, offsets, gates, candidate, reset, bf16)
    of.check()
    if choice.asked() is KernelName.oracle:
        from deepinterest.kernels.oracle import states

        return states(of)
    parts = (x, base, slope, gates, candidate)
    keep = torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in parts)
    states_: Tensor = _Recurrence.apply(*parts, source, offsets, reset, bf16, _kernel(x, len(candidate)), keep)
    return states_


def _kernel(x: Tensor, hidden: int) -> Kernel:
    name = choice.chosen(x, hidden)
    if name is KernelName.cpu and (x.device.type != "cpu" or x.dtype is not torch.float32):
        raise ValueError(f"trainer.kernel=cpu computes in float32 on a CPU, and x is of {x.dtype} on {x.device}.")
    # Imported when first used: numba and triton take a while.
    module: Any = importlib.import_module(f"deepinterest.kernels.{_MODULES[name]}")
    kernel: Kernel = module
    return kernel


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        slope: Tensor | None,
        gates: Tensor,
        candidate: Tensor,
        source: Tensor | None,
        offsets: Tensor,
        reset: ResetGate,
        bf16: bool,
        kernel: Kernel,
        keep: bool,
    ) -> Tensor:
        of = Sequences(x, source, base, slope, offsets, gates, candidate, reset, bf16)
        states, kept = kernel.forward(of, keep)
        ctx.save_for_backward(x, source, base, slope, offsets, gates, candidate, states, *kept)
        ctx.reset, ctx.bf16, ctx.kernel = reset, bf16, kernel
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, source, base, slope, offsets, gates, candidate, states, *kept = ctx.saved_tensors
        of = Sequences(x, source, base, slope, offsets, gates, candidate, ctx.reset, ctx.bf16)
        found = ctx.kernel.backward(of, states, tuple(kept), grads[0])
        dx = found.z if source is None else add_rows(x.new_zeros(x.shape), found.z, source)  # (N, 3H)
        return dx, found.base, found.slope, found.gates, found.candidate, None, None, None, None, None, None
