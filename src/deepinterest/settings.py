"""From a command line to checked settings: what Hydra is told, what goes without saying, and what is refused.

Nothing here imports torch, so that a wrong setting fails at once. The settings themselves: `config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepinterest.config import (
    LOGGERS,
    SCHEMAS,
    CalibrationName,
    Engine,
    EventFileConfig,
    ExperimentConfig,
    LabelledConfig,
    LoggerConfig,
    NegativesConfig,
    Tables,
    Task,
    TemporalConfig,
    TrainerConfig,
)
from deepinterest.errors import UserError, nearest, sentence
from deepinterest.launch import launched


def register() -> None:
    """Hand the schemas to Hydra, under `schema/`; the files in `conf/` start from them."""
    store = ConfigStore.instance()
    # It hands out copies, so it needs none itself; Hydra makes one, of all schemas, for every group that --help lists.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    store.store(group="schema", name="experiment", node=ExperimentConfig)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    OmegaConf.register_new_resolver("choices", choices, replace=True)


def choices(group: str) -> str:
    """The choices of a config group; `--help` shows them. conf/sweep/wandb.yaml is no choice: see `implied`."""
    hydra = GlobalHydra.instance().hydra
    names = hydra.config_loader.get_group_options(group) if hydra else []
    return ", ".join(name for name in names if (group, name) != ("sweep", "wandb"))


def typed(config: DictConfig) -> ExperimentConfig:
    """The composed settings as checked dataclasses, interpolations resolved."""
    _check_keys(config, "")
    missing = sorted(OmegaConf.missing_keys(config))
    if "data.path" in missing:
        what = "folder or tar of the published layout" if config.data.name == "reference" else "event file"
        raise UserError(f"data.path is missing: name the {what}, data.path=...")
    if missing:
        raise UserError(f"{missing[0]} is missing: give it a value, {missing[0]}=...")
    experiment = OmegaConf.to_object(config)
    if not isinstance(experiment, ExperimentConfig):
        raise UserError("the settings are not an experiment: start them from /schema/experiment@_here_")
    check(experiment)
    return experiment


def implied(arguments: list[str]) -> list[str]:
    """The command line with what goes without saying.

    The rows that task=predict reads are data=events; `sweep` means -m; a resumed sweep or run writes where it was.
    Raises UserError for sweep=wandb, which is a file for another command.
    """
    arguments = list(arguments)
    sweeps = [word for word in arguments if word.startswith(("sweep=", "sweep."))]
    if any("wandb" in re.split(r"\W+", word) for word in sweeps if word.startswith("sweep=")):
        raise UserError(
            "sweep=wandb is no choice of this command: `wandb sweep conf/sweep/wandb.yaml` makes that sweep, and "
            "`wandb agent`, with the name it prints, runs it (docs/wandb.md)"
        )
    if sweeps and not {"-m", "--multirun", "--cfg", "-c", "--help", "-h", "--info", "-i"} & set(arguments):
        arguments = ["-m", *arguments]
    for word in [word for word in sweeps if word.startswith("sweep.resume=")]:  # beside it: Hydra wants them in a row
        arguments.insert(arguments.index(word), f"hydra.sweep.dir={word.partition('=')[2]}")
    runs = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    if runs and "-m" not in arguments and "--multirun" not in arguments and Path(runs[-1].strip("'\"")).is_dir():
        arguments += [f"hydra.run.dir={runs[-1]}", "hydra.output_subdir=null"]  # which keeps what the run began with
    if "task=predict" in arguments and not any(word.startswith(("data=", "experiment=")) for word in arguments):
        place = arguments.index("task=predict") + 1  # beside it: Hydra wants all settings in a row
        return [*arguments[:place], "data=events", *arguments[place:]]
    return arguments


def restored(settings: dict[str, Any]) -> ExperimentConfig:
    """Checked dataclasses of what `resolved` gave: the settings that a checkpoint keeps. Raises UserError."""
    base = OmegaConf.structured(ExperimentConfig)
    try:
        for group, schemas in SCHEMAS.items():
            name = settings[group]["name"] if len(schemas) > 1 else group
            OmegaConf.update(base, group, OmegaConf.structured(schemas[name]))
        merged = OmegaConf.merge(base, settings)
    except (KeyError, TypeError, OmegaConfBaseException) as error:
        raise UserError(sentence(error) or f"{error} is missing or unknown") from error
    assert isinstance(merged, DictConfig)
    return typed(merged)


def resolved(config: DictConfig) -> dict[str, Any]:
    """The composed settings as plain values: what a logger and a checkpoint keep."""
    values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key != "sweep"}


def check(config: ExperimentConfig) -> None:
    """Raise a UserError for the first value that is out of its range."""
    _check_ranges(config, "")
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
    if isinstance(config.data, EventFileConfig) and config.data.engine is Engine.ray and config.data.partitions == 1:
        raise UserError(
            "data.engine=ray has nothing to share out with data.partitions=1: set data.partitions to a few times the "
            "number of its cores"
        )
    if isinstance(config.trainer, TrainerConfig):
        _check_devices(config.trainer.devices)
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
    if config.task in (Task.test, Task.probe, Task.predict, Task.explain) and config.checkpoint is None:
        raise UserError(
            f"checkpoint is missing: task={config.task.name} needs one, checkpoint=outputs/runs/.../best.ckpt"
        )


def _check_keys(config: DictConfig, path: str) -> None:
    """Refuse keys no schema knows: `+key=value` gets past Hydra's own check."""
    schema = OmegaConf.get_type(config)
    known = [entry.name for entry in fields(schema)] if schema is not None and is_dataclass(schema) else None
    for key in map(str, config):
        if known is not None and key not in known:
            raise UserError(f"there is no setting {path}{key}: known are {', '.join(known)}{nearest(key, known)}")
        node = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            _check_keys(node, f"{path}{key}.")


def _check_devices(devices: int | str) -> None:
    parts = str(devices).split(",")
    if devices == 0 or (devices != "auto" and not all(part.strip().removeprefix("-").isdigit() for part in parts)):
        raise UserError(f"trainer.devices={devices} is not possible: a number, -1 for all, auto, or indices as '0,1'")


def _check_sharded(config: ExperimentConfig) -> None:
    if config.task not in (Task.train, Task.test):
        raise UserError(
            f"embedding=sharded is for task=train and task=test: task={config.task.name} works with one process, which "
            "reads the checkpoint of a sharded run as any other. Leave it out"
        )
    trainer = config.trainer
    if not trainer.strategy.startswith(("ddp", "auto")):
        raise UserError(
            f"embedding=sharded needs trainer.strategy=ddp, and it is {trainer.strategy}: take trainer=ddp or ddp_cpu, "
            "or embedding=replicated"
        )
    if str(trainer.devices) == "1" and launched() is None:
        raise UserError(
            "embedding=sharded splits the tables over processes, and trainer.devices=1 makes one: take trainer=ddp or "
            "ddp_cpu with more of them, or embedding=replicated"
        )


def _check_ranges(node: Any, path: str) -> None:
    for entry in fields(node):
        value, key = getattr(node, entry.name), f"{path}{entry.name}"
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
    # written so that nan, which no comparison holds for, fails too
    fine = (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)
    if not fine or value in (float("inf"), float("-inf")):
        parts = {"at least": low, "more than": above, "at most": high}
        allowed = " and ".join(f"{words} {limit}" for words, limit in parts.items() if limit is not None)
        raise UserError(f"{key}={value} is out of range: it must be {allowed}")
