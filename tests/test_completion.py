"""Tab completion offers what a user can choose: no internal group, and every value of a setting that has few."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra.core.global_hydra import GlobalHydra

from deepinterest import config
from deepinterest.settings import register

ROOT = Path(__file__).parents[1]
Offered = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def offered() -> Iterator[Offered]:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        plugin = BashCompletion(GlobalHydra.instance().config_loader())
        yield lambda line: plugin._query("config", line)


def names(choices: type[Enum]) -> list[str]:
    return list(choices.__members__)


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("task=", names(config.Task)),
        ("task=te", ["test"]),
        ("-m seed=1,2 calibration=", names(config.CalibrationName)),
        ("model=din embedding=", names(config.Tables)),
        ("model.reset_gate=", names(config.ResetGate)),
        ("protocol.negatives.exclude=", names(config.Exclude)),
        ("trainer.precision=", names(config.Precision)),
        ("trainer.strategy=d", ["ddp"]),
        ("data=movielens data.version=", [*names(config.MovieLensVersion), "null"]),
        ("data=taobao data.behaviours=", names(config.Behaviour)),
        ("reference=", ["true", "false"]),
        ("trainer.prefetch=", ["true", "false", "null"]),
        ("model=d", ["dien", "din", "dnn"]),
        ("sweep=", ["joblib", "optuna", "ray", "slurm"]),  # not wandb: settings.implied
        ("data=nothing task=", []),
    ],
)
def test_values_of_a_setting(offered: Offered, line: str, values: list[str]) -> None:
    key = line.split()[-1].partition("=")[0]
    assert set(offered(line)) >= {f"{key}={value}" for value in values}
    if key != "sweep":  # further launchers may be installed
        assert len(offered(line)) == len(values)


def test_groups_and_settings(offered: Offered) -> None:
    found = offered("")
    assert {"data=", "data.", "model=", "sweep=", "task=", "quirks.", "optimizer."} <= set(found)
    assert not [word for word in found if word.startswith(("schema", "hydra/"))]
    assert all(word.endswith(("=", ".")) for word in found)
    assert "hydra/launcher=" in offered("hydra/")  # for who asks
    assert "optimizer.lr=" in offered("optimizer.")


def test_a_shell_gets_it(tmp_path: Path) -> None:
    line = {"COMP_LINE": "python run.py model=din task=te", "COMP_POINT": "31"}
    command = [sys.executable, str(ROOT / "run.py"), "-sc", "query=bash"]
    result = subprocess.run(command, cwd=tmp_path, env={**os.environ, **line}, capture_output=True, text=True)
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["task=test"], "")
    assert not list(tmp_path.iterdir())
