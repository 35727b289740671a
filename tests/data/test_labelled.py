"""protocol=labelled: your own impressions with labels of 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest.config import (
    EventColumns,
    EventFileConfig,
    Exclude,
    LabelledConfig,
    LeaveLastOutConfig,
    NegativesConfig,
    Quirks,
    Refresh,
    Repeats,
    SyntheticConfig,
    TargetsPerUser,
    TemporalConfig,
    TimestampUnit,
)
from deepinterest.data import labelled, sources, store
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.events import Events
from deepinterest.data.layout_export import export
from deepinterest.data.log import Log
from deepinterest.data.protocols import SPLITS
from deepinterest.errors import UserError


def impressions(seed: int = 0, users: int = 20, rows: int = 300, moments: int = 60) -> pl.DataFrame:
    """Few moments, so that users have several impressions at one time; the last user never touches anything."""
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, size=rows)
    return pl.DataFrame(
        {
            "user": user,
            "item": rng.integers(0, 25, size=rows),
            "timestamp": rng.integers(0, moments, size=rows),
            "label": ((rng.random(rows) < 0.4) & (user != users - 1)).astype(np.uint8),
        }
    )


def file(folder: Path, frame: pl.DataFrame, **more: Any) -> EventFileConfig:
    frame.write_parquet(folder / "log.parquet")
    return EventFileConfig(
        path=str(folder / "log.parquet"), columns=EventColumns(label="label"), repeats=Repeats.keep, **more
    )


def rows_of(log: Log, samples: Any, items: pl.Series, users: pl.Series) -> list[tuple[Any, ...]]:
    """(user, history, item, label, time) of each row, raw."""
    found = []
    time = samples.row_time(log)
    for group in range(len(samples)):
        user = samples.user[group]
        history = tuple(items[int(i) - 1] for i in log.item[log.user_offsets[user] : samples.history_end[group]])
        for row in range(samples.candidate_offsets[group], samples.candidate_offsets[group + 1]):
            item = items[int(samples.candidates[row]) - 1]
            found.append((users[int(user)], history, item, int(samples.label[row]), int(time[row])))
    return found


def test_rows_by_hand() -> None:
    frame = pl.DataFrame(
        [
            ("a", 1, 10, 1), ("a", 2, 20, 0), ("a", 3, 20, 1), ("a", 4, 30, 0), ("a", 5, 70, 1), ("a", 6, 80, 0),
            ("b", 9, 15, 0), ("b", 8, 25, 0), ("b", 1, 75, 0), ("b", 2, 85, 1),
        ],
        ["user", "item", "timestamp", "label"], orient="row",
    )  # fmt: skip
    events = Events.build(frame, [], "test", label="label")
    log, items, users = Log.of(events)
    assert users.to_list() == ["a", "b"] and log.user_offsets.tolist() == [0, 3, 4]
    assert items.to_list() == [1, 2, 3, 4, 5, 6, 8, 9]  # those shown in vain too
    result = labelled.impressions(log, items, events.frame, LabelledConfig(train_share=0.6, validation_share=0.2), 0)
    rows = {name: rows_of(log, samples, items, users) for name, samples in result.samples.items()}
    expected = [
        ("a", (), 1, 1, 10), ("a", (1,), 2, 0, 20), ("a", (1,), 3, 1, 20), ("a", (1, 3), 4, 0, 30),
        ("b", (), 9, 0, 15), ("b", (), 8, 0, 25),
    ]  # fmt: skip
    assert sorted(rows["train"]) == sorted(expected)
    assert len(result.samples["train"]) == 4  # a: (), (1,), (1, 3); b: ()
    assert sorted(rows["test"]) == [("a", (1, 3, 5), 6, 0, 80), ("b", (), 2, 1, 85)]
    assert sorted(rows["validation"]) == [("a", (1, 3), 5, 1, 70), ("b", (), 1, 0, 75)]
    assert result.seen.tolist() == [True, True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_against_a_loop(seed: int) -> None:
    frame = impressions(seed)
    events = Events.build(frame, [], "test", seed=seed, label="label")
    log, items, users = Log.of(events)
    result = labelled.impressions(log, items, events.frame, LabelledConfig(), seed)
    found = [row for name in SPLITS for row in rows_of(log, result.samples[name], items, users)]
    expected = []
    for user, item, time, label in frame.rows():
        before = frame.filter((pl.col("user") == user) & (pl.col("label") == 1) & (pl.col("timestamp") < time))
        expected.append((user, tuple(sorted(before["item"])), item, label, time))
    assert sorted((u, tuple(sorted(h)), *rest) for u, h, *rest in found) == sorted(expected)
    for user, history, _, _, time in found:  # oldest first
        touched = frame.filter((pl.col("user") == user) & (pl.col("label") == 1) & (pl.col("timestamp") < time))
        moment: dict[Any, list[int]] = {}
        for item, at in touched.select("item", "timestamp").rows():
            moment.setdefault(at, []).append(item)
        assert [sorted(history[a:b]) for a, b in _cuts([len(moment[at]) for at in sorted(moment)])] == [
            sorted(moment[at]) for at in sorted(moment)
        ]


def _cuts(lengths: list[int]) -> list[tuple[int, int]]:
    ends = np.cumsum(lengths).tolist()
    return list(zip([0, *ends], ends, strict=False))


def test_rows_of_a_user_are_limited_by_a_seeded_sample() -> None:
    events = Events.build(impressions(rows=900), [], "test", label="label")
    log, items, _ = Log.of(events)
    few = LabelledConfig(targets_per_user=TargetsPerUser(train=7, validation=3, test=2))
    first, again, other = (labelled.impressions(log, items, events.frame, few, seed) for seed in (0, 0, 1))
    whole = labelled.impressions(log, items, events.frame, LabelledConfig(), 0)
    for name, most in (("train", 7), ("validation", 3), ("test", 2)):
        samples = first.samples[name]
        owner = np.repeat(samples.user, np.diff(samples.candidate_offsets))
        assert np.bincount(owner).max() == most
        assert samples.candidates.tolist() == again.samples[name].candidates.tolist()
        assert samples.candidates.tolist() != other.samples[name].candidates.tolist()
        lost = first.dropped[f"{name}, beyond targets_per_user"]
        assert samples.rows + lost == whole.samples[name].rows
    assert whole.dropped == {}
    assert first.seen.tolist() == whole.seen.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_other_protocols_drop_and_count_label_0(seed: int, tmp_path: Path) -> None:
    """As if the file had no such rows, also where users are sampled."""
    frame = impressions(seed, rows=600)
    with_labels = file(tmp_path, frame, limit_users=15, seed=seed)
    touches = frame.filter(pl.col("label") == 1)
    (tmp_path / "touches").mkdir()
    plain = replace(file(tmp_path / "touches", touches, limit_users=15, seed=seed), columns=EventColumns())
    for protocol in (TemporalConfig(), LeaveLastOutConfig()):
        one, other = (store.load(store.prepare(d, protocol, str(tmp_path / "cache"))) for d in (with_labels, plain))
        assert one.card["split_hash"] == other.card["split_hash"]
        kept = sources.load(with_labels).frame
        assert one.card["dropped: label 0"] == int((kept["label"] == 0).sum())
        assert one.samples["train"].time is None


def module(data: EventFileConfig, folder: Path, protocol: LabelledConfig | None = None, **more: Any) -> InteractionData:
    auxiliary = NegativesConfig(exclude=Exclude.positive)
    settings = {"batch_size": 32, "eval_batch_size": 50, "seed": 1, "auxiliary": auxiliary, **more}
    return InteractionData(data, protocol or LabelledConfig(), **settings, cache=str(folder / "cache"))


def test_batches_are_the_impressions(tmp_path: Path) -> None:
    frame = impressions(rows=900)
    loaders = module(file(tmp_path, frame), tmp_path)
    held = loaders.store
    names, users = held.item_names(), held.user_names()
    pool = {names[int(item)] for item in held.log.item[held.seen]}
    seen = []
    for loader in (loaders.train_dataloader(), loaders.val_dataloader(), loaders.test_dataloader()):
        for batch in loader:
            assert batch.context is None
            rows = zip(
                (batch.user[batch.history_index] - 1).tolist(),
                batch.candidates.tolist(),
                batch.label.tolist(),
                strict=True,
            )
            seen += [(users[u], int(names[i]), int(y)) for u, i, y in rows]
            if batch.auxiliary_negatives is not None:  # what training saw touched
                assert {names[i] for i in batch.auxiliary_negatives.ravel().tolist()} <= pool
                assert (batch.auxiliary_negatives[:, 0] != batch.history).all()
    assert sorted(seen) == sorted(frame.select("user", "item", "label").rows())
    card = held.card
    assert card["impressions"] == sum(card[f"{name}_rows"] for name in SPLITS) == frame.height
    assert card["events"] == frame["label"].sum() and card["users"] == 20
    assert card["negatives"] == "the impressions with label 0"
    # Vocabularies: training's impressions, in vain or not.
    cut = np.sort(frame["timestamp"].to_numpy())[int(0.8 * frame.height)]
    train = frame.filter(pl.col("timestamp") < cut)
    assert set(held.vocabulary("item").values) == set(train["item"])
    assert set(held.vocabulary("user").values) == set(train["user"])
    assert all(len(score) == held.samples["test"].rows for score in held.probes.values())


def test_refreshing_negatives_leaves_impressions_alone(tmp_path: Path) -> None:
    epoch = LabelledConfig(negatives=NegativesConfig(refresh=Refresh.epoch))
    loader = module(file(tmp_path, impressions()), tmp_path, epoch).train_dataloader()
    epochs = [
        sorted((int(c), int(y)) for b in loader for c, y in zip(b.candidates, b.label, strict=True)) for _ in "ab"
    ]
    assert epochs[0] == epochs[1]


def test_probes_against_a_loop(tmp_path: Path) -> None:
    frame = impressions(rows=900).with_columns(pl.col("timestamp") * 1800)  # half hours
    held = module(replace(file(tmp_path, frame), timestamp_unit=TimestampUnit.s), tmp_path).store
    touched = frame.filter(pl.col("label") == 1)
    names, users, samples = held.item_names(), held.user_names(), held.samples["test"]
    owner = np.repeat(samples.user, np.diff(samples.candidate_offsets))
    time = samples.row_time(held.log) // 1000
    for row in range(samples.rows):
        mine = touched.filter((pl.col("user") == users[int(owner[row])]) & (pl.col("timestamp") < time[row]))
        same = touched.filter(pl.col("item") == int(names[samples.candidates[row]]))
        hour = same.filter((pl.col("timestamp") >= time[row] - 3600) & (pl.col("timestamp") < time[row]))
        assert held.probes["popularity_hour_before"][row] == hour.height
        assert held.probes["in_history"][row] == (int(names[samples.candidates[row]]) in mine["item"])


def test_best_of_test_and_the_published_order_take_impressions_too(tmp_path: Path) -> None:
    frame = impressions(rows=900).with_columns(device=pl.Series([f"d{n % 5}" for n in range(900)]))
    data = file(tmp_path, frame)
    data.columns.context_features = ["device"]
    loaders = module(data, tmp_path, quirks=Quirks(best_of_test=True, length_sorted=True))
    held, loader = loaders.store, loaders.train_dataloader()
    found = []
    for batch in loader:
        assert batch.context is not None
        found += list(zip(batch.candidates.tolist(), batch.label.tolist(), batch.context[:, 0].tolist(), strict=True))
    parts = [held.samples[name] for name in ("train", "validation")]
    assert all(part.context is not None and part.time is not None for part in parts)
    expected = [
        (int(c), float(y), int(x[0]))
        for part in parts
        for c, y, x in zip(part.candidates, part.label, part.context, strict=True)  # type: ignore[arg-type]
    ]
    assert sorted(found) == sorted(expected)


def test_samples_notice_rows_without_their_time(tmp_path: Path) -> None:
    samples = module(file(tmp_path, impressions()), tmp_path).store.samples["train"]
    taken = samples.take(np.array([3, 0]))
    assert taken.time is not None and len(taken.time) == taken.rows
    with pytest.raises(ValueError, match="values of time"):
        replace(samples, candidates=samples.candidates[:2])


CASES: list[tuple[str, Callable[[pl.DataFrame], pl.DataFrame], list[str]]] = [
    (
        "one class in test",
        lambda f: f.with_columns(label=pl.when(pl.col("timestamp") > 50).then(0).otherwise("label")),
        ["only label 0 in the", "rows of test", "protocol.validation_share"],
    ),
    ("one moment", lambda f: f.with_columns(timestamp=5), ["leaves no train target"]),
    ("one class", lambda f: f.with_columns(label=1), ["'label'", "is 1 in all 300 rows"]),
    ("another label", lambda f: f.with_columns(label=pl.Series([2] + [0] * 299)), ["holds 2 in row 1", "0 or 1"]),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refusals(change: Callable[[pl.DataFrame], pl.DataFrame], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        store.prepare(file(tmp_path, change(impressions())), LabelledConfig(), str(tmp_path / "cache"))
    for word in words:
        assert word in str(error.value)


def test_sources_without_labels_and_the_published_layout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"protocol=labelled needs labels.*data=synthetic has none.*columns\.label"):
        store.prepare(SyntheticConfig(users=20), LabelledConfig(), str(tmp_path / "cache"))
    held = module(file(tmp_path, impressions()), tmp_path).store
    with pytest.raises(UserError, match="protocol=labelled has no published layout"):
        export(held, tmp_path / "layout")
    assert not (tmp_path / "layout").exists()


def test_a_core_counts_impressions(tmp_path: Path) -> None:
    frame = impressions(rows=600)
    held = module(file(tmp_path, frame, core=5), tmp_path).store
    assert held.card["impressions"] + held.card.get("dropped: outside the 5-core", 0) == 600
    assert held.card["impressions"] == sum(held.card[f"{name}_rows"] for name in SPLITS)
