"""What several test files share: the settings of a run that takes a second."""

from __future__ import annotations

import deepinterest  # noqa: F401 isort: skip - before torch is imported: how its threads wait

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from deepinterest.config import SCHEMAS, ExperimentConfig
from deepinterest.report import run_folder
from deepinterest.settings import register, resolved, typed

DRAW = run_folder.figures
CONF = Path(__file__).parents[1] / "conf"
SMALL = (
    "protocol=leave_last_out", "trainer=cpu",
    "trainer.max_epochs=1", "trainer.batch_size=256", "trainer.threads=1", "model.embedding_dim=4", "model.mlp=[8,4]",
    "logger=none",
)  # fmt: skip
SYNTHETIC = ("data=synthetic", "data.users=200", "data.events_per_user=12")
WIDTHS = {"attention": "[8,4]", "hidden": "8", "aux_net": "[8,4]"}  # of networks that have such a setting
NETWORK = {  # every registered network, small
    name: tuple(f"model.{field.name}={WIDTHS[field.name]}" for field in fields(schema) if field.name in WIDTHS)
    for name, schema in SCHEMAS["model"].items()
}

Settings = Callable[..., tuple[ExperimentConfig, dict[str, Any]]]


@pytest.fixture(scope="session")
def small() -> Callable[..., list[str]]:
    """Overrides of a small run: `small("din", *more)`."""

    def overrides(model: str, *more: str) -> list[str]:
        source = () if any(override.startswith("data=") for override in more) else SYNTHETIC
        return [*source, *SMALL, f"model={model}", *NETWORK[model], *more]

    return overrides


@pytest.fixture(scope="session")
def settings(small: Callable[..., list[str]]) -> Settings:
    """Checked and plain settings of a small run in `folder`: `settings("din", folder, *more)`."""

    def make(model: str, folder: Path, *more: str) -> tuple[ExperimentConfig, dict[str, Any]]:
        register()
        paths = (f"paths.run={folder / 'run'}", f"paths.output={folder}", f"paths.cache={folder / 'cache'}")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", small(model, *paths, *more))
        return typed(config), resolved(config)

    return make


@pytest.fixture(scope="session", autouse=True)
def imported_once() -> None:
    """Processes that tests start by "forkserver" have the package imported already."""
    multiprocessing.set_forkserver_preload(["deepinterest.experiment", "deepinterest.kernels.cpu"])


@pytest.fixture(scope="session", autouse=True)
def no_figures() -> Iterator[None]:
    """Drawing takes longer than a small run: runs draw nothing but where a test, or what it shares, is `drawn`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "figures", lambda *_: {})
        yield


@contextmanager
def drawn() -> Iterator[None]:
    """Runs in here draw their figures, as users' runs do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder, "figures", DRAW)
        yield


@pytest.fixture
def figures() -> Iterator[None]:
    """For a test whose runs draw their figures."""
    with drawn():
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums run in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def leet(path: Path) -> list[dict[str, Any]]:
    """The records of a run of Weights & Biases, as its own reader tells them."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@dataclass
class LoggedRun:
    """A run of DIEN on synthetic data, logged offline and read back."""

    folder: Path  # of the run
    logged: Path  # of its log
    settings: dict[str, Any]
    records: list[dict[str, Any]]

    def items(self, kind: str, key: str = "item") -> dict[str, list[Any]]:
        """What was logged under each name, in order: of "history", "stats" (the machine), "summary" or "config"."""
        found: dict[str, list[Any]] = {}
        for record in self.records:
            if record["type"] == kind:
                for name, value in record[kind].get(key, {}).items():
                    found.setdefault(name, []).append(value)
        return found


@pytest.fixture(scope="session")
def logged_run(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> LoggedRun:
    from deepinterest import experiment
    from deepinterest.training import loggers

    folder = tmp_path_factory.mktemp("logged")
    more = ("logger.name=wandb", "logger.mode=offline", "logger.tags=[mine]", "trainer.batch_size=32")
    config, resolved = settings("dien", folder, *more)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_SWEEP_ID", "WANDB_MODE", "WANDB_PROJECT"):
            patch.delenv(name, raising=False)
        patch.setattr(loggers, "SYSTEM_SECONDS", 0.3)  # else so short a run has one look at the machine
        with drawn():
            experiment.run(config, resolved)
    (logged,) = (folder / "wandb").glob("offline-run-*")
    return LoggedRun(folder / "run", logged, resolved, leet(logged))


@pytest.fixture(scope="session")
def trained(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of DNN; copy what is to be changed. Its cache is beside it."""
    from deepinterest import experiment

    folder = tmp_path_factory.mktemp("trained")
    experiment.run(*settings("dnn", folder, "calibration=isotonic"))
    return folder / "run"
