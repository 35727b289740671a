"""The scores against scikit-learn, against hand-worked numbers, and over real processes."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from deepinterest.config import EvaluationConfig, GaucWeights
from deepinterest.training import scores
from deepinterest.training.metrics import ClickMetrics
from deepinterest.training.scores import WeightedAuc, auc_difference

Rows = tuple[np.ndarray, np.ndarray, np.ndarray]


def rows(n: int = 2000, seed: int = 0, users: int = 150, decimals: int | None = 2) -> Rows:
    """(user, label, probability) with ties when rounded."""
    rng = np.random.default_rng(seed)
    probability = rng.random(n)
    label = (rng.random(n) < probability).astype(np.int64)
    if decimals is not None:
        probability = probability.round(decimals)
    return rng.integers(0, users, n), label, probability.astype(np.float32)


@pytest.mark.parametrize("decimals", [1, 3, None])
def test_against_sklearn(decimals: int | None) -> None:
    _, label, probability = rows(decimals=decimals)
    assert scores.auc(label, probability) == pytest.approx(roc_auc_score(label, probability), abs=1e-12)
    clipped = np.clip(probability.astype(np.float64), 1e-7, 1 - 1e-7)
    assert scores.logloss(label, probability) == pytest.approx(log_loss(label, clipped), abs=1e-12)


@pytest.mark.parametrize("weights", list(GaucWeights))
def test_gauc_against_a_loop_over_users(weights: GaucWeights) -> None:
    user, label, probability = rows(n=600)
    values, weight, dropped = [], [], 0
    for one in np.unique(user):
        mine = user == one
        if label[mine].min() == label[mine].max():
            dropped += 1
            continue
        values.append(roc_auc_score(label[mine], probability[mine]))
        weight.append({"impressions": mine.sum(), "clicks": label[mine].sum(), "uniform": 1}[weights.value])
    found = scores.gauc(user, label, probability, weights)
    assert found.value == pytest.approx(np.average(values, weights=weight), abs=1e-12)
    assert (found.users, found.dropped) == (len(values), dropped)
    assert dropped > 0


def test_numbers_by_hand() -> None:
    label, probability = [1, 0, 1, 0], [0.75, 0.75, 0.5, 0.25]
    # pairs: (.75, .75) half, (.75, .25) one, (.5, .75) none, (.5, .25) one
    assert scores.auc(label, probability) == 2.5 / 4
    assert scores.accuracy(label, probability) == 3 / 4
    expected = -(math.log(0.75) + math.log(0.25) + math.log(0.5) + math.log(0.75)) / 4
    assert scores.logloss(label, probability) == pytest.approx(expected)
    # two bins: {.25} of rate 0, and {.75, .75, .5} of mean 2/3 and rate 2/3
    assert scores.calibration_error(label, probability, 2) == pytest.approx(0.25 / 4)
    # user 0 wins half a pair of one, user 7 its only pair, user 9 has no click
    user = [0, 0, 7, 7, 9]
    found = scores.gauc(user, [*label, 0], [*probability, 0.1], GaucWeights.impressions)
    assert found == (0.75, 2, 1)


def test_ties_count_half_and_the_ends_are_allowed() -> None:
    assert scores.auc([0, 1, 0, 1], [0.3] * 4) == 0.5
    assert scores.auc([0, 1], [-0.0, 0.0]) == 0.5
    assert scores.auc([0, 1], [0.0, 1.0]) == 1.0
    assert scores.logloss([0, 1], [1.0, 0.0]) == pytest.approx(-math.log(1e-7), rel=1e-6)
    assert scores.calibration_error([1, 0], [1.0, 0.0], 15) == 0


@pytest.mark.parametrize("label", [[0, 0], [1, 1], []])
def test_one_class_is_nan(label: list[int]) -> None:
    probability = [0.2, 0.4][: len(label)]
    assert math.isnan(scores.auc(label, probability))
    found = scores.gauc([3] * len(label), label, probability, GaucWeights.uniform)
    assert math.isnan(found.value)
    assert (found.users, found.dropped) == (0, min(len(label), 1))


def test_no_rows_are_nan_without_a_warning() -> None:
    found = scores.evaluate([], [], [], EvaluationConfig())
    assert all(math.isnan(found[name]) for name in ("auc", "gauc", "logloss", "accuracy", "ece"))


@pytest.mark.parametrize("wrong", [1.5, -0.1, float("nan")])
def test_scores_outside_the_unit_interval(wrong: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]; row 1"):
        scores.auc([0, 1], [0.5, wrong])


def test_wrong_labels_lengths_and_users() -> None:
    with pytest.raises(ValueError, match="0 or 1; row 0 is 2"):
        scores.auc([2, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match="equal rows"):
        scores.auc([1], [0.5, 0.5])
    with pytest.raises(ValueError, match="User ids"):
        scores.gauc([-1, 0], [0, 1], [0.5, 0.5], GaucWeights.uniform)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 1), st.floats(0, 1, width=32)), max_size=40), st.randoms())
def test_order_does_not_matter_to_the_last_bit(found: list[tuple[int, int, float]], random: object) -> None:
    other = list(found)
    random.shuffle(other)  # type: ignore[attr-defined]
    first, second = (
        scores.evaluate(
            np.array([r[0] for r in table], dtype=np.int64),
            np.array([r[1] for r in table], dtype=np.int64),
            np.array([r[2] for r in table], dtype=np.float32),
            EvaluationConfig(),
        )
        for table in (found, other)
    )
    np.testing.assert_equal(first, second)


def test_weighted_auc_is_the_auc_of_repeated_rows() -> None:
    user, label, probability = rows(n=300, users=20, decimals=1)
    weight = np.random.default_rng(1).integers(0, 4, 20)
    times = weight[user]
    expected = scores.auc(np.repeat(label, times), np.repeat(probability, times))
    assert WeightedAuc(user, label, probability)(weight) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_interval() -> None:
    user, label, good = rows(n=1000, decimals=None)
    noise = np.random.default_rng(3).random(len(good)).astype(np.float32)
    clear = auc_difference([(WeightedAuc(user, label, good), WeightedAuc(user, label, noise))], 150, resamples=200)
    assert clear.significant
    assert clear.low < clear.value < clear.high
    assert clear.value == pytest.approx(scores.auc(label, good) - scores.auc(label, noise))
    same = auc_difference([(WeightedAuc(user, label, good), WeightedAuc(user, label, good))], 150, resamples=20)
    assert (same.value, same.low, same.high, same.significant) == (0, 0, 0, False)


def feed(metric: ClickMetrics, table: Rows, batches: int) -> None:
    for part in np.array_split(np.arange(len(table[0])), batches):
        metric.update(*(torch.from_numpy(column[part]) for column in table))


@pytest.mark.parametrize("batches", [1, 7])
def test_metric_over_batches(batches: int) -> None:
    table = rows()
    metric = ClickMetrics(EvaluationConfig())
    feed(metric, table, batches)
    assert metric.compute() == scores.evaluate(*table, EvaluationConfig())
    for found, given_ in zip(metric.predictions(), table, strict=True):
        np.testing.assert_array_equal(found, given_)
    metric.reset()
    feed(metric, rows(seed=5), 2)
    assert metric.compute() == scores.evaluate(*rows(seed=5), EvaluationConfig())


def test_metric_rejects_uneven_batch() -> None:
    with pytest.raises(ValueError, match="one of each per row"):
        ClickMetrics().update(torch.zeros(2), torch.zeros(2), torch.zeros(3))


def _process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    table = rows()
    for cut in (300, 2000):
        mine = tuple(column[:cut] if rank == 0 else column[cut:] for column in table)
        metric = ClickMetrics(EvaluationConfig())
        if len(mine[0]):
            feed(metric, mine, 3 if rank == 0 else 1)  # type: ignore[arg-type]
        assert metric.compute() == scores.evaluate(*table, EvaluationConfig())
        for _ in range(2):  # a gather leaves the process's own rows as they were
            for found, expected in zip(metric.predictions(), table, strict=True):
                np.testing.assert_array_equal(found, expected)
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_value_of_one(tmp_path: Path) -> None:
    """Uneven shards; with cut 2000 the second process has no rows at all."""
    torch.multiprocessing.start_processes(_process, (str(tmp_path),), nprocs=2, start_method="forkserver")
