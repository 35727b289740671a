"""Dice, DIN's data-adaptive activation (DIN, equation 3): as the paper has it, and as the published code has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from deepinterest.nn.synced import SyncedNorm


class Dice(SyncedNorm):
    """y = p*x + (1-p)*alpha*x with p = sigmoid of x normalised per channel: (B, C) -> (B, C).

    Training normalises by the batch (biased variance) and keeps running statistics; evaluation uses those, and so does
    a training batch of one row, which has no variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, momentum: float = 0.1, eps: float = 1e-8) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps
        self.alpha = nn.Parameter(torch.zeros(channels))  # (C,)
        self.register_buffer("running_mean", torch.zeros(channels))  # (C,)
        self.register_buffer("running_var", torch.ones(channels))  # (C,)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.synced:
            normal = self.normalised(x, self.running_mean, self.running_var, self.momentum, self.eps)  # (B, C)
        else:
            of_batch = self.training and len(x) > 1
            normal = batch_norm(
                x, self.running_mean, self.running_var, training=of_batch, momentum=self.momentum, eps=self.eps
            )  # (B, C)
        p = torch.sigmoid(normal)  # (B, C)
        return x * (p + (1 - p) * self.alpha)  # (B, C)


class BatchDice(nn.Module):
    """Dice as in the published code, which normalises by the batch in evaluation too: (B, C) -> (B, C).

    A row's output depends on the other rows. One row alone has p = 1/2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))  # (C,)

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(0)  # (B, C)
        deviation = (centred.square() + 1e-9).mean(0).sqrt()  # (C,)
        p = torch.sigmoid(centred / (deviation + 1e-9))  # (B, C)
        return x * (p + (1 - p) * self.alpha)  # (B, C)
