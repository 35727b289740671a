"""conf/sweep/wandb.yaml is a sweep of Weights & Biases' own: what its server draws is what run.py takes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from wandb.sdk.launch.sweeps import utils

from conftest import leet
from deepinterest.config import LoggerConfig, LoggerMode
from deepinterest.errors import UserError
from deepinterest.settings import implied, register, typed
from deepinterest.training import loggers
from wandb_service import serve

ROOT = Path(__file__).parents[1]
FILE = ROOT / "conf" / "sweep" / "wandb.yaml"


def sweep() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return content


def words_of(drawn: dict[str, Any]) -> list[str]:
    """The words after `run.py`, as an agent puts them together."""
    command = utils.create_sweep_command(sweep()["command"])
    arguments = utils.create_sweep_command_args({"args": {name: {"value": value} for name, value in drawn.items()}})
    words = [[word] if not word.startswith("${") else arguments.get(word[2:-1], []) for word in command]
    return list(itertools.chain(*words))


def composed(words: list[str], hydra: bool = False) -> DictConfig:
    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", words, return_hydra_config=hydra)


def ends(parameter: dict[str, Any]) -> list[Any]:
    """What may be drawn, at its ends."""
    return list(parameter["values"]) if "values" in parameter else [parameter["min"], parameter["max"]]


def test_every_draw_is_a_setting_within_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")
    monkeypatch.setenv("WANDB_RUN_ID", "r1")
    parameters = {name: ends(parameter) for name, parameter in sweep()["parameters"].items()}
    assert len(parameters) >= 3
    for number in range(max(map(len, parameters.values()))):
        drawn = {name: values[number % len(values)] for name, values in parameters.items()}
        assert composed(words_of(drawn), hydra=True).hydra.run.dir == "outputs/sweeps/abc123/r1"
        config = composed([*words_of(drawn), "paths.run=somewhere"])
        assert typed(config).model.name == "dien"
        for name, value in drawn.items():
            assert OmegaConf.select(config, name) == value, name


def test_the_file_says_what_an_agent_needs() -> None:
    content = sweep()
    assert content["program"] == "run.py"
    assert (ROOT / content["program"]).is_file()
    assert content["metric"] == {"name": "val/auc", "goal": "maximize"}  # test_loggers.py: it is logged
    assert content["project"] == LoggerConfig.project
    assert content["command"][:3] == ["${env}", "${interpreter}", "${program}"]
    assert "${args_no_hyphens}" in content["command"]
    # A parameter of a group's name would take that group's settings out of the run's config.
    assert all("." in name or name == "seed" for name in content["parameters"])


@pytest.mark.parametrize("word", ["sweep=wandb", "sweep=[optuna,wandb]"])
def test_it_is_no_choice_of_hydra(word: str) -> None:
    with pytest.raises(UserError, match=r"`wandb sweep conf/sweep/wandb\.yaml` makes that sweep"):
        implied([word, "model=din"])
    assert implied(["sweep=joblib", "logger=wandb"])[0] == "-m"


def test_a_run_inside_an_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that an agent makes, and what the run says of itself then."""
    drawn = tmp_path / "drawn.yaml"
    drawn.write_text("wandb_version: 1\noptimizer.lr:\n  value: 0.004\n")
    for name, value in {"SWEEP_ID": "abc123", "RUN_ID": "r1", "SWEEP_PARAM_PATH": drawn, "PROJECT": "theirs"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))
    settings = {"optimizer": {"lr": 0.004}, "model": {"name": "dien"}}
    config = LoggerConfig(mode=LoggerMode.offline)
    wandb.teardown()  # which may have read the environment for an earlier run of this process
    logger = loggers.make_logger(config, tmp_path / "run", tmp_path, "dien lr=0.004 s1", settings, "abc123")
    loggers.finish(logger)
    monkeypatch.undo()
    wandb.teardown()
    (folder,) = tmp_path.glob("wandb/offline-run-*-r1")
    (run,) = (record["run"] for record in leet(folder) if record["type"] == "run")
    assert (run["run_id"], run["sweep_id"], run["run_group"]) == ("r1", "abc123", "abc123")
    assert (run["project"], run["display_name"]) == ("theirs", "dien lr=0.004 s1")  # the sweep's project, not ours
    logged = run["config"]["update"]
    assert logged["optimizer.lr"] == 0.004  # as drawn
    assert logged["optimizer"] == {"lr": 0.004}  # all that was used


@pytest.mark.slow
def test_a_sweep_and_its_agent(tmp_path: Path, small: Callable[..., list[str]]) -> None:
    """`wandb sweep` and `wandb agent` with two jobs, their server on this machine; the runs log offline."""
    words = [word for word in small("dien") if word not in ("logger=none", "model=dien")]
    fixed = {key: value for key, _, value in (word.partition("=") for word in words)}
    fixed |= {"paths.output": str(tmp_path), "paths.cache": str(tmp_path / "cache"), "logger.mode": "offline"}
    binaries = Path(sys.executable).parent
    with serve() as service:
        service.jobs = [{"optimizer.lr": lr, **fixed} for lr in (0.001, 0.005)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        environment |= {"WANDB_BASE_URL": service.url, "WANDB_API_KEY": "0" * 40, "WANDB_DIR": str(tmp_path)}
        environment["PATH"] = f"{binaries}{os.pathsep}{environment['PATH']}"  # an agent starts "python"

        def call(*words: str) -> str:
            command = [str(binaries / "wandb"), *words]
            answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
            assert answer.returncode == 0, answer.stderr
            return answer.stdout + answer.stderr

        said = call("sweep", str(FILE))
        assert "wandb agent me/deepinterest/abc123" in said or "wandb agent deepinterest/abc123" in said
        assert yaml.safe_load(service.sweep)["parameters"].keys() == sweep()["parameters"].keys()
        call("agent", "me/deepinterest/abc123")
    for job, lr in (("job1", 0.001), ("job0", 0.005)):
        metrics = json.loads((tmp_path / "sweeps" / "abc123" / job / "metrics.json").read_text())
        assert 0 < metrics["val/auc"] < 1
        (folder,) = tmp_path.glob(f"wandb/offline-run-*-{job}")
        (run,) = (record["run"] for record in leet(folder) if record["type"] == "run")
        assert (run["sweep_id"], run["run_group"]) == ("abc123", "abc123")
        assert f"lr={lr}" in run["display_name"]
