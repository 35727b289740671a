"""What a run is called, grouped and tagged by in its logger; nothing here imports torch."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from deepinterest.config import ExperimentConfig, of_host
from deepinterest.errors import UserError
from deepinterest.plain import read_yaml

# Settings that tell nothing of what a run is: not in its name. The first three are there in other words.
UNNAMED = ("model", "data", "seed", "task", "checkpoint", "resume", "output", "experiment", "trainer")
UNNAMED_GROUPS = ("logger", "paths", "sweep", "hydra", "tune", "explain")
UNNAMED_OF_TRAINER = ("threads", "progress", "kernel", "devices", "prefetch", "compile", "accelerator")
LONGEST_NAME = 100  # characters
# Environment. The first two are Weights & Biases' own words. By them a sweep tells a job in a process of its own
# (sweep/processes.py), and by the third that it is one. The last is set by `wandb agent`.
NAME, GROUP, JOB, AGENT = "WANDB_NAME", "WANDB_RUN_GROUP", "DEEPINTEREST_JOB", "WANDB_SWEEP_ID"


def run_name(config: ExperimentConfig, start: Path | None = None) -> str:
    """Such as `dien completejourney lr=0.001 s2`: what the command line set, without what says where and how it ran.

    In a sweep only what differs between its jobs. A run that goes on from `start` keeps the name it began with.
    """
    if name := os.environ.get(NAME):
        return name
    words = [config.model.name, config.data.name]
    given, sweep = _command(start)
    if sweep is not None:
        whole = sweep / "multirun.yaml"  # the sweep's command
        common = set(_began(whole)[0]) if whole.is_file() else set()
        given = [override for override in given if override not in common]
    for override in given:
        key, _, value = override.lstrip("+~").partition("=")
        first, _, rest = key.partition(".")
        hidden = key in UNNAMED or first in UNNAMED_GROUPS or (first == "trainer" and rest in UNNAMED_OF_TRAINER)
        if not hidden and "/" not in value:  # paths are long, and of one machine
            words.append(f"{key.rpartition('.')[2]}={value}")
    name, seed = " ".join(words), f" s{config.seed}"
    return (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…") + seed


def group_of(config: ExperimentConfig, start: Path | None = None) -> str:
    """What a run is grouped by: its sweep, ours or an agent's, so that its runs stand together; else its model."""
    if group := os.environ.get(GROUP) or os.environ.get(AGENT):
        return group
    _, sweep = _command(start)
    return str(config.model.name) if sweep is None else sweep.name


def tags_of(config: ExperimentConfig) -> list[str]:
    """What runs are filtered by: model, data and protocol, then `logger.tags`; each once."""
    return list(dict.fromkeys([config.model.name, config.data.name, config.protocol.name, *config.logger.tags]))


def going_on(folder: Path) -> str:
    """The command that goes on with a run in `folder`, with what of this one's its checkpoint doesn't say."""
    given, _ = _command(None)
    words = [word for word in given if of_host(word.lstrip("+~").partition("=")[0])]
    return shlex.join(["python", "run.py", f"resume={folder}", *words])


def again(folder: Path) -> str:
    """What a user does about a run that ended early."""
    if (folder / "last.ckpt").is_file():
        return f"The run goes on by: {going_on(folder)}"
    return "Nothing was saved yet: start it again"


def in_sweep() -> bool:
    """Whether this is a job of a sweep, ours or an agent's: several may share a terminal."""
    return bool(os.environ.get(AGENT)) or in_own_sweep()


def in_own_sweep() -> bool:
    """Whether this is a job of one of our sweeps, which shows tables itself."""
    if os.environ.get(JOB):
        return True
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _command(start: Path | None) -> tuple[list[str], Path | None]:
    """What the command line set, and the folder of the sweep that it is a job of.

    Of a run that goes on: as its folder tells. Nothing without a command line.
    """
    began = None if start is None else start.parent / ".hydra" / "hydra.yaml"
    if began is not None and began.is_file():
        words, mode = _began(began)
        return words, began.parents[2] if mode == RunMode.MULTIRUN.name else None
    if not HydraConfig.initialized():
        return [], None
    hydra = HydraConfig.get()
    return list(hydra.overrides.task), Path(hydra.sweep.dir) if hydra.mode == RunMode.MULTIRUN else None


def _began(path: Path) -> tuple[list[str], str]:
    """The overrides and the mode that a file of Hydra's tells, as they were written; UserError where it doesn't."""
    try:
        hydra = read_yaml(path)["hydra"]
        words, mode = hydra["overrides"]["task"], hydra["mode"]
    except (AttributeError, KeyError, TypeError):
        words, mode = None, None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise UserError(f"{path} doesn't say which overrides the run was started with: take it from the run's folder.")
    return words, str(mode)
