"""The steps that a row of an embedding table missed under Adam, summed up without a loop over them.

A row last updated at step s with moments m and v has, at step t, missed the sum over k = 1 .. t - s of

    b_{s+k} r^k m / (sqrt(v) + eps q_{s,k}),    r = beta1 / sqrt(beta2),
    b_j = lr_j sqrt(1 - beta2^j) / (1 - beta1^j),    q_{s,k} = sqrt(1 - beta2^{s+k}) / beta2^{k/2}.

The row enters only through m and v. For each s the sum is an integral of m / (sqrt(v) + eps q) over q with weights
b_{s+k} r^k, so a Gauss rule that depends on s alone replaces it, whatever the number of missed steps. TensorFlow's form
doesn't correct eps: there q_{s,k} = 1 / beta2^{k/2}.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Until this step q varies several-fold within one sum and one two-point rule is not enough (error 2e-4 at lr 1e-2),
# so the sum is cut into panels of missed steps with a rule each (1e-6). Later one rule is good to 1e-7.
EARLY_STEPS = 128
EARLY_EDGES = (0, 4, 10, 24, math.inf)
LATE_EDGES = (0, math.inf)
MOST_RULES = 1 << 20  # steps without a flush; bounds the table of rules to 16 MiB


def two_point_rule(moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights and nodes of the two-point Gauss rules with the given moments.

    `moments` is (panels, 4, n): the sums of w q^j for j = 0 .. 3. Both results are (panels, 2, n). A rule of no weight
    gets nodes of 1, so that nothing is divided by zero.
    """
    empty = moments[:, 0] <= 0
    total = np.where(empty, 1.0, moments[:, 0])
    mean = np.where(empty, 1.0, moments[:, 1] / total)
    # Relative to the mean, because the guard below has to be about rounding and not about the scale of q.
    second = moments[:, 2] / (total * mean * mean)
    third = moments[:, 3] / (total * mean * mean * mean)
    variance = second - 1
    narrow = empty | (variance < 1e-9)
    variance = np.where(narrow, 1.0, variance)
    deviation = np.sqrt(variance)
    skew = np.where(narrow, 0.0, (third - 3 * second + 2) / (variance * deviation))
    half = np.sqrt(1 + skew * skew / 4)
    low, high = skew / 2 - half, skew / 2 + half
    share = high / (high - low)
    deviation = np.where(narrow, 0.0, deviation)
    weights = np.stack([moments[:, 0] * share, moments[:, 0] * (1 - share)], axis=1)
    nodes = np.stack([mean * (1 + deviation * low), mean * (1 + deviation * high)], axis=1)
    return weights, nodes


class MissedSteps:
    """For each step s from `base` on, the rule that sums up the steps after s; see the module's docstring."""

    def __init__(self, betas: tuple[float, float], base: int, corrects_eps: bool = True) -> None:
        beta1, self.beta2 = betas
        self.corrects_eps = corrects_eps
        self.betas = betas
        self.base = self.step = base
        ratio = beta1 / math.sqrt(self.beta2)
        # What a row moves after this many missed steps is below float64 rounding of what it moved before.
        self.width = math.ceil(math.log(1e-17) / math.log(ratio))
        missed = np.arange(1, self.width + 1, dtype=np.float64)
        edges = EARLY_EDGES if base < EARLY_STEPS else LATE_EDGES
        panels = np.stack([(missed > low) & (missed <= high) for low, high in pairwise(edges)])
        self._powers = np.arange(4, dtype=np.float64)[:, None]
        # (panels, 4, width): r^k beta2^(-k j / 2), the part of w_k q_k^j that no step changes.
        self._unit = panels[:, None, :] * (ratio**missed * self.beta2 ** (-missed * self._powers / 2))
        # Column i belongs to s = t - 1 - i.
        self._moments = np.zeros_like(self._unit)
        self.columns = 2 * len(panels)
        self._rules = torch.zeros(1024, 2 * self.columns)

    def advance(self, step: int, rate: float) -> None:
        """Add step `step`, taken at `rate` b_step, to the sums of all earlier steps."""
        self.step = step
        self._moments[..., 1:] = self._moments[..., :-1]
        self._moments[..., 0] = 0
        root = math.sqrt(1 - self.beta2**step) if self.corrects_eps else 1.0
        self._moments += (rate * root**self._powers) * self._unit
        weights, nodes = two_point_rule(self._moments)
        stop = step - self.base
        count = min(self.width, stop)
        rules = np.concatenate([weights.reshape(-1, self.width), nodes.reshape(-1, self.width)])[:, :count]
        if stop > len(self._rules):
            self._rules = torch.cat([self._rules, torch.zeros_like(self._rules)])
        latest = torch.from_numpy(np.ascontiguousarray(rules[:, ::-1].T, dtype=np.float32))
        self._rules[stop - count : stop] = latest.to(self._rules.device)

    def ends(self, step: int) -> bool:
        """Whether it is time to begin anew: once because from here on the rules are shorter, later to bound them."""
        return self.base < EARLY_STEPS <= step or step - self.base >= MOST_RULES

    def state_dict(self) -> dict[str, Any]:
        """The sums so far, for `load_state_dict` of an object with the same settings."""
        rules = self._rules[: self.step - self.base].cpu().clone()
        return {"base": self.base, "step": self.step, "moments": torch.from_numpy(self._moments.copy()), "rules": rules}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; `base` has to be the same."""
        self.step = state["step"]
        self._moments = state["moments"].numpy().copy()
        rules = state["rules"]
        self._rules = torch.zeros(1 << max(10, (len(rules) - 1).bit_length()), rules.shape[1])
        self._rules[: len(rules)] = rules

    def all_rules(self) -> Tensor:
        """The rules of rows last updated at step base + i, for each i: (i, 2 * columns)."""
        return self._rules

    def rules(self, since: Tensor) -> Tensor:
        """The rules of the rows last updated at the steps `since` (n,): (n, 2 * columns), weights and then nodes."""
        if self._rules.device != since.device:
            self._rules = self._rules.to(since.device)
        return self._rules[since - self.base]
