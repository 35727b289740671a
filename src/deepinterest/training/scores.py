"""Scores of click predictions, in numpy: exact, and independent of the order of the rows.

Rows are packed into integers whose order is (user, probability, label) and sorted once; everything is counted from
there. A float32 in [0, 1] orders as its bits do, so the integers tie exactly where the float32 probabilities tie.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepinterest.config import EvaluationConfig, GaucWeights
from deepinterest.errors import UserError


class Gauc(NamedTuple):
    """AUC averaged over users; `users` entered the mean, `dropped` have one class only and no AUC."""

    value: float
    users: int
    dropped: int


def pack(label: ArrayLike, probability: ArrayLike) -> NDArray[np.uint32]:
    """Rows as integers, float32 bits << 1 | label; label [n] of 0 and 1, probability [n] in [0, 1] -> [n].

    Raises ValueError for other values or lengths. Probabilities are rounded to float32.
    """
    labels, probabilities = np.asarray(label), np.asarray(probability)
    if labels.ndim != 1 or labels.shape != probabilities.shape:
        raise ValueError(f"Labels {labels.shape} and probabilities {probabilities.shape} must be two equal rows.")
    wrong = ~((probabilities >= 0) & (probabilities <= 1))  # true for nan as well
    if wrong.any():
        raise ValueError(f"Probabilities must lie in [0, 1]; row {wrong.argmax()} is {probabilities[wrong][0]}.")
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        raise ValueError(f"Labels must be 0 or 1; row {wrong.argmax()} is {labels[wrong][0]}.")
    bits = (probabilities.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 makes -0.0 the plain 0.0
    return bits << np.uint32(1) | labels.astype(np.uint32)


class NotFiniteError(UserError):
    """Scores that are nan or infinite; `found` says how many."""

    def __init__(self, wrong: int, rows: int) -> None:
        self.found = f"{wrong:,} of {rows:,} scores are no numbers"
        super().__init__(
            f"{self.found}: the model's weights are too large to compute with, so its training has diverged. Take "
            "another checkpoint, or train with a lower optimizer.lr."
        )


def refuse_numbers(probability: NDArray[np.floating]) -> None:
    """Raise NotFiniteError where a model's scores [n] aren't finite."""
    wrong = int(np.count_nonzero(~np.isfinite(probability)))
    if wrong:
        raise NotFiniteError(wrong, len(probability))


def unpack(keys: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(label, probability) of packed rows [n], in the order of the keys."""
    return (keys & np.uint32(1)).astype(np.int64), (keys >> np.uint32(1)).view(np.float32).astype(np.float64)


def _starts(groups: NDArray[Any]) -> NDArray[np.int64]:
    """Where each run of equal values begins in a sorted, non-empty array."""
    return np.concatenate([[0], np.flatnonzero(groups[1:] != groups[:-1]) + 1])


def auc(label: ArrayLike, probability: ArrayLike) -> float:
    """Chance that a click outranks a non-click, ties counted half (Mann-Whitney); nan where one class is missing.

    Raises ValueError for probabilities outside [0, 1] and labels other than 0 and 1.
    """
    keys = np.sort(pack(label, probability))
    labels = (keys & np.uint32(1)).astype(np.int64)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    starts = _starts(keys >> np.uint32(1))
    below = np.concatenate([[0], np.cumsum(1 - labels)])
    # Whole numbers until the last division: twice the wins, a tie being one.
    twice = np.add.reduceat(labels, starts) @ (below[starts] + below[np.append(starts[1:], len(keys))])
    return float(twice / (2 * positives * negatives))


def gauc(user: ArrayLike, label: ArrayLike, probability: ArrayLike, weights: GaucWeights) -> Gauc:
    """AUC within each user, averaged by impressions (DIN paper, equation 7), by clicks, or each user alike.

    Users with one class have no AUC: they are left out and counted. The value is nan when no user is left.
    Raises ValueError for user ids outside [0, 2**32), and as `pack` does.
    """
    users, rows = np.asarray(user), pack(label, probability)
    if users.shape != rows.shape:
        raise ValueError(f"Users {users.shape} and labels {rows.shape} must be two equal rows.")
    if len(rows) == 0:
        return Gauc(float("nan"), 0, 0)
    if users.min() < 0 or users.max() >= 2**32:
        raise ValueError(f"User ids must lie in [0, 2**32); they reach from {users.min()} to {users.max()}.")
    keys = np.sort(users.astype(np.uint64) << np.uint64(32) | rows)
    labels = (keys & np.uint64(1)).astype(np.int64)
    ties = _starts(keys >> np.uint64(1))  # first rows of equal user and probability
    first = _starts(keys[ties] >> np.uint64(32))  # first ties of each user
    below = np.concatenate([[0], np.cumsum(1 - labels)])
    clicks = np.add.reduceat(labels, ties)
    # Non-clicks below, counted over all rows; those of the users before come off again.
    before = np.repeat(below[ties[first]], np.diff(np.append(first, len(ties))))
    twice = clicks * (below[ties] + below[np.append(ties[1:], len(keys))] - 2 * before)
    impressions = np.diff(np.append(ties[first], len(keys)))
    positives = np.add.reduceat(clicks, first)
    pairs = positives * (impressions - positives)
    mixed = pairs > 0
    if not mixed.any():
        return Gauc(float("nan"), 0, len(mixed))
    values = np.add.reduceat(twice, first)[mixed] / (2 * pairs[mixed])
    if weights is GaucWeights.impressions:
        weight = impressions[mixed]
    elif weights is GaucWeights.clicks:
        weight = positives[mixed]
    else:
        weight = np.ones(len(values), dtype=np.int64)
    return Gauc(float((values * weight).sum() / weight.sum()), int(mixed.sum()), int((~mixed).sum()))


def logloss(label: ArrayLike, probability: ArrayLike) -> float:
    """Mean negative log likelihood in nats, in float64, probabilities clipped to [1e-7, 1 - 1e-7]; nan of no rows."""
    labels, probabilities = unpack(np.sort(pack(label, probability)))  # sorted: a float sum depends on its order
    if len(labels) == 0:
        return float("nan")
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return float(-np.log(np.where(labels == 1, clipped, 1 - clipped)).mean())


def accuracy(label: ArrayLike, probability: ArrayLike) -> float:
    """Share of rows on the right side of one half; one half itself predicts a click. nan of no rows."""
    labels, probabilities = unpack(pack(label, probability))
    return float(((probabilities >= 0.5) == (labels == 1)).mean()) if len(labels) else float("nan")


def calibration_bins(
    label: ArrayLike, probability: ArrayLike, bins: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """(rows, mean probability, click rate), each [bins], of equal-width bins of probability; nan in empty bins.

    A bin holds its lower edge; the last one holds 1 too.
    """
    labels, probabilities = unpack(np.sort(pack(label, probability)))
    index = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    count = np.bincount(index, minlength=bins)
    full = np.where(count == 0, np.nan, count)
    return (
        count,
        np.bincount(index, weights=probabilities, minlength=bins) / full,
        np.bincount(index, weights=labels, minlength=bins) / full,
    )


def calibration_error(label: ArrayLike, probability: ArrayLike, bins: int) -> float:
    """Expected calibration error: |mean probability - click rate| of equal-width bins, averaged by rows; nan of none.

    Naeini et al. 2015, for the probability of a click rather than of the likelier class.
    """
    count, predicted, observed = calibration_bins(label, probability, bins)
    full = count > 0
    if not full.any():
        return float("nan")
    return float(np.average(np.abs(predicted[full] - observed[full]), weights=count[full]))


def evaluate(user: ArrayLike, label: ArrayLike, probability: ArrayLike, config: EvaluationConfig) -> dict[str, float]:
    """All scores of rows [n]: auc, gauc, gauc_users, gauc_users_dropped, logloss, accuracy, ece."""
    grouped = gauc(user, label, probability, config.gauc_weights)
    return {
        "auc": auc(label, probability),
        "gauc": grouped.value,
        "gauc_users": float(grouped.users),
        "gauc_users_dropped": float(grouped.dropped),
        "logloss": logloss(label, probability),
        "accuracy": accuracy(label, probability),
        "ece": calibration_error(label, probability, config.ece_bins),
    }


class WeightedAuc:
    """AUC of fixed rows under changing whole-number weights of users: sorted once, then linear per weighting.

    user [n] indexes the weights; label and probability [n] as for `auc`.
    """

    def __init__(self, user: NDArray[np.int64], label: ArrayLike, probability: ArrayLike) -> None:
        keys = pack(label, probability)
        order = np.argsort(keys, kind="stable")  # positives too: then `below` rises, and what it reads lies in a row
        score, positive = keys[order] >> np.uint32(1), (keys[order] & np.uint32(1)) == 1
        user = user[order]
        self.negative_user, self.positive_user = user[~positive], user[positive]
        self.below = np.searchsorted(score[~positive], score[positive], side="left")
        not_above = np.searchsorted(score[~positive], score[positive], side="right")
        self.not_above = None if np.array_equal(self.below, not_above) else not_above  # None: nothing is tied

    def __call__(self, weight: NDArray[np.int64]) -> float:
        """AUC with each user's rows counted weight[user] times; nan where one class has no weight."""
        negatives = np.concatenate([[0], weight.take(self.negative_user).cumsum()])
        positives = weight.take(self.positive_user)
        pairs = positives.sum() * negatives[-1]
        if pairs == 0:
            return float("nan")
        times = positives.astype(np.float64)  # exact up to 2^53, and ten times as fast as a product of integers
        below = times @ negatives.take(self.below).astype(np.float64)
        not_above = below if self.not_above is None else times @ negatives.take(self.not_above).astype(np.float64)
        return float((below + not_above) / (2 * pairs))


@dataclass(frozen=True)
class Difference:
    """A difference of AUCs and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        """Whether the interval leaves out 0; false where it is not known."""
        return self.low > 0 or self.high < 0


def auc_difference(
    pairs: Sequence[tuple[WeightedAuc, WeightedAuc]], users: int, resamples: int = 1000, seed: int = 0
) -> Difference:
    """AUC of the first less that of the second, averaged over pairs (seeds), by a paired bootstrap over users.

    Each resample draws `users` users with replacement and scores every member of every pair on the same draw. The
    interval is the 2.5th to the 97.5th percentile: it holds the chance of the users, not that of further seeds.
    """

    def difference(weight: NDArray[np.int64]) -> float:
        return float(np.mean([first(weight) - second(weight) for first, second in pairs]))

    rng = np.random.default_rng(seed)
    drawn = np.array(
        [difference(np.bincount(rng.integers(0, users, users), minlength=users)) for _ in range(resamples)]
    )
    drawn = drawn[~np.isnan(drawn)]  # a draw of one class only says nothing
    value = difference(np.ones(users, dtype=np.int64))
    if len(drawn) == 0:
        return Difference(value, float("nan"), float("nan"))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Difference(value, float(low), float(high))


def published_auc(label: ArrayLike, probability: ArrayLike) -> float:
    """AUC as the published DIEN code walks it, for comparing with its numbers; nan where one class is missing.

    Rows are taken by falling score, ties in their order of arrival, and a trapezoid is added at each non-click. Two
    faults: the trapezoid's left height is that of the non-click before, not of the clicks in between, so the result is
    low by (clicks above the last non-click) / (2 clicks non-clicks); and a tie counts as won or lost by its order, not
    half. label [n] of 0 and 1, probability [n] finite; raises ValueError for anything else.
    """
    labels, scores = np.asarray(label), np.asarray(probability)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"Labels {labels.shape} and probabilities {scores.shape} must be two equal rows.")
    if not np.isfinite(scores).all() or not np.isin(labels, (0, 1)).all():
        raise ValueError("Probabilities must be finite and labels 0 or 1.")
    clicked = labels[np.argsort(-scores, kind="stable")] == 1
    above = np.cumsum(clicked)[~clicked]  # clicks above each non-click
    positives, negatives = int(clicked.sum()), len(above)
    if positives == 0 or negatives == 0:
        return float("nan")
    return float((2 * above.sum() - above[-1]) / (2 * positives * negatives))
