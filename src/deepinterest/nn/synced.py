"""Batch statistics over the rows of several processes, so that a norm does what it does on all rows at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd.function import once_differentiable


class SyncedNorm(nn.Module):
    """A norm that may take its statistics in training from the rows of all processes: see `synchronise`."""

    synced = False

    def normalised(self, x: Tensor, running_mean: Tensor, running_var: Tensor, momentum: float, eps: float) -> Tensor:
        """Rows x (B, C), B >= 1, by mean and biased variance of the rows of all processes: (B, C).

        The running statistics (C,) follow, with the unbiased variance.
        """
        count, mean, var = _moments(x)
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (count / (count - 1)), momentum)
        normal: Tensor = _Normalise.apply(x, mean, torch.rsqrt(var + eps), count)
        return normal


def synchronise(network: nn.Module) -> None:
    """Let all norms in `network` train on the rows of all processes, which must then train in step."""
    for module in network.modules():
        if isinstance(module, SyncedNorm):
            module.synced = True


@torch.no_grad()
def _moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number of rows of all processes (), their mean (C,) and biased variance (C,), float32.

    Each process tells its own; they are put together as by Chan, Golub and LeVeque (1979), which loses no digits.
    """
    own = torch.cat([x.new_full((1,), len(x), dtype=torch.float32), *torch.var_mean(x.float(), dim=0, correction=0)])
    all_ = own.new_empty(distributed.get_world_size(), len(own))  # (W, 1+2C)
    distributed.all_gather(list(all_), own)
    counts, (variances, means) = all_[:, :1], all_[:, 1:].chunk(2, dim=1)  # (W, 1), (W, C) each
    total = counts.sum()
    share = counts / total
    mean = (share * means).sum(0)
    return total, mean, (share * (variances + (means - mean).square())).sum(0)


class _Normalise(torch.autograd.Function):
    """(x - mean) / deviation, where both are functions of the rows of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, inverse: Tensor, count: Tensor) -> Tensor:
        normal = (x.float() - mean) * inverse  # (B, C)
        ctx.save_for_backward(normal, inverse, count)
        return normal.to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        normal, inverse, count = ctx.saved_tensors
        grad32 = grad.float()
        sums = torch.stack([grad32.sum(0), (grad32 * normal).sum(0)])  # (2, C)
        distributed.all_reduce(sums)
        of_mean, of_deviation = sums / count
        return ((grad32 - of_mean - normal * of_deviation) * inverse).to(grad.dtype), None, None, None
