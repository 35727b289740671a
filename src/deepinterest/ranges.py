"""Which values a setting may have, and which settings go together. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from deepinterest.config import (
    LOGGERS,
    CalibrationName,
    CompleteJourneyConfig,
    Engine,
    EventFileConfig,
    ExperimentConfig,
    HistoryTies,
    LabelledConfig,
    LoggerConfig,
    NegativesConfig,
    Tables,
    Task,
    TemporalConfig,
    TrainerConfig,
)
from deepinterest.data import checks
from deepinterest.errors import UserError, nearest, short
from deepinterest.kinds import describe, fits, types_of
from deepinterest.launch import launched

MOST = 2**63 - 1  # what arrays count with


def check(config: ExperimentConfig) -> None:
    """Raise a UserError for the first value that is out of its range."""
    _check_ranges(config, "")
    checks.check(config.data)
    auxiliary = getattr(config.model, "aux_negatives", None)
    checks.check_protocol(config.protocol, auxiliary and auxiliary.distribution)
    protocol, logger = config.protocol, config.logger
    shares = isinstance(protocol, TemporalConfig | LabelledConfig)
    if shares and protocol.train_share + protocol.validation_share >= 1:
        raise UserError(
            f"protocol.train_share={protocol.train_share} and protocol.validation_share={protocol.validation_share} "
            "leave nothing to test: their sum must be less than 1"
        )
    if isinstance(protocol, LabelledConfig) and protocol.negatives != NegativesConfig():
        raise UserError(
            "protocol.negatives is not possible with protocol=labelled, where impressions with label 0 are the "
            "negatives: leave it out"
        )
    labels = not isinstance(config.data, CompleteJourneyConfig)  # it has none, and that is said before long
    if isinstance(protocol, LabelledConfig) and protocol.ties is HistoryTies.order and labels:
        raise UserError(
            "protocol.ties=order is not possible with protocol=labelled: a click among the impressions of one time "
            "would give away that the others weren't clicked. Set protocol.ties=strict"
        )
    if isinstance(config.data, EventFileConfig) and config.data.engine is Engine.ray and config.data.partitions == 1:
        raise UserError(
            "data.engine=ray has nothing to share out with data.partitions=1: set data.partitions to a few times the "
            "number of its cores"
        )
    if isinstance(config.trainer, TrainerConfig):
        _check_devices(config.trainer.devices)
    betas = config.optimizer.betas
    if len(betas) != 2 or not 0 < betas[0] < betas[1] ** 0.5:
        raise UserError(
            f"optimizer.betas={short(betas)} is not possible: Adam has two, of the mean and of the square, the first "
            "more than 0 and less than the root of the second, as in [0.9,0.999]"
        )
    if config.embedding is Tables.sharded:
        _check_sharded(config)
    if isinstance(logger, LoggerConfig) and logger.name not in LOGGERS:
        raise UserError(
            f"logger.name={logger.name} is not possible: one of {', '.join(LOGGERS)}{nearest(logger.name, LOGGERS)}"
        )
    if config.task is Task.predict and config.output is None:
        raise UserError("output is missing: task=predict needs a place for the scores, output=scores.parquet")
    if config.calibration is not CalibrationName.none and config.quirks.best_of_test:
        raise UserError(
            f"calibration={config.calibration.name} is learned from validation rows, and quirks.best_of_test=true "
            "validates on the test rows: take calibration=none or quirks.best_of_test=false"
        )
    if config.tune.lr_low >= config.tune.lr_high or config.tune.batch_low > config.tune.batch_high:
        raise UserError(
            f"tune.lr_low={config.tune.lr_low} must be below tune.lr_high={config.tune.lr_high}, and "
            f"tune.batch_low={config.tune.batch_low} at most tune.batch_high={config.tune.batch_high}"
        )
    if config.resume is not None and (config.task is not Task.train or config.checkpoint is not None):
        what = f"task={config.task.name}" if config.checkpoint is None else f"checkpoint={config.checkpoint}"
        raise UserError(f"resume={config.resume} goes on with a training run and can't be given with {what}")
    if config.resume is not None and config.overwrite:
        raise UserError(
            f"resume={config.resume} goes on with a run, and overwrite=true would delete it: leave one of them out"
        )
    if config.task in (Task.test, Task.probe, Task.predict, Task.explain) and config.checkpoint is None:
        raise UserError(
            f"checkpoint is missing: task={config.task.name} needs one, checkpoint=outputs/runs/.../best.ckpt"
        )


def _check_devices(devices: int | str) -> None:
    parts = [part.strip() for part in str(devices).split(",")]
    named = all(part.isdecimal() for part in parts) and len(set(map(int, parts))) == len(parts)
    if str(devices) == "0" or not (named or str(devices) in ("-1", "auto")):
        raise UserError(
            f"trainer.devices={devices} is not possible: a number, -1 for all, auto, or different indices as '0,1'"
        )


def _check_sharded(config: ExperimentConfig) -> None:
    if config.task not in (Task.train, Task.test):
        raise UserError(
            f"embedding=sharded is for task=train and task=test: task={config.task.name} works with one process, which "
            "reads the checkpoint of a sharded run as any other. Leave it out"
        )
    trainer = config.trainer
    if str(trainer.devices) == "1" and launched() is None:
        raise UserError(
            "embedding=sharded splits the tables over processes, and trainer.devices=1 makes one: take trainer=ddp or "
            "ddp_cpu with more of them, or embedding=replicated"
        )


def _check_ranges(node: Any, path: str) -> None:
    kinds = types_of(type(node))
    for entry in fields(node):
        value, key = getattr(node, entry.name), f"{path}{entry.name}"
        if not fits(value, kinds[entry.name]):  # OmegaConf lets an expression's value and lists in a list pass
            raise UserError(f"{key}={short(value)} is not possible: expected {describe(kinds[entry.name])}")
        if is_dataclass(value):
            _check_ranges(value, f"{key}.")
        elif isinstance(value, list) and entry.metadata:
            if not value:
                raise UserError(f"{key}=[] is not possible: the list needs at least one entry")
            for index, element in enumerate(value):
                _check_range(f"{key}[{index}]", element, entry.metadata)
        elif entry.metadata:
            _check_range(key, value, entry.metadata)


def _check_range(key: str, value: Any, limits: Mapping[str, float | None]) -> None:
    if value is None or isinstance(value, str):
        return
    low, high, above = limits["low"], limits["high"], limits["above"]
    if high is None and isinstance(value, int) and value > MOST:
        high = MOST
    # written so that nan, which no comparison holds for, fails too
    fine = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    if not fine or value in (float("inf"), float("-inf")):
        parts = {"at least": low, "more than": above, "at most": high}
        allowed = " and ".join(f"{words} {limit}" for words, limit in parts.items() if limit is not None)
        raise UserError(f"{key}={short(value)} is out of range: it must be {allowed}")
