"""The MLP of pairs (`nn/pair_mlp.py`) on a CPU: blocks of pairs go through all layers, their activations in its cache.

Activations of all layers lie in one flat array, layer after layer, each (R, width). Weights are laid out for
`tiles.product`: rows filled up to whole vectors. The way back is walked by one thread: sums of gradients for each of
several, and adding them up, took longer than they saved.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from deepinterest.kernels.compiled import compiled, share, workers
from deepinterest.kernels.functions import sigmoid, through_sigmoid
from deepinterest.kernels.tiles import FLOAT, VECTOR, add, add_product, copy, multiply, product

BLOCK = 64  # pairs

Rows = tuple[Tensor, Tensor | None]  # a matrix, and which of its rows; all in order without that


@dataclass
class Layers:
    """sigmoid(x @ first + sum of shares), then the hidden layers, then a product with `output`.

    The R pairs are those of all parts, part after part; x is the product of a part's one or two factors.
    """

    parts: list[tuple[Rows, Rows | None]]  # matrices (., D)
    first: Tensor  # (D, A)
    shares: list[Rows]  # matrices (., A), R rows of each
    hidden: list[tuple[Tensor, Tensor]]  # (A', A) and (A',), for each layer
    output: Tensor  # (A',) of the last A'

    @property
    def widths(self) -> list[int]:
        """Of the activations, in order."""
        return [self.first.shape[1], *(len(weight) for weight, _ in self.hidden)]

    @property
    def sizes(self) -> list[int]:
        """Pairs of each part."""
        return [len(matrix if index is None else index) for (matrix, index), _ in self.parts]


@dataclass
class Gradients:
    """Of the matrices and weights of `Layers`, in its order."""

    parts: list[tuple[Tensor, Tensor | None]]
    first: Tensor
    shares: list[Tensor]
    hidden: list[tuple[Tensor, Tensor]]
    output: Tensor


def forward(layers: Layers, keep: bool) -> tuple[Tensor, Tensor]:
    """(R,), and the activations that `backward` needs; none of them if not `keep`.

    Raises ValueError where sizes don't fit, IndexError where a matrix has no such row.
    """
    _check(layers)
    R, widths, first = sum(layers.sizes), layers.widths, layers.first
    found = first.new_empty(R)
    if R == 0:
        return found, found
    multiplications = R * (first.numel() + sum(weight.numel() for weight, _ in layers.hidden))
    count = workers(sum(-(-size // BLOCK) for size in layers.sizes), multiplications)
    activations = first.new_empty(sum(widths) * (R if keep else count * BLOCK))
    weights = _laid_out([first, *(weight.t() for weight, _ in layers.hidden)])
    biases = torch.cat([bias for _, bias in layers.hidden]) if layers.hidden else found[:0]
    arrays = (_array(tensor) for tensor in (weights, biases, layers.output, activations, found))
    share(count, _forward, np.array(widths), np.array(layers.sizes), keep, *_read(layers), *arrays)
    return found, activations if keep else found[:0]


def backward(layers: Layers, activations: Tensor, grad: Tensor) -> Gradients:
    """The gradients, from those of the result (R,)."""
    (D, A), widths = layers.first.shape, layers.widths
    sizes = [D * A, *(inner * outer for inner, outer in pairwise(widths)), *widths[1:], widths[-1]]
    sums = grad.new_zeros(sum(sizes))
    lefts, rights, of_shares = (
        [grad.new_zeros(matrix.shape) for matrix, _ in rows]
        for rows in ([left for left, _ in layers.parts], [right or _NONE for _, right in layers.parts], layers.shares)
    )
    if len(grad):
        weights = _laid_out([layers.first.t(), *(weight for weight, _ in layers.hidden)])
        arrays = (_array(tensor) for tensor in (weights, layers.output, activations, grad, sums))
        to = (tuple(map(_array, matrices)) for matrices in (lefts, rights, of_shares))
        _backward(np.array(widths), np.array(layers.sizes), *_read(layers), *to, *arrays)
    first, *rest = sums.split(sizes)
    hidden = len(layers.hidden)
    return Gradients(
        parts=[
            (left, None if part[1] is None else right)
            for left, right, part in zip(lefts, rights, layers.parts, strict=True)
        ],
        first=first.view(D, A),
        shares=of_shares,
        hidden=[
            (weight.view(outer, inner), bias)
            for (inner, outer), weight, bias in zip(pairwise(widths), rest[:hidden], rest[hidden:-1], strict=True)
        ],
        output=rest[-1],
    )


def _check(layers: Layers) -> None:
    """The kernel itself reads whatever is at an address."""
    rows = [row for part in layers.parts for row in part if row] + layers.shares
    floats = [
        layers.first,
        layers.output,
        *(matrix for matrix, _ in rows),
        *(x for pair in layers.hidden for x in pair),
    ]
    indices = [index for _, index in rows if index is not None]
    if any(x.dtype is not torch.float32 for x in floats) or any(x.dtype is not torch.int64 for x in indices):
        raise ValueError("Matrices, weights and biases must be float32, rows int64.")
    if any(x.dim() != 2 for x in (layers.first, *(matrix for matrix, _ in rows))) or any(x.dim() != 1 for x in indices):
        raise ValueError("Matrices must have two dimensions, and rows one.")
    (D, A), sizes, widths = layers.first.shape, layers.sizes, layers.widths
    asked = [(factor, size, D) for part, size in zip(layers.parts, sizes, strict=True) for factor in part if factor]
    asked += [(rows, sum(sizes), A) for rows in layers.shares]
    for (matrix, index), size, width in asked:
        if matrix.shape[1] != width or len(matrix if index is None else index) != size:
            raise ValueError(f"{size} rows of width {width} are needed; the matrix is {tuple(matrix.shape)}.")
        if index is not None and size and not 0 <= int(index.min()) <= int(index.max()) < len(matrix):
            raise IndexError(
                f"Rows reach from {index.min()} to {index.max()}; there are the rows 0 to {len(matrix) - 1}."
            )
    shapes = [tuple(x.shape) for pair in layers.hidden for x in pair] + [tuple(layers.output.shape)]
    fitting = [shape for a, b in pairwise(widths) for shape in ((b, a), (b,))] + [(widths[-1],)]
    if not layers.shares or shapes != fitting:
        raise ValueError(f"Layers of the shapes {shapes} don't follow one of width {A}, or it has no share.")


_NONE: Rows = (torch.empty(0, 1), None)


def _laid_out(matrices: list[Tensor]) -> Tensor:
    """The matrices one after the other, flat, the rows of each filled up to whole vectors."""
    sizes = [len(matrix) * _stride.py_func(matrix.shape[1]) for matrix in matrices]
    flat = matrices[0].new_empty(sum(sizes))
    for matrix, part in zip(matrices, flat.split(sizes), strict=True):
        part.view(len(matrix), -1)[:, : matrix.shape[1]] = matrix
    return flat


def _read(layers: Layers) -> list[tuple[np.ndarray, ...]]:
    """Matrices and rows of the left factors, of the right ones, and of the shares; empty ones where there are none."""
    found: list[tuple[np.ndarray, ...]] = []
    lefts, rights = [left for left, _ in layers.parts], [right or _NONE for _, right in layers.parts]
    for several in (lefts, rights, layers.shares):
        found.append(tuple(_array(matrix) for matrix, _ in several))
        found.append(tuple(_no_rows if rows is None else _array(rows) for _, rows in several))
    return found


_no_rows = np.empty(0, np.int64)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


# ------------------------------------------------------------------------------------------------------------ the walks


@compiled
def _stride(columns):
    return (columns + VECTOR - 1) // VECTOR * VECTOR


@compiled
def _at(matrix, rows, i):
    """The address of row i, of those that rows choose."""
    return matrix.ctypes.data + FLOAT * matrix.shape[1] * (rows[i] if len(rows) else i)


@compiled
def _forward(
    worker, workers, widths, sizes, keep, lefts, left_rows, rights, right_rows, shares, share_rows,
    weights, biases, output, activations, found,
):  # fmt: skip
    R, D, total = len(found), lefts[0].shape[1], np.sum(widths)
    of_weights, of_biases, to = weights.ctypes.data, biases.ctypes.data, activations.ctypes.data
    x = np.empty(BLOCK * D, np.float32)
    of_x = x.ctypes.data
    base = 0  # pairs of the parts before
    for part in range(len(sizes)):
        left, row, right, other = lefts[part], left_rows[part], rights[part], right_rows[part]
        for begin in range(worker * BLOCK, sizes[part], workers * BLOCK):
            size = min(BLOCK, sizes[part] - begin)
            x[0] = 0  # numba frees an array after its last use, whoever has its address
            for i in range(size):
                copy(_at(left, row, begin + i), of_x + FLOAT * i * D, D, D)
                if len(right):
                    multiply(_at(right, other, begin + i), of_x + FLOAT * i * D, D)
            # A layer begins at `layer`, the block's rows in it at `now`.
            A, first = widths[0], base + begin
            layer = 0 if keep else worker * BLOCK * total
            now = layer + first * A if keep else layer
            for number in range(len(shares)):
                for i in range(size):
                    source, place = _at(shares[number], share_rows[number], first + i), to + FLOAT * (now + i * A)
                    if number == 0:
                        copy(source, place, A, A)
                    else:
                        add(source, place, A)
            product(of_x, D, 1, of_weights, _stride(A), to + FLOAT * now, A, size, D, A, 1)
            sigmoid(activations[now : now + size * A])
            weight, bias = D * _stride(A), 0
            for number in range(1, len(widths)):
                before, B = now, A
                layer += (R if keep else BLOCK) * B
                A = widths[number]
                now = layer + first * A if keep else layer
                for i in range(size):
                    copy(of_biases + FLOAT * bias, to + FLOAT * (now + i * A), A, A)
                of_before, of_weight = to + FLOAT * before, of_weights + FLOAT * weight
                product(of_before, B, 1, of_weight, _stride(A), to + FLOAT * now, A, size, B, A, 1)
                sigmoid(activations[now : now + size * A])
                weight, bias = weight + B * _stride(A), bias + A
            product(to + FLOAT * now, A, 1, output.ctypes.data, 1, found.ctypes.data + FLOAT * first, 1, size, A, 1, 0)
        base += sizes[part]


@compiled
def _backward(
    widths, sizes, lefts, left_rows, rights, right_rows, shares, share_rows,
    d_lefts, d_rights, d_shares, weights, output, activations, grad, sums,
):  # fmt: skip
    R, D, layers, total = len(grad), lefts[0].shape[1], len(widths), np.sum(widths)
    of_weights, of_activations = weights.ctypes.data, activations.ctypes.data
    to = sums.ctypes.data
    x, dx = np.empty(BLOCK * D, np.float32), np.empty(BLOCK * D, np.float32)
    of_x, of_dx = x.ctypes.data, dx.ctypes.data
    d, other_d = np.empty(BLOCK * np.max(widths), np.float32), np.empty(BLOCK * np.max(widths), np.float32)
    base = 0
    for part in range(len(sizes)):
        left, row, right, other = lefts[part], left_rows[part], rights[part], right_rows[part]
        d_left, d_right = d_lefts[part], d_rights[part]
        for begin in range(0, sizes[part], BLOCK):
            size, first = min(BLOCK, sizes[part] - begin), base + begin
            of_grad = grad.ctypes.data + FLOAT * first
            # From the last layer to the first; places in the arrays go down.
            A = widths[layers - 1]
            layer, weight, bias = R * (total - A), len(weights), len(sums) - A
            now, of_weight = layer + first * A, bias - (total - widths[0])
            product(of_grad, 0, 1, of_activations + FLOAT * now, A, to + FLOAT * bias, 0, 1, size, A, 1)
            product(of_grad, 1, 0, output.ctypes.data, 0, d.ctypes.data, A, size, 1, A, 0)
            through_sigmoid(d[: size * A], activations[now : now + size * A])
            for number in range(layers - 1, 0, -1):
                B = widths[number - 1]
                layer -= R * B
                now = layer + first * B
                bias, of_weight, weight = bias - A, of_weight - A * B, weight - A * _stride(B)
                of_d, before = d.ctypes.data, of_activations + FLOAT * now
                for i in range(size):
                    add(of_d + FLOAT * i * A, to + FLOAT * bias, A)
                product(of_d, 1, A, before, B, to + FLOAT * of_weight, B, A, size, B, 1)
                product(of_d, A, 1, of_weights + FLOAT * weight, _stride(B), other_d.ctypes.data, B, size, A, B, 0)
                d, other_d, A = other_d, d, B
                through_sigmoid(d[: size * A], activations[now : now + size * A])
            of_d = d.ctypes.data
            for number in range(len(d_shares)):
                for i in range(size):
                    add(of_d + FLOAT * i * A, _at(d_shares[number], share_rows[number], first + i), A)
            product(of_d, A, 1, of_weights, _stride(D), of_dx, D, size, A, D, 0)
            x[0], dx[0] = 0, dx[0]  # both live on, as above
            for i in range(size):
                at = FLOAT * i * D
                source, place = _at(left, row, begin + i), _at(d_left, row, begin + i)
                copy(source, of_x + at, D, D)
                if len(right):
                    factor = _at(right, other, begin + i)
                    multiply(factor, of_x + at, D)
                    add_product(of_dx + at, factor, place, D)
                    add_product(of_dx + at, source, _at(d_right, other, begin + i), D)
                else:
                    add(of_dx + at, place, D)
            product(of_x, 1, D, of_d, A, to, A, D, size, A, 1)
        base += sizes[part]
