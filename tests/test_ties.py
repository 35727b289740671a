"""protocol.ties: what happens at a target's own time is its history, or isn't, wherever histories are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deepinterest import experiment, load
from deepinterest.config import (
    EventFileConfig,
    Exclude,
    HistoryTies,
    LeaveLastOutConfig,
    NegativesConfig,
    ProtocolConfig,
    Refresh,
    TemporalConfig,
)
from deepinterest.data import store
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.log import Log
from deepinterest.data.protocols import split
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError
from deepinterest.report.probing import features
from deepinterest.serving import checkpoint

CASES = [
    ("temporal", "strict"),
    ("temporal", "order"),
    ("leave_last_out", "strict"),
    ("leave_last_out", "order"),
    ("last_event", "strict"),
    ("last_event", "order"),
    ("labelled", "strict"),
]


@pytest.fixture(scope="module")
def baskets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log full of ties: 80 users with six times each, and one to five items at each of them."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, (80, 6))
    user = np.repeat(np.arange(80), sizes.sum(1))
    day = np.repeat(np.tile(np.arange(6), 80), sizes.ravel())
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in rng.integers(0, 30, len(user))],
            "timestamp": 1_700_000_000 + 86_400 * day + 3_600 * (user % 24),
            "click": rng.integers(0, 2, len(user)),
        }
    )
    path = tmp_path_factory.mktemp("baskets") / "baskets.csv"
    frame.write_csv(path)
    return path


@pytest.fixture(scope="module")
def trained(
    settings: Callable[..., Any], baskets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The folder of a run, trained once."""
    folders: dict[tuple[str, str], Path] = {}

    def call(protocol: str, ties: str) -> Path:
        if (protocol, ties) not in folders:
            folder = tmp_path_factory.mktemp("run")
            label = ("data.columns.label=click",) if protocol == "labelled" else ()
            config, plain = settings(
                "din", folder, "data=events", f"data.path={baskets}", *label, f"protocol={protocol}",
                f"protocol.ties={ties}", "protocol.max_history=6",
            )  # fmt: skip
            experiment.run(config, plain)
            folders[protocol, ties] = folder
        return folders[protocol, ties]

    return call


@pytest.fixture
def predict(settings: Callable[..., Any], tmp_path: Path) -> Callable[..., np.ndarray]:
    """Probabilities of a frame's rows by task=predict."""

    def call(folder: Path, rows: pl.DataFrame, *more: str, kind: str = "parquet") -> np.ndarray:
        path, output = tmp_path / f"rows.{kind}", tmp_path / "scores.parquet"
        rows.write_csv(path) if kind == "csv" else rows.write_parquet(path)
        config, plain = settings(
            "din", folder, "task=predict", "data=events", f"data.path={path}", f"output={output}",
            f"checkpoint={folder / 'run' / 'best.ckpt'}", f"paths.run={tmp_path / 'run'}", *more,
        )  # fmt: skip
        experiment.run(config, plain)
        return pl.read_parquet(output)["probability"].to_numpy()

    return call


def of_test(folder: Path) -> tuple[Samples, store.Store]:
    (card,) = (folder / "cache").glob("*/card.json")
    held = store.load(card.parent)
    return held.samples["test"], held


@pytest.mark.parametrize(("protocol", "ties"), CASES)
def test_predict_gives_the_scores_of_the_test_back(
    protocol: str, ties: str, trained: Callable[..., Path], predict: Callable[..., np.ndarray]
) -> None:
    folder = trained(protocol, ties)
    rows = pl.read_parquet(folder / "run" / "predictions.parquet")
    wanted, rows = rows["probability"].to_numpy(), rows.drop("probability")
    np.testing.assert_allclose(predict(folder, rows), wanted, atol=1e-6, rtol=0)
    np.testing.assert_allclose(predict(folder, rows, kind="csv"), wanted, atol=1e-6, rtol=0)
    by_time = predict(folder, rows.drop("history_length"))
    if ties == "strict":
        np.testing.assert_allclose(by_time, wanted, atol=1e-6, rtol=0)
    else:  # a time alone can't tell a row's place among its user's events of that time
        assert np.abs(by_time - wanted).max() > 1e-3


def test_scores_in_python_are_the_tests(trained: Callable[..., Path]) -> None:
    for ties in ("strict", "order"):
        folder = trained("leave_last_out", ties)
        samples, held = of_test(folder)
        names = held.item_names()
        starts = held.log.user_offsets[samples.user]
        histories = [
            [names[i] for i in held.log.item[begin:end]] for begin, end in zip(starts, samples.history_end, strict=True)
        ]
        candidates = [[names[i] for i in pair] for pair in samples.candidates.reshape(-1, 2)]
        found = np.concatenate(load(folder / "run" / "best.ckpt").score_many(histories, candidates))
        wanted = pl.read_parquet(folder / "run" / "predictions.parquet")["probability"]
        np.testing.assert_allclose(found, wanted, atol=1e-6, rtol=0)


def test_what_predict_says_of_ties(
    trained: Callable[..., Path], predict: Callable[..., np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained("temporal", "order")
    rows = pl.read_parquet(folder / "run" / "predictions.parquet").drop("probability")
    caplog.set_level("INFO")
    predict(folder, rows)
    assert f"{rows.height:,} rows, each row with the first history_length events of its user;" in caplog.text
    caplog.clear()
    by_time = predict(folder, rows, "data.columns.history_length=null")
    said = f"each row with what its user touched before its time, {rows.height:,} rows at the time of an event of their"
    assert said in caplog.text
    strict = rows.with_columns(pl.lit(0).alias("history_length"))  # all that is before the time, counted by hand
    log, users = of_test(folder)[1].log, of_test(folder)[1].user_names().to_list()
    times = rows["timestamp"].dt.epoch("ms").to_list()
    counts = []
    for name, time in zip(rows["user"], times, strict=True):
        user = users.index(name)
        counts.append(int((log.time[log.user_offsets[user] : log.user_offsets[user + 1]] < time).sum()))
    np.testing.assert_array_equal(predict(folder, strict.with_columns(history_length=pl.Series(counts))), by_time)
    caplog.clear()
    folder = trained("temporal", "strict")
    predict(folder, rows.drop("history_length"))
    assert "at the time of" not in caplog.text


@pytest.mark.parametrize("wrong", [-1, 1000, 1.5, None, "many"])
def test_a_wrong_history_length(wrong: Any, trained: Callable[..., Path], predict: Callable[..., np.ndarray]) -> None:
    folder = trained("temporal", "order")
    lengths = pl.Series("history_length", [1, wrong], strict=False)
    rows = pl.DataFrame({"user": ["u1", "u2"], "item": ["i1", "i2"]}).with_columns(lengths)
    with pytest.raises(UserError, match=r"column 'history_length' .*holds .* in row 2, whose user has \d+ events"):
        predict(folder, rows)
    strangers = rows[:1].with_columns(user=pl.lit("nobody"), history_length=pl.lit(7))
    assert len(predict(folder, strangers)) == 1  # who has no events has no history


def test_checkpoints_of_before_the_setting_had_order(trained: Callable[..., Path], tmp_path: Path) -> None:
    for protocol, ties in (("temporal", "order"), ("labelled", "strict")):
        state = torch.load(trained(protocol, ties) / "run" / "best.ckpt", weights_only=True)
        del state["settings"]["protocol"]["ties"], state["settings"]["data"]["repeats"]
        torch.save(state, tmp_path / "old.ckpt")
        config = checkpoint.read(tmp_path / "old.ckpt").config()
        assert (config.protocol.ties.name, config.data.repeats.name) == (ties, "keep")


def test_histories_by_hand() -> None:
    #               user 0: 1 | 2 3 | 4 5 6 | 7      user 1: 1 2 | 3
    time = np.array([0, 1, 1, 2, 2, 2, 3, 0, 0, 5])
    log = Log(np.array([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], np.int32), time, np.array([0, 7, 10]), 8)
    events = np.arange(10)
    assert log.history_end(events, HistoryTies.order).tolist() == events.tolist()
    assert log.history_end(events, HistoryTies.strict).tolist() == [0, 1, 1, 3, 3, 3, 6, 7, 7, 9]
    log = Log(np.array([1, 2, 3, 2, 1, 2, 1, 1, 2, 1], np.int32), time, log.user_offsets, 8)  # all items known
    found = split(log, LeaveLastOutConfig(ties=HistoryTies.strict), 0)
    assert {name: targets.tolist() for name, targets in found.targets.items()} == {
        "train": [1, 2, 3, 4],
        "validation": [5],  # user 1's lies in its first basket
        "test": [6, 9],
    }
    assert found.dropped["train, without a history"] == 2  # the first event of each user
    assert found.dropped["validation, without a history"] == 1


@pytest.mark.parametrize("protocol", [TemporalConfig(), LeaveLastOutConfig()])
def test_without_ties_both_rules_are_one(protocol: ProtocolConfig, baskets: Path, tmp_path: Path) -> None:
    frame = pl.read_csv(baskets).with_columns(timestamp=pl.int_range(pl.len()) + 1_700_000_000)
    frame.write_csv(tmp_path / "log.csv")
    data = EventFileConfig(path=str(tmp_path / "log.csv"))
    hashes = {
        store.load(store.prepare(data, replace(protocol, ties=ties), str(tmp_path))).card["split_hash"]
        for ties in HistoryTies
    }
    assert len(hashes) == 1


@pytest.mark.parametrize("ties", HistoryTies)
def test_negatives_and_features_are_of_the_target(ties: HistoryTies, baskets: Path, tmp_path: Path) -> None:
    """Drawn anew each epoch, too, a negative is none of the target's basket; auxiliary ones none of their event's."""
    negatives = NegativesConfig(exclude=Exclude.same_time, refresh=Refresh.epoch, per_positive=2)
    data = InteractionData(
        EventFileConfig(path=str(baskets)), TemporalConfig(ties=ties, negatives=negatives), batch_size=64,
        eval_batch_size=64, seed=1, auxiliary=NegativesConfig(), cache=str(tmp_path),
    )  # fmt: skip
    held, loader = data.store, data.train_dataloader()
    samples, log = held.samples["train"], held.log
    basket = {number: set(log.item[log.basket == number].tolist()) for number in range(log.basket[-1] + 1)}
    for epoch in range(2):
        batch = loader.batch(np.arange(len(samples)), epoch)
        positive = log.basket[np.repeat(samples.positive, 3)]
        for item, label, number in zip(batch.candidates.tolist(), batch.label.tolist(), positive, strict=True):
            assert (item in basket[number]) == (label == 1)
        assert batch.auxiliary_negatives is not None
        assert len(batch.auxiliary_negatives) == len(batch.history)
    found = features(log, held.seen, held.samples["test"], None, 50).values["history_length"]
    test = held.samples["test"]
    assert found[::3].tolist() == np.minimum(test.history_end - log.user_offsets[test.user], 50).tolist()
