"""An MLP with sigmoids and one output, over pairs whose first layer is a sum of shares computed before."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepinterest.kernels import on_cpu
from deepinterest.nn.mlp import Sigmoid, linear

if TYPE_CHECKING:
    from deepinterest.kernels.pairs import Layers

Share = tuple[Tensor, Tensor | None]  # (S, A), and for each pair the row it adds (R,), or none where that is its own


class PairMLP(nn.Sequential):
    """All after the first layer: sigmoid, then for each further width dense and sigmoid, then dense to the outputs.

    Calling it maps what the first layer gave. `of` computes the first layer too, and one number for a pair: on a CPU by
    the kernel of `kernels/pairs.py`, elsewhere a layer at a time.
    """

    def __init__(self, hidden: list[int], outputs: int) -> None:
        """outputs: 1, or 2 for the published code's two logits, of which `of` gives the difference."""
        layers: list[nn.Module] = [Sigmoid()]
        for inputs, width in pairwise(hidden):
            layers += [linear(inputs, width), Sigmoid()]
        super().__init__(*layers, linear(hidden[-1], outputs))

    def of(self, x: Tensor, first: Tensor, *shares: Share) -> Tensor:
        """x (R, I), first (I, A) and at least one share -> (R,): of the pairs' first layer x @ first + shares."""
        *hidden, output = (layer for layer in self if isinstance(layer, nn.Linear))
        weight: Tensor = output.weight
        bias: Tensor = output.bias
        if len(weight) == 2:
            weight, bias = weight[:1] - weight[1:], bias[:1] - bias[1:]  # (1, A), (1,)
        if on_cpu(x, first):
            parts = [part for share in shares for part in share]
            parameters = [part for layer in hidden for part in (layer.weight, layer.bias)]
            keep = torch.is_grad_enabled()
            found: Tensor = _Pairs.apply(keep, len(shares), x, first, *parts, *parameters, weight.squeeze(0))
            return found + bias
        z = x @ first  # (R, A)
        for share, index in shares:
            z = z.add_(share if index is None else share.index_select(0, index))
        for layer in list(self)[:-1]:
            z = layer(z)
        return torch.addmm(bias, z, weight.t()).squeeze(1)


class _Pairs(torch.autograd.Function):
    """The MLP without its last bias, by the kernel."""

    @staticmethod
    def forward(ctx: Any, keep: bool, shared: int, x: Tensor, first: Tensor, *rest: Tensor | None) -> Tensor:
        from deepinterest.kernels import pairs  # imported when first used: numba takes a while

        x = x.contiguous()
        found, activations = pairs.forward(x, _layers(shared, first, rest), keep)
        ctx.shared = shared
        ctx.save_for_backward(x, activations, first, *rest)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from deepinterest.kernels import pairs

        x, activations, first, *rest = ctx.saved_tensors
        found = pairs.backward(x, _layers(ctx.shared, first, rest), activations, grads[0])
        of_shares = [part for share in found.shares for part in (share, None)]
        of_hidden = [part for layer in found.hidden for part in layer]
        return None, None, found.x, found.first, *of_shares, *of_hidden, found.output


def _layers(shared: int, first: Tensor, rest: Any) -> Layers:
    """From the flat arguments."""
    from deepinterest.kernels.pairs import Layers

    shares, (*middle, output) = rest[: 2 * shared], rest[2 * shared :]
    return Layers(
        first, [*zip(shares[::2], shares[1::2], strict=True)], [*zip(middle[::2], middle[1::2], strict=True)], output
    )
