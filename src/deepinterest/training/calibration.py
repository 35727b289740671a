"""Calibration: after training, the probability that a score really stands for, learned from the validation rows.

All three forms are functions of the model's own probability p, fitted on rows that no weight has seen. With the logit
z = ln(p / (1 - p)):

    temperature   sigmoid(z / T)        T > 0 by maximum likelihood (Guo et al., ICML 2017)
    platt         sigmoid(a z + b)      by maximum likelihood with softened labels (Platt, 1999)
    isotonic      the rising step function nearest to the labels (Ayer et al., 1955), straight lines between its steps

The first two keep the order of the rows, so no AUC changes; the third makes ties.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepinterest.config import CalibrationName

Floats = NDArray[np.float64]
LIMIT = 1e-7  # probabilities are kept so far from 0 and 1, as in scores.logloss
STEPS, TOLERANCE = 100, 1e-12  # of Newton's method
SIZES = {CalibrationName.temperature: (1, 1), CalibrationName.platt: (1, 2), CalibrationName.isotonic: (2, None)}


@dataclass(frozen=True)
class Calibration:
    """`parameters`, float64: temperature [[T]], platt [[a, b]], isotonic (2, n): rising p, and what each becomes."""

    name: CalibrationName
    parameters: Floats

    def __call__(self, probability: ArrayLike) -> NDArray[np.float32]:
        """Probabilities of a model -> calibrated ones, of the same shape."""
        p = np.asarray(probability, dtype=np.float64)
        if self.name is CalibrationName.isotonic:
            result = np.interp(p, *self.parameters)
        else:
            values = self.parameters[0]
            slope, offset = (1 / values[0], 0.0) if self.name is CalibrationName.temperature else values
            result = _sigmoid(slope * _logit(p) + offset)
        return result.astype(np.float32)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: a name and a tensor."""
        import torch

        return {"name": self.name.name, "parameters": torch.from_numpy(np.array(self.parameters))}

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> Calibration:
        """Raises ValueError for anything `state` doesn't give."""
        try:
            name, parameters = CalibrationName[state["name"]], state["parameters"].numpy().astype(np.float64)
            rows, columns = SIZES[name]
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"the calibration can't be read ({type(error).__name__}: {error})") from error
        if name is CalibrationName.isotonic and parameters.ndim == 2 and parameters.shape[0] == rows:
            x, values = parameters
            sound = len(x) > 0 and (np.diff(x) > 0).all() and (np.diff(values) >= 0).all()
            sound = sound and 0 <= values[0] <= values[-1] <= 1
        else:
            sound = parameters.size > 0 and parameters.flat[0] > 0
        fits = sound and parameters.ndim == 2 and parameters.shape[0] == rows and columns in (None, parameters.shape[1])
        if not fits or not np.isfinite(parameters).all():
            raise ValueError(f"the calibration {name.name} has wrong numbers, of shape {parameters.shape}")
        return cls(name, parameters)


def fit(name: CalibrationName, label: ArrayLike, probability: ArrayLike) -> Calibration:
    """Learn from rows (n,): labels of 0 and 1, and the model's probabilities.

    Raises ValueError where the rows can't tell: none, of one class, or ranked no better than the other way round.
    """
    y, p = np.asarray(label, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    if y.size == 0 or y.min() == y.max():
        raise ValueError(f"the validation rows have {'only label ' + str(int(y[0])) if y.size else 'no label'}")
    return Calibration(name, FITS[name](y, p))


def _temperature(y: Floats, p: Floats) -> Floats:
    (slope,) = _newton(_logit(p)[:, None], y)
    _refuse_reversal(slope)
    return np.array([[1 / slope]])


def _platt(y: Floats, p: Floats) -> Floats:
    low, high = _soft_labels(y)
    slope, offset = _newton(np.stack([_logit(p), np.ones(len(p))], axis=1), np.where(y == 1, high, low))
    _refuse_reversal(slope)
    return np.array([[slope, offset]])


def _isotonic(y: Floats, p: Floats) -> Floats:
    """Pool adjacent violators: neighbouring blocks that don't rise become one, until all rise.

    The lowest and highest steps stay within the softened labels, so that none is a certainty.
    """
    low, place = np.unique(p, return_inverse=True)
    high, clicks, rows = low, np.bincount(place, weights=y), np.bincount(place).astype(np.float64)
    while True:
        rate = clicks / rows
        new = np.concatenate([[True], rate[1:] > rate[:-1]])  # a block that doesn't rise joins the one before
        if new.all():
            break
        first = np.flatnonzero(new)
        last = np.append(first[1:], len(new)) - 1
        low, high = low[first], high[last]
        clicks, rows = np.add.reduceat(clicks, first), np.add.reduceat(rows, first)
    # A block's two ends, one number where they are one.
    x, values = np.stack([low, high], axis=1).ravel(), np.repeat(np.clip(rate, *_soft_labels(y)), 2)
    kept = np.concatenate([[True], x[1:] > x[:-1]])
    return np.stack([x[kept], values[kept]])


FITS: dict[CalibrationName, Callable[[Floats, Floats], Floats]] = {
    CalibrationName.temperature: _temperature,
    CalibrationName.platt: _platt,
    CalibrationName.isotonic: _isotonic,
}


def _newton(inputs: Floats, t: Floats) -> Floats:
    """Logistic regression without intercept: inputs (n, k), targets (n,) in [0, 1] -> coefficients (k,).

    Each step is halved until the loss doesn't rise. The start is the model as it is: slope 1.
    """

    def loss(w: Floats) -> float:
        z = inputs @ w
        return float((np.logaddexp(0, z) - t * z).mean())

    w = np.zeros(inputs.shape[1])
    w[0] = 1
    now = loss(w)
    for _ in range(STEPS):
        p = _sigmoid(inputs @ w)
        gradient = inputs.T @ (p - t) / len(t)
        hessian = (inputs * (p * (1 - p))[:, None]).T @ inputs / len(t)
        # The ridge is far below rounding of a plain case; it bounds the step where the rows are separated.
        step = np.linalg.solve(hessian + 1e-12 * np.eye(len(w)), gradient)
        for _ in range(50):
            after = loss(w - step)
            if after <= now:
                break
            step = step / 2
        else:
            break
        w, done, now = w - step, now - after <= TOLERANCE * now and bool(np.abs(step).max() < 1e-9), after
        if done or abs(w[0]) > 1e6:
            break
    return w


def _refuse_reversal(slope: float) -> None:
    if slope <= 0:
        raise ValueError(f"the validation rows are ranked the wrong way round (a slope of {slope:.3g})")


def _soft_labels(y: Floats) -> tuple[float, float]:
    """What Platt takes for labels 0 and 1: their rates after one more row of each class."""
    positives = float(y.sum())
    return 1 / (len(y) - positives + 2), (positives + 1) / (positives + 2)


def _logit(p: Floats) -> Floats:
    p = np.clip(p, LIMIT, 1 - LIMIT)
    return np.log(p) - np.log1p(-p)


def _sigmoid(z: Floats) -> Floats:
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)
