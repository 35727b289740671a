"""Figures of a run: ROC, calibration, learning curves, attention over histories, and probes.

Figures are built as objects, without pyplot: nothing is shared between them and no display is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from deepinterest.atomic import beside
from deepinterest.errors import visible
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
    with beside(path) as own:
        figure.savefig(own, format="png", dpi=120)
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
        axes.set_yticks(place, [short(name) for name in row.items], fontsize=7, parse_math=False)
        axes.set_ylim(
            len(place) - longest[number // columns] - 0.6, len(place) - 0.4
        )  # short histories hang from the top
        outcome = "clicked" if row.label else "not clicked"
        axes.set_title(
            f"target: {short(row.target)}\n{outcome}, predicted {row.probability:.3f}", fontsize=9, parse_math=False
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


def evolution(
    *,
    title: str,
    legend: list[str],
    bars: tuple[list[str], NDArray[np.floating]] | None,
    hidden: int,
    states: NDArray[np.floating] | None,
    read: NDArray[np.integer],
    probability: NDArray[np.floating],
) -> Figure:
    """How a network reads one history for two items, in blue and red: attention, path of the state, probability.

    Args:
        legend: what the two items are called.
        bars: t names, oldest first, and weights (2, t); None leaves the panel out.
        hidden: older events that have no bars.
        states: (3, T, H) after each event, for both items and without a target; None leaves the panel out.
        read, probability: (P,) numbers of events, and (2, P) the probabilities after so many.
    """
    panels = 1 + (bars is not None) + (states is not None)
    height = max(4.2, 1.2 + 0.24 * len(bars[0]) if bars else 0)
    figure = Figure(figsize=(5.2 * panels, height), layout="constrained")
    # Names are not mathematics: a product may hold two dollar signs.
    figure.suptitle(title, fontsize=11, parse_math=False)
    grid = list(figure.subplots(1, panels, squeeze=False).ravel())
    if bars is not None:
        _weights(grid.pop(0), *bars, hidden)
    if states is not None:
        _path(grid.pop(0), states)
    (axes,) = grid
    for values, colour, name in zip(probability, (BLUE, RED), legend, strict=True):
        axes.plot(read, values, color=colour, linewidth=1.8, marker="o" if len(read) < 40 else None, markersize=3)
        axes.plot([], [], color=colour, linewidth=4, label=name)
    if states is not None:
        axes.plot([], [], color=GREY, linewidth=4, label="without a target: equal attention")
    axes.set(title="Probability if the history ended here", xlabel="events read", ylabel="probability", ylim=(0, 1))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    _plain(axes)
    for text in figure.legend(
        loc="outside lower center", ncols=3 if panels > 1 else 1, frameon=False, fontsize=9
    ).get_texts():
        text.set_parse_math(False)
    return figure


def _weights(axes: Axes, names: list[str], weights: NDArray[np.floating], hidden: int) -> None:
    place = np.arange(len(names))
    for values, colour, shift in zip(weights, (BLUE, RED), (0.2, -0.2), strict=True):
        axes.barh(place + shift, values, height=0.38, color=colour)
    axes.set_yticks(place, [short(name) for name in names], fontsize=7, parse_math=False)
    if names:
        equal = 1 / (len(names) + hidden)
        axes.axvline(equal, color=GREY, linewidth=1, linestyle="--")
    older = f", {hidden} older not shown" if hidden else ""
    axes.set(title=f"Attention (most recent on top{older})", xlabel="weight (dashed: if all were equal)")
    axes.margins(y=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    _plain(axes)


def _path(axes: Axes, states: NDArray[np.floating]) -> None:
    """The states (3, T, H) on the two directions in which they differ most, from the zero state on."""
    start = np.zeros((3, 1, states.shape[2]))
    walked = np.concatenate([start, states], axis=1)  # (3, T+1, H)
    centred = walked - walked.reshape(-1, walked.shape[2]).mean(0)
    _, spread, directions = np.linalg.svd(centred.reshape(-1, centred.shape[2]), full_matrices=False)
    count = min(2, len(directions))
    points = np.zeros((*walked.shape[:2], 2))
    points[..., :count] = centred @ directions[:count].T  # (3, T+1, 2)
    share = spread**2 / max(float((spread**2).sum()), 1e-30)
    # Thick below thin: paths on top of each other are all seen.
    looks = ((BLUE, 3.0, 2), (RED, 1.1, 3), (GREY, 6.0, 1))
    for (x, y), (colour, width, order) in zip(points.transpose(0, 2, 1), looks, strict=True):
        axes.plot(x, y, color=colour, linewidth=width, marker=".", markersize=2 * width, zorder=order, alpha=0.8)
        axes.plot(x[-1], y[-1], marker="s", markersize=7 + width, color=colour, zorder=order + 3)
    axes.plot(*points[0, 0], marker="o", markersize=9, color="white", markeredgecolor="black", zorder=7)
    axes.annotate("start", points[0, 0], xytext=(8, 6), textcoords="offset points", fontsize=8)
    shares = [f"direction {n + 1} ({share[n] if n < len(share) else 0:.0%} of the variance)" for n in range(2)]
    apart = float(
        np.linalg.norm(walked[0, -1] - walked[1, -1]) / max(float(np.linalg.norm(np.ptp(walked[0], axis=0))), 1e-30)
    )
    axes.set_title(f"Path of the state; the ends (squares) lie\n{apart:.1%} of the path's extent apart", fontsize=11)
    axes.set(xlabel=shares[0], ylabel=shares[1])
    _plain(axes)


def tuning(content: dict[str, Any]) -> Figure:
    """The content of tune.json: loss by learning rate, and samples/s and memory by batch size."""
    figure = Figure(figsize=(10.5, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    rate, loss, mean = np.array(content["lr"]["points"]).T
    left.plot(rate, loss, color=GREY, linewidth=0.8, label="each step")
    left.plot(rate, mean, color=BLUE, linewidth=2, label="smoothed")
    left.axvline(content["lr"]["suggested"], color=RED, linewidth=1.2, linestyle="--")
    low, high = np.nanmin(mean), np.nanmax(mean[: max(10, len(mean) // 3)])
    left.set(xscale="log", xlabel="learning rate, growing from step to step", ylabel="training loss")
    left.set_ylim(low - 0.3 * (high - low), high + 0.5 * (high - low))
    left.set_title(f"lr={content['lr']['suggested']:g} at batch size {content['lr']['batch_size']}")
    left.legend(frameon=False, fontsize=8)
    sizes = content["batch_size"]["sizes"]
    size = [entry["batch_size"] for entry in sizes]
    right.plot(size, [entry["samples_per_s"] for entry in sizes], color=BLUE, marker="o", linewidth=2)
    right.axvline(content["batch_size"]["suggested"], color=RED, linewidth=1.2, linestyle="--")
    right.set_xscale("log", base=2)
    right.set_xticks(size, [f"{value:,}" for value in size], fontsize=8, rotation=30)
    most = max(entry["samples_per_s"] for entry in sizes)
    right.set(xlabel="batch size", ylim=(0, 1.1 * most), title=f"batch size {content['batch_size']['suggested']}")
    right.set_ylabel("samples/s", color=BLUE)
    memory = right.twinx()
    memory.plot(size, [entry["memory_gib"] for entry in sizes], color=GREY, marker=".", linewidth=1.2)
    memory.set_ylabel("memory, GiB", color="#5a636d")
    memory.set_ylim(0, 1.3 * max(entry["memory_gib"] for entry in sizes))
    _plain(left)
    for axes in (right, memory):
        axes.spines["top"].set_visible(False)
    return figure


def _single(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def short(name: str) -> str:
    """A name on one line, cut to what a plot has room for."""
    name = visible(name)
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
