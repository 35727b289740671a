"""A log in partitions becomes what one process makes of it: the same arrays, vocabularies and card."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest.config import (
    Engine,
    EventColumns,
    EventFileConfig,
    LabelledConfig,
    LastEventConfig,
    LeaveLastOutConfig,
    NegativesConfig,
    ProtocolConfig,
    Repeats,
    TargetsPerUser,
    TemporalConfig,
    Ties,
)
from deepinterest.data import partitions, store
from deepinterest.data.events import draws_at
from deepinterest.errors import UserError

COLUMNS = EventColumns(
    category="category", item_features=["price"], user_features=["age", "town"], context_features=["device", "hour"]
)


def events(folder: Path, files: int = 4, *, text: bool = True, ending: str = "parquet") -> EventFileConfig:
    """Many files of many users' baskets: values that contradict each other, gaps, rows that stand there twice."""
    rng = np.random.default_rng(3)
    count = 2400
    item = rng.integers(60, size=count)
    user = rng.integers(90, size=count) ** 2 - 50
    frame = pl.DataFrame(
        {
            "user": [f"u{n}" for n in user] if text else user,
            "item": item,
            "timestamp": 1_700_000_000_000 + rng.integers(300, size=count) * 60_000,
            "category": pl.Series([f"c{n % 7}" if n % 11 else None for n in item + (rng.random(count) < 0.1)]),
            "price": np.where(rng.random(count) < 0.2, None, (item * 1.5 + rng.integers(2, size=count))).astype(float),
            "age": (user % 50 + rng.integers(2, size=count)).astype(float),
            "town": pl.Series([f"t{n % 5}" if n % 3 else None for n in user]),
            "device": [("web", "app", None)[n] for n in rng.integers(3, size=count)],
            "hour": rng.integers(24, size=count),
            "label": (rng.random(count) < 0.4).astype(np.int8),
        }
    )
    # The same row twice, mostly in two files, and the same event with another label, device and hour.
    other = frame[50:90].with_columns(
        (pl.lit(1, pl.Int8) - pl.col("label")).alias("label"), pl.col("device").reverse(), pl.col("hour").reverse()
    )
    frame = pl.concat([frame, frame[:50], other])
    folder.mkdir(exist_ok=True)
    for number in range(files):
        part = frame.gather_every(files, number)
        if ending == "csv":
            part.write_csv(folder / f"part-{number}.csv")
        else:
            part.write_parquet(folder / f"part-{number}.parquet")
    return EventFileConfig(path=str(folder / f"part-*.{ending}"), columns=COLUMNS)


def equal(one: Path, other: Path) -> None:
    """Byte for byte: arrays, vocabularies, catalogues and the card."""
    files = sorted(path.name for path in one.iterdir())
    assert files == sorted(path.name for path in other.iterdir())
    assert {"item.npy", "train_candidates.npy", "card.json", "vocabulary_item.parquet", "items.parquet"} <= set(files)
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def both(data: EventFileConfig, protocol: ProtocolConfig, folder: Path, **how: Any) -> tuple[Path, Path]:
    """The folders of one process and of partitions."""
    how = {"partitions": 5, **how}
    return (
        store.prepare(data, protocol, str(folder / "whole")),
        store.prepare(replace(data, **how), protocol, str(folder / "parts")),
    )


PROTOCOLS: dict[str, ProtocolConfig] = {
    "temporal": TemporalConfig(targets_per_user=TargetsPerUser(3, 1, 1)),
    "leave_last_out": LeaveLastOutConfig(negatives=NegativesConfig(per_positive=2)),
    "last_event": LastEventConfig(),
    "labelled": LabelledConfig(targets_per_user=TargetsPerUser(4, None, None)),
}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *((name, {}) for name in PROTOCOLS),
        ("temporal", {"label": True}),
        ("temporal", {"label": True, "limit_users": 30}),
        ("temporal", {"limit_users": 30, "seed": 4, "min_item_count": 3}),
        ("leave_last_out", {"ties": Ties.file, "core": 3}),
        ("labelled", {"ties": Ties.file, "text": False}),
        ("labelled", {"limit_users": 30}),
        ("temporal", {"text": False, "partitions": 100}),  # more than users: some are empty
        ("leave_last_out", {"ending": "csv", "files": 7}),
        ("temporal", {"files": 1}),
        ("labelled", {"repeats": Repeats.keep, "ties": Ties.file}),
        ("temporal", {"repeats": Repeats.keep, "limit_users": 30}),
    ],
    ids=str,
)
def test_partitions_change_nothing(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    change, protocol = dict(change), PROTOCOLS[name]
    source = {name: change.pop(name) for name in ("text", "ending", "files") if name in change}
    data = events(tmp_path / "log", **source)
    if change.pop("label", name == "labelled"):
        data.columns = replace(data.columns, label="label")
    how = {"partitions": change.pop("partitions", 5)}
    whole, parts = both(replace(data, **change), protocol, tmp_path, **how)
    equal(whole, parts)
    assert sorted(path.name for path in parts.parent.iterdir()) == [parts.name, f"{parts.name}.lock"]
    # what makes it hard is there
    card = json.loads((whole / "card.json").read_text())
    assert card["note: items with several values of price"] > 0
    kept = data.repeats is Repeats.keep or change.get("repeats") is Repeats.keep
    assert card[f"{'note' if kept else 'dropped'}: repeats of user, item and time"] >= 10
    log = store.load(whole).log
    assert ((np.diff(log.time) == 0) & (np.diff(log.user) == 0)).any()


def test_without_features_and_with_another_seed(tmp_path: Path) -> None:
    data = replace(events(tmp_path / "log"), columns=EventColumns())
    whole, parts = both(data, LeaveLastOutConfig(), tmp_path)
    equal(whole, parts)
    other, _ = both(replace(data, seed=1), LeaveLastOutConfig(), tmp_path)
    order = [np.load(folder / "item.npy") for folder in (whole, other)]
    assert len(order[0]) == len(order[1]) and (order[0] != order[1]).any()  # ties are drawn


def test_ids_that_are_numbers_in_some_files(tmp_path: Path) -> None:
    data = events(tmp_path / "log", text=False, ending="csv")
    path = tmp_path / "log" / "part-2.csv"
    frame = pl.read_csv(path)
    frame.with_columns(pl.format("{}x", "item").alias("item"), pl.lit(None).alias("price")).write_csv(path)
    whole, parts = both(data, TemporalConfig(), tmp_path)
    equal(whole, parts)
    names = store.load(parts).item_names()
    assert "7" in names and "7x" in names


@pytest.mark.parametrize("places", [[], [0], [5, 5, 3], [65_535, 65_536, 200_000, 131_072, 1]])
def test_draws_at_places_are_those_of_the_whole(places: list[int]) -> None:
    whole = np.random.default_rng([7, 1]).random(200_001)
    assert draws_at([7, 1], np.array(places, dtype=np.int64)).tolist() == whole[places].tolist()


def test_partition_of_a_user_is_the_same_for_numbers_and_text() -> None:
    numbers = pl.Series([5, -3, 5, 1 << 40])
    found = partitions.partition_of(numbers, 7).to_list()
    assert found == partitions.partition_of(numbers.cast(pl.String), 7).to_list()
    assert found[0] == found[2]
    assert len(set(partitions.partition_of(pl.Series(range(1000)), 7).to_list())) == 7


def test_the_cut_and_the_engine_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    data = events(tmp_path / "log")
    first = store.prepare(data, TemporalConfig(), str(tmp_path / "cache"))
    written = (first / "card.json").stat().st_mtime_ns
    assert store.prepare(replace(data, partitions=9), TemporalConfig(), str(tmp_path / "cache")) == first
    assert (first / "card.json").stat().st_mtime_ns == written


def test_goes_on_with_what_a_killed_preparation_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = replace(events(tmp_path / "log"), partitions=4)
    tasks: list[tuple[str, int]] = []

    def counted(name: str) -> Callable[..., dict[str, Any]]:
        task = getattr(partitions, f"_{name}")

        def run(*arguments: Any) -> dict[str, Any]:
            if len(tasks) == killed_at:
                raise KeyboardInterrupt
            tasks.append((name, arguments[1] if name == "read" else arguments[0]))
            return dict(task(*arguments))

        return run

    for name in ("read", "count", "order"):
        monkeypatch.setattr(partitions, f"_{name}", counted(name))
    killed_at = 6
    with pytest.raises(KeyboardInterrupt):
        store.prepare(data, TemporalConfig(), str(tmp_path / "parts"))
    killed_at = -1
    store.prepare(data, TemporalConfig(), str(tmp_path / "parts"))
    assert tasks == [(name, number) for name in ("read", "count", "order") for number in range(4)]  # none twice
    monkeypatch.undo()
    equal(*both(data, TemporalConfig(), tmp_path, partitions=4))


def sentence(data: EventFileConfig, folder: Path) -> str:
    with pytest.raises(UserError) as error:
        store.prepare(data, TemporalConfig(), str(folder / "cache"))
    assert not [path for path in (folder / "cache").iterdir() if path.is_dir()]
    return str(error.value)


def test_refusals_name_the_file(tmp_path: Path) -> None:
    data = replace(events(tmp_path / "log"), partitions=3)
    path = tmp_path / "log" / "part-1.parquet"
    frame = pl.read_parquet(path)
    frame.with_columns(pl.when(pl.int_range(pl.len()) == 4).then(None).otherwise("user").alias("user")).write_parquet(
        path
    )
    text = sentence(data, tmp_path)
    assert "part-1.parquet" in text and "row 5" in text
    frame.with_columns(pl.col("price").fill_nan(None).cast(pl.Int64)).write_parquet(path)
    text = sentence(data, tmp_path)
    assert "'price'" in text and "part-1.parquet" in text and "data.columns.numeric" in text
    frame.write_parquet(path)
    labelled = replace(data, columns=replace(COLUMNS, label="label"))
    for number in range(4):
        file = tmp_path / "log" / f"part-{number}.parquet"
        pl.read_parquet(file).with_columns(label=1).write_parquet(file)
    assert "label' is 1 in all 2490 rows" in sentence(labelled, tmp_path)
    (tmp_path / "log" / "part-9.parquet").write_bytes(b"")  # an empty part is none
    store.prepare(data, TemporalConfig(), str(tmp_path / "cache"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.csv").write_bytes(b"")
    (tmp_path / "empty" / "b.csv").write_text("user,item,timestamp\n")
    empty = EventFileConfig(path=str(tmp_path / "empty" / "*.csv"), partitions=3)
    assert "is empty" in sentence(empty, tmp_path / "empty")
    (tmp_path / "empty" / "b.txt").write_text("x")
    assert "'.csv', '.txt'" in _refused(replace(empty, path=str(tmp_path / "empty" / "*")))
    assert "no file fits" in _refused(replace(empty, path=str(tmp_path / "empty" / "*.arrow")))


def _refused(data: EventFileConfig) -> str:
    with pytest.raises(UserError) as error:
        store.prepare(data, TemporalConfig(), None)
    return str(error.value)


# ----------------------------------------------------------------------------------------------------------------- Ray


def test_ray_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    data = replace(events(tmp_path / "log"), partitions=3, engine=Engine.ray)
    assert 'pip install -e ".[ray]"' in sentence(data, tmp_path)


@pytest.mark.slow
def test_on_ray(tmp_path: Path) -> None:
    """A Ray of this machine with two workers."""
    ray = pytest.importorskip("ray", reason='Ray is not installed: pip install -e ".[ray]"')
    data = events(tmp_path / "log")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        for name, protocol in PROTOCOLS.items():
            if name == "labelled":
                data = replace(data, columns=replace(data.columns, label="label"))
            equal(*both(data, protocol, tmp_path / name, engine=Engine.ray))
        path = tmp_path / "log" / "part-1.parquet"
        pl.read_parquet(path).with_columns(user=pl.lit(None, pl.String)).write_parquet(path)
        assert "part-1.parquet" in sentence(replace(data, partitions=3, engine=Engine.ray), tmp_path)
    finally:
        ray.shutdown()
