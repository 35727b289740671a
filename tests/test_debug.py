"""Debug profiles, start-up checks and task=tune: what they keep, say and find, by small real runs."""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from conftest import Settings
from deepinterest import debug
from deepinterest.config import DebugConfig, DNNConfig, EvaluationConfig, OptimizerConfig, Task
from deepinterest.data.batch import Batch
from deepinterest.data.log import Log
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError
from deepinterest.experiment import run
from deepinterest.models import build
from deepinterest.nn.embedding import Features
from deepinterest.report import plots, run_folder
from deepinterest.training import checks, tuning
from deepinterest.training.module import ClickModel
from deepinterest.training.tuning import suggested_rate, suggested_size


@pytest.fixture(scope="module")
def go(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, float]]]:
    """A small run with a cache that all tests here share: its folder and metrics."""
    cache = tmp_path_factory.mktemp("cache")

    def call(model: str, *more: str) -> tuple[Path, dict[str, float]]:
        folder = tmp_path_factory.mktemp(model)
        metrics = run(*settings(model, folder, f"paths.cache={cache}", *more))
        return folder / "run", metrics

    return call


# ----------------------------------------------------------------------------------------------------------- fewer rows


def store_of(groups: int = 40, labels: tuple[int, int] = (1, 0)) -> Any:
    """As much of a store as `shrink` reads: groups of two rows; a test probe's value is its row."""
    log = Log(np.arange(1, 2 * groups + 1, dtype=np.int32), np.arange(2 * groups), np.array([0, 2 * groups]), 1000)

    def samples(first: int) -> Samples:
        return Samples(
            user=np.zeros(groups, dtype=np.int32),
            history_end=np.arange(groups),
            candidate_offsets=np.arange(groups + 1) * 2,
            candidates=np.arange(first, first + 2 * groups, dtype=np.int32),
            label=np.tile(np.array(labels, dtype=np.uint8), groups),
            position=np.arange(groups),
        )

    return SimpleNamespace(
        log=log,
        seen=np.ones(len(log), dtype=bool),
        samples={name: samples(100 * (place + 1)) for place, name in enumerate(("train", "validation", "test"))},
        probes={"popularity": np.arange(2.0 * groups)},
        card={"split_hash": "0123", "train_rows": 2 * groups},
    )


@pytest.mark.parametrize(
    ("config", "groups"),
    [
        (DebugConfig(fraction=0.25), 10),
        (DebugConfig(batches=3), 12),  # of eight rows
        (DebugConfig(batches=3, fraction=0.1), 4),
        (DebugConfig(batches=1000), 40),
        (DebugConfig(fraction=0.001), 1),
    ],
)
def test_rows_left(config: DebugConfig, groups: int) -> None:
    store = store_of()
    debug.shrink(store, config, 8, 0)
    assert [len(samples) for samples in store.samples.values()] == [groups] * 3
    kept = store.samples["test"].candidates - 300
    assert store.probes["popularity"].tolist() == kept.tolist()
    assert store.samples["test"].candidates.reshape(-1, 2)[:, 1].tolist() == (kept[::2] + 301).tolist()  # groups whole
    assert store.card["train_rows"] == store.card["test_rows"] == 2 * groups
    assert store.card["split_hash"] != "0123" and "few rows" in store.card["note: debug"]


def test_rows_left_depend_on_the_data_seed_alone() -> None:
    stores = [store_of() for _ in range(3)]
    for store, seed in zip(stores, (1, 1, 2), strict=True):
        debug.shrink(store, DebugConfig(fraction=0.5), 8, seed)
    rows = [store.samples["train"].candidates.tolist() for store in stores]
    hashes = [store.card["split_hash"] for store in stores]
    assert rows[0] == rows[1] != rows[2]
    assert hashes[0] == hashes[1] != hashes[2]


def test_overfit_has_the_same_rows_everywhere() -> None:
    store = store_of()
    debug.shrink(store, DebugConfig(batches=1, overfit=True), 8, 0)
    assert store.samples["train"] is store.samples["validation"] is store.samples["test"]
    assert len(store.probes["popularity"]) == store.samples["train"].rows == 8


def test_nothing_asked_changes_nothing() -> None:
    store = store_of()
    before = dict(store.samples)
    debug.shrink(store, DebugConfig(), 8, 0)
    assert store.samples == before and store.card == {"split_hash": "0123", "train_rows": 80}


def test_one_label_left_is_refused() -> None:
    with pytest.raises(UserError, match=r"debug settings leave 8 rows of train, all with label 1: take more"):
        debug.shrink(store_of(labels=(1, 1)), DebugConfig(batches=1), 8, 0)


# --------------------------------------------------------------------------------------------------------- the profiles


@pytest.mark.usefixtures("figures")
def test_fast_does_everything_in_a_few_steps(go: Callable[..., Any]) -> None:
    folder, metrics = go("dien", "debug=fast", "trainer.batch_size=16")
    assert metrics["steps"] == 6
    assert len(pl.read_parquet(folder / "predictions.parquet")) == 6 * 16
    assert {"roc.png", "attention.png", "best.ckpt", "metrics.json"} <= {path.name for path in folder.iterdir()}


def test_limit_is_a_share_of_the_rows(go: Callable[..., Any]) -> None:
    folder, _ = go("dnn", "debug=limit", "debug.fraction=0.2")
    assert json.loads((folder / "data_card.json").read_text())["test_rows"] == 78  # of 195 users' two each


def test_overfit_says_that_rows_were_learned(go: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    more = ("trainer.batch_size=16", "trainer.max_epochs=1000", "optimizer.lr=0.01", "model.embedding_dim=18")
    with caplog.at_level(logging.INFO):
        _, metrics = go("din", "debug=overfit", "model.mlp=[32,16]", *more)
    assert metrics["test/auc"] == 1
    assert "Overfit: the logloss of 64 rows is 0.0" in caplog.text and "learned by heart" in caplog.text
    assert metrics["steps"] < 2000


def test_overfit_says_that_rows_were_not_learned(go: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    more = ("trainer.batch_size=16", "trainer.max_epochs=1000", "trainer.max_steps=40", "optimizer.lr=1e-7")
    go("dnn", "debug=overfit", *more)
    assert "after 40 steps (best 0." in caplog.text and "could not learn them by heart" in caplog.text


def test_profile(go: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    # Eight steps are timed over the validation in the middle of them, and five traced.
    small = ("trainer.batch_size=32", "debug.batches=24", "debug.profile_steps=8", "trainer.validations_per_epoch=2")
    with caplog.at_level(logging.INFO):
        folder, metrics = go("dien", "debug=profile", *small)
    found = json.loads((folder / "profile.json").read_text())
    assert found["steps"] == 8 and found["rows"] == 8 * 32 and metrics["steps"] == 24
    parts, forward = found["parts"], found["forward"]
    assert sum(part["ms"] for part in parts.values()) == pytest.approx(found["ms_per_step"], rel=1e-6)
    assert sum(part["ms"] for part in forward.values()) == pytest.approx(parts["forward and loss"]["ms"], rel=1e-6)
    assert {"items", "extraction", "attention", "evolution", "auxiliary", "head"} <= forward.keys()
    assert all(part["ms"] > 0 for part in (*parts.values(), *forward.values()))
    assert max(found["operations"].values()) > 0
    with gzip.open(folder / "trace.json.gz") as file:
        assert len(json.load(file)["traceEvents"]) > 100
    assert "trace.json.gz" in caplog.text


def test_profile_with_batches_made_ahead(go: Callable[..., Any]) -> None:
    small = ("trainer.batch_size=32", "debug.batches=24", "debug.profile_steps=4", "trainer.prefetch=true")
    folder, _ = go("dnn", "debug=profile", *small)
    found = json.loads((folder / "profile.json").read_text())
    parts = {name: part["ms"] for name, part in found["parts"].items()}
    loading = parts.pop("load the batch (meanwhile)")
    assert loading > 0
    assert sum(parts.values()) == pytest.approx(found["ms_per_step"], rel=1e-6)


def test_profile_of_too_few_steps(go: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = go("dnn", "debug=profile", "trainer.batch_size=32", "debug.batches=6")
    assert "Nothing was timed: the run had 6 steps" in caplog.text
    assert not (folder / "profile.json").exists()


def test_profile_leaves_the_run_as_it_was(go: Callable[..., Any]) -> None:
    small = ("trainer.batch_size=32", "debug.batches=24", "debug.profile_steps=4")
    _, profiled = go("dnn", "debug=profile", *small)
    _, plain = go("dnn", "debug=profile", *small[:2], "debug.profile_steps=null")
    assert profiled["test/auc"] == plain["test/auc"]


# --------------------------------------------------------------------------------------------------------------- checks


def rows_of(positives: int, rows: int) -> Any:
    return SimpleNamespace(label=(np.arange(rows) < positives).astype(np.uint8), rows=rows)


@pytest.mark.parametrize(
    ("positives", "rows", "words"),
    [
        (0, 100, "All 100 rows of train have label 0"),
        (100, 100, "All 100 rows of train have label 1"),
        (4, 1000, "Only 0.400% of the 1,000 rows of train have label 1 (4)"),
        (81, 100, "81.0% of the 100 rows of train"),
    ],
)
def test_odd_label_rates(positives: int, rows: int, words: str) -> None:
    assert words in str(checks.label_rate("train", rows_of(positives, rows)))


def test_ordinary_label_rates() -> None:
    assert checks.label_rate("train", rows_of(50, 100)) is None
    assert checks.label_rate("train", rows_of(20, 1000)) is None


def test_first_loss() -> None:
    assert checks.first_loss(0.75, checks.LN2) is None
    assert checks.first_loss(0.37, checks.LN2 / 2) is None
    assert "is 0.630, far from 0.347" in str(checks.first_loss(0.63, checks.LN2 / 2))
    assert "is 2.300, far from 0.693" in str(checks.first_loss(2.3, checks.LN2))
    assert "is nan" in str(checks.first_loss(math.nan, checks.LN2))


@pytest.mark.parametrize(
    ("auc", "loss", "spread", "words"),
    [
        ([0.5, 0.505], [0.7, 0.693], 1e-5, "as if the network were dead"),
        ([0.5, 0.505], [0.70, 0.693], 0.1, "the training loss doesn't fall either"),
        ([0.5], [0.7], 0.1, "the training loss doesn't fall either"),
        ([0.5, 0.505], [0.7, 0.4], 0.1, "learns rows by heart"),
        ([0.5, 0.505], [0.8, 0.6, 0.8, 0.6], 0.1, "the training loss doesn't fall either"),
        ([0.7, 0.69, 0.68], [0.7, 0.4], 0.1, "overfits before it is first looked at"),
        ([0.7, 0.7002, 0.7001, 0.7003], [0.7, 0.4], 0.1, "has stood still at 0.7003"),
    ],
)
def test_flat_auc(auc: list[float], loss: list[float], spread: float, words: str) -> None:
    assert words in str(checks.flat_auc(auc, loss, spread, 0.001))


@pytest.mark.parametrize("auc", [[0.6, 0.65, 0.66], [0.6], [0.7, 0.69], [0.7, 0.699, 0.698], [0.6, 0.65, 0.6]])
def test_healthy_auc(auc: list[float]) -> None:
    assert checks.flat_auc(auc, [0.7, 0.5], 0.1, 0.001) is None


def small_model() -> ClickModel:
    rows = torch.arange(9)
    features = Features(torch.stack([rows, rows % 4], 1), [9, 4], torch.zeros(3, 1, dtype=torch.int64), [3])
    torch.manual_seed(0)
    return ClickModel(build(features, DNNConfig(embedding_dim=4, mlp=[8, 4])), OptimizerConfig(), EvaluationConfig())


def batch_of() -> Batch:
    return Batch(
        history=torch.tensor([1, 5]),
        offsets=torch.tensor([0, 2]),
        user=torch.tensor([1]),
        candidates=torch.tensor([5, 2]),
        history_index=torch.tensor([0, 0]),
        label=torch.tensor([1.0, 0.0]),
    )


def test_dead_rows_are_those_that_no_batch_read() -> None:
    model = small_model()
    optimizer = tuning._optimizer(model)
    for _ in range(3):
        tuning._step(model, optimizer, batch_of())
    store: Any = SimpleNamespace(
        item_features=lambda: pl.DataFrame({"item": [1], "category": [1]}),
        user_features=lambda: pl.DataFrame({"user": [1]}),
    )
    # Items 1, 2 and 5 of 1..8, and their categories 1 and 2 of 1..3.
    assert checks.dead_rows(model, optimizer, store) == [("item", 5, 8), ("item feature category", 1, 3)]
    assert "5 of 8 embeddings of the item (62%) had no gradient" in str(checks.dead_table("item", 5, 8))
    assert checks.dead_table("item feature category", 1, 3) is None


def test_checks_of_whole_runs(
    go: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "LOSS_TOLERANCE", -1)
    monkeypatch.setattr(checks, "DEAD_SHARE", -1)
    monkeypatch.setattr(checks, "HIGH_RATE", 0.4)
    go("dnn", "trainer.batch_size=16", "optimizer.lr=1e-8")
    for words in (
        "The first batch's loss is ",
        "embeddings of the item (",
        "embeddings of the item feature category (",
        "50.0% of the 392 rows of validation have label 1",
        "hardly more than chance",
    ):
        assert words in caplog.text
    caplog.clear()
    go("dnn", "trainer.batch_size=16", "optimizer.lr=1e-8", "debug.checks=false")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_ordinary_run_warns_of_nothing(go: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    go("din", "trainer.batch_size=16", "optimizer.lr=0.005")
    assert not [record for record in caplog.records if record.name == checks.__name__]


@pytest.mark.parametrize(("steps", "warned"), [(99.0, True), (100.0, False), (math.inf, False)])
def test_too_few_steps(steps: float, warned: bool) -> None:
    found = checks.few_steps(steps)
    assert (found is not None) == warned
    assert found is None or "Training has 99 steps, too few to learn anything" in found


# ----------------------------------------------------------------------------------------------------------------- tune


def test_tune(go: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    sizes = ("tune.batch_low=32", "tune.batch_high=128", "tune.batch_seconds=0.05", "tune.batch_gain=0")
    with caplog.at_level(logging.INFO):
        folder, metrics = go("din", "task=tune", "tune.lr_steps=60", "trainer.batch_size=64", *sizes)
    found = json.loads((folder / "tune.json").read_text())
    assert (folder / "tune.png").read_bytes().startswith(b"\x89PNG")
    assert metrics == {"tune/lr": found["lr"]["suggested"], "tune/batch_size": found["batch_size"]["suggested"]}
    assert 1e-5 < metrics["tune/lr"] <= 0.1
    tried = [entry["batch_size"] for entry in found["batch_size"]["sizes"]]
    assert tried[:2] == [32, 64] and metrics["tune/batch_size"] in tried
    assert all(entry["samples_per_s"] > 0 and entry["memory_gib"] > 0 for entry in found["batch_size"]["sizes"])
    rates = np.array(found["lr"]["points"])[:, 0]
    assert rates[0] == pytest.approx(1e-5) and (np.diff(np.log(rates)) > 0).all()
    assert f"optimizer.lr={metrics['tune/lr']:.2g} is a tenth" in caplog.text


def valley(at: float, steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Rates from 1e-5 to 1, and losses with their lowest point at `at`."""
    rates = np.geomspace(1e-5, 1, steps)
    noise = 0.002 * np.random.default_rng(0).normal(size=steps)
    return rates, 0.6 + 0.02 * np.log10(rates / at) ** 2 + noise


@pytest.mark.parametrize("at", [1e-3, 1e-2, 5e-2])
def test_a_tenth_of_the_lowest_is_suggested(at: float) -> None:
    assert suggested_rate(*valley(at)) == pytest.approx(at / 10, rel=1.2)
    assert suggested_rate(*valley(at)) >= at / 20


def test_what_comes_after_the_loss_is_infinite_is_ignored() -> None:
    rates, losses = valley(1e-2)
    assert suggested_rate(rates, np.append(losses[:-1], math.nan)) == suggested_rate(rates, losses)


def test_a_loss_that_never_falls_is_an_error() -> None:
    rates = np.geomspace(1e-5, 1, 50)
    with pytest.raises(UserError, match=r"falls at no rate between 1\.0e-05 and 1\.0e\+00"):
        suggested_rate(rates, np.linspace(0.7, 0.9, 50))
    with pytest.raises(UserError, match="falls at no rate"):
        suggested_rate(rates[:5], np.linspace(0.7, 0.1, 5))


def test_a_loss_that_still_falls_is_told(caplog: pytest.LogCaptureFixture) -> None:
    suggested_rate(np.geomspace(1e-5, 1e-3, 100), np.linspace(0.7, 0.5, 100))
    assert "The loss still falls at the highest rate tried" in caplog.text


def test_the_smallest_size_that_is_fast_enough() -> None:
    sizes = [{"batch_size": b, "samples_per_s": s} for b, s in ((64, 100.0), (128, 180.0), (256, 195.0), (512, 190.0))]
    assert suggested_size(sizes, 0.1) == 128
    assert suggested_size(sizes, 0.0) == 256
    assert suggested_size(sizes, 1.0) == 64


@pytest.mark.parametrize(
    ("speeds", "sizes", "ended"),
    [
        ([100, 200, 205, 201], [64, 128, 256, 512], "larger sizes gain nothing"),
        ([100, 200, "memory"], [64, 128], "256 rows don't fit into memory"),
        ([100, 200, 400, 800, 1600], [64, 128, 256, 512, 1024], "no size above tune.batch_high=1024"),
    ],
)
def test_sizes_are_tried_until_it_no_longer_pays(
    monkeypatch: pytest.MonkeyPatch, speeds: list[Any], sizes: list[int], ended: str
) -> None:
    given = iter(speeds)

    def speed(*_: Any) -> dict[str, float]:
        value = next(given)
        if value == "memory":
            raise RuntimeError("CUDA out of memory")
        return {"samples_per_s": float(value), "memory_gib": 1.0}

    monkeypatch.setattr(tuning, "_speed", speed)
    loader = SimpleNamespace(samples=SimpleNamespace(rows=10_000))
    data: Any = SimpleNamespace(train_dataloader=lambda: loader)
    config: Any = SimpleNamespace(batch_low=64, batch_high=1024, batch_seconds=1.0, batch_gain=0.1)
    found, why = tuning.try_sizes(small_model(), data, config)
    assert [entry["batch_size"] for entry in found] == sizes
    assert ended in why
    loader.samples.rows = 100
    given = iter([100])
    assert "training has 100 rows" in tuning.try_sizes(small_model(), data, config)[1]


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plots, "save", full)
    sizes = [{"batch_size": 64, "samples_per_s": 1.0, "memory_gib": 1.0}]
    points = [[1e-3, 0.7, 0.7], [1e-2, 0.6, 0.6]]
    content = {
        "lr": {"suggested": 1e-3, "batch_size": 64, "points": points},
        "batch_size": {"suggested": 64, "sizes": sizes, "ended": ""},
    }
    with pytest.raises(UserError, match="No space left on device"):
        run_folder.write_findings(tmp_path, "tune", content, plots.tuning(content))


def test_wrong_settings(settings: Settings, tmp_path: Path) -> None:
    assert settings("dnn", tmp_path, "task=tune")[0].task is Task.tune
    for words, message in (
        (("tune.lr_low=0.1", "tune.lr_high=0.1"), r"tune\.lr_low=0\.1 must be below tune\.lr_high=0\.1"),
        (("tune.batch_low=9", "tune.batch_high=8"), r"tune\.batch_low=9 at most tune\.batch_high=8"),
        (("debug.fraction=0",), r"debug\.fraction=0\.0 is out of range"),
        (("task=explain",), r"checkpoint is missing: task=explain needs one"),
        (("explain.rows=[-1]",), r"explain\.rows\[0\]=-1 is out of range"),
    ):
        with pytest.raises(UserError, match=message):
            settings("dnn", tmp_path, *words)
