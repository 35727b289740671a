"""Figures of a run: ROC, calibration, learning curves, attention over histories, and probes.

Figures are built as objects, without pyplot: nothing is shared between them and no display is needed.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from deepinterest.training import scores

BLUE, GREY, RED = "#2f6db3", "#9aa3ad", "#c8553d"
NAME_LENGTH = 30  # characters of an item's name that are shown
COLUMNS = 3  # of a figure of attention


@dataclass(frozen=True)
class AttentionRow:
    """One test row: its history, oldest first, and the weight of each item.

    items: h names; weights: [h]; label 0 or 1; probability in [0, 1].
    """

    items: list[str]
    weights: NDArray[np.floating]
    target: str
    label: int
    probability: float


def save(figure: Figure, path: str | Path) -> Path:
    """Writes a PNG at 120 dots per inch; `path` never holds half a picture. Returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(beside, format="png", dpi=120)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def roc(label: ArrayLike, probability: ArrayLike) -> Figure:
    """ROC curve of label [n] and probability [n]; with one class only, a figure that says so."""
    labels, _ = scores.unpack(keys := np.sort(scores.pack(label, probability))[::-1])
    figure, axes = _single(5, 5)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="chance")
    positives = int(labels.sum())
    if 0 < positives < len(labels):
        tied = keys >> np.uint32(1)
        last = np.append(np.flatnonzero(tied[1:] != tied[:-1]), len(tied) - 1)  # one point per distinct probability
        hits = np.cumsum(labels)[last]
        alarms = last + 1 - hits
        axes.plot(
            np.concatenate([[0], alarms / (len(labels) - positives)]),
            np.concatenate([[0], hits / positives]),
            color=BLUE,
            linewidth=2,
            label="model",
        )
        axes.set_title(f"ROC, AUC = {scores.auc(label, probability):.4f}")
        axes.legend(loc="lower right", frameon=False)
    else:
        axes.set_title("ROC: rows of one class only")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return figure


def calibration(label: ArrayLike, probability: ArrayLike, bins: int) -> Figure:
    """Click rate against predicted probability in equal-width bins, over the rows that each bin holds."""
    count, predicted, observed = scores.calibration_bins(label, probability, bins)
    figure = Figure(figsize=(5, 6.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    above.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="perfect")
    full = count > 0
    above.plot(predicted[full], observed[full], color=BLUE, linewidth=2, marker="o", markersize=5, label="model")
    above.set_title(f"Calibration, ECE = {scores.calibration_error(label, probability, bins):.4f}")
    above.set(ylabel="click rate", xlim=(0, 1), ylim=(0, 1))
    above.legend(loc="upper left", frameon=False)
    below.bar((np.arange(bins) + 0.5) / bins, count, width=0.9 / bins, color=BLUE)
    below.set(xlabel="predicted probability", ylabel="rows")
    below.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _plain(above)
    _plain(below)
    return figure


def learning_curves(history: dict[str, list[tuple[int, float]]]) -> Figure:
    """Scores over steps, from name -> (step, value); `train/loss` and `validation/loss` share the panel `loss`."""
    panels: dict[str, list[str]] = {}
    for name in history:
        panels.setdefault(name.rpartition("/")[2], []).append(name)
    columns = min(COLUMNS, max(1, len(panels)))
    lines = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(max(5.0, 4.2 * columns), 3.3 * lines), layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    figure.suptitle("Learning curves" if panels else "Learning curves: nothing was logged")
    for axes, (metric, names) in zip(grid, panels.items(), strict=False):
        for name in names:
            points = sorted(history[name])
            # A dot for each value, or a curve of one value would be invisible.
            axes.plot(
                [step for step, _ in points],
                [value for _, value in points],
                marker="o" if len(points) <= 30 else None,
                markersize=3.5,
                linewidth=1.6,
                label=name.rpartition("/")[0] or metric,
            )
        axes.set(title=metric, xlabel="step", ylabel=metric)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.legend(frameon=False, fontsize=8)
        _plain(axes)
    for axes in grid[len(panels) :]:
        axes.remove()
    return figure


def attention(rows: list[AttentionRow]) -> Figure:
    """Attention weights as horizontal bars, a panel per test row, the most recent item on top."""
    columns = min(COLUMNS, max(1, len(rows)))
    lines = [rows[start : start + columns] for start in range(0, len(rows), columns)]
    longest = [max(1, *(len(row.items) for row in line)) for line in lines] or [1]
    heights = [0.17 * length + 1.3 for length in longest]  # inches: room for every name
    figure = Figure(figsize=(max(5.0, 4.6 * columns), sum(heights) + 0.5), layout="constrained")
    figure.suptitle("Attention over the history (most recent on top)" if rows else "Attention: no rows")
    grid = figure.subplots(max(1, len(lines)), columns, squeeze=False, height_ratios=heights)
    for number, axes in enumerate(grid.ravel()):
        if number >= len(rows):
            axes.remove()
            continue
        row = rows[number]
        place = np.arange(len(row.items))
        axes.barh(place, row.weights, height=0.75, color=RED if row.label else BLUE)
        # Names are not mathematics: a product may hold two dollar signs.
        axes.set_yticks(place, [_short(name) for name in row.items], fontsize=7, parse_math=False)
        axes.set_ylim(
            len(place) - longest[number // columns] - 0.6, len(place) - 0.4
        )  # short histories hang from the top
        outcome = "clicked" if row.label else "not clicked"
        axes.set_title(
            f"target: {_short(row.target)}\n{outcome}, predicted {row.probability:.3f}", fontsize=9, parse_math=False
        )
        if not row.items:
            axes.set_xlim(0, 1)
            axes.text(0.5, 0.5, "no history", transform=axes.transAxes, ha="center", color=GREY)
        axes.set_xlabel("attention weight", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _plain(axes)
    return figure


def probes(content: dict[str, Any]) -> Figure:
    """AUCs of `task=probe` as bars from one half on, the model's on top; from the content of probes.json.

    A whisker is the 95 % interval of the difference to the model, laid at the bar's end.
    """
    model, network = content["model"]["auc"], content["features_network"]
    bars = [("model", model, None, BLUE)]
    bars += [
        (f"model, {name}", value["auc"], value["model_adds"], BLUE) for name, value in content["histories"].items()
    ]
    bars += [("network on features alone", network["auc"], network["model_adds"], RED)]
    bars += [(name, auc, None, GREY) for name, auc in content["scores"].items()]
    figure, axes = _single(7, 0.3 * len(bars) + 1.2)
    for place, (_, auc, adds, colour) in enumerate(bars):
        alpha = 1.0 if colour != BLUE or place == 0 else 0.55
        axes.barh(place, auc - 0.5, left=0.5, height=0.7, color=colour, alpha=alpha)
        if adds is not None:
            axes.plot([model - adds["high"], model - adds["low"]], [place, place], color="black", linewidth=1.2)
        axes.annotate(
            f"{auc:.3f}", (max(auc, 0.5), place), xytext=(6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars], fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="AUC on the test rows", title="What the AUC is made of")
    return figure


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
