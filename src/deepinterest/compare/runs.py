"""Run folders, read: what a comparison knows of each run. Nothing here imports torch.

A run folder holds `metrics.json` (flat numbers), `data_card.json` and `config.yaml` (resolved); `predictions.parquet`,
`curves.json` and `environment.json` are read where they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from deepinterest.errors import UserError
from deepinterest.plain import line, read_json, read_yaml, refuse_expressions
from deepinterest.settings import completed

# Settings that may differ between the runs of one group: they change where and when a run ran, not what it is.
CIRCUMSTANCES = (
    *("seed", "task", "checkpoint", "resume", "output", "sweep", "paths", "logger"),
    *(f"trainer.{name}" for name in ("accelerator", "devices", "threads", "kernel", "progress")),
)
MACHINE = ("trainer.accelerator", "trainer.devices", "trainer.threads", "trainer.kernel")  # what seconds depend on
MOST_OF_CURVES = 10_000_000  # names, steps and values of curves.json
ROW = ("user", "item", "label")  # what makes a row of predictions


@dataclass(frozen=True, eq=False)
class Run:
    """One run folder.

    settings: every setting as text, by its dotted name; metrics: nan where the file has null; curves: (step, value) by
    name; written: when metrics.json was, in seconds.
    """

    folder: Path
    settings: dict[str, str]
    metrics: dict[str, float]
    card: dict[str, Any]
    curves: dict[str, list[tuple[int, float]]]
    environment: dict[str, Any]
    seed: int
    written: float

    @property
    def name(self) -> str:
        """The folder as a reader knows it: below the working folder where it lies there."""
        return str(self.folder.relative_to(Path.cwd()) if self.folder.is_relative_to(Path.cwd()) else self.folder)

    @property
    def model(self) -> str:
        return self.settings["model.name"]

    @property
    def trained(self) -> bool:
        """Whether its seconds are those of a training, not of a test alone."""
        return self.settings.get("task", "train") == "train"

    @cached_property
    def meaning(self) -> dict[str, str]:
        """The settings that make the run what it is."""
        return {key: value for key, value in self.settings.items() if not _circumstance(key)}

    @property
    def probes(self) -> dict[str, str]:
        """AUC of each probe, six digits."""
        return {name: f"{value:.6f}" for name, value in sorted(self.metrics.items()) if name.startswith("probe/")}


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
    return [read(folder) for folder in sorted(found)]


def unfinished(folders: Iterable[str | Path]) -> list[Path]:
    """Folders at or below the given ones that have a checkpoint and no metrics: killed runs, or ones that go on."""
    below = {path.parent.resolve() for folder in folders for path in Path(folder).rglob("last.ckpt")}
    return sorted(folder for folder in below if not (folder / "metrics.json").exists())


def read(folder: Path) -> Run:
    """One run folder; raises UserError for a file that is missing or can't be read."""
    metrics, card = read_json(folder / "metrics.json"), read_json(folder / "data_card.json")
    path = folder / "config.yaml"
    values = read_yaml(path)
    refuse_expressions(values, str(path))
    settings = dict(_flatten(completed(values) if isinstance(values, dict) else values))
    for name in ("model.name", "seed", "data.name"):
        if name not in settings:
            raise UserError(f"{path} has no {name}; it needs the resolved config of the run.")
    for name in ("protocol", "split_hash"):
        if name not in card:
            raise UserError(f"{folder / 'data_card.json'} has no {name}; it needs the data card of the run.")
    try:
        seed = int(settings["seed"])
    except ValueError:
        raise UserError(f"{path} has the seed {settings['seed']!r}; it needs a whole number.") from None
    return Run(
        folder=folder,
        settings=settings,
        metrics={name: _number(folder / "metrics.json", name, value) for name, value in metrics.items()},
        card=card,
        curves=_curves(folder / "curves.json"),
        environment=_optional(folder / "environment.json"),
        seed=seed,
        written=(folder / "metrics.json").stat().st_mtime,
    )


def predictions(run: Run) -> pl.DataFrame | None:
    """The run's test rows in an order that doesn't depend on how they were written; None where none were saved.

    Columns user, item, label (Int64), probability, and history_length and item_popularity where the file has them.
    Raises UserError for a file that can't be read or has no rows.
    """
    path = run.folder / "predictions.parquet"
    if not path.is_file():
        return None
    try:
        further = [name for name in ("history_length", "item_popularity") if name in pl.read_parquet_schema(path)]
        frame = pl.read_parquet(path, columns=[*ROW, "probability", *further], glob=False)
        frame = frame.with_columns(pl.col("label").cast(pl.Int64))
    except Exception as error:  # polars raises many kinds
        raise UserError(f"{path} can't be read as predictions: {line(error)}.") from error
    if frame.height == 0:
        raise UserError(f"{path} holds no rows; a comparison needs predictions.")
    return frame.sort(ROW)


def _optional(path: Path, most: int | None = None) -> dict[str, Any]:
    return read_json(path, most) if path.exists() else {}


def _number(path: Path, name: str, value: Any) -> float:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise UserError(f"{path} holds {value!r} for {name}; it needs a number.")
    try:
        return float("nan") if value is None else float(value)
    except OverflowError:
        raise UserError(f"{path} holds a number of {len(str(value))} digits for {name}.") from None


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    curves = {}
    for name, points in _optional(path, MOST_OF_CURVES).items():
        try:
            curves[name] = [(int(step), float(value)) for step, value in points]
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{path} holds no list of [step, value] for {name}.") from None
    return curves


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """`a.b` -> every leaf as it is written on the command line; a list is a leaf."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _circumstance(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in CIRCUMSTANCES)
