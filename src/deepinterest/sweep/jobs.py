"""A sweep's jobs: all combinations, or trials of a search; those of a resumed sweep that are done are left out."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, read_write

from deepinterest.config import Search, Task
from deepinterest.errors import Interrupted, UserError
from deepinterest.folders import MARK, clear, metrics_of, new, refuse_impossible, refuse_outside
from deepinterest.settings import typed
from deepinterest.sweep.processes import PARENT
from deepinterest.sweep.watch import Watch

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
    refuse_outside(config)
    runner = Runner(config, launcher, loader)
    arguments = [word for word in arguments if not word.startswith("sweep.resume=")]
    overrides = OverridesParser.create(config_loader=loader).parse_overrides(list(arguments))
    grid = [] if config.sweep.search is Search.optuna else _combinations(overrides)
    for job in grid:
        runner.check(job)  # a wrong setting of any job ends the sweep before anything is written
    with _taken(config) as runner.folder:
        OmegaConf.save(config, runner.folder / "multirun.yaml")
        jobs = _grid(runner, grid) if grid else _search(runner, overrides)
    for job in jobs:
        if job.error is not None:
            raise job.error
    return [job.metrics for job in jobs]


@contextmanager
def _taken(config: DictConfig) -> Iterator[Path]:
    """The sweep's folder, made and locked. A default name that is taken gets a number.

    Raises UserError for a folder where another sweep runs, and where jobs' folders would be stands something else.
    """
    folder, resumed = Path(config.hydra.sweep.dir), config.sweep.resume is not None
    if resumed and not (folder / "multirun.yaml").is_file():
        raise UserError(f"sweep.resume={config.sweep.resume} is not a sweep's folder: it holds no multirun.yaml")
    refuse_impossible(folder, "The sweep folder")
    if not resumed and not any(word.startswith("hydra.sweep.dir=") for word in config.hydra.overrides.hydra):
        folder = new(folder)
        with read_write(config.hydra):
            config.hydra.sweep.dir = str(folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")  # for its jobs
    elif not resumed:
        for path in sorted(folder.glob("*")):
            if path.name.isdigit() and not (path.is_dir() and not any(path.iterdir())):
                raise UserError(
                    f"{path} is in the way of a job's folder: go on with the sweep there by sweep.resume={folder}, or "
                    "name another folder by hydra.sweep.dir=…"
                )
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        raise UserError(
            f"The sweep in {folder} still runs: wait for its end, stop it, or name another folder by hydra.sweep.dir=…"
        ) from error
    try:
        yield folder
    finally:
        lock.release()


def _combinations(overrides: list[Override]) -> list[Job]:
    (combinations,) = BasicSweeper.split_arguments(overrides, None)
    return [Job(number, combination) for number, combination in enumerate(combinations)]


def _grid(runner: Runner, jobs: list[Job]) -> list[Job]:
    shared = [word for word in jobs[0].overrides if all(word in job.overrides for job in jobs)]
    runner.plan(len(jobs), shared if len(jobs) > 1 else [])
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

    def __init__(self, config: DictConfig, launcher: Launcher, loader: ConfigLoader) -> None:
        self.config, self.launcher, self.loader = config, launcher, loader
        self.folder = Path(config.hydra.sweep.dir)
        self.total, self.common = 1, list[str]()  # jobs of the whole sweep, and what all of them are given
        self._cards: set[str] | None = set() if config.task in (Task.train, Task.test) else None
        if not _near(config):  # jobs elsewhere outlive this process: it isn't there to be watched
            os.environ.pop(PARENT, None)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that starts here sends nothing home

    def compose(self, job: Job) -> DictConfig:
        """A job's settings, `hydra` left out."""
        composed = self.loader.load_sweep_config(self.config, job.overrides).copy()
        OmegaConf.set_struct(composed, False)
        composed.pop("hydra")
        return composed

    def plan(self, total: int, common: list[str]) -> None:
        """Say how many jobs there will be, and what all of them are given.

        Raises UserError for something in a job's place that isn't marked as a run's folder.
        """
        self.total, self.common = total, common
        for number in range(total):
            folder = self.folder / str(number)
            finished = all((folder / name).is_file() for name in ("metrics.json", ".hydra/config.yaml"))
            ours = finished or (folder / MARK).is_file()
            if folder.exists() and not ours and (not folder.is_dir() or any(folder.iterdir())):
                raise UserError(
                    f"{folder} is in the way: job {number} begins there, and no run of this program made it. Move it "
                    "elsewhere; nothing was deleted"
                )

    def check(self, job: Job) -> None:
        """Raise an error for a wrong setting of a job."""
        composed = self.loader.load_sweep_config(self.config, [*job.overrides, f"hydra.sweep.subdir={job.number}"])
        with read_write(composed.hydra):
            composed.hydra.job.id, composed.hydra.job.num = str(job.number), job.number
        refuse_outside(composed)
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(composed)
        try:
            plain = composed.copy()
            OmegaConf.set_struct(plain, False)
            plain.pop("hydra")
            typed(plain)
        finally:
            HydraConfig.instance().cfg = before

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
            with Watch(self.folder, todo, self.total, self.common, self._cards):
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
                job.metrics = metrics_of(self.folder / str(job.number))
                if job.metrics is None and result is None:
                    job.error = UserError(f"job {job.number} did not end: {type(died).__name__}: {died}")

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
        job.metrics = metrics_of(self.folder / str(job.number))
        return job.metrics is not None

    def _start(self, job: Job) -> list[str]:
        """What lets a half-done job go on from its last checkpoint; without one, what it wrote is deleted."""
        folder = self.folder / str(job.number)
        if (folder / "last.ckpt").is_file():
            return [f"resume={quoted(str(folder))}"]
        clear(folder)
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
