"""Results of run folders as Markdown tables.

A run folder holds `metrics.json` (flat numbers), `data_card.json`, `config.yaml` (resolved) and `predictions.parquet`
(user, item, label, probability). Only runs on the very same split share a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from omegaconf import OmegaConf

from deepinterest.errors import UserError
from deepinterest.training.scores import Difference, WeightedAuc, auc_difference

# Settings that may differ between the seeds of one row: they change where and when a run ran, not what it is.
CIRCUMSTANCES = (
    *("seed", "task", "checkpoint", "paths", "logger"),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "threads", "progress")),
)
COLUMNS = {"AUC": "test/auc", "GAUC": "test/gauc", "logloss": "test/logloss", "seconds": "seconds"}


@dataclass(frozen=True)
class Run:
    """One run folder, read; `settings` is the flattened config, without what only tells where it ran."""

    folder: Path
    model: str
    seed: int
    data: str
    protocol: str
    split: str
    settings: dict[str, str]
    metrics: dict[str, float]


def collect(folders: Iterable[str | Path]) -> list[Run]:
    """All runs at or below the folders: whatever holds a `metrics.json`, ordered by path.

    Raises UserError for a folder without runs, and for a file of a run that is missing or can't be read.
    """
    found: set[Path] = set()
    for folder in map(Path, folders):
        below = {path.parent.resolve() for path in folder.rglob("metrics.json")}
        if not below:
            raise UserError(f"No run lies in {folder}: no metrics.json was found at or below it.")
        found |= below
    return [_read(folder) for folder in sorted(found)]


def results_table(runs: Sequence[Run], baseline: str | None = None) -> str:
    """Markdown, one block per split: a row per model, mean ± standard deviation over seeds.

    With `baseline` (a model's name, or a folder of runs), each other row's AUC difference from it with a 95 % interval:
    a paired bootstrap over users, on the seeds that both have. Rows of a baseline folder's model then are labelled by
    what they do otherwise. Raises UserError where predictions are needed and missing.
    """
    blocks: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        blocks.setdefault((run.protocol, run.split), []).append(run)
    if baseline is not None and not any(_is_baseline(run, baseline) for run in runs):
        known = ", ".join(sorted({run.model for run in runs}))
        raise UserError(f"The baseline {baseline!r} has no run here; name a folder of runs or one of {known}.")
    return "\n\n".join(_block(blocks[key], baseline) for key in sorted(blocks)) + "\n"


# -------------------------------------------------------------------------------------------------------------- reading


def _read(folder: Path) -> Run:
    metrics = _json(folder / "metrics.json")
    card = _json(folder / "data_card.json")
    path = folder / "config.yaml"
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a run folder needs it.") from None
    except Exception as error:  # yaml and OmegaConf raise many kinds
        raise UserError(f"{path} can't be read as YAML: {_line(error)}.") from error
    flat = dict(_flatten(config))
    numbers: dict[str, float] = {}
    for name, value in metrics.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{folder / 'metrics.json'} holds {value!r} for {name}; it needs a number.")
        numbers[name] = float("nan") if value is None else float(value)
    for name in ("model.name", "seed", "data.name"):
        if name not in flat:
            raise UserError(f"{path} has no {name}; it needs the resolved config of the run.")
    for name in ("protocol", "split_hash"):
        if name not in card:
            raise UserError(f"{folder / 'data_card.json'} has no {name}; it needs the data card of the run.")
    try:
        seed = int(flat["seed"])
    except ValueError:
        raise UserError(f"{path} has the seed {flat['seed']!r}; it needs a whole number.") from None
    return Run(
        folder=folder,
        model=flat["model.name"],
        seed=seed,
        data=flat["data.name"],
        protocol=str(card["protocol"]),
        split=str(card["split_hash"]),
        settings={key: value for key, value in flat.items() if not _circumstance(key)},
        metrics=numbers,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a run folder needs it.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read as JSON: {_line(error)}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object of names and values.")
    return value


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    """`a.b` -> text of every leaf; a list is a leaf."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(value)


def _circumstance(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in CIRCUMSTANCES)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


# --------------------------------------------------------------------------------------------------------------- tables


def _splits(runs: Sequence[Run]) -> list[list[Run]]:
    keys = sorted({(run.protocol, run.split) for run in runs})
    return [[run for run in runs if (run.protocol, run.split) == key] for key in keys]


def _is_baseline(run: Run, baseline: str) -> bool:
    return run.model == baseline or run.folder.is_relative_to(Path(baseline).resolve())


def _variants(runs: Sequence[Run], baseline: str | None) -> dict[str, list[Run]]:
    """Rows of a table: the model, with the settings in which its runs differ; each row's runs by seed.

    Where a folder is the baseline, the runs of its model show only what differs from its first run.
    """
    rows: dict[str, list[Run]] = {}
    for model in sorted({run.model for run in runs}):
        mine = [run for run in runs if run.model == model]
        keys = sorted({key for run in mine for key in run.settings})
        differing = [key for key in keys if len({run.settings.get(key) for run in mine}) > 1]
        usual: dict[str, str] = {}
        if baseline is not None and baseline != model:
            usual = next((run.settings for run in mine if _is_baseline(run, baseline)), {})
        for run in sorted(mine, key=lambda run: (run.seed, run.folder)):
            settings = ", ".join(
                f"{key}={run.settings.get(key, 'unset')}"
                for key in differing
                if key not in usual or run.settings.get(key) != usual[key]
            )
            rows.setdefault(f"{model} ({settings})" if settings else model, []).append(run)
    return rows


def _spread(runs: Sequence[Run], column: str) -> str:
    """Mean ± sample standard deviation; the mean alone of one run, n/a where a run lacks the number."""
    values = np.array([run.metrics.get(COLUMNS[column], float("nan")) for run in runs])
    if np.isnan(values).any():
        return "n/a"
    digits = 1 if column == "seconds" else 4
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {values.std(ddof=1):.{digits}f}"


def _block(runs: Sequence[Run], baseline: str | None) -> str:
    """One split as Markdown."""
    data = ", ".join(sorted({run.data for run in runs}))
    rows: dict[str, list[Run]] = {}
    notes = []
    for label, mine in _variants(runs, baseline).items():
        newest = {run.seed: run for run in sorted(mine, key=lambda run: (run.folder / "metrics.json").stat().st_mtime)}
        rows[label] = [newest[seed] for seed in sorted(newest)]
        if len(newest) < len(mine):
            notes.append(f"{label}: {len(mine) - len(newest)} older run(s) of a repeated seed are left out.")
    lines = [
        f"### {data}, {runs[0].protocol} (split {runs[0].split})",
        "",
        "| model | " + " | ".join(COLUMNS) + " | seeds |",
        "|---|" + "---:|" * len(COLUMNS) + "---|",
    ]
    for label, mine in rows.items():
        seeds = ", ".join(str(run.seed) for run in mine)
        cells = [label.replace("|", r"\|"), *(_spread(mine, column) for column in COLUMNS), seeds]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "Mean ± standard deviation over the seeds listed.", *notes]
    probes = _probes(runs)
    if probes:
        lines += ["", f"Probes, AUC without a model: {probes}."]
    if baseline is not None:
        lines += ["", *_comparison(rows, baseline)]
    return "\n".join(lines)


def _probes(runs: Sequence[Run]) -> str:
    """`popularity 0.6123, …`; runs of one split agree, and where they don't the range shows it."""
    parts = []
    for name in sorted({name for run in runs for name in run.metrics if name.startswith("probe/")}):
        values = [run.metrics[name] for run in runs if name in run.metrics]
        texts = sorted({f"{value:.4f}" for value in values})
        text = texts[0] if len(texts) == 1 else f"{texts[0]} to {texts[-1]}"
        parts.append(f"{name.removeprefix('probe/').removesuffix('_auc').replace('_', ' ')} {text}")
    return ", ".join(parts)


def _comparison(rows: dict[str, list[Run]], baseline: str) -> list[str]:
    """A line per model against the baseline."""
    base = [label for label, runs in rows.items() if _is_baseline(runs[0], baseline)]
    if not base:
        return [f"No run of the baseline {baseline} is on this split."]
    if len(base) > 1:
        return [f"The baseline {baseline} has {len(base)} settings on this split, so nothing is compared with it."]
    lines = [
        f"AUC less that of {base[0]}, averaged over common seeds, with a 95 % interval (paired bootstrap over users, "
        "1000 draws; the seeds are held fixed):",
        "",
    ]
    for label, runs in rows.items():
        if label == base[0]:
            continue
        theirs = {run.seed: run for run in rows[base[0]]}
        pairs = [(run, theirs[run.seed]) for run in runs if run.seed in theirs]
        if not pairs:
            lines.append(f"- {label}: no seed in common")
            continue
        difference = compare(pairs)
        verdict = "" if difference.significant else ", no significant difference"
        seeds = ", ".join(str(run.seed) for run, _ in pairs)
        lines.append(
            f"- {label}: {difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]{verdict} "
            f"(seeds {seeds})"
        )
    return lines


def compare(pairs: Sequence[tuple[Run, Run]], resamples: int = 1000) -> Difference:
    """AUC of the first runs less that of the second, averaged over the pairs, with its bootstrap interval.

    Raises UserError where predictions are missing or are not of the same rows.
    """
    reference = _predictions(pairs[0][0])
    users = reference["user"].n_unique()
    scored = []
    for pair in pairs:
        members = []
        for run in pair:
            frame = reference if run is pairs[0][0] else _predictions(run)
            if not frame.select("user", "item", "label").equals(reference.select("user", "item", "label")):
                raise UserError(
                    f"The predictions of {run.folder} and {pairs[0][0].folder} are of different rows although their "
                    "split is the same; test both runs again on the same data."
                )
            user = frame["user"].rank("dense").to_numpy().astype(np.int64) - 1
            try:
                members.append(WeightedAuc(user, frame["label"].to_numpy(), frame["probability"].to_numpy()))
            except ValueError as error:
                raise UserError(f"{run.folder / 'predictions.parquet'} can't be scored: {_line(error)}.") from error
        scored.append((members[0], members[1]))
    return auc_difference(scored, users, resamples)


def _predictions(run: Run) -> pl.DataFrame:
    """The run's predictions in an order that doesn't depend on how they were written."""
    path = run.folder / "predictions.parquet"
    if not path.is_file():
        raise UserError(f"{path} is missing; a comparison with a baseline needs it.")
    try:
        frame = pl.read_parquet(path, columns=["user", "item", "label", "probability"])
        frame = frame.with_columns(pl.col("label").cast(pl.Int64))
    except Exception as error:  # polars raises many kinds
        raise UserError(f"{path} can't be read as predictions: {_line(error)}.") from error
    if frame.height == 0:
        raise UserError(f"{path} holds no rows; a comparison needs predictions.")
    return frame.sort("user", "item", "label")
