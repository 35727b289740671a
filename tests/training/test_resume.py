"""Runs that are cut off and go on: to the bit what they would have been."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from deepinterest import experiment
from deepinterest.errors import Interrupted, UserError
from deepinterest.resuming import continued, start_of
from deepinterest.settings import restored
from deepinterest.training import checkpoints

ROOT = Path(__file__).parents[2]
TIMES = ("seconds", "train/seconds", "samples_per_s", "memory_gib", "gpu_memory_gib")
RUN = (
    "trainer.batch_size=192", "trainer.max_epochs=3", "trainer.patience=8", "optimizer.lr_decay=0.7",
    "trainer.checkpoint_minutes=1e-9",  # after every step that no validation follows
)  # fmt: skip
STEPS = 60  # of RUN, unless it is stopped early: 3 epochs of 20, each with 3 validations

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(BaseException):
    """What stands for the end of the process."""


Go = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def go(settings: Callable[..., Any], cache: Path) -> Go:
    """A small run in `folder`; with resume or checkpoint as the command would go on with it."""

    def call(folder: Path, *more: str, model: str = "dien") -> dict[str, float]:
        resumed = any(word.startswith(("resume=", "checkpoint=")) for word in more)
        words = more if resumed else (*RUN, *more)
        config, plain = settings(model, folder, f"paths.cache={cache}", *words)
        if (start := start_of(config)) is not None:
            plain = continued(plain, list(words), start)
            config = restored(plain)
        return experiment.run(config, plain)

    return call


@pytest.fixture(scope="module")
def whole(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing ever stopped."""
    folder = tmp_path_factory.mktemp("whole")
    go(folder)
    return folder / "run"


def equal(one: Path, other: Path) -> None:
    """That two run folders hold the same weights, metrics, curves and predictions, bit for bit."""
    for name in ("best.ckpt", "last.ckpt"):
        states = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        if states[0]["global_step"] == states[1]["global_step"]:  # always of the best; of the last it is chance
            for part in ("state_dict", "optimizer_states", "lr_schedulers"):
                torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)
        else:
            assert name == "last.ckpt"
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    first, second = ({k: v for k, v in values.items() if k not in TIMES} for values in metrics)
    assert first == second
    for name in ("curves.json", "data_card.json"):
        assert (one / name).read_text() == (other / name).read_text()
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in (one, other)]
    assert tables[0].equals(tables[1])


def killed_at(steps: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training end at the beginning of each of the steps, counted over the parts of the run."""
    step = experiment.ClickModel.training_step
    left = list(steps)

    def dying(model: experiment.ClickModel, *arguments: Any) -> torch.Tensor:
        if left and model.global_step == left[0]:
            left.pop(0)
            raise Killed
        return step(model, *arguments)

    monkeypatch.setattr(experiment.ClickModel, "training_step", dying)


def test_that_run_has_all_of_it(whole: Path) -> None:
    curves = json.loads((whole / "curves.json").read_text())
    assert len(curves["val/auc"]) >= 4


@pytest.mark.parametrize("steps", [[1, 5, 6, 7, 20], [19, 21, 38]])
def test_killed_and_resumed(
    go: Go, whole: Path, steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = json.loads((whole / "metrics.json").read_text())["steps"]
    steps = [step for step in steps if step < last]
    killed_at(steps, monkeypatch)
    with pytest.raises(Killed):
        go(tmp_path)
    for _ in steps[1:]:
        with pytest.raises(Killed):
            go(tmp_path, f"resume={tmp_path / 'run'}")
    go(tmp_path, f"resume={tmp_path / 'run'}")
    equal(whole, tmp_path / "run")


def test_killed_in_validation_and_after_training(
    go: Go, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = f"resume={tmp_path / 'run'}"
    for name, count in (("validation_step", 3), ("test_step", 1)):
        calls = iter(range(1, 100))
        plain = getattr(experiment.ClickModel, name)

        def dying(*arguments: Any, calls: Any = calls, plain: Any = plain, count: int = count) -> Any:
            if next(calls) == count:
                raise Killed
            return plain(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(experiment.ClickModel, name, dying)
            with pytest.raises(Killed):
                go(tmp_path, *([run] if (tmp_path / "run").exists() else []))
    go(tmp_path, run)
    equal(whole, tmp_path / "run")


def test_saving_changes_nothing(go: Go, whole: Path, tmp_path: Path) -> None:
    go(tmp_path, "trainer.checkpoint_minutes=null", "trainer.prefetch=true")
    equal(whole, tmp_path / "run")


def test_patience_that_ran_out_is_remembered(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A learning rate this large soon finds nothing better: stopped early, then cut off before the test.
    words = ("optimizer.lr=0.3", "trainer.patience=1")
    steps = go(tmp_path / "whole", *words, model="dnn")["steps"]
    assert steps < STEPS

    def dying(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(experiment.ClickModel, "test_step", dying)
        with pytest.raises(Killed):
            go(tmp_path, *words, model="dnn")
    assert go(tmp_path, f"resume={tmp_path / 'run'}", model="dnn")["steps"] == steps
    equal(tmp_path / "whole" / "run", tmp_path / "run")
    # With more patience it goes on further.
    assert go(tmp_path, f"resume={tmp_path / 'run'}", "trainer.patience=9", model="dnn")["steps"] > steps


@pytest.mark.parametrize(("number", "at"), [(signal.SIGINT, 6), (signal.SIGTERM, 20)])
def test_signal_saves_and_says_how_to_go_on(
    go: Go, whole: Path, number: signal.Signals, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a validation, and at an epoch's end, where the first step of the next one is made."""
    step = experiment.ClickModel.training_step
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def signalled(model: experiment.ClickModel, *arguments: Any) -> torch.Tensor:
        if model.global_step == at - 1:
            os.kill(os.getpid(), number)
        return step(model, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(experiment.ClickModel, "training_step", signalled)
        with pytest.raises(Interrupted) as stopped:
            go(tmp_path, "trainer.checkpoint_minutes=null")
    what = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}[number]
    assert str(stopped.value).startswith(f"{what} stopped the run after step ")
    assert f"goes on by: python run.py resume={tmp_path / 'run'}" in str(stopped.value)
    assert stopped.value.number == number
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] in (at, at + 1)
    go(tmp_path, f"resume={tmp_path / 'run'}")
    equal(whole, tmp_path / "run")


def test_checkpoint_goes_on_in_another_folder(
    go: Go, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_at([15], monkeypatch)
    with pytest.raises(Killed):
        go(tmp_path / "first")
    before = {path.name: path.read_bytes() for path in (tmp_path / "first" / "run").glob("*.ckpt")}
    go(tmp_path / "second", f"checkpoint={tmp_path / 'first' / 'run' / 'last.ckpt'}")
    equal(whole, tmp_path / "second" / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "first" / "run").glob("*.ckpt")} == before
    # Without the best so far beside it, the best of those to come is taken.
    (tmp_path / "first" / "run" / "best.ckpt").unlink()
    metrics = go(tmp_path / "third", f"checkpoint={tmp_path / 'first' / 'run' / 'last.ckpt'}", "trainer.max_epochs=1")
    assert metrics["steps"] == 20
    assert (tmp_path / "third" / "run" / "best.ckpt").is_file()


def test_longer_than_it_was(go: Go, tmp_path: Path) -> None:
    go(tmp_path, "trainer.max_epochs=1", model="dnn")
    go(tmp_path / "whole", "trainer.max_epochs=2", model="dnn")
    go(tmp_path, f"resume={tmp_path / 'run'}", "trainer.max_epochs=2", model="dnn")
    equal(tmp_path / "whole" / "run", tmp_path / "run")


def test_a_group_may_be_said_again(whole: Path, settings: Callable[..., Any], tmp_path: Path) -> None:
    """As a sweep that goes on does; what may be given anew may differ from the run's."""
    words = [f"resume={whole}", "trainer.max_epochs=9"]
    _, plain = settings("dien", tmp_path, *RUN, *words)
    found = continued(plain, ["trainer=cpu", *words], whole / "last.ckpt")
    assert (found["trainer"]["max_epochs"], found["trainer"]["threads"]) == (9, 1)
    other = {**plain, "trainer": {**plain["trainer"], "batch_size": 7}}
    with pytest.raises(UserError, match=r"trainer=cpu is not what .*last\.ckpt was trained with"):
        continued(other, ["trainer=cpu"], whole / "last.ckpt")


def test_what_cannot_go_on_is_said(go: Go, whole: Path, settings: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        go(tmp_path, "resume=/nowhere")
    with pytest.raises(UserError, match=r"holds no last\.ckpt"):
        go(tmp_path, f"resume={tmp_path}")
    with pytest.raises(
        UserError, match=r"model\.hidden=12 is not what .*last\.ckpt was trained with \(model\.hidden=8\)"
    ):
        go(tmp_path, f"resume={whole}", "model.hidden=12")
    with pytest.raises(UserError, match=r"can't be given with task=test"):
        go(tmp_path, f"resume={whole}", "task=test")
    with pytest.raises(UserError, match=r"can't be given with checkpoint=x"):
        go(tmp_path, f"resume={whole}", "checkpoint=x")
    bare = torch.load(whole / "best.ckpt", weights_only=True)
    torch.save({key: bare[key] for key in ("state_dict", "settings")}, tmp_path / "bare.ckpt")
    with pytest.raises(UserError, match=r"bare\.ckpt can't be gone on from"):
        go(tmp_path, f"checkpoint={tmp_path / 'bare.ckpt'}")


def test_write_that_fails_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, files = tmp_path / "last.ckpt", checkpoints.WholeFiles()
    files.save_checkpoint({"a": 1}, path)

    def full(content: Any, place: Path) -> None:
        place.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        files.save_checkpoint({"a": 2}, path)
    assert torch.load(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_logs_go_on(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for logger in ("wandb", "csv"):
        killed_at([15], monkeypatch)
        with pytest.raises(Killed):
            go(tmp_path / logger, f"logger={logger}", model="dnn")
        time.sleep(1)  # the folders of a run are told apart by the second
        go(tmp_path / logger, f"resume={tmp_path / logger / 'run'}", f"logger={logger}", model="dnn")
    first, second = sorted((tmp_path / "wandb" / "wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]  # one run
    logs = [pl.read_csv(tmp_path / "csv" / "run" / name / "metrics.csv") for name in ("csv", "csv_2")]
    assert logs[0]["step"].max() < logs[1]["step"].max()


@pytest.mark.slow
def test_killed_for_good(small: Callable[..., list[str]], cache: Path, tmp_path: Path) -> None:
    """SIGKILL at random moments of the real command, also while it saves; resumed until it is through."""
    words = [
        *small("dien", f"paths.cache={cache}", *RUN), "trainer.batch_size=16", "trainer.checkpoint_minutes=0.0005",
        "trainer.patience=null",
    ]  # fmt: skip
    host = [f"paths.cache={cache}", "logger=none", "trainer.threads=1"]
    command = [sys.executable, str(ROOT / "run.py")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    whole, run = tmp_path / "whole", tmp_path / "run"
    subprocess.run([*command, *words, f"hydra.run.dir={whole}"], env=environment, check=True, capture_output=True)
    steps = int(json.loads((whole / "metrics.json").read_text())["steps"])
    count, moments = int(os.environ.get("KILLS", "5")), random.Random(int(os.environ.get("KILLS_SEED", "1")))
    last, killed = run / "last.ckpt", []

    def saved() -> int:
        return int(torch.load(last, weights_only=True)["global_step"]) if last.exists() else 0

    for target in sorted(moments.sample(range(1, steps - 50), count)):
        arguments = [f"resume={run}", *host] if last.exists() else [*words, "overwrite=true", f"hydra.run.dir={run}"]
        process = subprocess.Popen([*command, *arguments], env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and saved() < target:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.05))
        assert process.poll() is None, f"it was through before it was killed near step {target}"
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed.append(saved())
    result = subprocess.run([*command, f"resume={run}", *host], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    print("killed after the saved steps", killed, "of", steps)
    assert len(set(killed)) > 1
    equal(whole, run)
    assert not list(run.glob(".*.ckpt"))  # half a file that a kill left was taken by the next one


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_command_says_how_to_go_on(
    small: Callable[..., list[str]], cache: Path, number: signal.Signals, tmp_path: Path
) -> None:
    words = [*small("dnn", f"paths.cache={cache}"), "trainer.batch_size=8", "trainer.max_epochs=200",
             "trainer.patience=null"]  # fmt: skip
    command = [sys.executable, str(ROOT / "run.py")]
    process = subprocess.Popen([*command, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(tmp_path.glob("outputs/runs/*/last.ckpt")):
        time.sleep(0.05)
    process.send_signal(number)
    _, text = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in text
    sentence = text.strip().splitlines()[-1]
    assert "it goes on by: python run.py resume=" in sentence
    words = shlex.split(sentence.partition("it goes on by: python run.py ")[2])
    subprocess.run([*command, *words, "trainer.max_steps=1"], cwd=tmp_path, check=True, capture_output=True)
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert (folder / "metrics.json").is_file()
    assert (folder / ".hydra" / "overrides.yaml").is_file()
