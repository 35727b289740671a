"""Dense layers: Glorot's start, the two input norms, and the head that turns a row's features into a logit."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from deepinterest.config import Quirks
from deepinterest.kernels import dense
from deepinterest.nn.dice import BatchDice, Dice
from deepinterest.nn.synced import SyncedNorm


class Linear(nn.Linear):
    """torch's, by our kernel where that computes."""

    def forward(self, input: Tensor) -> Tensor:
        return dense(input, self.weight.t(), self.bias) if input.dim() == 2 else super().forward(input)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A dense layer with Glorot uniform weights and zero bias: (B, inputs) -> (B, outputs)."""
    layer = Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Sigmoid(nn.Module):
    """In place: for what a layer has just computed and nothing else reads."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid_()


class BatchNorm(SyncedNorm, nn.BatchNorm1d):
    """Batch norm that takes its running statistics for a training batch of one row: (B, C) -> (B, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-3, momentum=0.1)

    def forward(self, input: Tensor) -> Tensor:
        if self.training and self.synced:
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            normal = self.normalised(input, self.running_mean, self.running_var, self.momentum, self.eps)
            return normal * self.weight + self.bias
        if len(input) > 1:
            return nn.BatchNorm1d.forward(self, input)
        return batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)


class FrozenNorm(nn.Module):
    """Batch norm whose statistics stay (0, 1), as in the published code: an affine layer, (..., C) -> (..., C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))  # (C,)
        self.bias = nn.Parameter(torch.zeros(channels))  # (C,)

    def scale(self) -> Tensor:
        """What a channel is multiplied by: (C,)."""
        return self.weight / math.sqrt(1 + 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale() + self.bias


class Head(nn.Module):
    """norm -> dense -> activation -> ... -> two logits, returned as their difference.

    softmax([z0, z1])[0] = sigmoid(z0 - z1): the published two-column output is one logit. (B, input) -> (B,)
    """

    def __init__(
        self,
        input: int,
        hidden: list[int],
        activation: Literal["prelu", "dice"],
        quirks: Quirks | None = None,
    ) -> None:
        super().__init__()
        quirks = quirks or Quirks()
        dice = BatchDice if quirks.batch_dice else Dice
        layers: list[nn.Module] = [FrozenNorm(input) if quirks.frozen_norm else BatchNorm(input)]
        for inputs, outputs in pairwise([input, *hidden]):
            layers.append(linear(inputs, outputs))
            layers.append(dice(outputs) if activation == "dice" else nn.PReLU(outputs, init=0.1))
        self.layers = nn.Sequential(*layers)
        self.output = linear(hidden[-1], 2)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.output(self.layers(x))  # (B, 2)
        return logits[:, 0] - logits[:, 1]  # (B,)
