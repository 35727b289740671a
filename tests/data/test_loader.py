"""The published order of rows, and the switches that choose rows and lengths."""

from __future__ import annotations

import threading
from itertools import islice

import numpy as np
import pytest
import torch
from torch import Tensor

from deepinterest.config import Exclude, LeaveLastOutConfig, NegativesConfig, Quirks, SyntheticConfig
from deepinterest.data.batch import Batch
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.loader import PUBLISHED_BUFFER, BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError

LENGTHS = [3, 9, 1, 4, 4, 7, 2, 5, 8, 6, 2, 3]


def pairs() -> tuple[Log, Samples]:
    """Users with one target each, the last event, and one negative."""
    offsets = np.concatenate([[0], np.cumsum(np.array(LENGTHS) + 1)])
    item = np.arange(offsets[-1], dtype=np.int32) % 50 + 1
    log = Log(item, np.arange(offsets[-1]), offsets, 51)
    targets = offsets[1:] - 1
    return log, Samples.of_targets(log, targets, np.full((len(targets), 1), 50, dtype=np.int32))


def published(log: Log, samples: Samples, batch_size: int, world: int = 1) -> BatchLoader:
    return BatchLoader(
        log, samples, batch_size=batch_size, max_history=None, seed=0, length_sorted=True, world=world, shuffle=True
    )


def test_rows_apart_keep_their_order() -> None:
    _, samples = pairs()
    apart = samples.apart()
    assert len(apart) == apart.rows == samples.rows
    assert apart.candidates.tolist() == samples.candidates.tolist()
    assert apart.user.tolist() == np.repeat(samples.user, 2).tolist()


def test_published_order_sorts_runs_of_twenty_batches() -> None:
    log, samples = pairs()
    loader = published(log, samples, batch_size=1)
    batches = list(loader)
    # 24 rows: a run of 20 rows (10 users) longest first, then a run of 4 rows (2 users)
    lengths = [int(b.offsets[-1]) for b in batches]
    assert lengths == [*sorted(np.repeat(LENGTHS[:10], 2).tolist(), reverse=True), 3, 3, 2, 2]
    assert [len(b) for b in published(log, samples, batch_size=7)] == [7, 7, 7, 3]  # a short last batch is kept
    again = [b.candidates.tolist() for b in loader]
    assert again == [b.candidates.tolist() for b in batches]  # every epoch is the same
    assert sorted(loader.row_order().tolist()) == list(range(samples.rows))
    assert [int(c) for b in batches for c in b.candidates] == samples.candidates[loader.row_order()].tolist()


def test_published_order_never_crosses_a_run() -> None:
    log, samples = pairs()
    rows = samples.merged(samples).merged(samples.merged(samples)).merged(samples)  # 120 rows
    loader = published(log, rows, batch_size=3)
    first = np.concatenate(list(loader._sorted or [])[:PUBLISHED_BUFFER])
    assert sorted(first.tolist()) == list(range(60))


def test_published_order_has_no_shares() -> None:
    log, samples = pairs()
    with pytest.raises(UserError, match=r"quirks.length_sorted needs one process, here are 2.*devices=1"):
        published(log, samples, batch_size=4, world=2)


def test_merging_restores_positions() -> None:
    log, samples = pairs()
    whole = Samples.of_targets(log, samples.history_end, np.full((len(samples), 2), 50, dtype=np.int32))

    def part(groups: list[int]) -> Samples:
        return Samples.of_targets(log, whole.history_end[groups], np.full((len(groups), 2), 50, dtype=np.int32))

    merged = part([0, 2, 5, 11]).merged(part([1, 3, 4, 6, 7, 8, 9, 10]))
    for name, values in vars(whole).items():
        assert np.array_equal(getattr(merged, name), values), name


def test_whole_histories_without_a_limit() -> None:
    log, samples = pairs()
    cut = BatchLoader(log, samples, batch_size=100, max_history=3, seed=0)
    whole = BatchLoader(log, samples, batch_size=100, max_history=None, seed=0)
    assert next(iter(cut)).offsets.diff().max() == 3
    assert next(iter(whole)).offsets.diff().tolist() == LENGTHS


def data(tmp_path_factory: pytest.TempPathFactory, quirks: Quirks) -> InteractionData:
    source = SyntheticConfig(users=60, events_per_user=12)
    cache = str(tmp_path_factory.getbasetemp() / "loader-cache")
    return InteractionData(
        source, LeaveLastOutConfig(max_history=4), batch_size=32, eval_batch_size=64, seed=1, cache=cache, quirks=quirks
    )


def test_what_each_switch_changes(tmp_path_factory: pytest.TempPathFactory) -> None:
    plain = data(tmp_path_factory, Quirks())
    train, validation, test = (plain.store.samples[name].rows for name in ("train", "validation", "test"))
    assert plain.train_dataloader().samples.rows == train
    assert plain.val_dataloader().samples.rows == validation

    chosen = data(tmp_path_factory, Quirks(best_of_test=True))
    assert chosen.train_dataloader().samples.rows == train + validation
    assert np.array_equal(chosen.val_dataloader().samples.candidates, plain.store.samples["test"].candidates)
    assert chosen.val_dataloader().samples.rows == test

    whole = data(tmp_path_factory, Quirks(truncate_training_only=True))
    assert max(int(b.offsets.diff().max()) for b in whole.test_dataloader()) > 4
    assert max(int(b.offsets.diff().max()) for b in whole.train_dataloader()) == 4
    assert max(int(b.offsets.diff().max()) for b in plain.test_dataloader()) == 4

    ordered = data(tmp_path_factory, Quirks(length_sorted=True))
    batches = list(ordered.train_dataloader())
    assert all(len(b.offsets) == len(b) + 1 for b in batches)  # groups of one
    first, second = ([b.candidates.tolist() for b in ordered.train_dataloader()] for _ in range(2))
    assert first == second


def negatives(log: Log) -> NegativeSampler:
    return NegativeSampler(log, np.ones(len(log), dtype=bool), NegativesConfig(exclude=Exclude.positive))


def shuffled(prefetch: bool) -> BatchLoader:
    log, samples = pairs()
    options = {"max_history": 5, "seed": 3, "shuffle": True, "auxiliary": negatives(log), "redraw": negatives(log)}
    return BatchLoader(log, samples, batch_size=4, prefetch=prefetch, **options)  # type: ignore[arg-type]


def equal(one: Batch, other: Batch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b
        for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_batches_made_ahead_are_the_same() -> None:
    plain, ahead = shuffled(False), shuffled(True)
    for _ in range(3):  # epochs
        expected = list(plain)
        got = []
        for batch in ahead:
            assert threading.active_count() > 1
            got.append(batch)
        assert len(got) == len(expected) == 6
        assert all(equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("consumed", range(1, 7))
def test_state_counts_what_was_handed_out(prefetch: bool, consumed: int) -> None:
    whole = [*(loader := shuffled(False)), *loader]
    first, second = shuffled(prefetch), shuffled(prefetch)
    before = list(islice(first, consumed))
    threads = threading.active_count()
    second.load_state_dict(first.state_dict())
    after = [*second, *second][: len(whole) - consumed]
    assert threading.active_count() == threads  # none is left behind
    assert all(equal(a, b) for a, b in zip([*before, *after], whole, strict=True))


def test_what_a_batch_made_ahead_raises_is_heard() -> None:
    loader = shuffled(True)

    def fail(*_: object, **__: object) -> Batch:
        raise UserError("No negative was found")

    loader.batch = fail  # type: ignore[method-assign]
    with pytest.raises(UserError, match="No negative was found"):
        list(loader)
