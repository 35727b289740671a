"""What training minimises, and what a logit means; with the quirks of the published code (config.Quirks)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deepinterest.config import Quirks
from deepinterest.models.prediction import Prediction


def probability(logit: Tensor, quirks: Quirks, epsilon: float) -> Tensor:
    """Probability of a touch (B,); the published one is `epsilon` higher."""
    p = torch.sigmoid(logit.float())
    return p + epsilon if quirks.epsilon else p


def click_loss(logit: Tensor, label: Tensor, quirks: Quirks, epsilon: float) -> Tensor:
    """Mean binary cross-entropy: logit (B,), label (B,) -> scalar; the published code has half of it."""
    logit = logit.float()
    if quirks.epsilon:
        of_label = torch.sigmoid(torch.where(label == 1, logit, -logit))  # (B,) the column of the true class
        loss = -(of_label + epsilon).log().mean()
    else:
        loss = binary_cross_entropy_with_logits(logit, label)
    return loss / 2 if quirks.half_loss else loss


def total_loss(
    prediction: Prediction,
    label: Tensor,
    quirks: Quirks,
    epsilon: float,
    aux_weight: float,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The click loss with `aux_weight` times the auxiliary loss, if there is one; and the click loss alone.

    With `share`, that of the batch, the mean of both over all processes is the loss of their batches joined.
    """
    click, auxiliary = click_loss(prediction.logit, label, quirks, epsilon), prediction.auxiliary_loss
    if share is not None:
        click = share[0] * click
    if auxiliary is None:
        return click, click
    if share is not None:
        auxiliary = share[1] * auxiliary
    weight = aux_weight / 2 if quirks.half_loss else aux_weight
    return click + weight * auxiliary, click
