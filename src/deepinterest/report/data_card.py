"""The data card with its plots: what `task=data` shows of a prepared data set, without a model.

Everything is counted in chunks, so that a log of any size needs little memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from deepinterest.atomic import beside
from deepinterest.data.log import Log
from deepinterest.data.protocols import SPLITS
from deepinterest.data.samples import Samples
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.report import plots
from deepinterest.report.terminal import card_table, shown

CHUNK = 2_000_000  # events or groups at a time
MOST_BINS = 400  # of time in a plot
SECOND = 1_000  # milliseconds
BINS = {
    "second": SECOND,
    "minute": 60 * SECOND,
    "hour": 3_600 * SECOND,
    "day": 86_400 * SECOND,
    "week": 7 * 86_400 * SECOND,
    "30 days": 30 * 86_400 * SECOND,
    "year": 365 * 86_400 * SECOND,
    "century": 36_500 * 86_400 * SECOND,
}
COLOURS = dict(zip(SPLITS, (plots.BLUE, plots.GREY, plots.RED), strict=True))
REASONS = (
    "dropped",
    "dropped targets",
    "note",
)  # first words of a card's lines about what the data lost and what was mended


def show(console: Console, card: dict[str, Any]) -> None:
    """Print the card, and as a table of its own what was dropped or mended and why."""
    losses = {key: count for key, count in card.items() if key.partition(": ")[0] in REASONS}
    console.print(card_table({key: value for key, value in card.items() if key not in losses}))
    table = Table("what", "why", title="Dropped and mended")
    table.add_column("count", justify="right")
    for key, count in losses.items():
        table.add_row(*map(shown, key.split(": ", 1)), f"{count:,}" if isinstance(count, int) else str(count))
    if not losses:
        table.add_row("nothing", "", "0")
    console.print(table)


def write(folder: Path, resolved: dict[str, Any], store: Store, max_history: int, zone: str = "UTC") -> list[Path]:
    """config.yaml and the plots; each beside its place and renamed. Returns the plots.

    Raises UserError where the folder can't be written.
    """
    try:
        with beside(folder / "config.yaml") as own:
            own.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved)), encoding="utf-8")
        drawn = figures(store, max_history, zone)
        return [plots.save(figure, folder / f"{name}.png") for name, figure in drawn.items()]
    except OSError as error:
        raise UserError(
            f"The data card could not be written to {folder}: {error.strerror or error}. Make room and run again."
        ) from error


def figures(store: Store, max_history: int, zone: str = "UTC") -> dict[str, Figure]:
    """The plots by name; zone: whose clock the axes of time show, such as Europe/Berlin."""
    log, samples = store.log, store.samples
    times = [log.time, *(samples[name].time for name in SPLITS)]
    ends = [end for time in times if time is not None for end in (time.min(), time.max())]
    first, last = (int(local(np.array([end]), zone)[0]) for end in (min(ends), max(ends)))
    unit = unit_of(first, last)
    begin, width = first // BINS[unit], BINS[unit]
    bins = last // width - begin + 1
    events = events_per_time(log.time, begin, width, bins, zone)
    rows = {name: rows_per_time(log, samples[name], begin, width, bins, zone) for name in SPLITS}
    return {
        "history_length": history_length({n: length_counts(log, samples[n]) for n in SPLITS}, max_history),
        "item_popularity": item_popularity(item_counts(log)),
        "activity": activity(events, {name: counts for name, (counts, _) in rows.items()}, begin, unit, zone),
        "label_rate": label_rate(rows, begin, unit, zone),
    }


# -------------------------------------------------------------------------------------------------------------- counts


def length_counts(log: Log, samples: Samples) -> np.ndarray:
    """How many groups have a history of 0, 1, 2, … events; not cut at max_history."""
    counts = np.zeros(1, dtype=np.int64)
    for part in _chunks(len(samples)):
        found = np.bincount(samples.history_end[part] - log.user_offsets[samples.user[part]], minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    return counts


def item_counts(log: Log) -> np.ndarray:
    """(items-1,) int64 events of each item; the unknown item has none."""
    counts = np.zeros(log.items, dtype=np.int64)
    for part in _chunks(len(log)):
        counts += np.bincount(log.item[part], minlength=log.items)
    return counts[1:]


def unit_of(first: int, last: int) -> str:
    """The smallest unit of BINS that cuts first .. last (milliseconds) into at most MOST_BINS."""
    return next((name for name, width in BINS.items() if last // width - first // width < MOST_BINS), "century")


def local(time: np.ndarray, zone: str) -> np.ndarray:
    """(n,) milliseconds since 1970 -> what a clock in `zone` shows then, as milliseconds of its own."""
    if zone == "UTC":
        return time
    moments = pl.Series(time).cast(pl.Datetime("ms", "UTC"))
    return moments.dt.convert_time_zone(zone).dt.replace_time_zone(None).dt.timestamp("ms").to_numpy()


def events_per_time(time: np.ndarray, begin: int, width: int, bins: int, zone: str = "UTC") -> np.ndarray:
    """(bins,) int64 of times (E,); bins are of the clock in `zone`."""
    counts = np.zeros(bins, dtype=np.int64)
    for part in _chunks(len(time)):
        counts += np.bincount(_bin(time[part], zone, begin, width, bins), minlength=bins)
    return counts


def rows_per_time(
    log: Log, samples: Samples, begin: int, width: int, bins: int, zone: str = "UTC"
) -> tuple[np.ndarray, np.ndarray]:
    """Rows and rows of label 1 by when they happened, (bins,) int64 each."""
    rows, positives = np.zeros(bins, dtype=np.int64), np.zeros(bins, dtype=np.int64)
    for part in _chunks(len(samples)):
        label = samples.label[samples.candidate_offsets[part.start] : samples.candidate_offsets[part.stop]]
        place = _bin(samples.row_time(log, part), zone, begin, width, bins)
        rows += np.bincount(place, minlength=bins)
        positives += np.bincount(place[label == 1], minlength=bins)
    return rows, positives


def _bin(time: np.ndarray, zone: str, begin: int, width: int, bins: int) -> np.ndarray:
    # Clocks that are put back within the last hour show times beyond the last one.
    return np.clip(local(time, zone) // width - begin, 0, bins - 1)


def _chunks(size: int) -> Iterator[slice]:
    for begin in range(0, size, CHUNK):
        yield slice(begin, min(begin + CHUNK, size))


# --------------------------------------------------------------------------------------------------------------- plots


def history_length(counts: dict[str, np.ndarray], max_history: int) -> Figure:
    """Share of each split's histories that are longer than so many events."""
    figure, axes = _axes()
    for name, found in counts.items():
        longer = 1 - np.cumsum(found) / found.sum()
        axes.plot(
            np.arange(len(found)) + 1, longer, color=COLOURS[name], linewidth=1.8, label=name, drawstyle="steps-pre"
        )
    axes.axvline(max_history, color="black", linewidth=1, linestyle="--", label=f"max_history={max_history}")
    train = counts["train"]
    axes.set_title(f"History length: {train[max_history + 1 :].sum() / train.sum():.0%} of training's are cut")
    axes.set(xlabel="events", ylabel="share of histories at least as long", xscale="log", ylim=(0, 1.02))
    axes.legend(frameon=False)
    return figure


def item_popularity(counts: np.ndarray) -> Figure:
    """Events of each item by rank, both axes logarithmic: a power law is a line."""
    figure, axes = _axes()
    ordered = np.sort(counts[counts > 0])[::-1]
    top = max(1, len(ordered) // 100)
    # A curve of millions of points shows no more than one of a thousand.
    rank = np.unique(np.geomspace(1, len(ordered), 1_000).astype(np.int64))
    axes.plot(rank, ordered[rank - 1], color=plots.BLUE, linewidth=1.8, marker="." if len(rank) < 30 else None)
    axes.set_title(f"Item popularity: the top 1 % have {ordered[:top].sum() / ordered.sum():.0%} of the events")
    axes.set(xlabel="rank", ylabel="events", xscale="log", yscale="log")
    return figure


def activity(events: np.ndarray, rows: dict[str, np.ndarray], begin: int, unit: str, zone: str = "UTC") -> Figure:
    """Events over time, and below the rows of each split: where the cuts are."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    times = _times(begin, unit, len(events))
    above.fill_between(times, events, step="mid", color=plots.BLUE, alpha=0.5, linewidth=0)
    above.plot(times, events, color=plots.BLUE, drawstyle="steps-mid", linewidth=1)
    above.set(title="Activity over time", ylabel=f"events a {unit}", ylim=(0, None))
    for name, counts in rows.items():
        shown = counts > 0
        below.plot(times[shown], counts[shown], color=COLOURS[name], label=name, **_line(len(events)))
    below.set(ylabel=f"rows a {unit}", yscale="log")
    below.legend(frameon=False)
    _dates(below, zone)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def label_rate(rows: dict[str, tuple[np.ndarray, np.ndarray]], begin: int, unit: str, zone: str = "UTC") -> Figure:
    """Share of rows with label 1 over time, a line for each split and its mean in the legend."""
    figure, axes = _axes(8, 3.5)
    for name, (counts, positives) in rows.items():
        shown = counts > 0
        times = _times(begin, unit, len(counts))[shown]
        label = f"{name}: {positives.sum() / counts.sum():.4f} of {counts.sum():,} rows"
        axes.plot(times, positives[shown] / counts[shown], color=COLOURS[name], label=label, **_line(len(counts)))
    axes.set(title=f"Label rate by {unit} of the target", ylabel="share of label 1", ylim=(0, 1))
    axes.legend(frameon=False)
    _dates(axes, zone)
    return figure


def _axes(width: float = 6, height: float = 4) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _times(begin: int, unit: str, bins: int) -> np.ndarray:
    return ((begin + np.arange(bins)) * BINS[unit]).astype("datetime64[ms]")


def _line(bins: int) -> dict[str, Any]:
    return {"linewidth": 1.5, "marker": "." if bins < 60 else None}


def _dates(axes: Axes, zone: str) -> None:
    locator = AutoDateLocator()
    axes.set_xlabel(f"time ({zone})")
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
