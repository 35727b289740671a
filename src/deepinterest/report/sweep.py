"""What a sweep shows at its end: a table of all jobs, and where they lie. A Hydra callback; it needs no torch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from deepinterest.errors import before_exit, sentence, tell
from deepinterest.folders import metrics_of, near
from deepinterest.launch import rank

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger(__name__)
COLUMNS = ("test/auc", "test/gauc", "test/logloss", "test/ece", "val/auc")  # shown; metrics.json holds all


class SweepTable(Callback):
    """Reports failures as they happen, and all jobs at the end, whether or not some failed."""

    def on_run_end(self, config: DictConfig, **kwargs: Any) -> None:
        """End a run that failed for a mistake in its settings with one sentence, before Hydra adds its own lines."""
        result: JobReturn = kwargs["job_return"]
        if result.status is JobStatus.FAILED and sentence(result._return_value):
            tell(result._return_value)
            raise SystemExit(1)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Show the table even where a job fails: Hydra skips `on_multirun_end` then."""
        before_exit.append(lambda: show(config.hydra.sweep.dir))

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Report a failed job of a sweep at once; the others go on."""
        if config.hydra.mode != RunMode.MULTIRUN or job_return.status is not JobStatus.FAILED:
            return
        error = job_return._return_value
        text = sentence(error)
        name = f"job {config.hydra.sweep.subdir} ({', '.join(config.hydra.overrides.task)})"
        log.error("%s failed: %s", name, text or type(error).__name__, exc_info=None if text else error)
        error.told = True

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Show the table."""
        show(config.hydra.sweep.dir)


def print_run_folder(folder: str) -> None:
    """A single run's last line; a sweep has its own, and further processes of a run are silent."""
    if HydraConfig.get().mode == RunMode.RUN and rank() == 0:
        print(f"run folder: {near(Path(folder))}", flush=True)


def show(folder: str) -> None:
    """Print the table of a sweep's jobs, and its folder as the last line."""
    from deepinterest.report.terminal import results

    jobs = read_jobs(Path(folder))
    if not jobs:
        return
    results().print(table(jobs))
    if failed := [f"{number} ({overrides})" for number, overrides, metrics in jobs if metrics is None]:
        print(f"failed: {', '.join(failed)}; run.log in the job's folder says why")
    print(f"sweep folder: {folder}", flush=True)


def read_jobs(folder: Path) -> list[tuple[int, str, dict[str, float] | None]]:
    """Number, overrides and metrics of each job; None where the job failed."""
    jobs = []
    for job in sorted((path for path in folder.glob("*") if path.name.isdigit()), key=lambda path: int(path.name)):
        overrides = job / ".hydra" / "overrides.yaml"
        if not overrides.exists():
            continue  # it never began
        said: Any = OmegaConf.load(overrides)
        words = " ".join(str(word) for word in said if not str(word).startswith("resume="))
        jobs.append((int(job.name), words, metrics_of(job)))
    return jobs


def table(jobs: list[tuple[int, str, dict[str, float] | None]]) -> Table:
    """One row a job, with the settings that differ between jobs."""
    from rich.markup import escape
    from rich.table import Table

    rows = {number: _numbers(metrics or {}) for number, _, metrics in jobs}
    names = [name for name in COLUMNS if any(name in row for row in rows.values())] or ["result"]
    common = set.intersection(*(set(words.split(" ")) for _, words, _ in jobs)) if len(jobs) > 1 else set()
    result = Table("job", "settings", *names)
    for number, words, metrics in jobs:
        if not metrics:
            cells = ["failed" if metrics is None else "done", *[""] * (len(names) - 1)]
        else:
            cells = [f"{rows[number][name]:.4f}" if name in rows[number] else "" for name in names]
        differs = " ".join(word for word in words.split(" ") if word not in common)
        result.add_row(str(number), escape(differs), *cells)
    return result


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
