"""A sweep's jobs: all combinations, or trials of a search; those of a resumed sweep that are done are left out."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from deepinterest.config import Search
from deepinterest.errors import Interrupted, UserError
from deepinterest.sweep.processes import PARENT

log = logging.getLogger(__name__)
NEAR = ("BasicLauncher", "JoblibLauncher", "LocalLauncher")
PATIENCE = 5.0  # seconds, for a sweep that is just ending
NOT_THE_JOB = ("sweep", "resume", "overwrite")  # settings that say how a job is run, not what it computes


@dataclass
class Job:
    """A job and, once it ran, its metrics or its error."""

    number: int
    overrides: list[str]
    metrics: dict[str, float] | None = None
    error: Exception | None = None


def sweep(config: DictConfig, launcher: Launcher, loader: ConfigLoader, arguments: Sequence[str]) -> list[object]:
    """Run the jobs of a command; raises the first failed one's error when all have run.

    Args:
        config: of the sweep itself: the command without what is swept over.
        arguments: the command's overrides, `key=a,b` among them.
    Returns: each job's metrics.
    """
    folder = Path(config.hydra.sweep.dir)
    if config.sweep.resume is not None and not (folder / "multirun.yaml").is_file():
        raise UserError(f"sweep.resume={config.sweep.resume} is not a sweep's folder: it holds no multirun.yaml")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=PATIENCE):
            return _sweep(config, launcher, loader, arguments, folder)
    except Timeout as error:
        raise UserError(f"sweep.resume={folder}: that sweep still runs; wait for its end, or stop it") from error


def _sweep(
    config: DictConfig, launcher: Launcher, loader: ConfigLoader, arguments: Sequence[str], folder: Path
) -> list[object]:
    OmegaConf.save(config, folder / "multirun.yaml")
    arguments = [word for word in arguments if not word.startswith("sweep.resume=")]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    runner = Runner(config, launcher, loader, folder)
    jobs = _search(runner, overrides) if config.sweep.search is Search.optuna else _grid(runner, overrides)
    for job in jobs:
        if job.error is not None:
            raise job.error
    return [job.metrics for job in jobs]


def _grid(runner: Runner, overrides: list[Override]) -> list[Job]:
    (combinations,) = BasicSweeper.split_arguments(overrides, None)
    jobs = [Job(number, combination) for number, combination in enumerate(combinations)]
    for job in jobs:
        runner.compose(job)  # a wrong setting of any job ends the sweep before the first one runs
    runner.run(jobs)
    return jobs


def _search(runner: Runner, overrides: list[Override]) -> list[Job]:
    try:
        from deepinterest.sweep import study
    except ModuleNotFoundError as error:
        raise UserError(f'sweep=optuna needs the package {error.name}: pip install -e ".[sweep]"') from error
    return study.search(runner, overrides)


class Runner:
    """Runs jobs with a launcher, in numbered folders below the sweep's."""

    def __init__(self, config: DictConfig, launcher: Launcher, loader: ConfigLoader, folder: Path) -> None:
        self.config, self.launcher, self.loader, self.folder = config, launcher, loader, folder
        if not _near(config):  # jobs elsewhere outlive this process: it isn't there to be watched
            os.environ.pop(PARENT, None)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that starts here sends nothing home

    def compose(self, job: Job) -> DictConfig:
        """A job's settings, `hydra` left out."""
        composed = self.loader.load_sweep_config(self.config, job.overrides).copy()
        OmegaConf.set_struct(composed, False)
        composed.pop("hydra")
        return composed

    def run(self, jobs: Sequence[Job]) -> None:
        """Fill in metrics or error of each job. Those that an earlier sweep in this folder finished don't run again.

        Raises UserError where the folder holds a job with other settings.
        """
        todo = [job for job in jobs if not self._finished(job)]
        if len(todo) < len(jobs):
            log.info("%d of %d jobs are finished already", len(jobs) - len(todo), len(jobs))
        if not todo:
            return
        batch = [[*job.overrides, *self._start(job), f"hydra.sweep.subdir={job.number}"] for job in todo]
        try:
            returns: Sequence[JobReturn | None] = self.launcher.launch(batch, initial_job_idx=todo[0].number)
        except (KeyboardInterrupt, Interrupted) as error:
            why = str(error) or "Ctrl-C stopped the sweep."
            again = f"The sweep goes on by the same command with sweep.resume={self.folder}"
            raise Interrupted(f"{why}\n{again}", getattr(error, "number", signal.SIGINT)) from error
        except Exception as error:  # a job's process died; what the others wrote is there
            log.error("a job's process ended early (%s: %s)", type(error).__name__, error)
            returns, died = [None] * len(todo), error
        for job, result in zip(todo, returns, strict=True):
            if result is not None and result.status is JobStatus.FAILED:
                job.error = result._return_value
            else:
                job.metrics = self._metrics(job)
                if job.metrics is None and result is None:
                    job.error = UserError(f"job {job.number} did not end: {type(died).__name__}: {died}")

    def _metrics(self, job: Job) -> dict[str, float] | None:
        path = self.folder / str(job.number) / "metrics.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def _finished(self, job: Job) -> bool:
        """Whether the folder holds this job's metrics; raises UserError where it is another job's folder."""
        kept = self.folder / str(job.number) / ".hydra" / "config.yaml"
        if not kept.is_file():
            return False
        differs = _difference(OmegaConf.load(kept), self.compose(job))
        if differs:
            key, then, now = differs
            raise UserError(
                f"sweep.resume={self.folder}: job {job.number} there has {key}={then}, with this command {key}={now}; "
                "give the command that began the sweep"
            )
        job.metrics = self._metrics(job)
        return job.metrics is not None

    def _start(self, job: Job) -> list[str]:
        """What lets a half-done job go on from its last checkpoint; without one its folder is emptied."""
        folder = self.folder / str(job.number)
        if not folder.exists():
            return []
        if "resume" in self.config and (folder / "last.ckpt").is_file():
            return [f"resume={quoted(str(folder))}"]
        shutil.rmtree(folder)
        return []


def quoted(text: str) -> str:
    """A text as Hydra's command line takes it, whatever is in it."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def _near(config: DictConfig) -> bool:
    """Whether jobs run on this machine as processes that nobody else looks after."""
    return str(config.hydra.launcher._target_).rpartition(".")[2] in NEAR


def _difference(then: Any, now: DictConfig) -> tuple[str, Any, Any] | None:
    """The first setting that two composed configs don't share."""
    old, new = leaves(then), leaves(now)
    for key in sorted(old.keys() | new.keys()):
        if key.split(".")[0] not in NOT_THE_JOB and old.get(key) != new.get(key):
            return key, old.get(key), new.get(key)
    return None


def leaves(config: Any) -> dict[str, Any]:
    """Every value by its path, lists whole, interpolations as they are written."""
    found: dict[str, Any] = {}

    def walk(node: Any, path: str) -> None:
        if isinstance(node, dict) and (node or not path):
            for key, value in node.items():
                walk(value, f"{path}.{key}" if path else str(key))
        else:
            found[path] = node

    walk(OmegaConf.to_container(config, resolve=False, enum_to_str=True), "")
    return found
