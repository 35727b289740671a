"""Products of whole tensors by `tiles.product`: rows in blocks that the nearest cache holds, dealt to threads."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinterest.kernels import tiles
from deepinterest.kernels.compiled import compiled, share, workers
from deepinterest.kernels.tiles import FLOAT, add, copy

BLOCK = 64  # rows


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (R, I) @ weight (I, O) + bias (O,) -> (R, O), float32. Raises ValueError where these don't fit one another."""
    x, weight = _rows("x", x), _rows("weight", weight)
    (rows, inputs), outputs = x.shape, weight.shape[1]
    if bias is not None:
        bias = _floats("bias", bias, 1).contiguous()
    if len(weight) != inputs or (bias is not None and len(bias) != outputs):
        added = "" if bias is None else f" and bias {tuple(bias.shape)}"
        raise ValueError(f"x {tuple(x.shape)} doesn't fit weight {tuple(weight.shape)}{added}.")
    found = x.new_empty(rows, outputs)
    count = workers(-(-rows // BLOCK), rows * inputs * outputs)
    of_bias = 0 if bias is None else bias.data_ptr()
    share(
        count, _product, x.data_ptr(), x.stride(0), weight.data_ptr(), weight.stride(0), of_bias,
        found.data_ptr(), rows, inputs, outputs,
    )  # fmt: skip
    return found


def inner(x: Tensor, y: Tensor) -> Tensor:
    """x (R, I), y (R, O) -> (I, O), the sum over rows of their outer products, float32.

    Raises ValueError where one has more rows.
    """
    x, y = _rows("x", x), _rows("y", y)
    (rows, inputs), outputs = x.shape, y.shape[1]
    if len(y) != rows:
        raise ValueError(f"x {tuple(x.shape)} and y {tuple(y.shape)} have not as many rows.")
    count = workers(-(-rows // BLOCK), rows * inputs * outputs)
    sums = x.new_zeros(count, inputs, outputs)
    share(count, _inner, x.data_ptr(), x.stride(0), y.data_ptr(), y.stride(0), sums.data_ptr(), rows, inputs, outputs)
    return sums[0] if count == 1 else sums.sum(0)


def add_rows(values: Tensor, index: Tensor, to: Tensor) -> None:
    """to[index[i]] += values[i], row by row, of float32 (n, W) and int64 (n,); `to` (S, W) lies in one piece.

    Raises IndexError where `to` has no such row, ValueError where shapes don't fit.
    """
    values, to = _rows("values", values), _floats("to", to, 2)
    if index.dtype is not torch.int64 or index.dim() != 1 or not to.is_contiguous():
        raise ValueError(
            f"index must be (n,) of int64 and `to` in one piece; index is {tuple(index.shape)} of {index.dtype}."
        )
    if values.shape != (len(index), to.shape[1]):
        raise ValueError(f"values {tuple(values.shape)} don't fit {len(index)} rows of {tuple(to.shape)}.")
    index = index.contiguous()
    if not _add_rows(values.data_ptr(), values.stride(0), index.numpy(), to.data_ptr(), *to.shape):
        raise IndexError(f"Rows reach from {index.min()} to {index.max()}; there are the rows 0 to {len(to) - 1}.")


def _floats(name: str, tensor: Tensor, dims: int) -> Tensor:
    if tensor.dim() != dims or tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
        raise ValueError(
            f"{name} must be float32 on a CPU with {dims} dimensions, not {tuple(tensor.shape)} of {tensor.dtype}."
        )
    return tensor


def _rows(name: str, matrix: Tensor) -> Tensor:
    """The same, with each row in one piece."""
    _floats(name, matrix, 2)
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] == 1 else matrix.contiguous()


@compiled
def _product(worker, workers, x, x_row, weight, weight_row, bias, to, rows, inputs, outputs):
    for begin in range(worker * BLOCK, rows, workers * BLOCK):
        size, now = min(BLOCK, rows - begin), to + FLOAT * begin * outputs
        if bias:
            for i in range(size):
                copy(bias, now + FLOAT * i * outputs, outputs, outputs)
        of_x = x + FLOAT * begin * x_row
        tiles.product(of_x, x_row, 1, weight, weight_row, now, outputs, size, inputs, outputs, bias != 0)


@compiled
def _inner(worker, workers, x, x_row, y, y_row, sums, rows, inputs, outputs):
    to = sums + FLOAT * worker * inputs * outputs
    for begin in range(worker * BLOCK, rows, workers * BLOCK):
        size, of_x, of_y = min(BLOCK, rows - begin), x + FLOAT * begin * x_row, y + FLOAT * begin * y_row
        tiles.product(of_x, 1, x_row, of_y, y_row, to, outputs, inputs, size, outputs, 1)


@compiled
def _add_rows(values, value_row, index, to, rows, width):
    """Whether all rows are there; what comes after one that isn't is left out."""
    for i in range(len(index)):
        if index[i] < 0 or index[i] >= rows:
            return False
        add(values + FLOAT * i * value_row, to + FLOAT * index[i] * width, width)
    return True
