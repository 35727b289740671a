"""User, item and context features: from the columns of a file into every batch, as ids of training's values only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deepinterest import experiment
from deepinterest.config import (
    EventColumns,
    EventFileConfig,
    Exclude,
    LabelledConfig,
    LastEventConfig,
    LeaveLastOutConfig,
    NegativesConfig,
    ProtocolConfig,
    Refresh,
    TemporalConfig,
)
from deepinterest.data import sources, store
from deepinterest.data.datamodule import InteractionData
from deepinterest.data.events import Events
from deepinterest.data.layout_export import export
from deepinterest.data.sources import event_file
from deepinterest.data.store import SPLITS, Store
from deepinterest.data.vocabulary import Buckets, Vocabulary, load
from deepinterest.errors import UserError

COLUMNS = EventColumns(
    category="kind",
    user_features=["gender", "age"],
    item_features=["brand", "price"],
    context_features=["device", "load"],
    numeric=["age", "price", "load"],
)


def log(users: int = 40, events: int = 8, items: int = 30) -> pl.DataFrame:
    """Every feature is a function of its owner, so that a batch can be checked against it."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(users), events)
    item = rng.integers(0, items, size=len(user))
    time = 1_700_000_000 + 100 * np.tile(np.arange(events), users) + rng.integers(0, 90, size=len(user))
    return pl.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in item],
            "timestamp": time,
            "kind": [f"k{i % 4}" for i in item],
            "gender": [("f", "m", None)[u % 3] for u in user],
            "age": [None if u % 7 == 0 else 20 + int(u) for u in user],
            "brand": [f"b{i % 5}" if i % 6 else None for i in item],
            "price": [float(i) for i in item],
            "device": [("phone", "desk", None)[t % 3] for t in time],
            "load": (time % 50).astype(float),
            "clicked": rng.integers(0, 2, size=len(user)),
        }
    )


def source(
    folder: Path, frame: pl.DataFrame | None = None, suffix: str = ".parquet", **columns: Any
) -> EventFileConfig:
    path = folder / f"log{suffix}"
    frame = log() if frame is None else frame
    frame.write_parquet(path) if suffix == ".parquet" else frame.write_csv(path)
    return EventFileConfig(path=str(path), columns=replace(COLUMNS, **columns), buckets=4)


def module(data: EventFileConfig, protocol: ProtocolConfig, folder: Path) -> InteractionData:
    auxiliary = NegativesConfig(exclude=Exclude.positive)
    cache = str(folder / "cache")
    return InteractionData(data, protocol, batch_size=32, eval_batch_size=50, seed=1, auxiliary=auxiliary, cache=cache)


def ids(held: Store, raw: pl.DataFrame) -> np.ndarray:
    return np.stack([held.vocabulary(name).encode(raw[name]) for name in raw.columns], axis=1)


PROTOCOLS = [TemporalConfig(), LeaveLastOutConfig(), LastEventConfig(), LabelledConfig()]


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
def test_features_of_every_row_in_every_batch(protocol: ProtocolConfig, tmp_path: Path) -> None:
    labelled = isinstance(protocol, LabelledConfig)
    data = source(tmp_path, label="clicked" if labelled else None)
    loaders = module(data, protocol, tmp_path)
    held, frame = loaders.store, log()
    names, users = held.item_names(), list(held.user_names())

    # Catalogues: what the file says of each item and user, by the vocabularies.
    of_item = frame.unique("item").select("item", "kind", "brand", "price").rename({"kind": "category"})
    at = [names.index(item) for item in of_item["item"]]
    assert (held.catalogue[at] == ids(held, of_item)).all()
    of_user = frame.unique("user").select("user", "gender", "age")
    at = [users.index(user) + 1 for user in of_user["user"]]
    assert (held.user_catalogue[at] == ids(held, of_user)).all()
    assert not held.catalogue[0].any() and not held.user_catalogue[0].any()
    sizes = [len(held.vocabulary(name)) for name in ("item", "category", "brand", "price")]
    assert held.sizes == sizes and sizes[-1] == 5
    assert held.user_sizes[1:] == [3, 5] and held.context_sizes == [3, 5]
    assert held.category() is not None and (held.category() == held.catalogue[:, 1]).all()
    assert held.user_features().columns == ["user", "gender", "age"]

    # Context: that of a row's own event. Times are unique for a user but for a few ties, which share their context.
    context = {
        (user, time): tuple(row)
        for user, time, row in zip(
            frame["user"], frame["timestamp"], ids(held, frame.select("device", "load")).tolist(), strict=True
        )
    }
    for name, loader in zip(
        SPLITS, (loaders.train_dataloader(), loaders.val_dataloader(), loaders.test_dataloader()), strict=True
    ):
        samples = held.samples[name]
        times = samples.row_time(held.log) // 1000
        owner = np.repeat(samples.user, np.diff(samples.candidate_offsets))
        expected = sorted((int(u), *context[users[u], t]) for u, t in zip(owner, times.tolist(), strict=True))
        found = []
        for batch in loader:
            assert batch.context is not None and batch.context.shape == (len(batch), 2)
            user = (batch.user[batch.history_index] - 1).tolist()
            found += [(u, *row) for u, row in zip(user, batch.context.tolist(), strict=True)]
            if not labelled:  # a negative is asked for in its positive's context
                assert (batch.context[batch.label == 0] == batch.context[batch.label == 1]).all()
        assert sorted(found) == expected
    assert held.card["item features"] == "brand (5 values), price (4 buckets)"
    assert held.card["user features"] == "gender (2 values), age (4 buckets)"
    assert held.card["context features"] == "device (2 values), load (4 buckets)"


def test_only_training_makes_the_vocabularies(tmp_path: Path) -> None:
    """Values and extremes that only evaluation has are unknown, or fall into training's outer bucket."""
    frame = log()
    cut = float(np.sort(frame["timestamp"].to_numpy())[int(0.8 * frame.height)])
    late = pl.col("timestamp") >= cut
    frame = frame.with_columns(
        device=pl.when(late).then(pl.lit("watch")).otherwise("device"),
        load=pl.when(late).then(1e9).otherwise("load"),
    )
    held = store.load(store.prepare(source(tmp_path, frame), TemporalConfig(), str(tmp_path / "cache")))
    assert set(held.vocabulary("device").values) == {"phone", "desk"}
    assert held.vocabulary("load").values.max() < 50
    assert held.log.context is not None
    target = held.samples["test"].history_end
    assert (held.log.context[target] == [0, 4]).all()
    assert len(np.unique(held.log.context[held.seen][:, 1])) == 4


def test_a_redrawn_negative_keeps_the_context(tmp_path: Path) -> None:
    protocol = LeaveLastOutConfig(negatives=NegativesConfig(refresh=Refresh.epoch))
    for batch in module(source(tmp_path), protocol, tmp_path).train_dataloader():
        assert batch.context is not None
        assert (batch.context[batch.label == 0] == batch.context[batch.label == 1]).all()


def test_features_change_no_draw(tmp_path: Path) -> None:
    plain = replace(source(tmp_path), columns=EventColumns(category="kind"))
    both = [module(data, TemporalConfig(), tmp_path).store for data in (plain, source(tmp_path))]
    assert both[0].card["split_hash"] == both[1].card["split_hash"]
    assert both[0].catalogue.tolist() == both[1].catalogue[:, :2].tolist()
    assert both[0].log.context is None and both[0].context_sizes == []
    assert next(iter(module(plain, TemporalConfig(), tmp_path).train_dataloader())).context is None
    assert not any("features" in key for key in both[0].card)


def test_text_files_give_the_same(tmp_path: Path) -> None:
    frames = [event_file.load(source(tmp_path, suffix=suffix)).frame for suffix in (".parquet", ".csv")]
    assert frames[0].equals(frames[1])
    assert [frames[0].schema[name] for name in ("age", "price", "load", "gender")] == [*[pl.Float64] * 3, pl.String]


def test_a_float_column_is_a_quantity_and_a_whole_number_a_category(tmp_path: Path) -> None:
    data = source(tmp_path, numeric=[])
    schema = event_file.load(data).frame.schema
    assert (schema["age"], schema["price"]) == (pl.Int64, pl.Float64)


def test_one_value_per_user_and_item() -> None:
    frame = pl.DataFrame(
        {
            "user": [1, 1, 1, 2, 2, 3],
            "item": [1, 2, 3, 1, 2, 3],
            "timestamp": range(6),
            "city": ["a", "b", "b", None, "c", None],
            "price": [1.0, float("nan"), 3.0, 2.0, None, 3.0],
            "flag": [True, False, None, True, True, False],
        }
    )
    events = Events.build(frame, ["price"], "test", user_features=["city"], context_features=["flag"])
    assert events.frame["city"].to_list() == ["b", "b", "b", "c", "c", None]
    assert sorted(events.frame.select("item", "price").unique().rows()) == [(1, 1.0), (2, None), (3, 3.0)]
    assert events.frame.sort("timestamp")["flag"].to_list() == frame["flag"].to_list()  # context stays the event's
    assert events.notes == {"items with several values of price": 1, "users with several values of city": 1}


def test_context_does_not_bring_back_the_order_of_the_file() -> None:
    frame = pl.DataFrame(
        {"user": [1] * 40, "item": [1, 2] * 20, "timestamp": [5] * 40, "device": [f"d{n % 7}" for n in range(40)]}
    )
    orders = [
        Events.build(rows, [], "test", context_features=["device"]).frame
        for rows in (frame, frame.sample(40, shuffle=True))
    ]
    assert orders[0].equals(orders[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"item_features": ["brnd"], "numeric": []},
            ["no column 'brnd'", "data.columns.item_features", "did you mean brand?"],
        ),
        ({"item_features": ["gender"]}, ["data.columns.user_features", "'gender'", "data.columns.item_features"]),
        ({"context_features": ["kind"]}, ["'kind'", "data.columns.category"]),
        ({"context_features": ["timestamp"]}, ["'timestamp'", "data.columns.context_features"]),
        ({"timestamp": "age", "user_features": [], "context_features": ["timestamp"]}, ["'timestamp'", "rename"]),
        ({"numeric": ["price", "height"]}, ["data.columns.numeric", "'height'", "brand, price, gender"]),
        ({"numeric": ["brand", "price"]}, ["column 'brand'", "'b", "row ", "no number"]),
    ],
)
def test_settings_that_cannot_be(change: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        sources.load(source(tmp_path, **change))
    for word in words:
        assert word in str(error.value)


def test_values_that_cannot_be(tmp_path: Path) -> None:
    bad = {
        "price": (pl.Series([1.0, float("inf")]), "'price' holds inf in row 2"),
        "brand": (pl.Series([["a"], ["b"]]), "'brand' is of type List"),
    }
    for name, (values, words) in bad.items():
        frame = log().head(2).with_columns(values.alias(name))
        with pytest.raises(UserError, match=words.replace("(", r"\(")):
            event_file.load(source(tmp_path, frame))


def test_events_refuse_names_with_a_meaning() -> None:
    frame = pl.DataFrame({"user": [1], "item": [1], "timestamp": [1], "x": [1]})
    for features, words in ((["user"], "can't be called 'user'"), (["x", "x"], "'x' is named twice")):
        with pytest.raises(UserError, match=words):
            Events.build(frame, [], "test", user_features=features)


def test_names_that_no_file_could_have(tmp_path: Path) -> None:
    frame = log().rename({"brand": "brand/maker", "device": "Gerät: 1"})
    data = source(tmp_path, frame, item_features=["brand/maker"], context_features=["Gerät: 1"], numeric=["age"])
    held = module(data, TemporalConfig(), tmp_path).store
    assert len(held.vocabulary("brand/maker")) == 6 and len(held.vocabulary("Gerät: 1")) == 3


def test_brand_is_no_category(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = source(tmp_path, category=None, item_features=["brand"], numeric=["age", "load"])
    held = module(data, LastEventConfig(), tmp_path).store
    assert held.category() is None and "category_count" not in held.probes and held.card["categories"] == 0
    assert held.card["item features"] == "brand (5 values)"
    export(held, tmp_path / "layout")
    assert "no place for brand (5 values), gender (2 values), age (4 buckets), device" in caplog.text
    assert (tmp_path / "layout" / "item-info").read_text().splitlines()[0].split("\t")[1:] == ["default_cat"]


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize(("model", "protocol"), [("dien", "temporal"), ("din", "labelled")])
def test_a_whole_run(model: str, protocol: str, settings: Callable[..., Any], tmp_path: Path) -> None:
    """By settings alone; the predictions are the test rows, in order."""
    log(users=60).write_parquet(tmp_path / "log.parquet")
    config, plain = settings(
        model, tmp_path, "data=events", f"data.path={tmp_path / 'log.parquet'}", f"protocol={protocol}",
        "data.columns.user_features=[gender,age]", "data.columns.item_features=[brand,price]",
        "data.columns.context_features=[device,load]", "data.columns.numeric=[age]", "data.buckets=4",
        *(["data.columns.label=clicked"] if protocol == "labelled" else []),
    )  # fmt: skip
    metrics = experiment.run(config, plain)
    (folder,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    held = store.load(folder)
    samples = held.samples["test"]
    rows = pl.read_parquet(tmp_path / "run" / "predictions.parquet")
    assert rows["label"].to_list() == samples.label.tolist()
    names, users = held.item_names(), held.user_names()
    owner = np.repeat(samples.user, np.diff(samples.candidate_offsets))
    assert rows["item"].to_list() == [names[item] for item in samples.candidates]
    assert rows["user"].to_list() == [users[int(user)] for user in owner]
    assert 0 <= metrics["test/auc"] <= 1
    weights = torch.load(tmp_path / "run" / "best.ckpt", weights_only=True)["state_dict"]
    shapes = {name: tuple(value.shape) for name, value in weights.items() if ".tables." in name}
    sizes = {"items": held.sizes, "users": held.user_sizes[1:], "context": held.context_sizes}
    assert shapes == {
        f"network.{part}.tables.{n}.weight": (size, 4) for part, held in sizes.items() for n, size in enumerate(held)
    }


# ------------------------------------------------------------------------------------------------------------- buckets


def test_buckets_hold_equally_many() -> None:
    values = pl.Series(np.random.default_rng(0).permutation(1000).astype(float))
    ids = Buckets.of_counts(values, np.ones(1000, dtype=np.int64), 20).encode(values)
    assert np.bincount(ids).tolist() == [0, *[50] * 20]
    assert (np.diff(ids[np.argsort(values.to_numpy())]) >= 0).all()


def test_buckets_by_hand(tmp_path: Path) -> None:
    values = pl.Series([5.0, 1.0, None, 2.0, 9.0, float("nan")])
    buckets = Buckets.of_counts(values, np.array([1, 8, 100, 1, 0, 100]), 5)
    assert buckets.values.to_list() == [1.0, 2.0]  # 8 of 10 occurrences are 1; 9 has none; the unknown don't count
    assert buckets.encode(pl.Series([0.0, 1.0, 1.9, 2.0, 100.0, None, float("nan")])).tolist() == [1, 1, 1, 2, 2, 0, 0]
    assert len(buckets) == 3
    buckets.save(tmp_path / "b.parquet")
    again = load(tmp_path / "b.parquet")
    assert isinstance(again, Buckets) and again.fingerprint() == buckets.fingerprint()
    assert again.fingerprint() != Buckets(pl.Series([1.0, 2.5])).fingerprint()
    Vocabulary(pl.Series(["x"])).save(tmp_path / "v.parquet")
    assert isinstance(load(tmp_path / "v.parquet"), Vocabulary)


def test_buckets_without_training_values() -> None:
    buckets = Buckets.of_counts(pl.Series([1.0, None]), np.array([0, 5]), 20)
    assert len(buckets) == 1
    assert buckets.encode(pl.Series([1.0, None])).tolist() == [0, 0]
