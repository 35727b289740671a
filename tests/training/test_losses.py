"""Losses against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from deepinterest.config import Quirks
from deepinterest.models.prediction import Prediction
from deepinterest.training.losses import click_loss, probability, total_loss

# Two columns of logits, (2, -1) and (0, .5), and the labels 1 and 0: half the cross-entropy is 0.13066608.
LOGIT, LABEL = torch.tensor([3.0, -0.5]), torch.tensor([1.0, 0.0])


@pytest.mark.parametrize("epsilon", [False, True])
def test_half_the_cross_entropy(epsilon: bool) -> None:
    half = click_loss(LOGIT, LABEL, Quirks(half_loss=True, epsilon=epsilon), 1e-8)
    assert half.item() == pytest.approx(0.13066608, abs=1e-7)
    whole = click_loss(LOGIT, LABEL, Quirks(epsilon=epsilon), 1e-8)
    assert whole.item() == pytest.approx(2 * 0.13066608, abs=2e-7)


def test_probability() -> None:
    torch.testing.assert_close(probability(LOGIT, Quirks(), 1e-8), torch.tensor([0.95257413, 0.37754067]))
    published = probability(torch.tensor([-40.0]), Quirks(epsilon=True), 1e-8)
    assert published.item() == pytest.approx(1e-8)
    assert probability(torch.tensor([-40.0]), Quirks(), 1e-8).item() < 1e-16


def test_epsilon_bounds_the_loss_of_a_sure_error() -> None:
    logit, label = torch.tensor([-200.0]), torch.tensor([1.0])
    assert click_loss(logit, label, Quirks(), 1e-8).item() == pytest.approx(200)
    assert click_loss(logit, label, Quirks(epsilon=True), 1e-8).item() == pytest.approx(18.42, abs=0.01)  # -log 1e-8


@pytest.mark.parametrize(("quirks", "weight"), [(Quirks(), 2.0), (Quirks(half_loss=True), 1.0)])
def test_weight_of_the_auxiliary_loss(quirks: Quirks, weight: float) -> None:
    prediction = Prediction(LOGIT, torch.tensor(0.7))
    loss, click = total_loss(prediction, LABEL, quirks, 1e-8, aux_weight=2.0)
    assert (loss - click).item() == pytest.approx(weight * 0.7, abs=1e-6)
    alone, click_alone = total_loss(Prediction(LOGIT), LABEL, quirks, 1e-8, aux_weight=2.0)
    assert alone is click_alone
    assert torch.equal(click, click_alone)
