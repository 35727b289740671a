"""A search with Optuna: trials are a sweep's jobs, the study lies beside them, and the best one becomes a file.

Optuna is used as a library. Its plugin for Hydra pins an Optuna of 2021, whose studies on disk fail with today's
SQLAlchemy, or needs a release candidate of Hydra.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import OmegaConf
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)
from optuna.trial import FrozenTrial, TrialState

from deepinterest.config import Task
from deepinterest.errors import UserError
from deepinterest.sweep.jobs import Job, leaves

if TYPE_CHECKING:
    from deepinterest.sweep.jobs import Runner

log = logging.getLogger(__name__)
GROUPS = ("data", "protocol", "model", "trainer", "logger")  # of conf/: what an experiment file chooses


def search(runner: Runner, overrides: list[Override]) -> list[Job]:
    """Run `sweep.trials` trials, those included that the folder's study holds already."""
    settings = runner.config.sweep
    swept = [override for override in overrides if override.is_sweep_override()]
    if group := next((override for override in swept if override.key_or_group in GROUPS), None):
        raise UserError(
            f"{group.input_line}: sweep=optuna searches the settings of one {group.key_or_group}; run one sweep each"
        )
    if runner.config.task is not Task.train:
        raise UserError(f"task={runner.config.task.name} has nothing to search: sweep=optuna needs task=train")
    fixed = [str(override.input_line) for override in overrides if not override.is_sweep_override()]
    given = {override.key_or_group for override in overrides}
    values = {**_usual(runner), **settings.space}
    lines = [f"{key}={choices}" for key, choices in values.items() if key not in given]
    space = _space([*OverridesParser.create().parse_overrides(lines), *swept])
    runner.plan(settings.trials, fixed)
    study = _open(runner.folder, {key: distribution_to_json(kind) for key, kind in space.items()}, settings)

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        _complete(optuna.Trial(study, trial._trial_id), space)

    def job(trial: FrozenTrial | optuna.Trial) -> Job:
        return Job(trial.number, [*fixed, *(f"{key}={value}" for key, value in trial.params.items())])

    jobs = [job(trial) for trial in study.get_trials(deepcopy=False)]
    cut = [job for job, trial in zip(jobs, study.trials, strict=True) if trial.state is TrialState.RUNNING]
    for known, trial in zip(jobs, study.trials, strict=True):
        if trial.state is TrialState.FAIL:
            known.error = UserError(f"job {trial.number} had failed before this sweep was resumed")
    runner.run([known for known in jobs if known not in cut and known.error is None])
    while cut or len(jobs) < settings.trials:
        batch, cut = cut[: settings.jobs], cut[settings.jobs :]
        # A sampler's seed depends on the trials before: a resumed study draws what an uninterrupted one draws.
        study.sampler = optuna.samplers.TPESampler(
            seed=settings.seed + len(jobs), n_startup_trials=settings.random_trials, constant_liar=settings.jobs > 1
        )
        while len(batch) < settings.jobs and not cut and len(jobs) < settings.trials:
            batch.append(job(study.ask(space)))
            jobs.append(batch[-1])
        for each in batch:
            runner.check(each)
        runner.run(batch)
        for each in batch:
            value = (each.metrics or {}).get(settings.metric, math.nan)
            if each.metrics and settings.metric not in each.metrics:
                each.error = UserError(
                    f"sweep.metric={settings.metric} is no metric of a run: one of {', '.join(each.metrics)}"
                )
            if math.isnan(value):
                study.tell(each.number, state=TrialState.FAIL)
            else:
                study.tell(each.number, value)
        if batch and all(each.metrics and settings.metric not in each.metrics for each in batch):
            break
    _tell_best(runner, study, jobs)
    return jobs


def _usual(runner: Runner) -> dict[str, str]:
    """The space that conf/sweep/space/ has for the model."""
    model = runner.config.hydra.runtime.choices.model
    if model not in runner.loader.get_group_options("sweep/space"):
        return {}
    composed = runner.loader.load_sweep_config(runner.config, [f"+sweep/space@sweep.space={model}"])
    return dict(composed.sweep.space)


def _open(folder: Path, space: dict[str, str], settings: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'study.db'}",
        study_name="deepinterest",
        direction="minimize" if settings.minimize else "maximize",
        load_if_exists=True,
    )
    asked = {"space": space, "metric": settings.metric, "minimize": settings.minimize, "seed": settings.seed}
    for name, value in asked.items():
        then = study.user_attrs.get(name, value)
        if then != value:
            raise UserError(
                f"sweep.resume={folder}: the study there has {name}={then}, this command {name}={value}; give the "
                "command that began the sweep"
            )
        study.set_user_attr(name, value)
    return study


def _space(overrides: list[Override]) -> dict[str, BaseDistribution]:
    """Optuna's distributions of what Hydra's grammar says: choice, range, interval, tag(log, ...), int(...)."""
    if not overrides:
        raise UserError(
            "sweep=optuna has nothing to search: name what to vary, such as 'optimizer.lr=tag(log,interval(1e-4,1e-2))'"
        )
    return {override.get_key_element(): _distribution(override) for override in overrides}


def _distribution(override: Override) -> BaseDistribution:
    value: Any = override.value()
    log_scale = "log" in getattr(value, "tags", ())
    try:
        if isinstance(value, IntervalSweep):
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=log_scale)
            return FloatDistribution(float(value.start or 0), float(value.end or 0), log=log_scale)
        if isinstance(value, RangeSweep) and not value.shuffle:
            start, stop, step = value.start or 0, value.stop or 0, value.step
            if all(isinstance(part, int) for part in (start, stop, step)):
                return IntDistribution(int(start), int(stop) - 1, step=int(step))
        if override.is_discrete_sweep():
            return CategoricalDistribution(list(override.sweep_string_iterator()))
    except ValueError as error:
        raise UserError(f"{override.input_line} can't be searched: {error}") from error
    raise UserError(
        f"{override.input_line} can't be searched: write choice(a,b), range(1,5), interval(0.1,0.9) or "
        "tag(log,interval(1e-4,1e-2))"
    )


def _complete(trial: optuna.Trial, space: dict[str, BaseDistribution]) -> None:
    """Draw what a trial lacks that was cut off while it was drawn; what it has stays."""
    for key, kind in space.items():
        if isinstance(kind, CategoricalDistribution):
            trial.suggest_categorical(key, kind.choices)
        elif isinstance(kind, IntDistribution):
            trial.suggest_int(key, kind.low, kind.high, step=kind.step, log=kind.log)
        elif isinstance(kind, FloatDistribution):
            trial.suggest_float(key, kind.low, kind.high, log=kind.log)


def _tell_best(runner: Runner, study: optuna.Study, jobs: list[Job]) -> None:
    """Print the best trial, and write it as `experiment/best.yaml` below the sweep's folder."""
    if not any(trial.state is TrialState.COMPLETE for trial in study.trials):
        return
    best, metric = study.best_trial, runner.config.sweep.metric
    path = runner.folder / "experiment" / "best.yaml"
    path.parent.mkdir(exist_ok=True)
    head = f"# @package _global_\n# The best of {len(jobs)} trials: {metric} {best.value:.6f} in job {best.number}.\n"
    beside = path.with_name(".best.yaml")
    beside.write_text(
        head + OmegaConf.to_yaml(OmegaConf.create(_experiment(runner, jobs[best.number]))), encoding="utf-8"
    )
    beside.replace(path)
    words = " ".join(f"{key}={value}" for key, value in best.params.items())
    print(f"best: job {best.number}, {metric} {best.value:.4f}: {words}")
    print(f"again: python run.py --config-dir {runner.folder} experiment=best", flush=True)


def _experiment(runner: Runner, job: Job) -> dict[str, Any]:
    """A job's choices, and every value that differs from what the choices alone give."""
    composed = runner.loader.load_sweep_config(runner.config, job.overrides)
    chosen = {group: composed.hydra.runtime.choices[group] for group in GROUPS}
    plain = runner.compose(Job(job.number, [f"{group}={choice}" for group, choice in chosen.items()]))
    before, tree = leaves(plain), {"defaults": [{f"override /{group}": choice} for group, choice in chosen.items()]}
    for key, value in leaves(runner.compose(job)).items():
        if key.split(".")[0] not in ("sweep", "paths", "resume") and before.get(key) != value:
            node: dict[str, Any] = tree
            *way, last = key.split(".")
            for step in way:
                node = node.setdefault(step, {})
            node[last] = value
    return tree
