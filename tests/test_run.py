"""Whole runs: what a run folder holds, that it can be made again, and what a run says when it cannot go on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from conftest import drawn
from deepinterest import experiment, kernels
from deepinterest.config import KernelName
from deepinterest.data import store
from deepinterest.errors import UserError
from deepinterest.report import run_folder
from deepinterest.training import scores

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "train/seconds", "samples_per_s", "memory_gib", "gpu_memory_gib")
CARD = (
    "events", "users", "items", "categories", "train_rows", "validation_rows", "test_rows", "positive_rate", "protocol",
    "split_hash",
)  # fmt: skip


@dataclass
class Run:
    folder: Path
    metrics: dict[str, float]

    @property
    def predictions(self) -> pl.DataFrame:
        return pl.read_parquet(self.folder / "predictions.parquet")

    @property
    def lasting(self) -> dict[str, float]:
        return {name: value for name, value in self.metrics.items() if name not in TIMES}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def go(settings: Callable[..., Any], cache: Path) -> Callable[..., Run]:
    """Runs in `folder`, with a cache that all tests here share."""

    def call(model: str, folder: Path, *more: str) -> Run:
        config, plain = settings(model, folder, f"paths.cache={cache}", *more)
        return Run(folder / "run", experiment.run(config, plain))

    return call


@pytest.fixture(scope="module")
def trained(go: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    with drawn():
        return {model: go(model, tmp_path_factory.mktemp(model)) for model in ("dnn", "din", "dien")}


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, env=environment)


def auc_of(predictions: pl.DataFrame) -> float:
    return scores.auc(predictions["label"].to_numpy(), predictions["probability"].to_numpy())


# ------------------------------------------------------------------------------------------------------- the run folder


@pytest.mark.parametrize("model", ["dnn", "din", "dien"])
def test_run_folder(trained: dict[str, Run], model: str) -> None:
    run = trained[model]
    metrics = json.loads((run.folder / "metrics.json").read_text())
    assert metrics == run.metrics
    assert all(isinstance(value, float) for value in metrics.values())
    names = ("auc", "gauc", "logloss", "accuracy", "ece")
    assert {f"test/{name}" for name in names} | {"val/auc", "seconds", "samples_per_s"} <= metrics.keys()
    assert {"probe/best_reachable_auc", "probe/popularity_auc"} <= metrics.keys()
    assert metrics["samples_per_s"] > 0
    assert 0.05 < metrics["memory_gib"] < 64

    card = json.loads((run.folder / "data_card.json").read_text())
    assert set(CARD) <= card.keys()
    assert card["users"] == 200
    assert card["positive_rate"] == 0.5
    assert card["protocol"] == "leave_last_out"

    predictions = run.predictions
    assert predictions.columns == [
        *("user", "item", "timestamp", "label", "probability"), *("history_length", "item_popularity"),
    ]  # fmt: skip
    assert len(predictions) == card["test_rows"]
    assert auc_of(predictions) == metrics["test/auc"]
    label, probability = predictions["label"].to_numpy(), predictions["probability"].to_numpy()
    assert scores.logloss(label, probability) == pytest.approx(metrics["test/logloss"], abs=1e-9)

    for name in ("best.ckpt", "last.ckpt"):
        state = torch.load(run.folder / name, weights_only=True)
        assert state["vocabulary_hash"] == card["vocabulary_hash"]
    figures = ["calibration", "learning_curves", "roc", *([] if model == "dnn" else ["attention"])]
    assert sorted(path.stem for path in run.folder.glob("*.png")) == sorted(figures)
    assert f"name: {model}" in (run.folder / "config.yaml").read_text()
    assert json.loads((run.folder / "environment.json").read_text())["torch"] == torch.__version__
    assert not list(run.folder.glob(".*.json"))


def test_predictions_are_the_test_rows(trained: dict[str, Run], cache: Path) -> None:
    (folder,) = (path for path in cache.iterdir() if (path / "card.json").is_file())
    samples, names = store.load(folder).samples["test"], store.load(folder).item_names()
    expected = [(int(user), names[item]) for user, item in zip(samples.user.repeat(2), samples.candidates, strict=True)]
    predictions = trained["din"].predictions
    assert list(zip(predictions["user"], predictions["item"], strict=True)) == expected  # users of this source: 0, 1, …
    assert predictions["label"].to_list() == samples.label.tolist()
    log, seen = store.load(folder).log, store.load(folder).seen
    events = np.bincount(log.item[seen], minlength=log.items)
    assert predictions["item_popularity"].to_list() == events[samples.candidates].tolist()
    lengths = samples.history_end - log.user_offsets[samples.user]
    assert predictions["history_length"].to_list() == lengths.repeat(2).tolist()


@pytest.mark.parametrize("model", ["din", "dien"])
def test_seed_decides(go: Callable[..., Run], trained: dict[str, Run], model: str, tmp_path: Path) -> None:
    again = go(model, tmp_path / "again")
    assert again.lasting == trained[model].lasting
    assert again.predictions.equals(trained[model].predictions)
    other = go(model, tmp_path / "other", "seed=2")
    assert other.metrics["test/auc"] != again.metrics["test/auc"]
    assert other.predictions.drop("probability").equals(again.predictions.drop("probability"))


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("model", ["wide_deep", "pnn", "gru_attention", "aigru", "agru", "augru"])
def test_every_other_network_runs(go: Callable[..., Run], model: str, tmp_path: Path) -> None:
    run = go(model, tmp_path)
    assert auc_of(run.predictions) == run.metrics["test/auc"]


def test_validation_by_steps_counts_across_epochs(go: Callable[..., Run], tmp_path: Path) -> None:
    run = go("dnn", tmp_path, "trainer.max_epochs=2", "trainer.validate_every=10", "trainer.patience=null")
    steps = [step for step, _ in json.loads((run.folder / "curves.json").read_text())["val/auc"]]
    assert steps == list(range(10, int(run.metrics["steps"]) + 1, 10))
    assert run.metrics["steps"] / 2 % 10 != 0  # else an epoch's end would hide a count that starts anew


# ------------------------------------------------------------------------------------------------------- the reference


@pytest.fixture(scope="module")
def layout(go: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The synthetic log in the published files."""
    folder = tmp_path_factory.mktemp("export")
    go("dnn", folder, "task=export_reference", "protocol=last_event")
    return folder / "run" / "layout"


@pytest.mark.parametrize("model", ["wide_deep", "din", "dien"])
def test_reference_run(go: Callable[..., Run], layout: Path, model: str, tmp_path: Path) -> None:
    published = (
        "reference=true",
        "data=reference",
        f"data.path={layout}",
        "protocol=last_event",
        "trainer.patience=null",
    )
    run = go(model, tmp_path, *published, "trainer.batch_size=32", "trainer.eval_batch_size=32", "trainer.max_epochs=2")
    metrics = run.metrics
    rows = json.loads((run.folder / "data_card.json").read_text())
    assert metrics["steps"] == 2 * -(-(rows["train_rows"] + rows["validation_rows"]) // 32)  # nobody is held out
    assert metrics["val/auc"] == metrics["test/auc"] == auc_of(run.predictions)
    curve = json.loads((run.folder / "curves.json").read_text())["val/published_auc"]
    assert metrics["test/published_auc"] == pytest.approx(max(auc for _, auc in curve), abs=1e-6)  # float32 in curves
    assert metrics["test/published_auc"] <= metrics["test/auc"] + 1e-9
    again = go(model, tmp_path / "again", *published, "trainer.batch_size=32", "trainer.eval_batch_size=32",
               "trainer.max_epochs=2")  # fmt: skip
    assert again.lasting == run.lasting


def test_one_quirk_corrected(go: Callable[..., Run], layout: Path, tmp_path: Path) -> None:
    published = ("reference=true", "data=reference", f"data.path={layout}", "protocol=last_event")
    run = go("din", tmp_path, *published, "quirks.best_of_test=false")
    state = torch.load(run.folder / "best.ckpt", weights_only=True)["state_dict"]
    rows = json.loads((run.folder / "data_card.json").read_text())
    users = (rows["train_rows"] + rows["validation_rows"]) // 2
    assert len(state["network.users.tables.0.weight"]) == users  # no row for the unknown user
    other = go("din", tmp_path / "other", *published, "quirks.first_user_for_unknown=false")
    state = torch.load(other.folder / "best.ckpt", weights_only=True)["state_dict"]
    assert len(state["network.users.tables.0.weight"]) == users + 1


def test_fewer_steps_than_a_validation_interval(go: Callable[..., Run], tmp_path: Path) -> None:
    run = go("dnn", tmp_path, "trainer.max_steps=2", "trainer.validations_per_epoch=1")
    assert run.metrics["steps"] == 2
    assert (run.folder / "best.ckpt").is_file()


def test_more_validations_than_steps(go: Callable[..., Run], tmp_path: Path) -> None:
    assert go("dnn", tmp_path, "trainer.validations_per_epoch=500", "trainer.patience=null").metrics["steps"] > 2


def test_rare_items_share_the_unknown_id(go: Callable[..., Run], trained: dict[str, Run], tmp_path: Path) -> None:
    run = go("din", tmp_path, "data.min_item_count=3")
    assert run.metrics["parameters"] < trained["din"].metrics["parameters"]
    assert auc_of(run.predictions) == run.metrics["test/auc"]


# ---------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("model", ["dnn", "din", "dien"])
def test_checkpoint_gives_the_same_scores(
    go: Callable[..., Run], trained: dict[str, Run], model: str, tmp_path: Path
) -> None:
    best = trained[model].folder / "best.ckpt"
    run = go(model, tmp_path, "task=test", f"checkpoint={best}")
    assert run.metrics["test/auc"] == trained[model].metrics["test/auc"]
    assert run.metrics["val/auc"] == trained[model].metrics["val/auc"]
    assert run.predictions.equals(trained[model].predictions)
    assert not list(run.folder.glob("*.ckpt"))
    assert not {"samples_per_s", "train/seconds", "steps"} & run.metrics.keys()  # nothing was trained


@pytest.mark.parametrize("change", ["data.seed=5", "data.users=150"])
def test_checkpoint_of_another_vocabulary(
    go: Callable[..., Run], trained: dict[str, Run], change: str, tmp_path: Path
) -> None:
    best = trained["dnn"].folder / "best.ckpt"
    with pytest.raises(UserError, match=r"another vocabulary .* than this data set's"):
        go("dnn", tmp_path, change, "task=test", f"checkpoint={best}")
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("change", ["model=din", "model.mlp=[8,8]"])
def test_checkpoint_of_another_model(
    go: Callable[..., Run], trained: dict[str, Run], change: str, tmp_path: Path
) -> None:
    best = trained["dnn"].folder / "best.ckpt"
    with pytest.raises(UserError, match="holds another model than the settings describe"):
        go("dnn", tmp_path, "task=test", f"checkpoint={best}", change)


@pytest.mark.parametrize("content", ["empty", "text", "half", "other", "list"])
def test_broken_checkpoint(go: Callable[..., Run], trained: dict[str, Run], content: str, tmp_path: Path) -> None:
    path, best = tmp_path / "broken.ckpt", (trained["dnn"].folder / "best.ckpt").read_bytes()
    path.write_bytes({"empty": b"", "text": b"not a checkpoint", "half": best[: len(best) // 2]}.get(content, b""))
    if content in ("other", "list"):
        torch.save({"weights": 1} if content == "other" else [1, 2], path)
    whole = "can't be read as a checkpoint of this program"
    told = {"other": whole, "list": whole}.get(content, "is no checkpoint, or is damaged or cut short")
    with pytest.raises(UserError, match=rf"broken\.ckpt {told}"):
        go("dnn", tmp_path, "task=test", f"checkpoint={path}")


def test_missing_checkpoint(go: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.ckpt is not a file"):
        go("dnn", tmp_path, "task=test", f"checkpoint={tmp_path / 'none.ckpt'}")


# ---------------------------------------------------------------------------------------------------- what can go wrong


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_where_there_is_none(go: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu, but this machine shows no such device"):
        go("dnn", tmp_path, "trainer=gpu")


def test_kernel_is_the_one_asked_for(go: Callable[..., Run], trained: dict[str, Run], tmp_path: Path) -> None:
    run = go("dien", tmp_path, "trainer.kernel=torch")
    assert kernels.chosen(torch.zeros(1), 4) is KernelName.torch
    expected = trained["dien"].metrics
    assert run.metrics["test/auc"] == pytest.approx(expected["test/auc"], abs=2e-3)
    assert run.metrics["test/logloss"] == pytest.approx(expected["test/logloss"], rel=2e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_kernel_without_gpu(go: Callable[..., Run], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.kernel=gpu, but the model will be on the cpu"):
        go("dnn", tmp_path, "trainer.kernel=gpu")


def test_output_that_cannot_be_written(go: Callable[..., Run], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        go("dnn", tmp_path, f"paths.run={tmp_path / 'file' / 'run'}")
    with pytest.raises(UserError, match=r"paths\.cache"):
        go("dnn", tmp_path, f"paths.cache={tmp_path / 'file' / 'cache'}")


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("name", [".metrics.json", ".predictions.parquet", "best.ckpt", "roc.png"])
def test_full_disk(go: Callable[..., Run], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def failing(write: Callable[..., Any], position: int) -> Callable[..., Any]:
        def instead(*arguments: Any, **named: Any) -> Any:
            target = next((a for a in arguments[position:] if isinstance(a, str | Path)), None)
            if target is not None and Path(target).name.startswith(name):
                Path(target).write_bytes(b"{")
                raise full
            return write(*arguments, **named)

        return instead

    def text(path: Path, content: str, *more: Any, **named: Any) -> Any:
        if path.name.startswith(name):
            path.write_bytes(content.encode()[:5])
            raise full
        return path.write_bytes(content.encode())

    monkeypatch.setattr(Path, "write_text", text)
    monkeypatch.setattr(pl.DataFrame, "write_parquet", failing(pl.DataFrame.write_parquet, 1))
    monkeypatch.setattr(run_folder.plots, "save", failing(run_folder.plots.save, 1))
    monkeypatch.setattr(experiment.L.Trainer, "save_checkpoint", failing(experiment.L.Trainer.save_checkpoint, 1))
    with pytest.raises(UserError, match="No space left on device"):
        go("dnn", tmp_path)
    assert not (tmp_path / "run" / "metrics.json").exists()  # it comes last: a folder with one is complete


def test_second_job_takes_the_prepared_data(
    settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    load = store.sources.load
    monkeypatch.setattr(store.sources, "load", lambda config: loads.append(config) or load(config))
    for number in (1, 2):
        config, plain = settings("dnn", tmp_path, f"seed={number}", f"paths.run={tmp_path / str(number)}")
        experiment.run(config, plain)
    assert len(loads) == 1
    cache = tmp_path / "cache"
    assert not list(cache.glob(".preparing-*"))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1


def test_source_that_fails_leaves_nothing(settings: Callable[..., Any], tmp_path: Path) -> None:
    config, plain = settings("dnn", tmp_path, "data.interests=50")
    with pytest.raises(UserError, match="interests"):
        experiment.run(config, plain)
    assert [path for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []
    assert not (tmp_path / "run" / "metrics.json").exists()


# ------------------------------------------------------------------------------------------------ loggers and own files


def test_csv_log(go: Callable[..., Run], tmp_path: Path) -> None:
    run = go("dnn", tmp_path, "logger=csv", "trainer.batch_size=32")
    log = pl.read_csv(run.folder / "csv" / "metrics.csv", infer_schema_length=None)
    assert log["val/auc"].max() == pytest.approx(run.metrics["val/auc"], abs=1e-6)
    assert "test/auc" in log.columns
    assert log.filter(pl.col("train/loss").is_not_null())["step"].to_list() == [49, 99]


def test_logged_loss_is_of_its_step(go: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = []
    step = experiment.ClickModel.training_step

    def kept(model: experiment.ClickModel, *arguments: Any) -> torch.Tensor:
        loss = step(model, *arguments)
        losses.append(float(loss.detach()))
        return loss

    monkeypatch.setattr(experiment.ClickModel, "training_step", kept)
    run = go("dnn", tmp_path, "logger=csv", "trainer.batch_size=64")
    log = pl.read_csv(run.folder / "csv" / "metrics.csv", infer_schema_length=None)
    assert log["train/loss"].drop_nulls().to_list() == pytest.approx([losses[49]])


def test_tensorboard_log(go: Callable[..., Run], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = go("dnn", tmp_path, "logger=tensorboard")
    assert list((run.folder / "tensorboard").glob("events*"))


@pytest.mark.usefixtures("figures")
def test_wandb_log(go: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    go("din", tmp_path, "logger=wandb", "trainer.batch_size=32")
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(folder)]
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for word in ("val/auc", "train/loss", "test/auc", "embedding_dim"):
        assert word in text
    assert list(folder.glob("files/media/images/roc*.png"))


def test_own_file(settings: Callable[..., Any], tmp_path: Path) -> None:
    lines = ["user,item,timestamp,category"]
    for user in range(30):
        for step in range(8):
            item = (user * 7 + step * 5) % 24
            lines.append(f"u{user},i{item},{1_700_000_000 + 60 * step + user},c{item % 4}")
    (tmp_path / "clicks.csv").write_text("\n".join(lines))
    own = ("data=events", f"data.path={tmp_path / 'clicks.csv'}", "data.columns.category=category")
    config, plain = settings("dien", tmp_path, *own)
    run = Run(tmp_path / "run", experiment.run(config, plain))
    card = json.loads((run.folder / "data_card.json").read_text())
    assert (card["events"], card["users"], card["items"], card["categories"]) == (240, 30, 24, 4)
    assert auc_of(run.predictions) == run.metrics["test/auc"]
    assert set(run.predictions["user"]) <= {f"u{user}" for user in range(30)}
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    items = pl.read_parquet(folder / "items.parquet")
    assert all(category == f"c{int(item[1:]) % 4}" for item, category in items.select("item", "category").iter_rows())


# --------------------------------------------------------------------------------------------------- the command itself


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_command(small: Callable[..., list[str]], trained: dict[str, Run], cache: Path, tmp_path: Path) -> None:
    result = start(tmp_path, *small("dnn", f"paths.cache={cache}"))
    assert result.returncode == 0, result.stderr
    assert last_line(result.stdout).startswith("run folder: outputs/runs/")
    folder = tmp_path / last_line(result.stdout).removeprefix("run folder: ")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["test/auc"] == trained["dnn"].metrics["test/auc"]
    tables = [line for line in result.stdout.splitlines()[:-1] if line.strip()]
    assert {line.strip()[0] for line in tables} <= set("│┌└┏┡┃DT")  # titles: Data card, Test
    assert "Data card" in result.stdout and "samples_per_s" in result.stdout
    assert "dnn on synthetic" in result.stderr and "test auc" in result.stderr


def test_sweep_with_a_failing_job(small: Callable[..., list[str]], cache: Path, tmp_path: Path) -> None:
    result = start(tmp_path, "-m", *small("dnn", f"paths.cache={cache}"), "model=dnn,din", "data.interests=3,50")
    output = result.stdout + result.stderr
    assert result.returncode == 1
    assert "Traceback" not in output
    assert last_line(result.stdout).startswith("sweep folder: outputs/sweeps/")
    folder = tmp_path / last_line(result.stdout).removeprefix("sweep folder: ")
    done = sorted(path.parent.name for path in folder.glob("*/metrics.json"))
    assert done == ["0", "2"]
    assert "failed: 1 (" in result.stdout


def test_sweep(small: Callable[..., list[str]], trained: dict[str, Run], cache: Path, tmp_path: Path) -> None:
    result = start(tmp_path, "-m", *small("dnn", f"paths.cache={cache}"), "model=dnn,din")
    assert result.returncode == 0, result.stderr
    assert f"{trained['dnn'].metrics['test/auc']:.4f}" in result.stdout.split("┏")[-1]
    assert result.stdout.count("Data card") == 1 and "test auc" not in result.stdout
    assert "job 1 of 2, in outputs/sweeps/" in result.stderr and "job 2 of 2, in" in result.stderr
    assert last_line(result.stdout).startswith("sweep folder: outputs/sweeps/")


def test_two_processes(small: Callable[..., list[str]], trained: dict[str, Run], cache: Path, tmp_path: Path) -> None:
    result = start(tmp_path, *small("dien", f"paths.cache={cache}", "trainer=ddp_cpu", "logger=csv"))
    assert result.returncode == 0, result.stderr
    assert last_line(result.stdout).startswith("run folder: outputs/runs/")
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert list(tmp_path.rglob("predictions.parquet")) == [folder / "predictions.parquet"]
    run = Run(folder, json.loads((folder / "metrics.json").read_text()))
    columns = ["user", "item", "label"]
    assert run.predictions.select(columns).equals(trained["dien"].predictions.select(columns))
    assert auc_of(run.predictions) == run.metrics["test/auc"]
    assert result.stdout.count("run folder:") == 1
    assert (folder / "csv" / "metrics.csv").is_file()
    assert (result.stdout + result.stderr).count("Data card") == 1
    # Each process trains on its half of the rows.
    assert run.metrics["steps"] == -(-trained["dien"].metrics["steps"] // 2)


def test_evaluation_and_decay_settings_reach_the_run(go: Callable[..., Run], tmp_path: Path) -> None:
    # Two epochs: the decay acts from the second on. Validation is its only choice of a checkpoint.
    common = ("trainer.max_epochs=2", "trainer.validations_per_epoch=1", "trainer.patience=null")
    plain = go("dnn", tmp_path / "plain", *common).metrics
    binned = go("dnn", tmp_path / "binned", *common, "evaluation.ece_bins=1", "evaluation.gauc_weights=clicks").metrics
    decayed = go("dnn", tmp_path / "decayed", *common, "optimizer.lr_decay=0.01").metrics
    assert binned["test/auc"] == plain["test/auc"]
    assert binned["test/ece"] < plain["test/ece"]  # one bin sees the mean alone
    assert decayed["test/logloss"] != plain["test/logloss"]
