"""Products of whole tensors by `tiles.product`: rows in blocks that the nearest cache holds, dealt to threads."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinterest.kernels.compiled import compiled, share, workers
from deepinterest.kernels.tiles import FLOAT, copy
from deepinterest.kernels.tiles import product as tiled

BLOCK = 64  # rows


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (R, I) @ weight (I, O) + bias (O,) -> (R, O), float32."""
    (R, I), O = x.shape, weight.shape[1]
    x, weight = _rows(x), _rows(weight)
    found = x.new_empty(R, O)
    count = workers(-(-R // BLOCK))
    of_bias = 0 if bias is None else bias.data_ptr()
    share(
        count, _product, x.data_ptr(), x.stride(0), weight.data_ptr(), weight.stride(0), of_bias,
        found.data_ptr(), R, I, O,
    )  # fmt: skip
    return found


def inner(x: Tensor, y: Tensor) -> Tensor:
    """x (R, I), y (R, O) -> (I, O), the sum over rows of their outer products, float32."""
    (R, I), O = x.shape, y.shape[1]
    x, y = _rows(x), _rows(y)
    count = workers(-(-R // BLOCK))
    sums = x.new_zeros(count, I, O)
    share(count, _inner, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), sums.data_ptr(), R, I, O)
    return sums[0] if count == 1 else sums.sum(0)


def _rows(matrix: Tensor) -> Tensor:
    """The same, with each row in one piece."""
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


@compiled
def _product(worker, workers, x, x_row, weight, weight_row, bias, to, R, I, O):
    for begin in range(worker * BLOCK, R, workers * BLOCK):
        size, now = min(BLOCK, R - begin), to + FLOAT * begin * O
        if bias:
            for i in range(size):
                copy(bias, now + FLOAT * i * O, O, O)
        tiled(x + FLOAT * begin * x_row, x_row, 1, weight, weight_row, now, O, size, I, O, bias != 0)


@compiled
def _inner(worker, workers, x, x_row, y, y_row, sums, R, I, O):
    to = sums + FLOAT * worker * I * O
    for begin in range(worker * BLOCK, R, workers * BLOCK):
        size = min(BLOCK, R - begin)
        tiled(x + FLOAT * begin * x_row, 1, x_row, y + FLOAT * begin * y_row, y_row, to, O, I, size, O, 1)
