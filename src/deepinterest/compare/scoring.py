"""What the saved predictions of a block's runs say: curves, AUC of parts of the rows, differences with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from deepinterest.compare.groups import Block
from deepinterest.compare.runs import ROW, Run, predictions
from deepinterest.errors import UserError
from deepinterest.plain import line
from deepinterest.training import scores

ENOUGH_SEEDS = 3  # with fewer, a difference is told and not judged
BINS = 5  # of history length and of popularity
GRID = np.linspace(0, 1, 201)  # false positive rates of a ROC curve
PER_DRAW = 20  # draws of the seeds' part for each draw of users: they cost nothing
MOST_KEPT = 25_000_000  # weights of users that are kept between runs: 200 MB
TOLERANCE = 1e-4  # between the AUC of metrics.json and that of predictions.parquet


@dataclass(frozen=True)
class Bins:
    """Ranges of a whole number, as `low` bounds; `rows` is how many test rows each holds."""

    low: NDArray[np.int64]
    labels: list[str]
    rows: NDArray[np.int64]

    def of(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self.low, values, side="right") - 1


@dataclass(frozen=True)
class Scored:
    """One run's test rows.

    drawn: AUC [1 + draws] of all users and of each draw of users, None where no comparison needs it; hits: true
    positive rates on GRID; calibration: (rows, mean probability, click rate) by bins of probability; parts: AUC by bin
    of each column that has bins.
    """

    drawn: NDArray[np.float64] | None
    hits: NDArray[np.float64]
    calibration: tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
    parts: dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Difference:
    """AUC of a row less that of its baseline, averaged over common seeds, and the bounds of the 95 % interval."""

    baseline: str
    seeds: list[int]
    value: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")

    @property
    def verdict(self) -> str:
        if not self.seeds:
            return "no seed in common"
        if len(self.seeds) < ENOUGH_SEEDS:
            return f"too few seeds ({len(self.seeds)})"
        if np.isnan([self.low, self.high]).any():
            return "not known: rows of one class only"
        if self.low <= 0 <= self.high:
            return "no significant difference"
        return "higher" if self.low > 0 else "lower"


@dataclass(frozen=True)
class Findings:
    """All of a block: `runs` by folder, `bins` by column, `differences` by row."""

    runs: dict[Path, Scored] = field(default_factory=dict)
    bins: dict[str, Bins] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def examine(block: Block, resamples: int, step: Callable[[], object] = lambda: None) -> Findings:
    """Reads each run's predictions once, one after the other; calls `step` after each.

    Raises UserError where the runs' rows are not the same, where they are not those of metrics.json, and where a
    baseline is to be compared with and predictions are missing.
    """
    paired = set()
    for group in block.groups:
        if group.label in block.baselines:
            base = block.baselines[group.label]
            common = set(group.seeds) & set(base.seeds)
            paired |= {run.folder for run in (*group.runs, *base.runs) if run.seed in common}
    found, missing, bare = Findings(), [], []
    first: tuple[Run, pl.DataFrame] | None = None
    for run in block.runs:
        frame = predictions(run)
        step()
        if frame is None:
            if run.folder in paired:
                raise UserError(
                    f"{run.folder / 'predictions.parquet'} is missing; a comparison with a baseline needs it."
                )
            missing.append(run.name)
            continue
        first = first or (run, frame.select(ROW))
        if not frame.select(ROW).equals(first[1]):
            raise UserError(
                f"The predictions of {run.folder} and {first[0].folder} are of different rows although their split is "
                "the same; test both runs again on the same data."
            )
        for name in ("history_length", "item_popularity"):
            if name in frame.columns and name not in found.bins:
                found.bins[name] = bins_of(frame[name].to_numpy())
        if not found.bins.keys() <= set(frame.columns):
            bare.append(run.name)
        try:
            found.runs[run.folder] = _score(run, frame, found.bins, resamples if run.folder in paired else None)
        except ValueError as error:
            raise UserError(f"{run.folder / 'predictions.parquet'} can't be scored: {line(error)}.") from error
    if missing:
        found.notes.append(f"Without predictions.parquet, so in no curve: {', '.join(missing)}.")
    if bare:
        found.notes.append(f"Their predictions don't tell history length and popularity: {', '.join(bare)}.")
    for group in block.groups:
        if group.label in block.baselines:
            base = block.baselines[group.label]
            theirs = {run.seed: run for run in base.runs}
            pairs = [(run, theirs[run.seed]) for run in group.runs if run.seed in theirs]
            drawn = [(found.runs[a.folder].drawn, found.runs[b.folder].drawn) for a, b in pairs]
            found.differences[group.label] = difference(base.label, [a.seed for a, _ in pairs], drawn)
    return found


def difference(
    baseline: str, seeds: list[int], drawn: Sequence[tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]]
) -> Difference:
    """From pairs of AUCs [1 + draws], the first those of all users: mean difference and 95 % interval.

    Users: all runs were scored on the same draws of users with replacement. Seeds: their differences spread around the
    mean, which moves by Student's t with seeds - 1 degrees of freedom times the standard error; drawing three seeds
    with replacement instead would give too narrow an interval. Of one seed the interval holds the users' part alone.
    """
    if not drawn:
        return Difference(baseline, [])
    differences = np.array([first - second for first, second in drawn if first is not None and second is not None])
    value, users = float(differences[:, 0].mean()), differences[:, 1:].mean(axis=0)
    users = users[~np.isnan(users)]  # a draw of one class only says nothing
    if len(users) == 0:
        return Difference(baseline, seeds, value)
    count = len(differences)
    if count > 1:
        error = differences[:, 0].std(ddof=1) / np.sqrt(count)
        moved = np.random.default_rng(0).standard_t(count - 1, (len(users), PER_DRAW))
        users = (users[:, None] + error * moved).ravel()
    low, high = np.quantile(users, [0.025, 0.975])
    return Difference(baseline, seeds, value, float(low), float(high))


def bins_of(values: NDArray[np.int64]) -> Bins:
    """Up to BINS ranges with about as many rows each; 0, the cold start, is a range of its own."""
    edges = np.unique(np.quantile(values, np.arange(BINS) / BINS, method="higher").astype(np.int64))
    if values.min() < edges[0]:
        edges[0] = values.min()
    if edges[0] == 0 and values.max() > 0:
        edges = np.unique(np.append(edges, values[values > 0].min()))
    tops = np.array([*(values[values < edge].max() for edge in edges[1:]), values.max()])
    labels = [
        str(low) if low == top else f"{low}-{top}" for low, top in zip(edges.tolist(), tops.tolist(), strict=True)
    ]
    rows = np.bincount(np.searchsorted(edges, values, side="right") - 1, minlength=len(edges))
    return Bins(edges, labels, rows)


def _score(run: Run, frame: pl.DataFrame, bins: dict[str, Bins], resamples: int | None) -> Scored:
    label, probability = frame["label"].to_numpy(), frame["probability"].to_numpy()
    auc, told = scores.auc(label, probability), run.metrics.get("test/auc", float("nan"))
    if abs(auc - told) > TOLERANCE:
        raise UserError(
            f"{run.folder}: metrics.json says that the test AUC is {told:.4f}, predictions.parquet gives {auc:.4f}; "
            "the files are not of one run. Test it again."
        )
    parts = {}
    for name in bins.keys() & set(frame.columns):
        place = bins[name].of(frame[name].to_numpy())
        here = [place == number for number in range(len(bins[name].labels))]
        parts[name] = np.array([scores.auc(label[rows], probability[rows]) for rows in here])
    return Scored(
        drawn=None if resamples is None else _draw(frame, resamples),
        hits=_hits(label, probability),
        calibration=scores.calibration_bins(label, probability, int(run.settings.get("evaluation.ece_bins", 15))),
        parts=parts,
    )


def _draw(frame: pl.DataFrame, resamples: int) -> NDArray[np.float64]:
    """AUC [1 + resamples]: of all users, and of as many users drawn with replacement; every run sees the same draws."""
    user = frame["user"].rank("dense").to_numpy().astype(np.int64) - 1
    users = int(user.max()) + 1
    weighted = scores.WeightedAuc(user, frame["label"].to_numpy(), frame["probability"].to_numpy())
    return np.array([weighted(np.ones(users, dtype=np.int64)), *map(weighted, _weights(users, resamples))])


def _weights(users: int, resamples: int) -> Iterable[NDArray[np.int64]]:
    """How often each user is drawn [users], for each draw; kept for the next run, which has the same users."""
    return _kept_weights(users, resamples) if users * resamples <= MOST_KEPT else _drawn_weights(users, resamples)


@lru_cache(maxsize=1)
def _kept_weights(users: int, resamples: int) -> list[NDArray[np.int64]]:
    return list(_drawn_weights(users, resamples))


def _drawn_weights(users: int, resamples: int) -> Iterator[NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    return (np.bincount(rng.integers(0, users, users), minlength=users) for _ in range(resamples))


def _hits(label: NDArray[np.int64], probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """True positive rates at the false positive rates of GRID; nan where one class is missing."""
    labels, _ = scores.unpack(keys := np.sort(scores.pack(label, probability))[::-1])
    positives = int(labels.sum())
    if not 0 < positives < len(labels):
        return np.full(len(GRID), np.nan)
    tied = keys >> np.uint32(1)
    last = np.append(np.flatnonzero(tied[1:] != tied[:-1]), len(tied) - 1)  # one point per distinct probability
    hits = np.concatenate([[0], np.cumsum(labels)[last]])
    alarms = np.concatenate([[0], last + 1]) - hits
    return np.interp(GRID, alarms / (len(labels) - positives), hits / positives)
