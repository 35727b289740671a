"""Going on with a run: from which file, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from deepinterest.config import HOST, SETTINGS_OF_A_MODEL, ExperimentConfig, Task, of_host
from deepinterest.errors import UserError
from deepinterest.serving.checkpoint import read
from deepinterest.training.checkpoints import state_of

# What a run may be given anew when it goes on, beside `config.HOST`: how long it runs, and what is told of it.
FREE = (
    "task", "resume", "overwrite", "checkpoint", "output", "sweep", "calibration", "evaluation", "embedding",
    "trainer.max_epochs", "trainer.max_steps", "trainer.patience", "trainer.checkpoint_minutes", "debug.checks",
)  # fmt: skip


def start_of(config: ExperimentConfig) -> Path | None:
    """The checkpoint that training goes on from; None where it begins. Raises UserError where there is none."""
    if config.task is not Task.train:
        return None
    if config.resume is None:
        if config.checkpoint and Path(config.checkpoint).is_dir():
            raise UserError(
                f"checkpoint={config.checkpoint} is a folder: name a checkpoint in it, or go on there by "
                f"resume={config.checkpoint}"
            )
        return Path(config.checkpoint) if config.checkpoint else None
    folder = Path(config.resume)
    if not folder.is_dir():
        raise UserError(f"resume={config.resume} is not a folder: name that of the run, such as outputs/runs/...")
    if not (folder / "last.ckpt").is_file():
        raise UserError(
            f"resume={config.resume} holds no last.ckpt, so that run saved nothing to go on from: start it again with "
            "its own command"
        )
    return folder / "last.ckpt"


def continued(settings: dict[str, Any], overrides: list[str], start: Path) -> dict[str, Any]:
    """Plain settings of a run that goes on: those of its checkpoint, but for what may change.

    What only the user says (`config.HOST`) is that of the command line, or the default.

    Args:
        settings: the composed config.
        overrides: the command line's, such as "trainer.max_epochs=4".
    Raises: UserError where the command line names a setting of another value that may not change.
    """
    trained = read(start).settings
    if trained is None:
        raise UserError(f"{start} doesn't say with which settings it was trained: start the run again")
    if trained.get("task") != "train":
        raise UserError(f"{start} is no checkpoint of a training run")
    state_of(start)  # says so where there is nothing to go on from
    _refuse_mixture(start, trained)
    now, then = OmegaConf.create(settings), OmegaConf.create(trained)
    for key in HOST:
        group, _, name = key.partition(".")
        if not name or name in settings[group]:
            OmegaConf.update(then, key, OmegaConf.select(now, key), merge=False, force_add=True)
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith("hydra") or "@" in key or OmegaConf.select(now, key) is None:
            continue
        if not _free(key):
            before = _fixed(then, key)
            if before != _fixed(now, key):
                raise UserError(
                    f"{override} is not what {start} was trained with"
                    + ("" if isinstance(before, dict) else f" ({key}={before})")
                    + ": a run goes on with its own settings. Leave it out, or start a new run"
                )
        else:
            OmegaConf.update(then, key, OmegaConf.select(now, key), merge=False, force_add=True)
    plain = OmegaConf.to_container(then)
    assert isinstance(plain, dict)
    paths = dict(settings["paths"])
    if settings["resume"] is not None:
        paths["run"] = str(Path(settings["resume"]).resolve())
    own = {key: settings[key] for key in ("task", "resume", "overwrite", "checkpoint")}
    return {**settings, **{str(key): value for key, value in plain.items()}, **own, "paths": paths}


def _free(key: str) -> bool:
    return of_host(key) or any(key == free or key.startswith(f"{free}.") for free in FREE)


def _fixed(config: Any, key: str) -> Any:
    """The value of a setting; of a group, those of its settings that may not change."""
    value = OmegaConf.select(config, key)
    if not OmegaConf.is_dict(value):
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return {name: _fixed(config, f"{key}.{name}") for name in value if not _free(f"{key}.{name}")}


def _refuse_mixture(start: Path, trained: dict[str, Any]) -> None:
    """Raise a UserError where the best checkpoint beside `start` is another run's: the two would become one result."""
    best = start.with_name("best.ckpt")
    if best.name == start.name or not best.is_file():
        return
    theirs = read(best).settings or {}
    for key in ("seed", "optimizer", *SETTINGS_OF_A_MODEL):
        if theirs.get(key) != trained.get(key):
            raise UserError(
                f"{start} and the best.ckpt beside it are of two runs: they differ in {key}. Put back what belongs "
                "there, or start the run again"
            )
