"""Each logger writes what it is given; Weights & Biases never waits long and never asks."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.types import RunMode
from matplotlib.figure import Figure

from conftest import Settings
from deepinterest.config import LoggerConfig, LoggerMode
from deepinterest.errors import UserError
from deepinterest.training import loggers


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "http_proxy", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def make(config: LoggerConfig, folder: Path) -> Any:
    return loggers.make_logger(config, folder / "run", folder / "outputs", "dien s1", {"seed": 1, "model": {"a": 2}})


def figure() -> Figure:
    result = Figure()
    result.subplots().plot([0, 1], [0, 1])
    return result


def leet(path: Path) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def test_offline_run_holds_curves_config_and_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        logger = make(LoggerConfig(tags=["a"]), tmp_path)
    assert "wandb leet" in caplog.text
    assert "wandb sync" in caplog.text
    logger.log_metrics({"val/auc": 0.75}, step=3)
    loggers.log_images(logger, {"roc": figure()})
    loggers.finish(logger, 0)
    (folder,) = (tmp_path / "outputs" / "wandb").glob("offline-run-*")
    records = leet(folder)
    text = json.dumps(records)
    assert "val/auc" in text
    assert "0.75" in text
    assert list(folder.glob("files/media/images/*.png"))
    assert "dien s1" in text


def test_two_runs_after_one_another_share_the_folder(tmp_path: Path) -> None:
    for _ in range(2):
        logger = make(LoggerConfig(mode=LoggerMode.offline), tmp_path)
        logger.log_metrics({"loss": 1.0})
        loggers.finish(logger, 0)
    assert len(list((tmp_path / "outputs" / "wandb").glob("offline-run-*"))) == 2


def test_key_without_server_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    logger = make(LoggerConfig(), tmp_path)
    assert time.monotonic() - start < 10
    assert "does not answer; logging offline" in caplog.text
    loggers.finish(logger, 0)
    assert list((tmp_path / "outputs" / "wandb").glob("offline-run-*"))


def test_server_that_never_answers_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        start = time.monotonic()
        logger = make(LoggerConfig(init_timeout=3), tmp_path)
        logger.log_metrics({"loss": 1.0})
        loggers.finish(logger, 0)
        assert time.monotonic() - start < 10
    assert "logging offline" in caplog.text
    assert list((tmp_path / "outputs" / "wandb").glob("offline-run-*"))


def test_online_without_key_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger\.mode=online needs a key"):
        make(LoggerConfig(mode=LoggerMode.online), tmp_path)


def test_key_in_netrc(tmp_path: Path) -> None:
    assert not loggers.has_key("https://host.example")
    (tmp_path / "netrc").write_text("machine host.example login user password abc\n")
    (tmp_path / "netrc").chmod(0o600)
    assert loggers.has_key("https://host.example/api")
    assert not loggers.has_key("https://other.example")


def test_csv(tmp_path: Path) -> None:
    logger = make(LoggerConfig(name="csv"), tmp_path)
    logger.log_metrics({"val/auc": 0.75}, step=3)
    loggers.log_images(logger, {"roc": figure()})
    loggers.finish(logger, 0)
    assert "0.75" in (tmp_path / "run" / "csv" / "metrics.csv").read_text()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    logger = make(LoggerConfig(name="tensorboard"), tmp_path)
    logger.log_metrics({"val/auc": 0.75}, step=3)
    loggers.log_images(logger, {"roc": figure()}, step=3)
    loggers.finish(logger, 0)
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))


def test_tensorboard_missing_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(**_: Any) -> None:
        raise ModuleNotFoundError("tensorboard")

    monkeypatch.setattr(loggers, "TensorBoardLogger", missing)
    with pytest.raises(UserError, match=r'pip install "deepinterest\[tensorboard\]"'):
        make(LoggerConfig(name="tensorboard"), tmp_path)


def test_none(tmp_path: Path) -> None:
    assert make(LoggerConfig(name="none"), tmp_path) is None
    loggers.log_images(None, {"roc": figure()})
    loggers.finish(None, 0)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), "dien synthetic s1"),
        (("optimizer.lr=0.001", "seed=2", "model=dien", "data=synthetic"), "dien synthetic lr=0.001 s2"),
        (("+model.hidden=8", "protocol=temporal"), "dien synthetic hidden=8 protocol=temporal s1"),
        (("trainer=cpu", "trainer.threads=1", "trainer.batch_size=64"), "dien synthetic batch_size=64 s1"),
        (("data.path=/a/b.csv", "paths.output=x", "sweep.jobs=2", "debug=fast"), "dien synthetic debug=fast s1"),
        ((f"x={'y' * 200}",), f"dien synthetic x={'y' * 82}… s1"),
    ],
)
def test_names_say_what_was_set(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], name: str
) -> None:
    config, _ = settings("dien", tmp_path, *(word for word in words if word.startswith("seed")))
    monkeypatch.setattr(loggers, "HydraConfig", hydra_of(RunMode.RUN, words))
    assert loggers.run_name(config) == name
    assert loggers.group_of(config) == "dien"


def hydra_of(mode: RunMode, words: tuple[str, ...]) -> Any:
    """What HydraConfig says within a run."""
    overrides, sweep = SimpleNamespace(task=list(words)), SimpleNamespace(dir="outputs/sweeps/2026-01-02_03-04-05")
    config = SimpleNamespace(mode=mode, overrides=overrides, sweep=sweep)
    return SimpleNamespace(initialized=lambda: True, get=lambda: config)


def test_without_a_command_line_there_is_a_name(settings: Settings, tmp_path: Path) -> None:
    config, _ = settings("din", tmp_path, "logger.tags=[mine,din]")
    assert (loggers.run_name(config), loggers.group_of(config)) == ("din synthetic s1", "din")
    assert loggers.tags_of(config) == ["din", "synthetic", "leave_last_out", "mine"]


def test_a_sweep_is_a_group_of_named_and_tagged_runs(tmp_path: Path, small: Callable[..., list[str]]) -> None:
    """Two real jobs, read back as wandb's own viewer reads them."""
    words = [word for word in small("dnn", "optimizer.lr=0.01,0.02", "seed=3") if word != "logger=none"]
    command = [sys.executable, str(Path(__file__).parents[2] / "run.py"), "-m", *words, "logger=wandb"]
    more = ["logger.tags=[mine]", f"paths.output={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    answer = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert answer.returncode == 0, answer.stderr
    (sweep,) = (tmp_path / "sweeps").iterdir()
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    texts = [json.dumps(leet(folder)) for folder in folders]
    assert len(texts) == 2
    for lr in ("0.01", "0.02"):
        (text,) = (text for text in texts if f'"dnn synthetic lr={lr} s3"' in text)
        assert f'"{sweep.name}"' in text
        assert all(f'"{tag}"' in text for tag in ("dnn", "synthetic", "leave_last_out", "mine"))
        job = next(path.parent for path in sweep.glob("*/config.yaml") if f"lr: {lr}" in path.read_text())
        metrics = json.loads((job / "metrics.json").read_text())
        summary: dict[str, Any] = {}
        for record in leet(folders[texts.index(text)]):
            summary |= record.get("summary", {}).get("update", {})
        for name in ("val/auc", "test/auc"):  # of the best checkpoint
            assert summary[name] == pytest.approx(metrics[name], abs=1e-6)
