"""What must hold of every protocol on any log, and that the same seed gives the same rows in any process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinterest.config import (
    EventColumns,
    EventFileConfig,
    HistoryTies,
    LabelledConfig,
    LastEventConfig,
    LeaveLastOutConfig,
    ProtocolConfig,
    TargetsPerUser,
    TemporalConfig,
)
from deepinterest.data import labelled, store
from deepinterest.data.events import Events
from deepinterest.data.log import Log
from deepinterest.data.protocols import SPLITS, has_history, split
from deepinterest.errors import UserError

FEW = TargetsPerUser(train=3, validation=1, test=2)
PROTOCOLS: list[ProtocolConfig] = [
    *(
        made
        for ties in HistoryTies
        for made in (
            TemporalConfig(targets_per_user=FEW, train_share=0.6, validation_share=0.2, ties=ties),
            LeaveLastOutConfig(targets_per_user=FEW, ties=ties),
            LastEventConfig(test_share=0.2, validation_share=0.2, ties=ties),
        )
    ),
    LabelledConfig(targets_per_user=FEW, train_share=0.6, validation_share=0.2),
]
every_protocol = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: f"{p.name}-{p.ties.name}")


def random_frame(seed: int) -> pl.DataFrame:
    """A few users with at least three events each, ties, and repeats of items."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(12), rng.integers(3, 14, size=12))
    moments = int(rng.integers(5, 60))
    return pl.DataFrame(
        {
            "user": user,
            "item": rng.integers(0, 12, size=len(user)),
            "timestamp": rng.integers(0, moments, size=len(user)),
            "label": rng.integers(0, 2, size=len(user)),
        }
    )


def drawn(frame: pl.DataFrame, protocol: ProtocolConfig, seed: int) -> SimpleNamespace | None:
    """The log and the rows; None where the log is too small for the protocol, which then says so."""
    try:
        events = Events.build(frame, [], "test", seed=seed, label="label")
        if isinstance(protocol, LabelledConfig):
            log, items, _ = Log.of(events)
            result = labelled.impressions(log, items, events.frame, protocol, seed)
        else:
            # Here all rows are events: with few events most logs would be refused.
            events = Events.build(frame, [], "test", seed=seed)
            log, items, _ = Log.of(events)
            result = labelled.draw(log, protocol, seed, lambda stage: None)
    except UserError:
        return None
    return SimpleNamespace(events=events, log=log, result=result)


@every_protocol
@given(seed=st.integers(0, 100_000))
@settings(max_examples=40, deadline=None)
def test_what_holds_of_every_protocol(protocol: ProtocolConfig, seed: int) -> None:
    case = drawn(random_frame(seed), protocol, seed)
    if case is None:
        return
    log, result, is_labelled = case.log, case.result, isinstance(protocol, LabelledConfig)
    is_strict = protocol.ties is HistoryTies.strict
    targets: dict[str, set[int]] = {}
    for name, samples in result.samples.items():
        begin = log.user_offsets[samples.user]
        time = samples.row_time(log)
        group = np.repeat(np.arange(len(samples)), np.diff(samples.candidate_offsets))
        # A history is its user's own and holds nothing of the future: no later event and not the target itself.
        assert (begin <= samples.history_end).all()
        assert (samples.history_end <= log.user_offsets[samples.user + 1]).all()
        for row, of in enumerate(group):
            history = log.time[begin[of] : samples.history_end[of]]
            assert (history < time[row]).all() if is_strict else (history <= time[row]).all()
            if is_strict:  # and it holds everything before
                later = log.time[samples.history_end[of] : log.user_offsets[samples.user[of] + 1]]
                assert (later >= time[row]).all()
        if is_labelled:
            targets[name] = set(result.impressions.rows[name].tolist())
            assert len(targets[name]) == samples.rows
        else:
            targets[name] = set(samples.positive.tolist())
            positives = samples.candidates[samples.label == 1]
            assert (positives == log.item[samples.positive]).all()
            assert (samples.history_end > begin).all()
            if not is_strict:
                assert (samples.history_end == samples.positive).all()
        if name == "train":  # training learns from what it may learn from only
            for of in range(len(samples)):
                assert result.seen[begin[of] : samples.history_end[of]].all()
    assert not targets["train"] & targets["validation"]
    assert not targets["train"] & targets["test"] and not targets["validation"] & targets["test"]
    for name in ("validation", "test"):
        if is_labelled:
            assert not result.impressions.train[sorted(targets[name])].any()
        else:
            assert not result.seen[sorted(targets[name])].any()
    if isinstance(protocol, TemporalConfig | LabelledConfig):
        times = [result.samples[name].row_time(log) for name in SPLITS]
        assert times[0].max() < times[1].min() and times[1].max() < times[2].min()
    if isinstance(protocol, LastEventConfig):
        users = [set(result.samples[name].user.tolist()) for name in SPLITS]
        assert not users[0] & users[1] and not users[0] & users[2] and not users[1] & users[2]

    # Counts add up: every event is a target, or dropped for a reason, or comes before a target.
    kept, lost = sum(map(len, targets.values())), sum(result.dropped.values())
    if is_labelled:
        assert kept + lost == case.events.frame.height
    elif isinstance(protocol, LastEventConfig):
        assert kept + lost == (np.diff(log.user_offsets) >= 2).sum() and (is_strict or lost == 0)
    else:
        assert kept + lost == len(log)


def test_both_rules_draw_the_same_targets() -> None:
    """So that they can be compared; strict leaves out those without an earlier event and draws others instead."""
    for seed in range(10):
        events = Events.build(random_frame(seed).drop("label"), [], "test", seed=seed)
        log, _, _ = Log.of(events)
        strict, order = (split(log, LeaveLastOutConfig(targets_per_user=FEW, ties=ties), seed) for ties in HistoryTies)
        for name in SPLITS:
            chosen, whole = set(strict.targets[name].tolist()), order.targets[name]
            fit = has_history(log, HistoryTies.strict)[whole]
            assert {int(target) for target in whole[fit]} <= chosen and not chosen & set(whole[~fit].tolist())
            assert len(chosen) <= len(whole)


@every_protocol
def test_the_log_is_large_enough_most_of_the_time(protocol: ProtocolConfig) -> None:
    """Otherwise the properties above would hold of nothing."""
    assert sum(drawn(random_frame(seed), protocol, seed) is not None for seed in range(30)) >= 15


CODE = """
import sys
from deepinterest.config import *
from deepinterest.data import store
data = EventFileConfig(path=sys.argv[1], columns=EventColumns(label="label", context_features=["device"]), seed=3)
for protocol in (TemporalConfig(), LeaveLastOutConfig(), LastEventConfig(), LabelledConfig()):
    print(*(store.load(store.prepare(data, protocol, sys.argv[2])).card[k] for k in ("split_hash", "vocabulary_hash")))
"""


def test_the_same_seed_gives_the_same_rows_in_four_processes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": rng.integers(0, 300, size=9000),
            "item": rng.integers(0, 200, size=9000),
            "timestamp": rng.integers(0, 900, size=9000),  # with ties
            "label": rng.integers(0, 2, size=9000),
            "device": rng.integers(0, 9, size=9000),
        }
    )
    path = tmp_path / "log.parquet"
    frame.write_parquet(path)
    columns = EventColumns(label="label", context_features=["device"])
    here = [
        store.load(
            store.prepare(EventFileConfig(path=str(path), columns=columns, seed=3), protocol, str(tmp_path / "here"))
        ).card
        for protocol in (TemporalConfig(), LeaveLastOutConfig(), LastEventConfig(), LabelledConfig())
    ]
    expected = "".join(f"{card['split_hash']} {card['vocabulary_hash']}\n" for card in here)
    assert len(set(expected.split())) == 8
    # Two caches for four processes at once: each is filled by one of two, and the number of threads differs.
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(path), str(tmp_path / f"cache{number % 2}")],
            stdout=subprocess.PIPE,
            text=True,
            env={"POLARS_MAX_THREADS": str(number + 1), "PATH": "", "HOME": str(tmp_path)},
        )
        for number in range(4)
    ]
    answers = [process.communicate(timeout=300)[0] for process in processes]
    assert answers == [expected] * 4

    other = EventFileConfig(path=str(path), columns=columns, seed=4)
    changed = store.load(store.prepare(other, LabelledConfig(targets_per_user=FEW), str(tmp_path / "here"))).card
    assert changed["split_hash"] not in expected
