"""Protocols, negatives and batches on random logs: nothing of the future is seen, nothing is mixed up."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinterest.config import (
    Distribution,
    Exclude,
    LastEventConfig,
    LeaveLastOutConfig,
    NegativesConfig,
    TargetsPerUser,
    TemporalConfig,
)
from deepinterest.data.loader import BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.probes import probe_scores
from deepinterest.data.protocols import SPLITS, split
from deepinterest.data.samples import Samples, ranges
from deepinterest.errors import UserError

ALL = TargetsPerUser(train=None, validation=None, test=None)
PROTOCOLS = [TemporalConfig(targets_per_user=ALL), LeaveLastOutConfig(targets_per_user=ALL)]


def random_log(seed: int, users: int = 12, items: int = 15, ties: bool = True) -> Log:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 12, size=users)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    gaps = rng.integers(0 if ties else 1, 4, size=offsets[-1])
    time = np.concatenate([np.cumsum(gaps[a:b]) for a, b in itertools.pairwise(offsets)])
    return Log(rng.integers(1, items + 1, size=offsets[-1]).astype(np.int32), time.astype(np.int64), offsets, items + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_no_evaluation_target_is_seen_in_training(protocol, seed):
    log = random_log(seed)
    try:
        result = split(log, protocol, seed=0)
    except UserError:
        return  # a log this small may leave a split empty, and says so
    train, validation, test = (result.targets[name] for name in SPLITS)
    assert not set(train) & set(validation) and not set(validation) & set(test) and not set(train) & set(test)
    assert not result.seen[validation].any() and not result.seen[test].any()
    assert result.seen[train].all()
    for target in train:  # a training history holds seen events only
        start = log.user_offsets[log.user[target]]
        assert result.seen[start:target].all()
    for name in SPLITS:
        assert (log.position[result.targets[name]] >= 1).all()
    known = set(log.item[result.seen])
    assert set(log.item[validation]) <= known and set(log.item[test]) <= known
    if protocol.name == "temporal":
        assert log.time[result.seen].max() < log.time[validation].min()
        assert log.time[validation].max() < log.time[test].min()


def test_leave_last_out_by_hand():
    #      user 0: items 1 2 3 1 | user 1: items 2 1 3
    log = Log(np.array([1, 2, 3, 1, 2, 1, 3], np.int32), np.arange(7), np.array([0, 4, 7]), 4)
    result = split(log, LeaveLastOutConfig(targets_per_user=ALL), seed=0)
    assert result.seen.tolist() == [True, True, False, False, True, False, False]
    assert result.targets["train"].tolist() == [1]
    # Item 3 was never seen in training: user 0's validation target and user 1's test target are dropped and counted.
    assert result.targets["validation"].tolist() == [5]
    assert result.targets["test"].tolist() == [3]
    assert {reason: count for reason, count in result.dropped.items() if count} == {
        "train, without a history": 2,
        "validation, unseen in training": 1,
        "test, unseen in training": 1,
    }


def test_targets_per_user_is_a_seeded_sample():
    log = random_log(1, users=40)
    few = LeaveLastOutConfig(targets_per_user=TargetsPerUser(train=2, validation=1, test=1))
    first, again, other = (split(log, few, seed).targets["train"] for seed in (0, 0, 1))
    assert np.bincount(log.user[first]).max() == 2
    assert first.tolist() == again.tolist() != other.tolist()


def test_a_log_without_test_targets_is_refused():
    log = Log(np.ones(6, np.int32), np.zeros(6, np.int64), np.array([0, 3, 6]), 2)
    with pytest.raises(UserError, match="leaves no"):
        split(log, TemporalConfig(), seed=0)


@given(seed=st.integers(0, 10_000), lone=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_last_event_gives_each_user_one_target(seed, lone):
    log = random_log(seed, users=30)
    offsets = np.concatenate([log.user_offsets, len(log) + np.arange(1, lone + 1)])  # users with one event
    more = np.arange(lone)
    log = Log(np.append(log.item, more + 16).astype(np.int32), np.append(log.time, more), offsets, 20)
    few = TargetsPerUser(train=1, validation=1, test=1)
    result = split(log, LastEventConfig(test_share=0.2, validation_share=0.25), seed)
    assert {name: len(targets) for name, targets in result.targets.items()} == {"train": 18, "validation": 6, "test": 6}
    targets = np.concatenate(list(result.targets.values()))
    assert sorted(targets) == (offsets[1:31] - 1).tolist()  # every user of two events and more, at its last event
    training = np.isin(log.user, log.user[result.targets["train"]])
    assert (result.seen == training).all()  # also the target itself, and nothing of anybody else
    assert not any(result.dropped.values())
    again = split(log, LastEventConfig(targets_per_user=few, test_share=0.2, validation_share=0.25), seed)
    assert all((again.targets[name] == result.targets[name]).all() for name in SPLITS)


def test_last_event_keeps_targets_unseen_in_training():
    # The users' items are their own: no evaluation target can be known to training.
    log = Log(np.arange(1, 21, dtype=np.int32), np.arange(20), np.arange(0, 21, 2), 21)
    result = split(log, LastEventConfig(test_share=0.3, validation_share=0.3), seed=0)
    assert [len(result.targets[name]) for name in SPLITS] == [5, 2, 3]


def test_earlier_targets_of_training_users():
    log = random_log(4, users=20)
    one, three, many = (split(log, LastEventConfig(train_targets=n), seed=0) for n in (1, 3, 1000))
    users = log.user[one.targets["train"]]
    for targets, most in ((three.targets["train"], 3), (many.targets["train"], 1000)):
        after = log.user_offsets[1:][log.user[targets]] - targets  # 1 for a user's last event
        assert after.max() <= most
        possible = np.minimum(np.diff(log.user_offsets)[users] - 1, most)  # the first event has no history
        assert (np.bincount(log.user[targets], minlength=20)[users] == possible).all()
        assert set(log.user[targets]) == set(users)
    for name in ("validation", "test"):
        assert (three.targets[name] == one.targets[name]).all()


def test_the_seed_decides_which_users_are_held_out():
    log = random_log(1, users=40)
    first, again, other = (split(log, LastEventConfig(), seed).targets["test"].tolist() for seed in (0, 0, 1))
    assert first == again != other


def test_last_event_needs_three_users():
    log = random_log(1, users=2)
    with pytest.raises(UserError, match="protocol=last_event leaves no train target"):
        split(log, LastEventConfig(), seed=0)


@pytest.mark.parametrize("distribution", list(Distribution), ids=lambda d: d.name)
def test_whole_pool_draws_what_training_never_saw(distribution):
    item = np.array([1] * 30 + [2] * 10 + [3] * 60, np.int32)
    log = Log(item, np.arange(100), np.array([0, 100]), 4)
    seen = item < 3
    events = np.zeros(20_000, dtype=np.int64)
    shares = {}
    for whole in (False, True):
        config = NegativesConfig(distribution, Exclude.none, time_window=1, whole_pool=whole)
        drawn = NegativeSampler(log, seen, config).draw(np.random.default_rng(0), events, 1)
        shares[whole] = np.bincount(drawn.ravel(), minlength=4)[1:] / len(events)
    expected = {False: [0.75, 0.25, 0], True: [0.3, 0.1, 0.6]}
    if distribution is Distribution.uniform:
        expected = {False: [0.5, 0.5, 0], True: [1 / 3] * 3}
    for whole in (False, True):
        np.testing.assert_allclose(shares[whole], expected[whole], atol=0.015)  # four standard errors
    assert shares[False][2] == 0


@pytest.mark.parametrize("exclude", list(Exclude), ids=lambda e: e.name)
@pytest.mark.parametrize("distribution", list(Distribution), ids=lambda d: d.name)
def test_negatives_keep_to_what_is_excluded(distribution, exclude):
    log = random_log(3, users=60, items=80)
    seen = np.ones(len(log), dtype=bool)
    sampler = NegativeSampler(log, seen, NegativesConfig(distribution, exclude, time_window=0.2))
    events = np.flatnonzero(log.position >= 1)
    drawn = sampler.draw(np.random.default_rng(0), events, 3)
    assert drawn.shape == (len(events), 3) and drawn.min() >= 1
    hits = {"positive": 0, "same_time": 0, "history": 0}
    for event, row in zip(events, drawn, strict=True):
        mine = slice(log.user_offsets[log.user[event]], log.user_offsets[log.user[event] + 1])
        same_time = set(log.item[mine][log.time[mine] == log.time[event]])
        before = set(log.item[mine][log.time[mine] <= log.time[event]])
        hits["positive"] += len({log.item[event]} & set(row))
        hits["same_time"] += len(same_time & set(row))
        hits["history"] += len(before & set(row))
    ruled_out = {"none": [], "positive": ["positive"], "same_time": ["positive", "same_time"]}.get(
        exclude.name, list(hits)
    )
    assert all(hits[name] == 0 for name in ruled_out), hits
    allowed = [name for name in hits if name not in ruled_out]
    assert all(hits[name] > 0 for name in allowed), hits  # what is not excluded does occur


def test_popularity_and_uniform_follow_their_distribution():
    item = np.array([1] * 90 + [2] * 9 + [3], np.int32)
    log = Log(item, np.arange(100), np.array([0, 100]), 4)
    seen = np.ones(100, dtype=bool)
    events = np.zeros(20_000, dtype=np.int64)
    shares = {}
    for distribution in (Distribution.popularity, Distribution.uniform):
        sampler = NegativeSampler(log, seen, NegativesConfig(distribution, Exclude.none))
        drawn = sampler.draw(np.random.default_rng(0), events, 1)
        shares[distribution.name] = np.bincount(drawn.ravel(), minlength=4)[1:] / len(events)
    np.testing.assert_allclose(shares["popularity"], [0.9, 0.09, 0.01], atol=0.01)
    np.testing.assert_allclose(shares["uniform"], [1 / 3] * 3, atol=0.015)


def test_time_matched_negatives_are_as_recent_as_their_positive():
    events = 1000
    log = Log(np.arange(1, events + 1, dtype=np.int32), np.arange(events), np.array([0, events]), events + 1)
    config = NegativesConfig(Distribution.time_matched, Exclude.positive, time_window=0.01)
    sampler = NegativeSampler(log, np.ones(events, bool), config)
    targets = np.arange(events)
    drawn = sampler.draw(np.random.default_rng(0), targets, 1).ravel() - 1  # item i+1 is touched at time i
    assert np.abs(drawn - targets)[20:-20].max() <= 10
    assert np.abs(drawn - targets).max() <= 20  # at the ends the window shifts inwards


def test_a_negative_that_cannot_be_found_is_a_sentence():
    log = Log(np.ones(4, np.int32), np.arange(4), np.array([0, 4]), 2)
    sampler = NegativeSampler(log, np.ones(4, bool), NegativesConfig(exclude=Exclude.positive))
    with pytest.raises(UserError, match="No negative was found"):
        sampler.draw(np.random.default_rng(0), np.array([1]), 1)


def loader_of(log: Log, **kwargs) -> BatchLoader:
    targets = np.flatnonzero(log.position >= 1)
    sampler = NegativeSampler(log, np.ones(len(log), bool), NegativesConfig(exclude=Exclude.positive))
    samples = Samples.of_targets(log, targets, sampler.draw(np.random.default_rng(0), targets, 1))
    settings = {"batch_size": 16, "max_history": 4, "seed": 0, "auxiliary": sampler, **kwargs}
    return BatchLoader(log, samples, **settings)


def test_a_batch_holds_the_events_before_its_target():
    log = random_log(5)
    loader = loader_of(log)
    seen = []
    for batch in loader:
        assert len(batch.offsets) == len(batch.user) + 1 and batch.offsets[-1] == len(batch.history)
        assert batch.auxiliary_negatives.shape == (len(batch.history), 1)
        assert (batch.auxiliary_negatives[:, 0] != batch.history).all()
        for group in range(len(batch.user)):
            user = int(batch.user[group]) - 1
            history = batch.history[batch.offsets[group] : batch.offsets[group + 1]].tolist()
            rows = (batch.history_index == group).nonzero().ravel()
            positive = batch.candidates[rows[batch.label[rows] == 1]].item()
            seen.append((user, tuple(history), positive))
    expected = []
    for event in np.flatnonzero(log.position >= 1):
        start = max(log.user_offsets[log.user[event]], event - 4)
        expected.append((int(log.user[event]), tuple(log.item[start:event].tolist()), int(log.item[event])))
    assert seen == expected


def content(batches) -> list:
    return [(b.history.tolist(), b.candidates.tolist(), b.auxiliary_negatives.tolist()) for b in batches]


def test_epochs_are_shuffled_whole_and_the_same_seed_repeats_them():
    log = random_log(6, users=30)
    first, again = loader_of(log, shuffle=True), loader_of(log, shuffle=True)
    one, two = content(first), content(first)
    assert one != two and [one, two] == [content(again), content(again)]
    assert content(loader_of(log, shuffle=True, seed=1)) != one
    assert sorted(c for _, row, _ in one for c in row) == sorted(c for _, row, _ in two for c in row)


@pytest.mark.parametrize("done", [0, 1, 3, 100])
def test_a_loader_that_loads_a_state_goes_on_with_the_next_batch(done):
    log = random_log(7, users=30)
    whole = loader_of(log, shuffle=True)
    batches = content(whole) + content(whole)
    interrupted = loader_of(log, shuffle=True)
    done = min(done, len(interrupted))
    iterator = iter(interrupted)
    for _ in range(done):
        next(iterator)
    resumed = loader_of(log, shuffle=True)
    resumed.load_state_dict(interrupted.state_dict())
    rest = content(resumed)
    assert rest == batches[done : done + len(rest)] and len(rest) > 0


def test_processes_share_the_groups_without_overlap():
    log = random_log(8, users=31)
    whole = [row for _, row, _ in content(loader_of(log))]
    shares = [[row for _, row, _ in content(loader_of(log, rank=rank, world=2))] for rank in (0, 1)]
    assert sorted(sum(whole, [])) == sorted(sum(shares[0], []) + sum(shares[1], []))
    assert len(loader_of(log, shuffle=True, rank=0, world=2)) == len(loader_of(log, shuffle=True, rank=1, world=2))


def test_redrawn_negatives_change_with_the_epoch_and_keep_the_positives():
    log = random_log(9, users=30)
    sampler = NegativeSampler(log, np.ones(len(log), bool), NegativesConfig(exclude=Exclude.positive))
    loader = loader_of(log, redraw=sampler)
    one, two = list(loader), list(loader)
    for a, b in zip(one, two, strict=True):
        assert (a.candidates[a.label == 1] == b.candidates[b.label == 1]).all()
        assert (a.candidates[a.label == 0] != b.candidates[b.label == 1]).all()
    assert any((a.candidates != b.candidates).any() for a, b in zip(one, two, strict=True))


def test_ranges():
    values, offsets = ranges(np.array([5, 0, 9]), np.array([2, 0, 3]))
    assert values.tolist() == [5, 6, 9, 10, 11] and offsets.tolist() == [0, 2, 2, 5]


def test_probes_against_a_loop():
    log = random_log(10, users=30)
    targets = np.flatnonzero(log.position >= 1)
    rng = np.random.default_rng(0)
    samples = Samples.of_targets(log, targets, rng.integers(1, log.items, size=(len(targets), 1)).astype(np.int32))
    category = np.concatenate([[0], rng.integers(0, 4, size=log.items - 1)])
    seen = rng.random(len(log)) < 0.7
    log.time = log.time * 1_800_000  # half hours
    scores = probe_scores(log, seen, samples, category, max_history=3)
    for row in range(samples.rows):
        target = samples.history_end[row // 2]
        item, now = samples.candidates[row], log.time[target]
        history = log.item[max(log.user_offsets[log.user[target]], target - 3) : target]
        assert scores["popularity"][row] == (log.item[seen] == item).sum()
        recent = (log.item == item) & (log.time >= now - 3_600_000) & (log.time < now)
        assert scores["popularity_hour_before"][row] == recent.sum()
        assert scores["in_history"][row] == (item in history)
        same = (category[history] == category[item]).sum() if category[item] else 0
        assert scores["category_count"][row] == same
