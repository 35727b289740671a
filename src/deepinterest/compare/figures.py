"""The plots of a comparison: one colour a row, the same in every plot. No legends: the page shows the colours once."""

from __future__ import annotations

import base64
import io

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from deepinterest.compare.groups import Block, Group
from deepinterest.compare.runs import Run
from deepinterest.compare.scoring import GRID, Findings
from deepinterest.compare.tables import PARTS, part_aucs
from deepinterest.errors import visible

# Okabe and Ito's colours, told apart by colour-blind readers too; darker where they would be faint on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#333333", "#8c564b", "#7f7f7f", "#6a3d9a")
DASHES = ("-", "--", ":", "-.")  # after ten rows the colours come again
SIZE = (4.6, 3.5)  # inches: letters stay readable where a telephone shows the plot at 350 pixels
MOST_BARS = 6  # rows with error bars, in plots where they cross
MOST_NAMES = 24  # characters of a row's name beside a plot
CURVES = {  # the first of each that a run has
    "Validation AUC": ("val/auc", "val/published_auc"),
    "Validation logloss": ("val/logloss",),
    "Training loss": ("train/click_loss", "train/loss"),  # without what an auxiliary loss adds
}


def colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def dash(number: int) -> str:
    return DASHES[number // len(COLOURS) % len(DASHES)]


def draw(block: Block, findings: Findings) -> dict[str, Figure]:
    """The plots by title; one that nothing was saved for is left out."""
    drawn = {
        "Test AUC": quality(block),
        "AUC less the baseline": differences(block, findings),
        **{title: curves(block, title, names) for title, names in CURVES.items()},
        "ROC": roc(block, findings),
        "Calibration": calibration(block, findings),
        **{PARTS[name]: parts(block, findings, name) for name in findings.bins},
        "AUC and seconds": cost(block),
    }
    return {title: figure for title, figure in drawn.items() if figure is not None}


def as_svg(figure: Figure) -> str:
    """The plot as the address of an image that holds it: nothing is fetched, and plots share no names."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "deepinterest"}):  # the same bytes each time
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def quality(block: Block) -> Figure:
    """A dot a seed, mean and standard deviation of each row."""
    figure, axes = _rows(block.groups)
    for place, group in enumerate(block.groups):
        values = np.array([run.metrics.get("test/auc", np.nan) for run in group.runs])
        axes.plot(values, np.full(len(values), place), "o", color=colour(place), alpha=0.4, markersize=5)
        error = values.std(ddof=1) if len(values) > 1 else 0.0
        axes.errorbar(values.mean(), place, xerr=error, fmt="D", color=colour(place), markersize=6, capsize=3)
    axes.set_xlabel("test AUC: seeds, mean ± std")
    return figure


def differences(block: Block, findings: Findings) -> Figure | None:
    """Each row's difference to its baseline with the 95 % interval; hollow where it isn't significant."""
    told = {label: found for label, found in findings.differences.items() if found.seeds}
    if not told:
        return None
    groups = [group for group in block.groups if group.label in told]
    figure, axes = _rows(groups)
    axes.axvline(0, color="black", linewidth=0.8)
    for place, group in enumerate(groups):
        found, shade = told[group.label], colour(block.groups.index(group))
        axes.plot([found.low, found.high], [place, place], color=shade, linewidth=2, solid_capstyle="butt")
        sure = found.verdict in ("higher", "lower")
        axes.plot(found.value, place, "D", color=shade, markersize=7, markerfacecolor=shade if sure else "white")
    axes.set_xlabel("AUC less the baseline, 95 % interval")
    return figure


def curves(block: Block, title: str, names: tuple[str, ...]) -> Figure | None:
    """A faint line a seed, and their mean at the steps that all have."""
    figure, axes = _single()
    empty = True
    for number, group in enumerate(block.groups):
        found = [points for run in group.runs if (points := _points(run, names))]
        for points in found:
            empty = False
            marker = "o" if len(points) <= 30 else None
            steps = sorted(points)
            axes.plot(
                steps,
                [points[s] for s in steps],
                color=colour(number),
                alpha=0.3,
                linewidth=1,
                marker=marker,
                markersize=3,
            )
        steps = sorted(set.intersection(*map(set, found))) if found else []
        if len(found) > 1:
            mean = [np.mean([points[step] for points in found]) for step in steps]
            axes.plot(steps, mean, color=colour(number), linestyle=dash(number), linewidth=2)
    axes.set(xlabel="step", ylabel=title.lower().replace("auc", "AUC"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return None if empty else figure


def _points(run: Run, names: tuple[str, ...]) -> dict[int, float]:
    return next((dict(run.curves[name]) for name in names if run.curves.get(name)), {})


def roc(block: Block, findings: Findings) -> Figure | None:
    """True positive rates averaged over seeds at each false positive rate."""
    figure, axes = _square()
    empty = True
    for number, group in enumerate(block.groups):
        hits = [findings.runs[run.folder].hits for run in group.runs if run.folder in findings.runs]
        if hits and not np.isnan(hits).any():
            empty = False
            axes.plot(GRID, np.mean(hits, axis=0), color=colour(number), linestyle=dash(number), linewidth=1.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return None if empty else figure


def calibration(block: Block, findings: Findings) -> Figure | None:
    """Click rate against predicted probability, all seeds' rows together; a dot's area is its bin's share of rows."""
    figure, axes = _square()
    empty = True
    for number, group in enumerate(block.groups):
        found = [findings.runs[run.folder].calibration for run in group.runs if run.folder in findings.runs]
        if not found:
            continue
        empty = False
        count = np.sum([rows for rows, _, _ in found], axis=0)
        full = count > 0
        predicted, clicked = (
            np.sum([np.nan_to_num(values[which]) * values[0] for values in found], axis=0)[full] / count[full]
            for which in (1, 2)
        )
        axes.plot(predicted, clicked, color=colour(number), linestyle=dash(number), linewidth=1.2)
        axes.scatter(predicted, clicked, s=6 + 150 * count[full] / count.sum(), color=colour(number), linewidth=0)
    axes.set(xlabel="predicted probability", ylabel="click rate", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return None if empty else figure


def parts(block: Block, findings: Findings, name: str) -> Figure | None:
    """AUC of the rows of each range: mean over seeds, and standard deviation where it can be seen among few rows."""
    figure, axes = _single()
    bins = findings.bins[name]
    place = np.arange(len(bins.labels))
    shift = min(0.08, 0.5 / len(block.groups))  # so that bars don't hide one another
    for number, group in enumerate(block.groups):
        aucs = part_aucs(group, findings, name)
        if aucs is None:
            continue
        error = aucs.std(axis=0, ddof=1) if len(aucs) > 1 and len(block.groups) <= MOST_BARS else None
        axes.errorbar(
            place + shift * (number - (len(block.groups) - 1) / 2),
            aucs.mean(axis=0),
            yerr=error,
            color=colour(number),
            linestyle=dash(number),
            marker="o",
            markersize=4.5,
            capsize=2,
            elinewidth=0.9,
            linewidth=1.5,
        )
    crowded = max(map(len, bins.labels)) > 8
    axes.set_xticks(place, bins.labels, fontsize=9, rotation=20 if crowded else 0, ha="right" if crowded else "center")
    axes.set(xlabel=name.replace("_", " ") + ", events", ylabel="AUC", xlim=(-0.5, len(place) - 0.5))
    return figure


def cost(block: Block) -> Figure | None:
    """AUC beside the seconds of a run, a dot a seed and a diamond for the mean."""
    figure, axes = _single()
    empty = True
    for number, group in enumerate(block.groups):
        runs = [run for run in group.runs if run.trained and run.metrics.get("seconds", 0) > 0]
        if not runs:
            continue
        empty = False
        seconds = np.array([run.metrics["seconds"] for run in runs])
        auc = np.array([run.metrics.get("test/auc", np.nan) for run in runs])
        axes.plot(seconds, auc, "o", color=colour(number), alpha=0.4, markersize=5)
        axes.plot(seconds.mean(), auc.mean(), "D", color=colour(number), markersize=7)
    axes.set(xlabel="seconds of a run", ylabel="test AUC", xscale="log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:g}"[0] in "25" else ""))
    return None if empty else figure


def _single(size: tuple[float, float] = SIZE) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.label.set_fontsize(11)
    axes.yaxis.label.set_fontsize(11)
    return figure, axes


def _square() -> tuple[Figure, Axes]:
    """With the diagonal."""
    figure, axes = _single((4.2, 4.2))
    axes.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=1, linestyle="--")
    return figure, axes


def _rows(groups: list[Group]) -> tuple[Figure, Axes]:
    """A line a row, from top to bottom."""
    figure = Figure(figsize=(SIZE[0], 1.0 + 0.34 * len(groups)), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    labels = [visible(group.label) for group in groups]
    names = [label if len(label) <= MOST_NAMES else label[: MOST_NAMES - 1] + "…" for label in labels]
    axes.set_yticks(range(len(groups)), names, parse_math=False)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    return figure, axes
