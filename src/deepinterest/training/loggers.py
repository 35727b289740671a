"""Loggers of a run: Weights & Biases (without an account, or online), CSV, TensorBoard, none."""

from __future__ import annotations

import logging
import netrc
import os
import socket
import time
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from deepinterest.config import ExperimentConfig, LoggerConfig, LoggerMode
from deepinterest.errors import UserError

if TYPE_CHECKING:
    import wandb
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)
PROBE_SECONDS = 3.0  # to reach the server at all
# Settings that tell nothing of what a run is: not in its name. The first three are there in other words.
UNNAMED = ("model", "data", "seed", "task", "checkpoint", "resume", "output", "experiment", "trainer")
UNNAMED_GROUPS = ("logger", "paths", "sweep", "hydra", "tune", "explain")
UNNAMED_OF_TRAINER = ("threads", "progress", "kernel", "devices", "prefetch", "compile", "accelerator")
LONGEST_NAME = 100  # characters


def run_name(config: ExperimentConfig) -> str:
    """Such as `dien completejourney lr=0.001 s2`: what the command line set, without what says where and how it ran.

    In a sweep only what differs between its jobs.
    """
    words = [config.model.name, config.data.name]
    given = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    if given and HydraConfig.get().mode == RunMode.MULTIRUN:
        whole = Path(HydraConfig.get().sweep.dir) / "multirun.yaml"  # the sweep's command
        common = set(OmegaConf.load(whole).hydra.overrides.task) if whole.is_file() else set()
        given = [override for override in given if override not in common]
    for override in given:
        key, _, value = override.lstrip("+~").partition("=")
        first, _, rest = key.partition(".")
        hidden = key in UNNAMED or first in UNNAMED_GROUPS or (first == "trainer" and rest in UNNAMED_OF_TRAINER)
        if not hidden and "/" not in value:  # paths are long, and of one machine
            words.append(f"{key.rpartition('.')[2]}={value}")
    name, seed = " ".join(words), f" s{config.seed}"
    return (name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…") + seed


def group_of(config: ExperimentConfig) -> str:
    """What a run is grouped by: its sweep, so that a sweep's runs stand together; its model outside of one."""
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().sweep.dir).name
    return str(config.model.name)


def tags_of(config: ExperimentConfig) -> list[str]:
    """What runs are filtered by: model, data and protocol, then `logger.tags`; each once."""
    return list(dict.fromkeys([config.model.name, config.data.name, config.protocol.name, *config.logger.tags]))


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
        try:
            logger = TensorBoardLogger(save_dir=run_dir, name="", version="tensorboard", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise UserError(
                'logger=tensorboard needs its package: pip install "deepinterest[tensorboard]", or take logger=csv'
            ) from error
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
    from wandb.errors import Error

    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    mode, reason = choose_mode(config)

    def init(mode: str, seconds: float) -> wandb.Run:
        settings = wandb.Settings(
            init_timeout=seconds, quiet=True, silent=True, console="off", disable_code=True, disable_git=True
        )
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
    if reason:
        log.warning("%s; logging offline", reason)
    if mode == "offline":
        run_folder = Path(run.dir).parent
        log.info("curves: wandb leet %s (upload: wandb sync %s)", folder / "wandb", run_folder)
    return run


def choose_mode(config: LoggerConfig) -> tuple[str, str]:
    """The mode to start in, and why it is not online although a key is there."""
    mode = config.mode.value
    if config.mode is LoggerMode.auto and os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        mode = os.environ["WANDB_MODE"]
    if mode in ("offline", "disabled"):
        return mode, ""
    url = base_url()
    if not has_key(url):
        if mode == "online":
            raise UserError("logger.mode=online needs a key: run `wandb login`, or take logger.mode=offline")
        return "offline", ""
    if not reachable(url, min(PROBE_SECONDS, config.init_timeout)):
        return "offline", f"{url} does not answer"
    return "online", ""


def base_url() -> str:
    """The server, from the environment or the settings file of `wandb login --host`."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def has_key(url: str) -> bool:
    """Whether a key is configured, in WANDB_API_KEY or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    path = os.environ.get("NETRC")
    candidates = [Path(path)] if path else [Path.home() / ".netrc", Path.home() / "_netrc"]
    for candidate in candidates:
        try:
            entry = netrc.netrc(str(candidate)).hosts.get(urlsplit(url).hostname or "")
        except (OSError, netrc.NetrcParseError):
            continue
        if entry and entry[2]:
            return True
    return False


def reachable(url: str, seconds: float) -> bool:
    """Whether the server, or the proxy in front of it, takes a connection."""
    parts = urlsplit(url)
    proxy = getproxies().get(parts.scheme)
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=seconds):
            return True
    except OSError:
        return False


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
