"""Dense layers on a CPU: x @ w + b and its gradients, by `tiles.product` where that is possible, else by torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from deepinterest.kernels.choice import on_cpu


def dense(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (R, I) @ weight (I, O) + bias (O,) -> (R, O). Differentiable, once, in all of them.

    Raises ValueError (RuntimeError where torch computes) for shapes that don't fit.
    """
    parts = [x, weight] if bias is None else [x, weight, bias]
    if on_cpu(*parts):
        result: Tensor = _Dense.apply(x, weight, bias)
        return result
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same without gradients."""
    if not on_cpu(x, weight):
        return x @ weight if bias is None else torch.addmm(bias, x, weight)
    from deepinterest.kernels import blocks  # imported when first used: numba takes a while

    return blocks.product(x, weight, bias)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """The sum over rows of their outer products, without gradients: x (R, I), y (R, O) -> (I, O)."""
    if not on_cpu(x, y):
        return x.t() @ y
    from deepinterest.kernels import blocks

    return blocks.inner(x, y)


def add_rows(to: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """to[index[i]] += values[i], without gradients: (S, W), (n, W), (n,) int64; returns `to`.

    Raises IndexError where `to`, which lies in one piece, has no such row.
    """
    if not on_cpu(values, to):
        return to.index_add_(0, index, values)
    from deepinterest.kernels import blocks

    blocks.add_rows(values, index, to)
    return to


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (grad,) = grads
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if of_x else None,
            inner(x, grad) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
