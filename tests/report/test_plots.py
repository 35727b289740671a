"""Plots of small runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deepinterest.report import plots
from deepinterest.training import scores


def test_plots_are_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(500)
    label = (rng.random(500) < probability).astype(np.int64)
    row = plots.AttentionRow([f"costs $ {i} or $ more" for i in range(50)], rng.random(50), "target", 1, 0.8)
    empty = plots.AttentionRow([], np.zeros(0), "target", 0, 0.1)
    figures = {
        "roc": plots.roc(label, probability),
        "one_class": plots.roc(np.zeros(3), np.full(3, 0.5)),
        "calibration": plots.calibration(label, probability, 15),
        "curves": plots.learning_curves({"train/loss": [(1, 0.5), (2, 0.4)], "validation/auc": [(2, 0.7)]}),
        "no_curves": plots.learning_curves({}),
        "attention": plots.attention([row, empty, row, row]),
        "no_attention": plots.attention([]),
    }
    for name, figure in figures.items():
        path = plots.save(figure, tmp_path / "plots" / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "plots").iterdir())) == len(figures)


def test_roc_curve_has_the_area_of_the_auc() -> None:
    label, probability = np.array([1, 0, 1, 0, 1]), np.array([0.7, 0.7, 0.2, 0.1, 0.9])
    curve = plots.roc(label, probability).axes[0].lines[1]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(scores.auc(label, probability))
