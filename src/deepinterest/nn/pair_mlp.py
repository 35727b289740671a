"""An MLP with sigmoids and one output, over pairs whose first layer is a sum of shares computed before."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepinterest.nn.mlp import Sigmoid, linear

BLOCK = 1024  # rows whose activations stay in a core's cache
Share = tuple[Tensor, Tensor | None]  # (S, A), and for each pair the row it adds (R,), or none where that is its own


class PairMLP(nn.Sequential):
    """All after the first layer: sigmoid, then for each further width dense and sigmoid, then dense to the outputs.

    Calling it maps what the first layer gave. `of` computes the first layer too, and one number for a pair: on a CPU
    the pairs go through all layers block by block, forward and backward, so that activations are read from the cache;
    elsewhere, and in mixed precision, a layer at a time.
    """

    def __init__(self, hidden: list[int], outputs: int) -> None:
        """outputs: 1, or 2 for the published code's two logits, of which `of` gives the difference."""
        layers: list[nn.Module] = [Sigmoid()]
        for inputs, width in pairwise(hidden):
            layers += [linear(inputs, width), Sigmoid()]
        super().__init__(*layers, linear(hidden[-1], outputs))

    def of(self, x: Tensor, first: Tensor, *shares: Share) -> Tensor:
        """x (R, I), first (I, A) and shares -> (R,): of the pairs' first layer x @ first + shares."""
        *hidden, output = (layer for layer in self if isinstance(layer, nn.Linear))
        weight: Tensor = output.weight
        bias: Tensor = output.bias
        if len(weight) == 2:
            weight, bias = weight[:1] - weight[1:], bias[:1] - bias[1:]  # (1, A), (1,)
        if x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            parts = [part for share in shares for part in share]
            parameters = [part for layer in hidden for part in (layer.weight, layer.bias)]
            keep = torch.is_grad_enabled()
            found: Tensor = _Blocks.apply(keep, len(shares), x, first, *parts, *parameters, weight.squeeze(0))
            return found + bias
        z = x @ first  # (R, A)
        for share, index in shares:
            z = z.add_(share if index is None else share.index_select(0, index))
        for layer in list(self)[:-1]:
            z = layer(z)
        return torch.addmm(bias, z, weight.t()).squeeze(1)


class _Blocks(torch.autograd.Function):
    """The MLP without its last bias; the gradients of all sums over rows are gathered block by block."""

    @staticmethod
    def forward(ctx: Any, keep: bool, shared: int, x: Tensor, first: Tensor, *rest: Tensor | None) -> Tensor:
        shares, layers, output = _sort(shared, rest)
        R = len(x)
        rows = R if keep else min(R, BLOCK)
        kept = [x.new_empty(rows, width) for width in (first.shape[1], *(len(weight) for weight, _ in layers))]
        found = x.new_empty(R)
        for now, place in _blocks(R, keep):
            a = torch.mm(x[now], first, out=kept[0][place])
            for share, index in shares:
                a.add_(share[now] if index is None else share.index_select(0, index[now]))
            a.sigmoid_()
            for (weight, bias), activations in zip(layers, kept[1:], strict=True):
                a = torch.addmm(bias, a, weight.t(), out=activations[place]).sigmoid_()
            torch.mv(a, output, out=found[now])
        ctx.shared, ctx.inputs = shared, 4 + len(rest)
        ctx.save_for_backward(x, first, *rest, *(kept if keep else ()))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        count = ctx.inputs - 2
        x, first, *rest = ctx.saved_tensors[:count]
        kept = ctx.saved_tensors[count:]
        shares, layers, output = _sort(ctx.shared, rest)
        dx, d_first = torch.empty_like(x), torch.zeros_like(first)
        d_shares = [torch.empty_like(a) if index is None else torch.zeros_like(a) for a, index in shares]
        d_layers = [(torch.zeros_like(weight), torch.zeros_like(bias)) for weight, bias in layers]
        d_output = torch.zeros_like(output)
        room = [activations.new_empty(min(len(x), BLOCK), activations.shape[1]) for activations in kept]
        for now, _ in _blocks(len(x), True):
            size, grad = now.stop - now.start, grads[0][now]
            a = kept[-1][now]
            d_output.addmv_(a.t(), grad)
            d = torch.mul(grad.unsqueeze(1), output, out=room[-1][:size])  # of the activations a
            for number in range(len(layers), 0, -1):
                weight, _bias = layers[number - 1]
                d_weight, d_bias = d_layers[number - 1]
                _through_sigmoid(d, a)
                a = kept[number - 1][now]
                d_weight.addmm_(d.t(), a)
                d_bias.add_(d.sum(0))
                d = torch.mm(d, weight, out=room[number - 1][:size])
            _through_sigmoid(d, a)
            torch.mm(d, first.t(), out=dx[now])
            d_first.addmm_(x[now].t(), d)
            for (_, index), d_share in zip(shares, d_shares, strict=True):
                if index is None:
                    d_share[now] = d
                else:
                    d_share.index_add_(0, index[now], d)
        of_shares = [part for d_share in d_shares for part in (d_share, None)]
        return None, None, dx, d_first, *of_shares, *(part for pair in d_layers for part in pair), d_output


def _sort(shared: int, rest: Any) -> tuple[list[Share], list[tuple[Tensor, Tensor]], Tensor]:
    """Shares, layers and output weights from the flat arguments."""
    shares, (*middle, output) = rest[: 2 * shared], rest[2 * shared :]
    return (
        [*zip(shares[::2], shares[1::2], strict=True)],
        [*zip(middle[::2], middle[1::2], strict=True)],
        output,
    )


def _blocks(rows: int, keep: bool) -> list[tuple[slice, slice]]:
    """Rows of each block, and where their activations go: all one after the other, or each over those before."""
    found = []
    for begin in range(0, rows, BLOCK):
        end = min(begin + BLOCK, rows)
        found.append((slice(begin, end), slice(begin, end) if keep else slice(0, end - begin)))
    return found


def _through_sigmoid(gradient: Tensor, activation: Tensor) -> None:
    """In place: of the activation -> of what went into the sigmoid."""
    torch.ops.aten.sigmoid_backward(gradient, activation, grad_input=gradient)
