"""The published routine's AUC: vectorised, beside a walk written from the words of docs/published_code.md."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepinterest.training.scores import auc, published_auc


def walk(rows: list[tuple[float, int]]) -> float:
    """Rows (score, label): sort, go down, and add a trapezoid whenever the false positive rate changes."""
    positives = sum(label for _, label in rows)
    negatives = len(rows) - positives
    area = x_before = y_before = 0.0
    true = false = 0
    for _, label in sorted(rows, key=lambda row: row[0], reverse=True):  # Python keeps the order of ties
        true, false = true + label, false + 1 - label
        x, y = false / negatives, true / positives
        if x != x_before:
            area += (x - x_before) * (y + y_before) / 2
            x_before, y_before = x, y
    return area


@pytest.mark.parametrize(
    ("rows", "value"),
    [
        ([(0.9, 1), (0.1, 0)], 0.5),
        ([(0.5, 0), (0.5, 1)], 0.0),
        ([(0.5, 1), (0.5, 0)], 0.5),
        ([(0.9, 1), (0.8, 0), (0.7, 1), (0.6, 1), (0.5, 0), (0.4, 0)], 0.61111111),
    ],
)
def test_auc_by_hand(rows: list[tuple[float, int]], value: float) -> None:
    probability, label = zip(*rows, strict=True)
    assert published_auc(label, probability) == pytest.approx(value, abs=1e-8)
    assert walk(rows) == pytest.approx(value, abs=1e-8)


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.75, 1.0]), st.integers(0, 1)), max_size=40))
def test_equals_the_walk(rows: list[tuple[float, int]]) -> None:
    label, probability = np.array([row[1] for row in rows], dtype=int), np.array([row[0] for row in rows], dtype=float)
    value = published_auc(label, probability)
    if len(set(label)) < 2:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(walk(rows), abs=1e-12)


@given(st.lists(st.integers(0, 1), min_size=2, max_size=60).filter(lambda labels: len(set(labels)) == 2), st.randoms())
def test_how_low_it_is_without_ties(label: list[int], random: object) -> None:
    """Less than the exact AUC by (rate of clicks above the last non-click) / (2 non-clicks)."""
    probability = np.linspace(0.1, 0.9, len(label))
    random.shuffle(label)  # type: ignore[attr-defined]
    labels = np.array(label)
    above = labels[np.flatnonzero(labels == 0)[0] :].sum() / labels.sum()
    gap = above / (2 * (labels == 0).sum())
    assert published_auc(labels, probability) == pytest.approx(auc(labels, probability) - gap, abs=1e-12)


def test_what_is_no_score() -> None:
    with pytest.raises(ValueError, match="two equal rows"):
        published_auc([0, 1], [0.5])
    with pytest.raises(ValueError, match="finite"):
        published_auc([0, 1], [0.5, float("nan")])
    with pytest.raises(ValueError, match="labels 0 or 1"):
        published_auc([0, 2], [0.5, 0.5])
