"""An MLP with sigmoids and one output, over pairs whose first layer is a sum of shares computed before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepinterest.kernels import on_cpu
from deepinterest.nn.mlp import Sigmoid, linear

if TYPE_CHECKING:
    from deepinterest.kernels.pairs import Layers

Rows = tuple[Tensor, Tensor | None]  # a matrix, and which of its rows; all in order without that
Part = tuple[Rows, Rows | None]  # pairs whose x is a row, or the product of two


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

    def of(self, parts: Sequence[Part], first: Tensor, shares: Sequence[Rows]) -> Tensor:
        """R pairs, those of all parts, part after part -> (R,): of the first layer x @ first + sum of shares.

        Matrices of the parts are (., I), first is (I, A), matrices of the one or more shares are (., A).
        """
        *hidden, output = (layer for layer in self if isinstance(layer, nn.Linear))
        weight: Tensor = output.weight
        bias: Tensor = output.bias
        if len(weight) == 2:
            weight, bias = weight[:1] - weight[1:], bias[:1] - bias[1:]  # (1, A), (1,)
        if on_cpu(first, *(left[0] for left, _ in parts)):
            flat = [tensor for left, right in parts for tensor in (*left, *(right or (None, None)))]
            flat += [tensor for share in shares for tensor in share]
            flat += [tensor for layer in hidden for tensor in (layer.weight, layer.bias)]
            keep = torch.is_grad_enabled()
            found: Tensor = _Pairs.apply(keep, len(parts), len(shares), first, *flat, weight.squeeze(0))
            return found + bias
        z = torch.cat([_rows(left) if right is None else _rows(left) * _rows(right) for left, right in parts]) @ first
        for share in shares:
            z = z.add_(_rows(share))
        for layer in list(self)[:-1]:
            z = layer(z)
        return torch.addmm(bias, z, weight.t()).squeeze(1)


def _rows(chosen: Rows) -> Tensor:
    matrix, index = chosen
    return matrix if index is None else matrix.index_select(0, index)


class _Pairs(torch.autograd.Function):
    """The MLP without its last bias, by the kernel."""

    @staticmethod
    def forward(ctx: Any, keep: bool, parts: int, shares: int, first: Tensor, *rest: Tensor | None) -> Tensor:
        from deepinterest.kernels import pairs  # imported when first used: numba takes a while

        found, activations = pairs.forward(_layers(parts, shares, first, rest), keep)
        ctx.counts = parts, shares
        ctx.save_for_backward(activations, first, *rest)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from deepinterest.kernels import pairs

        activations, first, *rest = ctx.saved_tensors
        parts, shares = ctx.counts
        found = pairs.backward(_layers(parts, shares, first, rest), activations, grads[0])
        of_parts = [tensor for left, right in found.parts for tensor in (left, None, right, None)]
        of_shares = [tensor for share in found.shares for tensor in (share, None)]
        of_hidden = [tensor for layer in found.hidden for tensor in layer]
        return None, None, None, found.first, *of_parts, *of_shares, *of_hidden, found.output


def _layers(parts: int, shares: int, first: Tensor, rest: Any) -> Layers:
    """From the flat arguments."""
    from deepinterest.kernels.pairs import Layers

    *middle, output = rest
    pairs = [*zip(middle[::2], middle[1::2], strict=True)]
    factors, others = pairs[: 2 * parts], pairs[2 * parts :]
    return Layers(
        [(left, None if right[0] is None else right) for left, right in zip(factors[::2], factors[1::2], strict=True)],
        first, others[:shares], others[shares:], output,
    )  # fmt: skip
