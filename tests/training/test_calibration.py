"""Calibrations against scikit-learn's, on rows whose true probabilities are known."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import _sigmoid_calibration
from sklearn.isotonic import IsotonicRegression

from deepinterest.config import CalibrationName
from deepinterest.errors import UserError
from deepinterest.ranges import check
from deepinterest.training import scores
from deepinterest.training.calibration import Calibration, _logit, fit

NAMES = (CalibrationName.platt, CalibrationName.isotonic, CalibrationName.temperature)


def rows(n: int, seed: int = 0, slope: float = 2.0, offset: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and what an overconfident model says: its logit is `slope` times the true one, plus `offset`."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.5, 1.2, n)
    label = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.float64)
    return label, (1 / (1 + np.exp(-(slope * z + offset)))).astype(np.float32)


@pytest.mark.parametrize("n", [12, 300, 20_000])
def test_platt_is_scikit_learns(n: int) -> None:
    label, p = rows(n)
    a, b = _sigmoid_calibration(_logit(p.astype(np.float64)), label)  # sigmoid(-(a z + b))
    np.testing.assert_allclose(fit(CalibrationName.platt, label, p).parameters, [[-a, -b]], rtol=2e-3, atol=2e-3)
    z = _logit(p.astype(np.float64))
    soft = np.where(label == 1, (label.sum() + 1) / (label.sum() + 2), 1 / (n - label.sum() + 2))

    def loss(slope: float, offset: float) -> float:
        return float((np.logaddexp(0, slope * z + offset) - soft * (slope * z + offset)).mean())

    (ours,) = fit(CalibrationName.platt, label, p).parameters
    assert loss(*ours) <= loss(-a, -b) + 1e-12  # theirs stops earlier


@pytest.mark.parametrize("n", [3, 300, 20_000])
@pytest.mark.parametrize("rounded", [False, True])
def test_isotonic_is_scikit_learns(n: int, rounded: bool) -> None:
    label, p = rows(n, seed=3)
    if rounded:  # many ties
        p = np.round(p, 2)
    label[:2] = 0, 1
    theirs = IsotonicRegression(out_of_bounds="clip").fit(p.astype(np.float64), label)
    least, most = 1 / (n - label.sum() + 2), (label.sum() + 1) / (label.sum() + 2)
    asked = np.sort(np.concatenate([p, np.linspace(0, 1, 501).astype(np.float32)])).astype(np.float64)
    # Between two steps theirs goes straight from 0; ours from the softened end.
    at = theirs.X_thresholds_
    expected = np.interp(asked, at, np.clip(theirs.y_thresholds_, least, most))
    np.testing.assert_allclose(fit(CalibrationName.isotonic, label, p)(asked), expected, atol=1e-6)


@pytest.mark.parametrize("order", ["falling", "alternating"])
def test_isotonic_pools_everything_that_does_not_rise(order: str) -> None:
    p = np.linspace(0.1, 0.9, 1000)
    label = (p < 0.5).astype(float) if order == "falling" else (np.arange(1000) % 2 == 0).astype(float)
    answer = fit(CalibrationName.isotonic, label, p)(p)
    assert (np.diff(answer) >= 0).all()
    if order == "falling":
        np.testing.assert_allclose(answer, 0.5, atol=1e-7)


def test_temperature_is_the_best_one() -> None:
    label, p = rows(20_000, slope=2.5, offset=0.0)
    ((temperature,),) = fit(CalibrationName.temperature, label, p).parameters
    z = _logit(p.astype(np.float64))
    best = minimize_scalar(
        lambda t: (np.logaddexp(0, z / t) - label * z / t).mean(),
        bounds=(0.1, 20), method="bounded", options={"xatol": 1e-10},
    )  # fmt: skip
    assert temperature == pytest.approx(best.x, rel=1e-6)
    assert temperature == pytest.approx(2.5, rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_calibrated_on_other_rows(name: CalibrationName) -> None:
    calibration = fit(name, *rows(20_000, seed=1))
    label, p = rows(20_000, seed=2)
    after = calibration(p)
    assert after.dtype == np.float32 and after.shape == p.shape
    limit = 0.1 if name is CalibrationName.temperature else 0.015  # which can't mend an offset
    assert scores.calibration_error(label, after, 15) < min(limit, 0.8 * scores.calibration_error(label, p, 15))
    assert scores.logloss(label, after) < scores.logloss(label, p)
    tolerance = 2e-3 if name is CalibrationName.isotonic else 1e-7
    assert scores.auc(label, after) == pytest.approx(scores.auc(label, p), abs=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_certain_scores_stay_probabilities(name: CalibrationName) -> None:
    label = np.tile([0.0, 1.0, 1.0], 20)
    for p in (label.astype(np.float32), np.tile([0.2, 0.7, 0.9], 20)):  # certain, and perfectly separated
        answer = fit(name, label, p)(np.array([0.0, 0.2, 0.5, 0.9, 1.0], dtype=np.float32))
        assert np.isfinite(answer).all() and (np.diff(answer) >= 0).all()
        assert answer.min() >= 0 and answer.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_state_through_a_checkpoint(name: CalibrationName) -> None:
    calibration = fit(name, *rows(500))
    file = io.BytesIO()
    torch.save(calibration.state(), file)
    file.seek(0)
    again = Calibration.of_state(torch.load(file, weights_only=True))
    p = rows(500, seed=5)[1]
    assert again.name is name
    np.testing.assert_array_equal(again(p), calibration(p))


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"name": "none", "parameters": torch.ones(1, 1)},
        {"name": "spline", "parameters": torch.ones(1, 1)},
        {"name": "platt", "parameters": torch.ones(1, 1)},
        {"name": "platt", "parameters": torch.full((1, 2), torch.nan)},
        {"name": "isotonic", "parameters": [1.0]},
    ],
)
def test_state_of_something_else(state: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the calibration"):
        Calibration.of_state(state)


@pytest.mark.parametrize(
    ("label", "p", "message"),
    [
        ([], [], "no label"),
        ([1.0, 1.0], [0.1, 0.9], "only label 1"),
        ([1.0, 1.0, 0.0, 0.0], [0.1, 0.2, 0.8, 0.9], "wrong way round"),
    ],
)
def test_rows_that_cannot_tell(label: list[float], p: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(CalibrationName.platt, label, p)


def test_not_on_test_rows(settings: Callable[..., Any], tmp_path: Any) -> None:
    config, _ = settings("dnn", tmp_path)
    config.calibration, config.quirks.best_of_test = CalibrationName.platt, True
    with pytest.raises(UserError, match=r"calibration=platt is learned from validation rows"):
        check(config)
