"""The MLP of pairs (`nn/pair_mlp.py`) on a CPU: blocks of pairs go through all layers, their activations in its cache.

Activations of all layers lie in one flat array, layer after layer, each (R, width). Weights are laid out for
`tiles.product`: rows filled up to whole vectors. Each worker sums gradients of its own, which are added in the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deepinterest.kernels.compiled import compiled, share, workers
from deepinterest.kernels.functions import sigmoid, through_sigmoid
from deepinterest.kernels.tiles import FLOAT, VECTOR, add, copy, product

BLOCK = 64  # pairs


@dataclass
class Layers:
    """What the pairs x (R, I) go through: sigmoid(x @ first + shares), the hidden layers, a product with `output`."""

    first: Tensor  # (I, A)
    shares: list[tuple[Tensor, Tensor | None]]  # each (S, A), and the row of it that each pair adds; its own if None
    hidden: list[tuple[Tensor, Tensor]]  # (A', A) and (A',), for each layer
    output: Tensor  # (A',) of the last A'

    @property
    def widths(self) -> list[int]:
        """Of the activations, in order."""
        return [self.first.shape[1], *(len(weight) for weight, _ in self.hidden)]


@dataclass
class Gradients:
    """Of what `Layers` holds, in its order, and of the pairs."""

    x: Tensor
    first: Tensor
    shares: list[Tensor]
    hidden: list[tuple[Tensor, Tensor]]
    output: Tensor


def forward(x: Tensor, layers: Layers, keep: bool) -> tuple[Tensor, Tensor]:
    """x (R, I) -> (R,), and the activations that `backward` needs; none of them if not `keep`."""
    R, widths = len(x), layers.widths
    found = x.new_empty(R)
    if R == 0:
        return found, found
    count = workers(-(-R // BLOCK))
    activations = x.new_empty(sum(widths) * (R if keep else count * BLOCK))
    weights = _laid_out([layers.first, *(weight.t() for weight, _ in layers.hidden)])
    biases = torch.cat([bias for _, bias in layers.hidden]) if layers.hidden else found[:0]
    matrices, rows = _shares(layers)
    arguments = (x, *weights, biases, layers.output, activations, found)
    share(count, _forward, np.array(widths), keep, matrices, rows, *(_array(tensor) for tensor in arguments))
    return found, activations if keep else found[:0]


def backward(x: Tensor, layers: Layers, activations: Tensor, grad: Tensor) -> Gradients:
    """Gradients for those of the result, grad (R,)."""
    R, (I, A), widths = len(x), layers.first.shape, layers.widths
    sizes = [I * A, *(inner * outer for inner, outer in pairwise(widths)), *widths[1:], widths[-1]]
    count = workers(-(-R // BLOCK))
    sums = x.new_zeros(count, sum(sizes))
    dx = torch.empty_like(x)
    of_shares = [x.new_empty(1, R, A) if rows is None else x.new_zeros(count, *part.shape) for part, rows in layers.shares]
    if R:
        weights = _laid_out([layers.first.t(), *(weight for weight, _ in layers.hidden)])
        arguments = (x, *weights, layers.output, activations, grad.contiguous(), dx, sums)
        share(
            count, _backward, np.array(widths), tuple(part.numpy() for part in of_shares), _shares(layers)[1],
            *(_array(tensor) for tensor in arguments),
        )  # fmt: skip
    first, *rest = sums.sum(0).split(sizes)
    hidden = len(layers.hidden)
    return Gradients(
        x=dx,
        first=first.view(I, A),
        shares=[part.sum(0) if len(part) > 1 else part[0] for part in of_shares],
        hidden=[
            (weight.view(outer, inner), bias)
            for (inner, outer), weight, bias in zip(pairwise(widths), rest[:hidden], rest[hidden:-1], strict=True)
        ],
        output=rest[-1],
    )


def _laid_out(matrices: list[Tensor]) -> tuple[Tensor]:
    """The matrices one after the other, flat, the rows of each filled up to whole vectors."""
    sizes = [len(matrix) * _padded(matrix.shape[1]) for matrix in matrices]
    flat = matrices[0].new_empty(sum(sizes))
    for matrix, part in zip(matrices, flat.split(sizes), strict=True):
        part.view(len(matrix), -1)[:, : matrix.shape[1]] = matrix
    return (flat,)


def _padded(columns: int) -> int:
    return -(-columns // VECTOR) * VECTOR


def _shares(layers: Layers) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]:
    """Matrices and rows; no rows for pairs that add their own."""
    none = np.empty(0, np.int64)
    return (
        tuple(_array(part) for part, _ in layers.shares),
        tuple(none if rows is None else rows.contiguous().numpy() for _, rows in layers.shares),
    )


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


# ------------------------------------------------------------------------------------------------------------ the walks


@compiled
def _stride(columns):
    return (columns + VECTOR - 1) // VECTOR * VECTOR


@compiled
def _forward(
    worker, workers, widths, keep, shares, rows, x, weights, biases, output, activations, found
):  # fmt: skip
    R, I = x.shape
    of_x, of_weights, of_biases = x.ctypes.data, weights.ctypes.data, biases.ctypes.data
    to = activations.ctypes.data
    for begin in range(worker * BLOCK, R, workers * BLOCK):
        size = min(BLOCK, R - begin)
        # A layer begins at `layer`, the block's rows in it at `now`.
        A = widths[0]
        layer = 0 if keep else worker * BLOCK * np.sum(widths)
        now = layer + begin * A if keep else layer
        for number in range(len(shares)):
            part, row = shares[number], rows[number]
            for i in range(size):
                source = row[begin + i] if len(row) else begin + i
                begins, place = part.ctypes.data + FLOAT * source * A, to + FLOAT * (now + i * A)
                if number == 0:
                    copy(begins, place, A, A)
                else:
                    add(begins, place, A)
        product(of_x + FLOAT * begin * I, I, 1, of_weights, _stride(A), to + FLOAT * now, A, size, I, A, 1)
        sigmoid(activations[now : now + size * A])
        weight, bias = I * _stride(A), 0
        for number in range(1, len(widths)):
            before, B = now, A
            layer += (R if keep else BLOCK) * B
            A = widths[number]
            now = layer + begin * A if keep else layer
            for i in range(size):
                copy(of_biases + FLOAT * bias, to + FLOAT * (now + i * A), A, A)
            product(
                to + FLOAT * before, B, 1, of_weights + FLOAT * weight, _stride(A), to + FLOAT * now, A, size, B, A, 1
            )
            sigmoid(activations[now : now + size * A])
            weight, bias = weight + B * _stride(A), bias + A
        product(to + FLOAT * now, A, 1, output.ctypes.data, 1, found.ctypes.data + FLOAT * begin, 1, size, A, 1, 0)


@compiled
def _backward(
    worker, workers, widths, d_shares, rows, x, weights, output, activations, grad, dx, sums
):  # fmt: skip
    R, I = x.shape
    layers = len(widths)
    of_x, of_weights, of_activations = x.ctypes.data, weights.ctypes.data, activations.ctypes.data
    to = sums.ctypes.data + FLOAT * worker * sums.shape[1]
    d, other = np.empty(BLOCK * np.max(widths), np.float32), np.empty(BLOCK * np.max(widths), np.float32)
    for begin in range(worker * BLOCK, R, workers * BLOCK):
        size = min(BLOCK, R - begin)
        of_grad = grad.ctypes.data + FLOAT * begin
        # From the last layer to the first; places in the arrays go down.
        A = widths[layers - 1]
        layer = R * (np.sum(widths) - A)
        now = layer + begin * A
        weight = len(weights)
        of_output = sums.shape[1] - A
        bias = of_output
        of_weight = bias - (np.sum(widths) - widths[0])
        product(of_grad, 0, 1, of_activations + FLOAT * now, A, to + FLOAT * of_output, 0, 1, size, A, 1)
        product(of_grad, 1, 0, output.ctypes.data, 0, d.ctypes.data, A, size, 1, A, 0)
        through_sigmoid(d[: size * A], activations[now : now + size * A])
        for number in range(layers - 1, 0, -1):
            B = widths[number - 1]
            layer -= R * B
            now = layer + begin * B
            bias, of_weight, weight = bias - A, of_weight - A * B, weight - A * _stride(B)
            of_d, before = d.ctypes.data, of_activations + FLOAT * now
            for i in range(size):
                add(of_d + FLOAT * i * A, to + FLOAT * bias, A)
            product(of_d, 1, A, before, B, to + FLOAT * of_weight, B, A, size, B, 1)
            product(of_d, A, 1, of_weights + FLOAT * weight, _stride(B), other.ctypes.data, B, size, A, B, 0)
            d, other, A = other, d, B
            through_sigmoid(d[: size * A], activations[now : now + size * A])
        of_d, of_rows = d.ctypes.data, of_x + FLOAT * begin * I
        product(of_d, A, 1, of_weights, _stride(I), dx.ctypes.data + FLOAT * begin * I, I, size, A, I, 0)
        product(of_rows, 1, I, of_d, A, to, A, I, size, A, 1)
        for number in range(len(d_shares)):
            part, row = d_shares[number], rows[number]
            S = part.shape[1]
            for i in range(size):
                indexed = len(row) > 0
                place = worker * S + row[begin + i] if indexed else begin + i
                begins, place = of_d + FLOAT * i * A, part.ctypes.data + FLOAT * place * A
                if indexed:
                    add(begins, place, A)
                else:
                    copy(begins, place, A, A)
