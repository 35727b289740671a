"""One run, as a function of its config: data → model → trainer → fit → test → results."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from deepinterest import models
from deepinterest.config import ExperimentConfig, Task, TrainerConfig
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.loader import Samples, ranges
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.nn.embedding import Features
from deepinterest.report import plots
from deepinterest.training import loggers, scores
from deepinterest.training.callbacks import Curves, Throughput
from deepinterest.training.module import LOG_EVERY, ClickModel

log = logging.getLogger(__name__)
ATTENTION_ROWS = 6  # test rows whose attention is drawn


def run(config: ExperimentConfig, resolved: dict[str, Any]) -> dict[str, float]:
    """Train and test, or test a checkpoint; everything worth keeping lands in `config.paths.run`.

    Args:
        resolved: the whole config as plain values, for the run folder and the logger.
    Returns: the content of metrics.json.
    """
    begin = time.perf_counter()
    folder = _run_folder(config.paths.run)
    _calm()
    console = Console(stderr=True, quiet=bool(getattr(rank_zero_only, "rank", 0)))  # of several processes one speaks
    torch.set_flush_denormal(True)  # rows long untouched decay into denormals, which are slow
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    _check_device(config.trainer)
    L.seed_everything(config.seed, verbose=False)

    data = InteractionData(
        config.data,
        config.protocol,
        batch_size=config.trainer.batch_size,
        eval_batch_size=config.trainer.eval_batch_size,
        seed=config.seed,
        auxiliary=getattr(config.model, "aux_negatives", None),
        cache=config.paths.cache,
    )
    with console.status(f"Preparing {config.data.name} …"):
        store = data.store
    console.print(_card_table(store.card))
    model = _model(config, store)

    name = f"{config.model.name} {config.data.name} s{config.seed}"
    logger = loggers.make_logger(config.logger, folder, Path(config.paths.output), name, resolved, config.model.name)
    failed = True
    try:
        curves, speed = Curves(), Throughput()
        trainer = _trainer(config.trainer, folder, data, logger, [curves, speed])
        checkpoint = Path(config.checkpoint) if config.checkpoint and config.task is Task.test else folder / "best.ckpt"
        if config.task is Task.train:
            trainer.fit(model, datamodule=data)
            if trainer.interrupted:
                raise UserError(f"Interrupted; the last checkpoint is {folder / 'last.ckpt'}.")
        best = _load(checkpoint, _model(config, store))
        trainer.validate(best, datamodule=data, verbose=False)
        trainer.test(best, datamodule=data, verbose=False)
        metrics = best.scores | _probes(store)
        metrics |= {
            "seconds": time.perf_counter() - begin,
            "train/seconds": speed.seconds,
            "samples_per_s": speed.samples_per_second,
            "steps": float(trainer.global_step),
            "parameters": float(sum(p.numel() for p in model.parameters())),
        }
        _, label, probability = best.test_metrics.predictions()
        if trainer.is_global_zero:
            figures = _figures(best, data, store, curves, label, probability, config.evaluation.ece_bins)
            _write(
                folder, config, resolved, store, metrics, _predictions(store, label, probability, trainer.world_size)
            )
            for title, figure in figures.items():
                plots.save(figure, folder / f"{title}.png")
            loggers.log_images(logger, figures)
            console.print(_metrics_table(metrics))
        failed = False
        return metrics
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"Results could not be written to {folder}: {error.strerror}. Make room and run again."
        ) from error
    finally:
        loggers.finish(logger, int(failed))


def _run_folder(path: str) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"The run folder {folder} can't be written: {error.strerror or error}. "
            "Make room, or name another by paths.output=…"
        ) from error
    return folder


def _calm() -> None:
    """Lightning prints each line itself and hands it on to the root logger: once is enough."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # the run folder holds the log already
    warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")


def _check_device(config: TrainerConfig) -> None:
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            "trainer.accelerator=gpu, but this machine shows no GPU to torch; take trainer=cpu, or install a torch "
            "build for your GPU."
        )


def _model(config: ExperimentConfig, store: Store) -> ClickModel:
    features = Features(
        catalogue=torch.from_numpy(np.array(store.catalogue)),
        sizes=store.sizes,
        user_catalogue=torch.from_numpy(np.array(store.user_catalogue)),
        user_sizes=store.user_sizes,
    )
    return ClickModel(
        models.build(features, config.model),
        config.optimizer,
        config.evaluation,
        aux_weight=getattr(config.model, "aux_weight", 0.0),
        vocabulary_hash=store.vocabulary_hash,
    )


def _trainer(
    config: TrainerConfig, folder: Path, data: InteractionData, logger: Any, callbacks: list[Callback]
) -> L.Trainer:
    steps = len(data.train_dataloader())
    interval = max(1, min(steps // config.validations_per_epoch, config.max_steps or steps))
    callbacks = [
        *callbacks,
        ModelCheckpoint(
            dirpath=folder,
            filename="best",
            monitor="val/auc",
            mode="max",
            save_last=True,
            enable_version_counter=False,
            auto_insert_metric_name=False,
        ),
    ]
    if config.patience:
        callbacks.append(EarlyStopping(monitor="val/auc", mode="max", patience=config.patience))
    progress = config.progress and sys.stderr.isatty()
    if progress:
        callbacks.append(RichProgressBar())
    return L.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=config.strategy,
        precision=config.precision,  # type: ignore[arg-type]
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        val_check_interval=interval,
        deterministic=config.deterministic,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        use_distributed_sampler=False,  # it would pad evaluation; the loader shards by itself
        enable_progress_bar=progress,
        enable_model_summary=False,
        logger=logger or False,
        callbacks=callbacks,
        default_root_dir=folder,
    )


def _load(path: Path, model: ClickModel) -> ClickModel:
    """The model with the weights of a checkpoint; raises UserError where they are not this data set's and model's."""
    if not path.is_file():
        raise UserError(f"checkpoint={path} is not a file.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        weights, vocabulary = state["state_dict"], state.get("vocabulary_hash")
    except Exception as error:  # bytes that are no pickle raise nearly anything
        raise UserError(
            f"checkpoint={path} can't be read as a checkpoint of this program ({type(error).__name__})."
        ) from error
    if vocabulary != model.vocabulary_hash:
        raise UserError(
            f"checkpoint={path} was trained with another vocabulary ({vocabulary}) than this data set's "
            f"({model.vocabulary_hash}); give the data.* and protocol.* settings it was trained with."
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"checkpoint={path} holds another model than the config describes; give the model.* settings it was "
            f"trained with. {str(error).splitlines()[-1].strip()}"
        ) from error
    return model


def _probes(store: Store) -> dict[str, float]:
    """AUC of each probe's score on the test rows."""
    label = store.samples["test"].label

    def auc(score: np.ndarray) -> float:
        rank = np.unique(score, return_inverse=True)[1]
        return scores.auc(label, (rank / max(1, rank.max())).astype(np.float32))

    return {f"probe/{name}_auc": auc(score) for name, score in store.probes.items()}


def _predictions(store: Store, label: np.ndarray, probability: np.ndarray, world: int) -> pl.DataFrame:
    samples = store.samples["test"]
    order = _row_order(samples, world)
    row = np.empty_like(order)
    row[order] = np.arange(len(order))  # back from the processes' shares to the store's order
    user = np.repeat(samples.user, np.diff(samples.candidate_offsets))
    items = pl.Series(store.item_names())
    return pl.DataFrame(
        {
            "user": store.user_names()[user],
            "item": items[samples.candidates],
            "label": label[row].astype(np.int8),
            "probability": probability[row],
        }
    )


def _row_order(samples: Samples, world: int) -> np.ndarray:
    groups = np.concatenate([np.arange(rank, len(samples), world) for rank in range(world)])
    first = samples.candidate_offsets[groups]
    return ranges(first, samples.candidate_offsets[groups + 1] - first)[0]


def _figures(
    model: ClickModel,
    data: InteractionData,
    store: Store,
    curves: Curves,
    label: np.ndarray,
    probability: np.ndarray,
    bins: int,
) -> dict[str, Any]:
    figures = {"roc": plots.roc(label, probability), "calibration": plots.calibration(label, probability, bins)}
    kept = {name: points for name, points in curves.points.items() if points}
    if kept:
        figures["learning_curves"] = plots.learning_curves(kept)
    if hasattr(model.network, "attention_weights"):
        figures["attention"] = plots.attention(_attention_rows(model, data, store))
    return figures


@torch.inference_mode()
def _attention_rows(model: ClickModel, data: InteractionData, store: Store) -> list[plots.AttentionRow]:
    loader = data.test_dataloader()
    groups = np.linspace(0, len(store.samples["test"]) - 1, ATTENTION_ROWS).astype(np.int64)
    batch = loader.batch(np.unique(groups), np.random.default_rng(0)).to(model.device)
    model.eval()
    weights, pairs = model.network.attention_weights(batch)  # type: ignore[operator]
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


def _write(
    folder: Path,
    config: ExperimentConfig,
    resolved: dict[str, Any],
    store: Store,
    metrics: dict[str, float],
    predictions: pl.DataFrame,
) -> None:
    from omegaconf import OmegaConf

    environment = {"commit": _commit(), "python": sys.version.split()[0]}
    for package in ("deepinterest", "torch", "lightning", "hydra-core", "torchmetrics", "wandb", "numpy", "polars"):
        environment[package] = version(package)

    def write(name: str, content: str) -> None:
        beside = folder / f".{name}"
        beside.write_text(content)
        os.replace(beside, folder / name)

    try:
        predictions.write_parquet(folder / ".predictions.parquet")
        os.replace(folder / ".predictions.parquet", folder / "predictions.parquet")
        write("config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved)))
        write("environment.json", json.dumps(environment, indent=2))
        write("data_card.json", json.dumps(store.card, indent=2))
        write("metrics.json", json.dumps(metrics, indent=2))
    except OSError as error:
        raise UserError(
            f"Results could not be written to {folder}: {error.strerror or error}. Make room and run again."
        ) from error


def _commit() -> str:
    answer = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    return answer.stdout.strip() or "unknown"


def _card_table(card: dict[str, Any]) -> Table:
    table = Table(title="Data card", show_header=False)
    for key, value in card.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    return table


def _metrics_table(metrics: dict[str, float]) -> Table:
    table = Table(title="Test")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for key, value in metrics.items():
        if key.startswith(("test/", "probe/")) or key in ("seconds", "samples_per_s"):
            table.add_row(key.removeprefix("test/"), f"{value:,.4f}" if abs(value) < 100 else f"{value:,.0f}")
    return table
