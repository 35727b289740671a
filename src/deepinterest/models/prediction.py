"""What every network answers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Prediction:
    logit: Tensor  # (B,) of the probability of a touch
    auxiliary_loss: Tensor | None = None  # scalar, unweighted; None where there is none
