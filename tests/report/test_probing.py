"""What an AUC is made of: tampered histories, features that know no future, and the whole of `task=probe`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from matplotlib.patches import Rectangle

from conftest import NETWORK, Settings
from deepinterest.config import Task
from deepinterest.data.batch import Batch
from deepinterest.data.loader import BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError
from deepinterest.experiment import run
from deepinterest.report import plots, probing
from deepinterest.training import scores
from deepinterest.training.scores import Difference

CATEGORY = np.array([0, 1, 1, 2, 2, 3, 3, 0])  # of catalogue rows; the last item's is not known
LONGEST = 4


def random_log(users: int = 6, seed: int = 0) -> Log:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, users)
    time = np.concatenate([np.sort(rng.integers(0, 40, n)) for n in lengths]) * 1_200_000  # ties, and hours to tell
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return Log(rng.integers(1, len(CATEGORY), len(time)).astype(np.int32), time, offsets, len(CATEGORY))


def targets_of(log: Log, seed: int = 1) -> Samples:
    targets = np.flatnonzero(log.position >= 1)
    negatives = np.random.default_rng(seed).integers(1, log.items, (len(targets), 2)).astype(np.int32)
    return Samples.of_targets(log, targets, negatives)


def loader_of(log: Log) -> BatchLoader:
    return BatchLoader(log, targets_of(log), batch_size=30, max_history=LONGEST, seed=0)


def histories(batch: Batch) -> list[list[int]]:
    return [part.tolist() for part in batch.history.tensor_split(batch.offsets[1:-1])]


def whole(loader: BatchLoader) -> tuple[np.ndarray, Batch]:
    groups = np.arange(len(loader.samples))
    return groups, loader.batch(groups)


def test_shuffled_histories_hold_the_same_events() -> None:
    groups, batch = whole(loader_of(random_log()))
    shuffled = probing.shuffle_history(np.random.default_rng(0))(groups, batch)
    before, after = histories(batch), histories(shuffled)
    assert [sorted(items) for items in after] == [sorted(items) for items in before]
    assert after != before
    assert shuffled.candidates is batch.candidates
    again = probing.shuffle_history(np.random.default_rng(0))(groups, batch)
    assert torch.equal(again.history, shuffled.history)


def test_no_history_is_empty() -> None:
    groups, batch = whole(loader_of(random_log()))
    emptied = probing.no_history(groups, batch)
    assert len(emptied.history) == 0
    assert emptied.offsets.tolist() == [0] * (len(groups) + 1)
    assert torch.equal(emptied.candidates, batch.candidates)


@pytest.mark.parametrize("seed", range(5))
def test_random_histories_are_other_users(seed: int) -> None:
    loader = loader_of(random_log(seed=seed))
    groups, batch = whole(loader)
    partner = probing.other_users(loader.samples.user, np.random.default_rng(seed))
    assert sorted(partner) == groups.tolist()
    assert (loader.samples.user[partner] != loader.samples.user).all()
    other = probing.random_history(loader, np.random.default_rng(seed))(groups, batch)
    own = histories(batch)
    assert histories(other) == [own[group] for group in partner]
    assert torch.equal(other.user, batch.user)  # only the history is another's


def test_random_histories_differ_by_seed_and_need_other_users() -> None:
    user = np.repeat(np.arange(10), 3)
    first, second = (probing.other_users(user, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first != second).any()
    with pytest.raises(UserError, match=r"One user has 3 of 5 test targets"):
        probing.other_users(np.array([0, 0, 0, 1, 2]), np.random.default_rng(0))


@pytest.mark.parametrize("category", [CATEGORY, None])
def test_features_are_what_a_loop_counts(category: np.ndarray | None) -> None:
    log = random_log(seed=3)
    samples = targets_of(log)
    found = probing.features(log, np.ones(len(log), dtype=bool), samples, category, LONGEST).values
    assert ("category_recency" in found) == ("category_count" in found) == (category is not None)
    for group, target in enumerate(samples.history_end):
        begin = max(log.user_offsets[samples.user[group]], target - LONGEST)
        past = log.item[begin:target].tolist()
        earlier = log.item[log.time < log.time[target]]
        for row in range(samples.candidate_offsets[group], samples.candidate_offsets[group + 1]):
            item = int(samples.candidates[row])
            steps = [len(past) - at for at, touched in enumerate(past) if touched == item]
            assert found["item_recency"][row] == (1 / min(steps) if steps else 0)
            assert found["in_history"][row] == bool(steps)
            assert found["history_length"][row] == len(past)
            expected = (earlier == item).mean() if len(earlier) else 0.0
            assert found["popularity_before"][row] == pytest.approx(expected)
            if category is not None:
                steps = [
                    len(past) - at for at, touched in enumerate(past) if category[touched] == category[item] > 0
                ]  # fmt: skip
                assert found["category_recency"][row] == (1 / min(steps) if steps else 0)
                assert found["category_count"][row] == len(steps)


def test_features_know_neither_the_event_itself_nor_the_future() -> None:
    log = random_log(seed=4)
    samples = targets_of(log)
    seen = np.ones(len(log), dtype=bool)
    before = probing.features(log, seen, samples, CATEGORY, LONGEST).matrix()
    moment = np.unique(log.time)[20]
    rows = np.repeat(log.time[samples.history_end] <= moment, 3)
    assert 0 < rows.sum() < len(rows)
    # Whatever happens at that moment or later, targets until then have the same features.
    other = np.where(log.time >= moment, log.item % (len(CATEGORY) - 1) + 1, log.item).astype(np.int32)
    changed = Log(other, log.time, log.user_offsets, log.items)
    after = probing.features(changed, seen, samples, CATEGORY, LONGEST).matrix()
    inside = np.zeros(len(log), dtype=bool)  # a history may hold events of the target's own time: the basket's
    inside[np.flatnonzero((log.time == moment) & (log.basket == np.roll(log.basket, -1)))] = True
    basket = np.isin(log.basket[samples.history_end], log.basket[inside])
    rows &= ~np.repeat(basket & (log.time[samples.history_end] == moment), 3)
    assert (before[rows] == after[rows]).all()
    assert (before != after).any()


def test_features_network_learns_and_is_seeded() -> None:
    rng = np.random.default_rng(0)

    def rows(count: int) -> tuple[np.ndarray, np.ndarray]:
        matrix = rng.normal(3, [1, 10, 0], size=(count, 3)).astype(np.float32)  # one feature never varies
        return matrix, (np.abs(matrix[:, 0] - 3) + rng.normal(0, 0.3, count) > 0.7).astype(np.uint8)  # not linear

    train, validation, test = rows(8000), rows(1000), rows(2000)
    outside = torch.random.get_rng_state()
    probability = probing.fit_features(train, validation, 1)(test[0])
    assert torch.equal(torch.random.get_rng_state(), outside)
    assert scores.auc(test[1], probability) > 0.9
    assert (probing.fit_features(train, validation, 1)(test[0]) == probability).all()
    assert (probing.fit_features(train, validation, 2)(test[0]) != probability).any()


def test_training_rows_are_whole_groups() -> None:
    samples = targets_of(random_log())
    part = probing._sampled(samples, samples.rows // 2, np.random.default_rng(0))
    assert 0 < part.rows <= samples.rows // 2
    assert part.label.reshape(-1, 3)[:, 0].all()
    assert part.candidates.reshape(-1, 3)[:, 0].tolist() == random_log().item[part.history_end].tolist()
    assert probing._sampled(samples, samples.rows, np.random.default_rng(0)) is samples


def test_the_sentence_is_honest() -> None:
    network = probing.Result(0.6, Difference(0.1, 0.08, 0.12))
    shown = {
        "shuffle_history": probing.Result(0.7, Difference(0.0, -0.01, 0.01)),
        "no_history": probing.Result(0.65, Difference(0.05, 0.04, 0.06)),
        "random_history": probing.Result(0.72, Difference(-0.02, -0.03, -0.01)),
    }
    text = probing.summary(0.7, network, shown)
    assert "alone reaches 50% (AUC 0.6000): the model has 0.1000 [0.0800, 0.1200] more." in text
    assert "the order of the history makes no significant difference (+0.0000 [-0.0100, 0.0100])" in text
    assert "having a history adds 0.0500 [0.0400, 0.0600]" in text
    assert "another's costs 0.0200 [0.0100, 0.0300]." in text
    alike = probing.Result(0.705, Difference(-0.005, -0.02, 0.01))
    assert "(AUC 0.7050): the model shows no significant difference" in probing.summary(0.7, alike, shown)
    better = probing.Result(0.8, Difference(-0.1, -0.12, -0.08))
    assert "reaches 150% (AUC 0.8000): the model has 0.1000 [0.0800, 0.1200] less." in probing.summary(
        0.7, better, shown
    )
    rounding = {"shuffle_history": probing.Result(0.7, Difference(2e-8, 1e-8, 3e-8))}
    assert "no significant difference (+0.0000" in probing.summary(0.7, network, rounding)
    assert "is not above one half" in probing.summary(0.5, network, shown)


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("dnn", ("protocol=temporal", "trainer.eval_batch_size=100")),
        ("dien", ("protocol=last_event", "reference=true", "trainer.eval_batch_size=37")),  # scores depend on the batch
    ],
)
def test_a_checkpoint_is_probed(settings: Settings, tmp_path: Path, model: str, more: tuple[str, ...]) -> None:
    trained = run(*settings(model, tmp_path, *more))
    checkpoint = tmp_path / "run" / "best.ckpt"
    again = ("task=probe", f"checkpoint={checkpoint}", f"paths.run={tmp_path / 'probe'}")
    metrics = run(*settings(model, tmp_path, *more, *again))
    content: dict[str, Any] = json.loads((tmp_path / "probe" / "probes.json").read_text())
    assert metrics["test/auc"] == content["model"]["auc"] == pytest.approx(trained["test/auc"], abs=1e-4)
    assert content["model"]["name"] == model
    for name in ("popularity", "in_history", "category_count", "best_reachable"):
        assert content["scores"][name] == trained[f"probe/{name}_auc"]
    assert {"item_recency", "category_recency", "popularity_before"} < set(content["scores"])
    for value in (*content["histories"].values(), content["features_network"]):
        adds = value["model_adds"]
        assert adds["value"] == pytest.approx(content["model"]["auc"] - value["auc"], abs=1e-9)
        assert adds["low"] <= adds["value"] <= adds["high"]
    shuffled = content["histories"]["shuffle_history"]["model_adds"]["value"]
    assert (abs(shuffled) < 1e-3) == (model == "dnn")  # a sum has no order
    assert content["histories"]["no_history"]["auc"] != content["model"]["auc"]
    assert (tmp_path / "probe" / "probes.png").read_bytes().startswith(b"\x89PNG")
    assert "Of the model's AUC above one half" in content["summary"] or "not above one half" in content["summary"]


def test_impressions_are_probed(settings: Settings, tmp_path: Path) -> None:
    """Rows with times and labels of their own: a user touches what they touched before."""
    rng = np.random.default_rng(0)
    users, each = 60, 40
    taste, shown = rng.integers(0, 5, users).repeat(each), rng.integers(0, 5, users * each)
    label = (shown == taste) ^ (rng.random(users * each) < 0.05)
    columns = {
        "user": np.arange(users).repeat(each), "item": shown, "category": shown % 2,
        "timestamp": rng.permutation(users * each) * 600_000 + 10**12, "label": label.astype(np.int64),
    }  # fmt: skip
    pl.DataFrame(columns).write_csv(tmp_path / "shown.csv")
    given = (
        "data=events", f"data.path={tmp_path / 'shown.csv'}", "data.columns.label=label",
        "data.columns.category=category", "protocol=labelled", "trainer.batch_size=32",
    )  # fmt: skip
    trained = run(*settings("dnn", tmp_path, *given))
    checkpoint = ("task=probe", f"checkpoint={tmp_path / 'run' / 'best.ckpt'}", f"paths.run={tmp_path / 'probe'}")
    metrics = run(*settings("dnn", tmp_path, *given, *checkpoint))
    assert metrics["test/auc"] == pytest.approx(trained["test/auc"], abs=1e-4)
    assert metrics["probe/features_network_auc"] > 0.8  # "touched lately" tells nearly all
    assert metrics["probe/item_recency_auc"] > 0.8
    assert metrics["probe/popularity_before_auc"] < 0.65


@pytest.mark.parametrize("model", NETWORK)
def test_every_model_takes_tampered_histories(settings: Settings, tmp_path: Path, model: str) -> None:
    from deepinterest.data.datamodule import InteractionData
    from deepinterest.experiment import _model

    config, resolved = settings(model, tmp_path, "data.users=40")
    data = InteractionData(
        config.data, config.protocol, batch_size=64, eval_batch_size=64, seed=1, cache=config.paths.cache
    )
    untrained = _model(config, data.store, resolved)
    plain = probing.predict(untrained, data)
    rng = np.random.default_rng(0)
    for change in (probing.no_history, probing.random_history(data.test_dataloader(), rng)):
        changed = probing.predict(untrained, data, change)
        assert np.isfinite(changed).all()
        assert (changed != plain).any()


def test_probing_needs_a_checkpoint(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="task=probe needs one"):
        settings("dnn", tmp_path, "task=probe")
    config, plain = settings("dnn", tmp_path, "task=probe", f"checkpoint={tmp_path / 'none.ckpt'}")
    assert config.task is Task.probe
    with pytest.raises(UserError, match=r"none\.ckpt is not a file"):
        run(config, plain)
    assert not (tmp_path / "run" / "probes.json").exists()


def test_bars_start_at_one_half() -> None:
    adds = {"value": 0.1, "low": 0.08, "high": 0.12}
    content = {
        "model": {"auc": 0.7},
        "histories": {"no_history": {"auc": 0.6, "model_adds": adds}},
        "features_network": {"auc": 0.6, "model_adds": adds},
        "scores": {"popularity": 0.45},
    }
    axes = plots.probes(content).axes[0]
    assert [round(bar.get_x() + bar.get_width(), 6) for bar in axes.patches if isinstance(bar, Rectangle)] == [
        0.7,
        0.6,
        0.6,
        0.45,
    ]
    whisker = next(line for line in axes.lines if np.array_equal(np.asarray(line.get_ydata()), [1, 1]))
    assert np.asarray(whisker.get_xdata()) == pytest.approx([0.58, 0.62])
