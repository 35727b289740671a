"""Run folders: nobody's results are lost, nothing is deleted that a run didn't write, and failures leave none."""

from __future__ import annotations

import io
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import OmegaConf
from rich.console import Console

from deepinterest import experiment, folders
from deepinterest.config import ExperimentConfig
from deepinterest.errors import UserError, sentence
from deepinterest.folders import MARK, LateFolder, RunFolder, RunLog, clear, metrics_of
from deepinterest.report import sweep, terminal
from deepinterest.settings import implied, register, resolved, typed

ROOT = Path(__file__).parents[1]


@pytest.fixture
def place(settings: Callable[..., Any], tmp_path: Path) -> Callable[..., RunFolder]:
    """The folder `tmp_path/run` for another run: `place("overwrite=true")`."""

    def make(*more: str) -> RunFolder:
        return RunFolder(*settings("dnn", tmp_path, *more))

    return make


@pytest.fixture(scope="module")
def finished(settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    experiment.run(*settings("dnn", folder, "logger=csv"))
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------------------------------------- who may have a folder


@pytest.mark.parametrize("name", folders.RESULTS)
def test_folder_with_results_is_refused(name: str, place: Callable[..., RunFolder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("another's")
    with pytest.raises(UserError, match=rf"holds another run's results \({name}\): go on .* resume=.*overwrite=true"):
        place().__enter__()
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
    with pytest.raises(UserError, match="holds another run's results"):  # they came while data were prepared
        place().take()


@pytest.mark.parametrize("task", ["train", "test"])
def test_run_into_a_finished_runs_folder(
    task: str, finished: Path, settings: Callable[..., Any], tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = content(tmp_path / "run")
    more = [f"task={task}", *([f"checkpoint={tmp_path / 'run' / 'best.ckpt'}"] if task == "test" else [])]
    with pytest.raises(UserError, match=r"metrics\.json, predictions\.parquet, best\.ckpt, last\.ckpt"):
        experiment.run(*settings("dnn", tmp_path, "seed=2", *more))
    assert content(tmp_path / "run") == before


def test_overwrite_clears_only_what_a_run_wrote(
    finished: Path, place: Callable[..., RunFolder], tmp_path: Path
) -> None:
    shutil.copytree(finished / "run", tmp_path / "run")
    for name in ("notes.txt", "vocabulary/notes.txt", "csv/notes/a", "model.ckpt", "other.png"):
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_text("mine")
    with place("overwrite=true") as own:
        assert (tmp_path / "run" / "metrics.json").is_file()
        own.take()
        assert set(content(tmp_path / "run")) == {
            *("notes.txt", "vocabulary/notes.txt", "csv/notes/a", "model.ckpt", "other.png"), MARK,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("dien", ("logger=csv", "trainer.max_epochs=1")),
        ("dnn", ("logger=tensorboard", "debug=profile", "debug.profile_steps=2")),
        ("dnn", ("task=data",)),
        ("dnn", ("task=prepare",)),
        ("dnn", ("task=export_reference", "protocol=last_event")),
        ("dnn", ("task=tune", "tune.lr_steps=20", "tune.batch_seconds=0.02", "tune.batch_high=64")),
    ],
    ids=["train", "profile", "data", "prepare", "export_reference", "tune"],
)  # fmt: skip
def test_all_that_a_run_writes_can_be_cleared(
    model: str, words: tuple[str, ...], settings: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    """A new file of a run must be in `folders.WRITTEN`. And every task leaves the data card."""
    if "logger=tensorboard" in words:
        pytest.importorskip("tensorboard")
    experiment.run(*settings(model, tmp_path, f"paths.cache={finished / 'cache'}", *words))
    assert (tmp_path / "run" / "data_card.json").is_file()
    clear(tmp_path / "run")
    assert set(content(tmp_path / "run")) == {MARK}
    assert [path.name for path in (tmp_path / "run").iterdir()] == [MARK]


def test_a_folder_says_whether_its_run_came_to_an_end(place: Callable[..., RunFolder], tmp_path: Path) -> None:
    with place() as first:
        assert metrics_of(first.take()) is None
    assert metrics_of(tmp_path / "run") == {}  # a task without metrics
    second = place().__enter__()
    second.take()
    second.__exit__(ValueError)  # this one fails
    assert metrics_of(tmp_path / "run") is None
    shown = io.StringIO()
    Console(file=shown, width=80).print(sweep.table([(0, "seed=1", {}), (1, "seed=2", None)]))
    assert re.findall(r"seed=\d\W+(\w+)", shown.getvalue()) == ["done", "failed"]


def test_two_runs_at_once(place: Callable[..., RunFolder], tmp_path: Path) -> None:
    with place() as first:
        first.take()
        before = content(tmp_path / "run")
        for words in ((), ("overwrite=true",), (f"resume={tmp_path / 'run'}",)):
            with pytest.raises(UserError, match=r"belongs to a run that isn't over: wait .* hydra\.run\.dir="):
                place(*words).__enter__()
        with pytest.raises(UserError, match="isn't over"):
            place().take()
        assert content(tmp_path / "run") == before
    with place() as second:  # the first is over and had no results
        second.take()


def test_lock_of_a_killed_run_is_gone(place: Callable[..., RunFolder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    code = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print(1, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / MARK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"1\n"
    with pytest.raises(UserError, match="isn't over"):
        place().__enter__()
    process.kill()
    process.wait()
    with place() as own:
        own.take()


def test_further_process_shares_the_folder(
    place: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with place() as first:
        first.take()
        (tmp_path / "run" / "best.ckpt").touch()
        monkeypatch.setenv("LOCAL_RANK", "1")
        with place() as second:
            assert second.take() == first.path


def test_what_a_kill_left_half_written_is_removed(place: Callable[..., RunFolder], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".best.ckpt.4711").write_text("half")
    (tmp_path / "run" / ".bashrc").write_text("mine")
    with place() as own:
        own.take()
    assert set(content(tmp_path / "run")) == {MARK, ".bashrc"}


def test_no_room_for_a_checkpoint(
    settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(UserError, match=r"has room for 0 MB, and a checkpoint of this model takes \d+ MB"):
        experiment.run(*settings("dnn", tmp_path, "model.mlp=[2000,200]"))


def test_resume_and_overwrite(settings: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="overwrite=true would delete it"):
        settings("dnn", tmp_path, "resume=run", "overwrite=true")


# --------------------------------------------------------------------------------------------- what failed leaves none


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=events", "data.path=none.csv"], r"none\.csv"),
        (["task=test", "checkpoint=none.ckpt"], r"none\.ckpt"),
        (["data.interests=50"], "interests"),
        (["logger=tensorboard"], "needs its package"),
        (["logger=wandb", "logger.mode=online"], "needs a key"),
        (["task=predict", "checkpoint=none.ckpt", "output=o.csv", "data=events", "data.path=none.csv"], r"none\.csv"),
    ],
    ids=["data.path", "checkpoint", "data", "tensorboard", "online", "predict"],
)
def test_mistake_leaves_no_folder(
    words: list[str], said: str, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(experiment.loggers, "find_spec", lambda name: None)
    if words[0].startswith("logger"):  # before data are prepared
        monkeypatch.setattr(experiment, "_data", None)
    with pytest.raises(UserError, match=said):
        experiment.run(*settings("dnn", tmp_path, *words))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("file/run", "can't be written: Not a directory"),
        ("file", "can't be written: "),
        ("a" * 300, "has a name of 300 bytes in it, and this file system takes 255"),
        ("not there/" + "ü" * 200 + "/run", "has a name of 400 bytes in it"),
        ("two\nlines", r"'.*two\\nlines' has a line break"),
        ("/proc/none", "can't be written: "),
    ],
)
def test_folder_that_cannot_be(
    path: str, said: str, settings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(experiment, "_data", None)  # before data are prepared
    config, plain = settings("dnn", tmp_path)
    config.paths.run = str(tmp_path / path)
    with pytest.raises(UserError, match=said) as raised:
        experiment.run(config, plain)
    assert "\n" not in str(raised.value)
    assert content(tmp_path) == {"file": b"mine"} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "words",
    [
        ("task=predict", "checkpoint={checkpoint}", "data=events", "data.path={rows}", "output={long}.csv"),
        ("task=test", "checkpoint={long}"),
        ("paths.cache={long}",),
    ],
    ids=["output", "checkpoint", "cache"],
)
def test_name_that_is_too_long(
    words: tuple[str, ...], settings: Callable[..., Any], finished: Path, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("user,item,timestamp\n1,2,1700000000\n")
    places = {
        "checkpoint": finished / "run" / "best.ckpt",
        "rows": tmp_path / "rows.csv",
        "long": tmp_path / ("a" * 300),
    }
    with pytest.raises((OSError, UserError)) as raised:
        experiment.run(*settings("dnn", tmp_path, *(word.format(**places) for word in words)))
    assert "longer than the file system takes" in str(sentence(raised.value))
    assert not (tmp_path / "run").exists()


def test_table_of_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"test/auc": 0.51234, "test/gauc_users": 22.0, "test/gauc_users_dropped": 0.0, "seconds": 12.34}
    terminal.results().print(terminal.metrics_table({**metrics, "samples_per_s": 12345.6}))
    shown = capsys.readouterr().out
    rows = dict(line.strip("│ ").replace(" ", "").split("│") for line in shown.splitlines() if line.startswith("│"))
    assert rows == {"auc": "0.5123", "gauc_users": "22", "gauc_users_dropped": "0", "seconds": "12.3",
                    "samples_per_s": "12,346"}  # fmt: skip


# -------------------------------------------------------------------------------------------------- as Hydra starts it


@pytest.fixture
def started(small: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`started(*words)`: a run as Hydra starts it, up to its own code; gives its checked and plain settings."""
    register()
    setup_globals()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders, "_texts", {})
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)

    def call(*words: str) -> tuple[ExperimentConfig, dict[str, Any]]:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", small("dnn", *implied(list(words))), return_hydra_config=True)
        OmegaConf.register_new_resolver("now", lambda _: "now", replace=True)  # all start in one second
        config.hydra.mode = "RUN"
        config.hydra.job.name = "run" if config.hydra.job.name == "app" else config.hydra.job.name
        callback = LateFolder()
        callback.on_run_start(config)
        assert config.hydra.run.dir == os.curdir
        HydraConfig.instance().set_config(config)
        callback.on_job_start(config)
        root.addHandler(RunLog("run.log"))
        task = config.copy()
        OmegaConf.set_struct(task, False)
        task.pop("hydra")
        return typed(task), resolved(task)

    yield call
    setup_globals()
    root.handlers = handlers
    HydraConfig.instance().cfg = None


def test_default_name_that_is_taken_gets_a_number(started: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    for _ in range(3):
        config, plain = started()
        logging.getLogger().warning("before its folder is there")
        with RunFolder(config, plain) as own:
            path = own.take()
            assert plain["paths"]["run"] == config.paths.run == HydraConfig.get().run.dir == str(path)
        assert (path / ".hydra" / "hydra.yaml").is_file()
        assert (path / "run.log").read_text() == "before its folder is there\n"
        taken.append(path.name)
        logging.getLogger().handlers.pop()
    assert taken == [f"now_synthetic_dnn_s1{number}" for number in ("", "_2", "_3")]


def test_settings_are_written_once(started: Any, small: Callable[..., list[str]], tmp_path: Path) -> None:
    config, plain = started("hydra.run.dir=run")
    with RunFolder(config, plain) as own:
        own.take()
    kept = content(tmp_path / "run")
    assert OmegaConf.create(kept[".hydra/overrides.yaml"].decode()) == small("dnn", "hydra.run.dir=run")[:-1]
    assert OmegaConf.create(kept[".hydra/config.yaml"].decode()).model.name == "dnn"
    assert OmegaConf.create(kept[".hydra/hydra.yaml"].decode()).hydra.run.dir == "run"
    config, plain = started("resume=run", "seed=1")
    with RunFolder(config, plain) as own:
        own.take()
    assert content(tmp_path / "run") == kept


@pytest.mark.parametrize("word", ["hydra.job.name=x/../../y", "hydra.output_subdir=/tmp/other"])
def test_names_that_lead_out_of_the_folder(
    word: str, started: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit):
        started(word)
    assert f"error: {word} is not possible" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
