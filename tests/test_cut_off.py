"""Runs that end from outside, wherever they are: what was whole stays whole, and the command they print goes on.

Kills between steps, and signals while training, are in training/test_resume.py; processes that die in
test_nothing_lost.py.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from filelock import FileLock

from conftest import Settings, drawn
from deepinterest import experiment
from deepinterest.config import LeaveLastOutConfig, SyntheticConfig
from deepinterest.data import store
from deepinterest.errors import Interrupted, UserError
from deepinterest.report import run_folder
from deepinterest.resuming import continued, start_of
from deepinterest.settings import restored
from deepinterest.training.checkpoints import Checkpoints
from deepinterest.training.module import ClickModel

TIMES = ("seconds", "train/seconds", "samples_per_s", "memory_gib", "gpu_memory_gib")
RUN = ("data.users=60", "trainer.max_epochs=2", "trainer.batch_size=192", "calibration=platt",
       "trainer.checkpoint_minutes=1e-9")  # fmt: skip
Go = Callable[..., dict[str, float]]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def go(settings: Settings) -> Go:
    """A small calibrated run in `folder`, or with resumed=True the rest of it: what of its metrics is no time."""

    def call(folder: Path, resumed: bool = False) -> dict[str, float]:
        words = [f"resume={folder / 'run'}"] if resumed else list(RUN)
        config, plain = settings("dnn", folder, *words)
        if (start := start_of(config)) is not None:
            plain = continued(plain, words, start)
            config = restored(plain)
        return lasting(experiment.run(config, plain))

    return call


def lasting(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name not in TIMES}


@pytest.fixture(scope="module")
def whole(go: Go, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The metrics of a run that nothing stopped."""
    return go(tmp_path_factory.mktemp("whole"))


def deleting(monkeypatch: pytest.MonkeyPatch, folder: Path, epoch: int) -> None:
    """Let somebody delete `folder` before the validations of an epoch."""
    ended = Checkpoints.on_validation_end

    def deleted(self: Checkpoints, trainer: Any, *more: Any) -> None:
        if trainer.current_epoch == epoch:
            shutil.rmtree(folder, ignore_errors=True)
        ended(self, trainer, *more)

    monkeypatch.setattr(Checkpoints, "on_validation_end", deleted)


def test_prepared_data_deleted_while_training(
    go: Go, whole: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        deleting(patch, tmp_path / "cache", epoch=0)
        with pytest.raises(UserError, match=r"prepared data .* were deleted .*resume=\S+/run"):
            go(tmp_path)
    assert go(tmp_path, resumed=True) == whole
    deleting(monkeypatch, tmp_path / "later" / "cache", epoch=1)
    assert go(tmp_path / "later") == whole  # from the second epoch on nothing is read anew before the test


def test_run_folder_deleted_while_training(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleting(monkeypatch, tmp_path / "run", epoch=1)
    with pytest.raises(UserError, match=r"run folder .*/run was deleted while the run trained"):
        go(tmp_path)
    assert not (tmp_path / "run").exists()  # no half of it comes back


@pytest.mark.parametrize("where", [(ClickModel, "test_step"), (experiment, "_calibrate"), (run_folder, "write")])
def test_ctrl_c_after_training(
    where: tuple[Any, str], go: Go, whole: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(*where, stopped)
        with pytest.raises(
            Interrupted, match=r"Ctrl-C stopped the run\. The run goes on by: .*resume=\S+/run"
        ) as error:
            go(tmp_path)
    assert error.value.number == signal.SIGINT
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert go(tmp_path, resumed=True) == whole


def test_full_disk_while_calibrating(
    go: Go, whole: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate = experiment._calibrate
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, unlimited[1]))
        try:
            calibrate(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "_calibrate", limited)
        with pytest.raises(UserError, match=r"calibration could not be written to .*best\.ckpt .*Make room"):
            go(tmp_path)
    read_all(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".best.ckpt*"))
    assert go(tmp_path, resumed=True) == whole


SMALL = SyntheticConfig(users=60, events_per_user=12)


@pytest.mark.parametrize("stage", store.STAGES)
def test_ctrl_c_while_preparing(stage: str, tmp_path: Path) -> None:
    def stopped(name: str) -> None:
        if name == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path), stopped)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert store.load(store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))).card["users"] == 60


def test_another_process_prepares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = store.prepare(SMALL, LeaveLastOutConfig(), str(tmp_path))
    shutil.rmtree(folder)
    monkeypatch.setattr(store, "PATIENCE", 0.05)
    lock = FileLock(tmp_path / f"{folder.name}.lock")
    lock.acquire()
    waiting = threading.Thread(target=store.prepare, args=(SMALL, LeaveLastOutConfig(), str(tmp_path)))
    waiting.start()
    while not caplog.records:
        time.sleep(0.01)
    assert not folder.exists()
    lock.release()
    waiting.join()
    assert f"Another process prepares the same data and holds {folder}.lock" in caplog.text
    assert folder.is_dir()


PREPARE = """
    import sys
    from deepinterest.config import *
    from deepinterest.data import store
    store.PATIENCE = 0.2
    print(store.prepare(SyntheticConfig(users=20_000, events_per_user=30), LeaveLastOutConfig(), sys.argv[1]))
"""


@pytest.mark.slow
def test_a_process_that_prepares_is_held_up(tmp_path: Path) -> None:
    """SIGSTOP and, later, SIGCONT: the second process says what it waits for, and both end with the same folder."""

    def start() -> subprocess.Popen[str]:
        code = "\n".join(line.strip() for line in PREPARE.splitlines())
        command = [sys.executable, "-c", code, str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    while not any(tmp_path.glob(".preparing-*/*.npy")):
        time.sleep(0.002)
    first.send_signal(signal.SIGSTOP)
    second = start()
    assert second.stderr is not None
    assert "Another process prepares the same data" in second.stderr.readline()
    first.send_signal(signal.SIGCONT)
    folders = {process.communicate(timeout=120)[0] for process in (first, second)}
    assert len(folders) == 1 and first.returncode == second.returncode == 0
    assert store.damaged(Path(folders.pop().strip())) == []


# ----------------------------------------------------------------------------------------------------- kills at writing


def killed(settings: dict[str, Any], write: int, said: Path) -> None:
    """A run whose process ends at the given one of its writes, in the middle, before it takes its place, or after."""
    torch.set_num_threads(1)
    writes = count(1)

    def here(what: str, path: Any) -> None:
        if next(writes) == write:
            said.write_text(f"{what} {Path(path).name}")
            os._exit(9)

    save, replace = torch.save, os.replace

    def saving(state: Any, path: Any, *more: Any) -> None:
        save(state, path, *more)
        if isinstance(path, Path):
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            here("half of", path)
            path.write_bytes(whole)

    def replacing(path: Any, place: Any) -> None:
        here("before", place)
        replace(path, place)
        here("after", place)

    torch.save, os.replace = saving, replacing  # type: ignore[assignment]
    with drawn():
        experiment.run(restored(settings), settings)


def read_all(run: Path) -> None:
    """Raises where a file that has its name isn't whole."""
    for path in run.rglob("[!.]*"):
        if path.suffix == ".ckpt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pl.read_parquet(path)
        elif path.suffix == ".png":
            assert path.read_bytes().endswith(b"IEND\xaeB`\x82")


@pytest.mark.slow
def test_killed_at_any_write(go: Go, whole: dict[str, float], settings: Settings, tmp_path: Path) -> None:
    """SIGKILL can't be noticed; so at each write of a whole run, one after the other."""
    start = multiprocessing.get_context("forkserver").Process
    places = []
    store.prepare(*(getattr(settings("dnn", tmp_path, *RUN)[0], part) for part in ("data", "protocol")), str(tmp_path))
    for write in count(1):
        folder, said = tmp_path / str(write), tmp_path / f"{write}.txt"
        _, plain = settings("dnn", folder, *RUN)
        process = start(target=killed, args=(plain, write, said))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        places.append(said.read_text())
        run = folder / "run"
        if run.is_dir():
            read_all(run)
        assert go(folder, resumed=(run / "last.ckpt").is_file()) == whole, places[-1]
        assert not [path for path in run.glob(".*") if path.suffix[1:].isdigit()], places[-1]
        shutil.rmtree(folder)
    assert {"half of .best.ckpt", "before last.ckpt", "after predictions.parquet", "before metrics.json"} <= {
        place.replace(f".{place.rpartition('.')[2]}", "") if place[-1].isdigit() else place for place in places
    }
