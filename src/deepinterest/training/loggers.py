"""Loggers of a run: Weights & Biases (without an account, or online), CSV, TensorBoard, none."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from deepinterest.config import LoggerConfig, LoggerMode
from deepinterest.errors import UserError
from deepinterest.training.account import PROBE_SECONDS, base_url, has_key, reachable

if TYPE_CHECKING:
    import wandb
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
SYSTEM_SECONDS = 5.0  # between two looks at the machine: a run of a minute should show some


def check(config: LoggerConfig) -> None:
    """Raise a UserError for a logger that can't start: its package is missing, or the key that it needs."""
    if config.name == "tensorboard" and find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
        raise UserError('logger=tensorboard needs its package: pip install -e ".[tensorboard]", or take logger=csv')
    if config.name == "wandb" and _wanted(config) == "online" and not has_key(base_url()):
        raise UserError("logger.mode=online needs a key: run `wandb login`, or take logger.mode=offline")


def make_logger(
    config: LoggerConfig,
    run_dir: str | Path,
    output_dir: str | Path,
    run_name: str,
    full_config: dict[str, Any],
    group: str | None = None,
    identity: str | None = None,
) -> Logger | None:
    """The logger of a run; None for `none`. Weights & Biases writes below `output_dir`, the others into `run_dir`.

    identity: Weights & Biases' id of a run that goes on.
    """
    if config.name == "csv":
        # Lightning empties a folder that it finds: a run that goes on writes csv_2.
        names = chain(["csv"], (f"csv_{number}" for number in count(2)))
        version = next(name for name in names if not (Path(run_dir) / name).exists())
        logger: Logger = CSVLogger(save_dir=run_dir, name="", version=version)
    elif config.name == "tensorboard":
        logger = TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard", default_hp_metric=False)
    elif config.name == "wandb":
        if getattr(rank_zero_only, "rank", 0):  # only the first process of a run logs; the others hold an empty shell
            return WandbLogger(name=run_name, save_dir=output_dir, offline=True)
        run = start_wandb(config, Path(output_dir), run_name, full_config, group, identity)
        return WandbLogger(name=run_name, save_dir=output_dir, experiment=run)
    else:
        return None
    logger.log_hyperparams(full_config)
    return logger


def start_wandb(
    config: LoggerConfig,
    folder: Path,
    run_name: str,
    full_config: dict[str, Any],
    group: str | None,
    identity: str | None = None,
) -> wandb.Run:
    """Start a run: online where wanted and possible within `init_timeout`, otherwise offline. Never a prompt."""
    import wandb
    from wandb.errors import Error, UsageError

    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    mode, reason = choose_mode(config)

    def init(mode: str, seconds: float) -> wandb.Run:
        settings = wandb.Settings(
            init_timeout=seconds,
            quiet=True,
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            x_stats_sampling_interval=SYSTEM_SECONDS,
        )
        try:
            return wandb.init(
                project=config.project,
                name=run_name,
                group=group,
                id=identity,
                resume="allow" if identity and mode == "online" else None,
                tags=config.tags or None,
                config=full_config,
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                reinit="finish_previous",
                settings=settings,
            )
        except (UsageError, ValueError) as error:  # of names that it doesn't take
            said = " ".join(str(error).split()).partition(" [type=")[0]
            raise UserError(
                f"Weights & Biases doesn't take logger.project={config.project!r} with the tags {config.tags} "
                f"({said}): take others"
            ) from error

    run = None
    if mode == "online":
        try:
            run = init("online", max(0.5, config.init_timeout - (time.monotonic() - start)))
        except (Error, TimeoutError) as error:
            reason = f"Weights & Biases did not start ({str(error).splitlines()[0] if str(error) else 'no answer'})"
            mode = "offline"
            wandb.teardown()
    if run is None:
        run = init(mode, config.init_timeout)
    # The axis of every curve; Lightning sees to it only where it starts the run itself.
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    if reason:
        log.warning("%s; logging offline", reason)
    if mode == "offline":
        run_folder = Path(run.dir).parent
        log.info("curves: wandb leet %s (upload: wandb sync %s)", folder / "wandb", run_folder)
    return run


def choose_mode(config: LoggerConfig) -> tuple[str, str]:
    """The mode to start in, and why it is not online although a key is there."""
    mode = _wanted(config)
    if mode in ("offline", "disabled"):
        return mode, ""
    url = base_url()
    if not has_key(url):
        check(config)
        return "offline", ""
    if not reachable(url, min(PROBE_SECONDS, config.init_timeout)):
        return "offline", f"{url} does not answer"
    return "online", ""


def _wanted(config: LoggerConfig) -> str:
    """The mode that the settings name, or with `auto` the environment."""
    if config.mode is LoggerMode.auto and os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"]
    return str(config.mode.value)


def log_images(logger: Logger | None, figures: Mapping[str, Figure], step: int | None = None) -> None:
    """Hand matplotlib figures to a logger that shows images."""
    if getattr(rank_zero_only, "rank", 0):
        return
    if isinstance(logger, WandbLogger):
        import wandb

        logger.experiment.log({name: wandb.Image(figure) for name, figure in figures.items()})
    elif isinstance(logger, TensorBoardLogger):
        for name, figure in figures.items():
            logger.experiment.add_figure(name, figure, global_step=step, close=False)


def finish(logger: Logger | None, exit_code: int = 0) -> None:
    """End the run, so that a sweep's next job starts its own; a code other than 0 marks it as failed."""
    if logger is None:
        return
    logger.finalize("success" if exit_code == 0 else "failed")
    if isinstance(logger, WandbLogger) and not getattr(rank_zero_only, "rank", 0):
        logger.experiment.finish(exit_code=exit_code)
