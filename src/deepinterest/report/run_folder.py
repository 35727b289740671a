"""A run's folder: all that is needed to repeat the run, or to compare it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from deepinterest.atomic import beside
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.models.network import AttentionNetwork
from deepinterest.report import plots
from deepinterest.training import scores
from deepinterest.training.callbacks import Curves
from deepinterest.training.module import ClickModel

ATTENTION_ROWS = 6  # test rows whose attention is drawn
CURVES = ("loss", "click_loss", "auxiliary_loss", "auc", "gauc", "logloss", "ece")  # drawn


def probes(store: Store) -> dict[str, float]:
    """AUC of each probe's score on the test rows."""
    label = store.samples["test"].label

    def auc(score: np.ndarray) -> float:
        rank = np.unique(score, return_inverse=True)[1]
        return scores.auc(label, (rank / max(1, rank.max())).astype(np.float32))

    return {f"probe/{name}_auc": auc(score) for name, score in store.probes.items()}


def predictions(store: Store, label: np.ndarray, probability: np.ndarray, order: np.ndarray) -> pl.DataFrame:
    """Raw user, item and time (UTC), label and probability of each test row, in the store's order.

    Also history_length, how many of the user's events are its history, not cut at max_history; and item_popularity, the
    item's events in training. Its AUC is broken down by these two.

    label and probability (R,) come as the processes collected them: of the store's rows order[0], order[1], ….
    """
    samples = store.samples["test"]
    row = np.empty_like(order)
    row[order] = np.arange(len(order))  # back to the store's order
    counts = np.diff(samples.candidate_offsets)
    user = np.repeat(samples.user, counts)
    length = samples.history_end - store.log.user_offsets[samples.user]
    items = pl.Series(store.item_names())
    return pl.DataFrame(
        {
            "user": store.user_names()[user],
            "item": items[samples.candidates],
            "timestamp": pl.Series(samples.row_time(store.log)).cast(pl.Datetime("ms", "UTC")),
            "label": label[row].astype(np.int8),
            "probability": probability[row],
            "history_length": np.repeat(length, counts).astype(np.int32),
            "item_popularity": store.probes["popularity"].astype(np.int32),
        }
    )


def figures(
    model: ClickModel, data: InteractionData, curves: Curves, label: np.ndarray, probability: np.ndarray, bins: int
) -> dict[str, Figure]:
    """The plots of a run by name; label and probability (R,) are the test rows'."""
    drawn = {"roc": plots.roc(label, probability), "calibration": plots.calibration(label, probability, bins)}
    kept = {name: points for name, points in curves.points.items() if points and name.partition("/")[2] in CURVES}
    if kept:
        drawn["learning_curves"] = plots.learning_curves(kept)
    if isinstance(model.network, AttentionNetwork):
        drawn["attention"] = plots.attention(_attention_rows(model, model.network, data))
    return drawn


@torch.inference_mode()
def _attention_rows(model: ClickModel, network: AttentionNetwork, data: InteractionData) -> list[plots.AttentionRow]:
    store, loader = data.store, data.test_dataloader()
    touched = np.searchsorted(loader.samples.candidate_offsets, np.flatnonzero(loader.samples.label), side="right") - 1
    groups = touched[np.linspace(0, len(touched) - 1, ATTENTION_ROWS).astype(np.int64)]
    batch = loader.batch(np.unique(groups)).to(model.device)
    model.eval()
    weights, pairs = network.attention_weights(batch)
    probability = model(batch)
    names = store.item_names()
    rows = []
    for row in (batch.label == 1).nonzero().ravel().tolist():
        pair = slice(int(pairs.offsets[row]), int(pairs.offsets[row + 1]))
        rows.append(
            plots.AttentionRow(
                [names[item] for item in batch.history[pairs.event[pair]].tolist()],
                weights[pair].float().cpu().numpy(),
                names[int(batch.candidates[row])],
                int(batch.label[row]),
                float(probability[row]),
            )
        )
    return rows


def write(
    folder: Path,
    resolved: dict[str, Any],
    metrics: dict[str, float],
    curves: dict[str, list[tuple[int, float]]],
    predictions: pl.DataFrame,
    drawn: dict[str, Figure],
) -> None:
    """Each file beside its place and renamed; metrics.json comes last, so that a folder with one is complete."""
    environment = {"commit": _commit(), "python": sys.version.split()[0]}
    for package in ("deepinterest", "torch", "lightning", "hydra-core", "torchmetrics", "wandb", "numpy", "polars"):
        environment[package] = version(package)
    texts = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(resolved)),
        "environment.json": json.dumps(environment, indent=2),
        "curves.json": json.dumps({name: points for name, points in curves.items() if points}),
        "metrics.json": json.dumps(metrics, indent=2),
    }
    try:
        for title, figure in drawn.items():
            plots.save(figure, folder / f"{title}.png")
        with beside(folder / "predictions.parquet") as own:
            predictions.write_parquet(own)
        for name, text in texts.items():
            with beside(folder / name) as own:
                own.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _no_room("Results", folder, error) from error


def write_findings(folder: Path, name: str, content: dict[str, Any], figure: Figure) -> None:
    """NAME.png and NAME.json; raises UserError where there is no room."""
    try:
        plots.save(figure, folder / f"{name}.png")
    except OSError as error:
        raise _no_room(f"{name}.png", folder, error) from error
    write_json(folder / f"{name}.json", content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Beside its place and renamed; raises UserError where there is no room."""
    try:
        with beside(path) as own:
            own.write_text(json.dumps(content, indent=2))
    except OSError as error:
        raise _no_room(path.name, path.parent, error) from error


def _no_room(name: str, folder: Path, error: OSError) -> UserError:
    return UserError(f"{name} could not be written to {folder}: {error.strerror or error}. Make room and run again.")


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return answer.stdout.strip() or "unknown"
