"""Each logger writes what it is given; Weights & Biases never waits long and never asks."""

from __future__ import annotations

import copy
import io
import json
import logging
import os
import pty
import runpy
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.singleton import Singleton
from hydra.types import RunMode
from matplotlib.figure import Figure

from conftest import LoggedRun, Settings, leet
from deepinterest.config import LoggerConfig, LoggerMode
from deepinterest.errors import UserError
from deepinterest.sweep import processes
from deepinterest.training import loggers, naming

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")] + [
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
    ]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def make(config: LoggerConfig, folder: Path) -> Any:
    return loggers.make_logger(config, folder / "run", folder / "outputs", "dien s1", {"seed": 1, "model": {"a": 2}})


def figure() -> Figure:
    result = Figure()
    result.subplots().plot([0, 1], [0, 1])
    return result


def test_a_run_logs_what_it_promises(logged_run: LoggedRun) -> None:
    """docs/wandb.md says it; read back as wandb's own viewer reads it."""
    history, machine = logged_run.items("history"), logged_run.items("stats")
    (started,) = (record["run"] for record in logged_run.records if record["type"] == "run")
    assert (started["display_name"], started["run_group"]) == ("dien synthetic s1", "dien")
    assert set(started["tags"]) == {"dien", "synthetic", "leave_last_out", "mine"}
    metrics = json.loads((logged_run.folder / "metrics.json").read_text())

    for name in ("train/loss", "train/click_loss", "train/auxiliary_loss"):
        assert len(history[name]) >= 2, name
    assert len(history["train/samples_per_s"]) >= 3
    for name in ("auc", "gauc", "logloss", "ece", "accuracy"):
        assert len(history[f"val/{name}"]) == 4, name  # three in the epoch, and the best checkpoint's
        assert len(history[f"test/{name}"]) == 1, name
    assert max(history["val/auc"]) == pytest.approx(history["val/auc"][-1], abs=1e-6)
    for name in ("probe/popularity_auc", "seconds", "samples_per_s", "parameters", "memory_gib"):
        assert history[name] == [pytest.approx(metrics[name])], name
    summary = logged_run.items("summary", "update")
    for name in ("val/auc", "val/logloss", "test/auc", "test/gauc"):
        assert summary[name][-1] == pytest.approx(metrics[name], abs=1e-6), name

    axis = [record["metric"] for record in logged_run.records if record["type"] == "metric"]
    assert [metric.get("step_metric") for metric in axis] == [None, "trainer/global_step"]
    steps = history["trainer/global_step"]
    assert steps == sorted(steps)
    assert steps[-1] == metrics["steps"]

    config = started["config"]["update"] | logged_run.items("config", "update")
    assert {name: config[name] for name in logged_run.settings} == logged_run.settings
    assert config["data_card"][0]["split_hash"]

    for name in ("roc", "calibration", "learning_curves", "attention"):
        (path,) = history[f"{name}.path"]
        assert (logged_run.logged / "files" / path).read_bytes().startswith(b"\x89PNG")
    for name in ("cpu", "memory_percent", "proc.memory.rssMB"):
        assert len(machine[name]) > 1, name


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


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"project": "../../x"}, r"logger\.project='\.\./\.\./x'.*cannot contain characters"),
        ({"tags": ["x" * 65]}, "is 65 characters"),
        ({"tags": [""]}, "Tag at index 0 is empty"),
    ],
)
def test_names_that_wandb_does_not_take(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        loggers.make_logger(LoggerConfig(mode=LoggerMode.offline, **config), tmp_path, tmp_path, "name", {})


def test_hostile_names_are_logged_as_they_are(tmp_path: Path) -> None:
    name, tag = "<img src=x onerror=alert(1)> \x1b[31m", "<script>alert(1)</script>"
    logger = loggers.make_logger(
        LoggerConfig(mode=LoggerMode.offline, tags=[tag]), tmp_path, tmp_path, name, {"data": {"<b>": "${oc.env:HOME}"}}
    )
    loggers.finish(logger)
    (logged,) = (tmp_path / "wandb").glob("offline-run-*")
    assert os.environ["HOME"] not in json.dumps([r for r in leet(logged) if r["type"] == "config"])


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


def test_tensorboard_missing_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[tensorboard\]"'):
        loggers.check(LoggerConfig(name="tensorboard"))


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
    monkeypatch.setattr(naming, "HydraConfig", hydra_of(RunMode.RUN, words))
    assert naming.run_name(config) == name
    assert naming.group_of(config) == "dien"
    assert not naming.in_sweep()


def hydra_of(mode: RunMode, words: tuple[str, ...]) -> Any:
    """What HydraConfig says within a run."""
    overrides, sweep = SimpleNamespace(task=list(words)), SimpleNamespace(dir="outputs/sweeps/2026-01-02_03-04-05")
    config = SimpleNamespace(mode=mode, overrides=overrides, sweep=sweep)
    return SimpleNamespace(initialized=lambda: True, get=lambda: config)


def test_without_a_command_line_there_is_a_name(settings: Settings, tmp_path: Path) -> None:
    config, _ = settings("din", tmp_path, "logger.tags=[mine,din]")
    assert (naming.run_name(config), naming.group_of(config)) == ("din synthetic s1", "din")
    assert naming.tags_of(config) == ["din", "synthetic", "leave_last_out", "mine"]


def test_the_environment_names_and_groups(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = settings("din", tmp_path)
    monkeypatch.setattr(naming, "HydraConfig", hydra_of(RunMode.RUN, ("optimizer.lr=0.01",)))
    monkeypatch.setenv("WANDB_SWEEP_ID", "abc123")  # `wandb agent` started this run
    assert (naming.run_name(config), naming.group_of(config)) == ("din synthetic lr=0.01 s1", "abc123")
    assert naming.in_sweep()
    monkeypatch.setenv("WANDB_NAME", "mine")
    monkeypatch.setenv("WANDB_RUN_GROUP", "ours")
    assert (naming.run_name(config), naming.group_of(config)) == ("mine", "ours")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """`python run.py WORDS` within this process, which has imported torch; returns what it wrote to its terminal."""

    def run(*words: str) -> str:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setattr(sys, "argv", ["run.py", *words])
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")
        return terminal.getvalue()

    monkeypatch.setenv("DEEPINTEREST_PARENT", "")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    state, handlers = copy.deepcopy(Singleton.get_state()), list(logging.getLogger().handlers)
    yield run
    Singleton.set_state(state)
    logging.getLogger().handlers[:] = handlers


def words_of(small: Callable[..., list[str]], folder: Path, *more: str) -> list[str]:
    words = [word for word in small("dnn", "data.users=100", "seed=3") if word != "logger=none"]
    more = ("logger=wandb", "logger.tags=[mine]", f"paths.output={folder}", f"paths.cache={folder / 'cache'}", *more)
    return [*words, *more]


def check_sweep(folder: Path) -> None:
    """Two jobs with other learning rates, as wandb's own viewer reads them."""
    (sweep,) = (folder / "sweeps").iterdir()
    found = [(path, leet(path)) for path in sorted((folder / "wandb").glob("offline-run-*"))]
    assert len(found) == 2
    for lr in ("0.01", "0.02"):
        ((run, records),) = (
            (record["run"], records)
            for _, records in found
            for record in records
            if record["type"] == "run" and record["run"]["display_name"] == f"dnn synthetic lr={lr} s3"
        )
        assert run["run_group"] == sweep.name
        assert set(run["tags"]) == {"dnn", "synthetic", "leave_last_out", "mine"}
        job = next(path.parent for path in sweep.glob("*/config.yaml") if f"lr: {lr}" in path.read_text())
        metrics = json.loads((job / "metrics.json").read_text())
        summary: dict[str, Any] = {}
        for record in records:
            summary |= record.get("summary", {}).get("update", {})
        for name in ("val/auc", "test/auc"):  # of the best checkpoint
            assert summary[name] == pytest.approx(metrics[name], abs=1e-6)


def test_a_sweep_is_a_group_of_named_and_tagged_runs(
    tmp_path: Path, small: Callable[..., list[str]], command: Callable[..., str], settings: Settings
) -> None:
    said = command("-m", *words_of(small, tmp_path, "optimizer.lr=0.01,0.02"))
    check_sweep(tmp_path)
    assert "samples/s" not in said  # quiet, on a terminal too
    # A job that goes on by itself keeps its name and its group.
    (start,) = (tmp_path / "sweeps").glob("*/1/last.ckpt")
    config, _ = settings("dnn", tmp_path, "seed=3")
    assert naming.run_name(config, start) == "dnn synthetic lr=0.02 s3"
    assert naming.group_of(config, start) == start.parents[1].name


def read_all(terminal: int) -> Iterator[bytes]:
    """What is written to a terminal until its other end is closed, which Linux tells by an error."""
    with suppress(OSError):
        while piece := os.read(terminal, 1 << 16):
            yield piece


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_too(tmp_path: Path, small: Callable[..., list[str]]) -> None:
    more = ("optimizer.lr=0.01,0.02", "trainer.devices=auto")
    line = [sys.executable, str(ROOT / "run.py"), "-m", *words_of(small, tmp_path, *more)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    ours, theirs = pty.openpty()
    pieces: list[bytes] = []
    reader = threading.Thread(target=lambda: pieces.extend(read_all(ours)))
    reader.start()
    answer = subprocess.run(line, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, env=environment)
    os.close(theirs)
    reader.join()
    said = b"".join(pieces).decode()
    assert answer.returncode == 0, said
    assert len(list((tmp_path / "sweeps").glob("*/*/.hydra/job.json"))) == 2
    check_sweep(tmp_path)
    assert "samples/s" not in said


def test_a_job_in_its_own_process_is_told_its_name(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, str] = {}

    def start(line: list[str], env: dict[str, str]) -> Any:
        told.update(env)
        (tmp_path / "metrics.json").write_text("{}")
        return SimpleNamespace(wait=lambda: 0)

    _, plain = settings("din", tmp_path, "trainer.devices=2")
    monkeypatch.setattr(naming, "HydraConfig", hydra_of(RunMode.MULTIRUN, ("optimizer.lr=0.01",)))
    monkeypatch.setattr(processes, "subprocess", SimpleNamespace(Popen=start))
    assert processes.run_alone(plain, tmp_path) == {}
    assert (told["WANDB_NAME"], told["WANDB_RUN_GROUP"]) == ("din synthetic lr=0.01 s1", "2026-01-02_03-04-05")
    monkeypatch.undo()
    monkeypatch.setenv("DEEPINTEREST_JOB", told["DEEPINTEREST_JOB"])
    assert naming.in_sweep()  # so that it is quiet
