"""Order, sampling and repairs of events; vocabularies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from deepinterest.config import Repeats, Ties
from deepinterest.data import catalogue
from deepinterest.data.core import keep_core
from deepinterest.data.events import Events
from deepinterest.data.log import Log
from deepinterest.data.vocabulary import Vocabulary
from deepinterest.errors import UserError


def baskets() -> pl.DataFrame:
    """40 users with 5 baskets of 6 items."""
    user, basket, slot = (a.ravel() for a in np.meshgrid(np.arange(40), np.arange(5), np.arange(6), indexing="ij"))
    item = [f"i{(7 * u + 3 * b) % 11 + 2 * s:02d}" for u, b, s in zip(user, basket, slot, strict=True)]
    category = [f"c{int(i[1:]) % 4}" for i in item]
    return pl.DataFrame({"user": user, "item": item, "timestamp": basket * 1000, "category": category})


def build(frame: pl.DataFrame, seed: int = 0, limit_users: int | None = None) -> Events:
    return Events.build(frame, ["category"], "test", {}, seed, limit_users)


@pytest.mark.parametrize("limit", [None, 7])
def test_order_does_not_depend_on_the_file(limit: int | None) -> None:
    frame = baskets()
    shuffled = frame.sample(fraction=1, shuffle=True, seed=3)
    first = build(frame, 5, limit).frame
    assert first.equals(build(shuffled, 5, limit).frame)
    assert first.equals(build(frame.reverse(), 5, limit).frame)
    assert first.columns == ["user", "item", "timestamp", "category"]
    assert first.schema["timestamp"] == pl.Int64


@pytest.mark.parametrize("limit", [None, 7])
def test_codes_sort_as_their_texts(limit: int | None) -> None:
    """Categorical columns give what strings give, whatever order the codes have: events, core, log and catalogue."""
    frame = baskets().with_columns(pl.format("u{}", "user").alias("user")).sample(fraction=1, shuffle=True, seed=3)
    codes = [pl.col(name).cast(pl.Categorical(pl.Categories.random(name))) for name in ("user", "item", "category")]
    results = []
    for given in (frame, frame.with_columns(codes)):
        events = keep_core(build(given, 5, limit), 5 if limit else 20)
        log, items, users = Log.of(events)
        results.append((events, log, items, users, *catalogue.raw(events, items, users, None)))
    (events, log, *of_texts), (coded, same, *of_codes) = results
    assert isinstance(coded.frame["item"].dtype, pl.Categorical)
    assert 0 < events.frame.height < (7 if limit else 40) * 30  # of the core
    assert events.frame.equals(coded.frame.with_columns(pl.col(pl.Categorical).cast(pl.String)))
    assert events.dropped == coded.dropped
    for part in ("item", "time", "user_offsets"):
        assert np.array_equal(getattr(log, part), getattr(same, part))
    assert log.item.dtype == same.item.dtype == np.int32
    for texts, values in zip(of_texts, of_codes, strict=True):
        assert texts.equals(values)


def test_ties_are_random_and_seeded() -> None:
    first, other = build(baskets(), 1).frame, build(baskets(), 2).frame
    assert not first.equals(other)
    assert first.sort(pl.all()).equals(other.sort(pl.all()))
    assert first.select("user", "timestamp").equals(first.select("user", "timestamp").sort("user", "timestamp"))
    # The first item of a basket is the smallest one in a sixth of 200 baskets, not in all of them.
    share = (
        first.group_by("user", "timestamp").agg((pl.col("item").first() == pl.col("item").min()).alias("x"))["x"].mean()
    )
    assert isinstance(share, float)
    assert 0.05 < share < 0.3


def test_sample_of_users() -> None:
    seven = build(baskets(), 0, 7).frame["user"].unique().to_list()
    assert len(seven) == 7
    assert set(seven) != set(build(baskets(), 1, 7).frame["user"].unique().to_list())
    assert build(baskets(), 0, 7).frame.height == 7 * 30
    assert build(baskets(), 0, 4000).frame.equals(build(baskets(), 0).frame)


def test_one_value_per_item() -> None:
    frame = pl.DataFrame(
        {
            "user": [1] * 9,
            "item": ["a", "a", "a", "b", "b", "c", "c", "d", "e"],
            "timestamp": range(9),
            "category": ["x", "y", "y", "z", "w", None, "v", None, "u"],
        }
    )
    events = build(frame)
    assert dict(events.frame.select("item", "category").unique().iter_rows()) == {
        "a": "y", "b": "w", "c": "v", "d": None, "e": "u",
    }  # fmt: skip
    assert events.frame.height == 9
    assert events.notes == {"items with several values of category": 2}


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (baskets().drop("item"), ["'item'", "user, timestamp, category"]),
        (baskets().drop("category"), ["'category'"]),
        (baskets().clear(), ["no events"]),
        (baskets().with_columns(item=pl.when(pl.col("timestamp") == 0).then("item")), ["'item'", "row 7"]),
        (baskets().with_columns(user=pl.lit(None, pl.Int64)), ["'user'", "row 1"]),
        (baskets().with_columns(timestamp=pl.when(pl.col("user") > 0).then("timestamp")), ["'timestamp'", "row 1"]),
        (baskets().with_columns(timestamp=pl.lit("now")), ["'timestamp'", "String"]),
    ],
)
def test_bad_frames(frame: pl.DataFrame, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        build(frame)
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_empty_after_drops_says_so() -> None:
    with pytest.raises(UserError, match="label 0: 3"):
        Events.build(baskets().clear(), [], "test", {"label 0": 3})


def test_vocabulary(tmp_path: Path) -> None:
    raw = pl.Series(["b", "a", "c", "c", None, "d", "a", "e"])
    vocabulary = Vocabulary.build(raw)
    assert list(vocabulary.values) == ["a", "c", "b", "d", "e"]
    assert len(vocabulary) == 6
    ids = vocabulary.encode(pl.Series(["e", None, "new", "a", "a"]))
    assert ids.dtype == np.int32
    assert ids.tolist() == [5, 0, 0, 1, 1]
    assert list(Vocabulary.build(raw, min_count=2).values) == ["a", "c"]

    vocabulary.save(tmp_path / "v.parquet")
    again = Vocabulary.load(tmp_path / "v.parquet")
    assert again.fingerprint() == vocabulary.fingerprint()
    assert again.values.equals(vocabulary.values)
    assert vocabulary.fingerprint() != Vocabulary(pl.Series(["a", "c", "b", "de"])).fingerprint()
    assert Vocabulary(pl.Series(["ab", "c"])).fingerprint() != Vocabulary(pl.Series(["a", "bc"])).fingerprint()


def test_vocabulary_types() -> None:
    numbers = Vocabulary.build(pl.Series([7, 7, -1], dtype=pl.Int16))
    assert numbers.encode(pl.Series([-1, 7, 8], dtype=pl.Int32)).tolist() == [2, 1, 0]
    assert numbers.encode(pl.Series(["7", "007"])).tolist() == [1, 0]
    assert numbers.encode(pl.Series([None, None])).tolist() == [0, 0]
    assert numbers.encode(pl.Series([], dtype=pl.Int64)).tolist() == []
    assert len(Vocabulary.build(pl.Series([], dtype=pl.String))) == 1


# ---------------------------------------------------------------------------------------------------------- repeats


ROWS = [
    ("u", "a", 1, 0, "x"), ("u", "b", 1, 0, "y"), ("u", "a", 1, 1, "z"), ("u", "a", 2, 0, "x"), ("v", "a", 1, 1, "q"),
    ("v", "a", 1, 1, "p"), ("u", "b", 1, 0, "w"),
]  # fmt: skip


def repeated(ties: Ties, repeats: Repeats, label: bool, order: list[int] | None = None, seed: int = 0) -> Events:
    frame = pl.DataFrame(ROWS, ["user", "item", "timestamp", "label", "device"], orient="row")[order or [*range(7)]]
    return Events.build(
        frame, [], "test", {"blank lines": 2}, seed, None, ties, repeats,
        context_features=["device"], label="label" if label else None,
    )  # fmt: skip


@pytest.mark.parametrize("ties", Ties)
def test_of_repeats_one_is_kept(ties: Ties) -> None:
    touches = repeated(ties, Repeats.drop, False)
    assert touches.dropped == {"blank lines": 2, "repeats of user, item and time": 3}
    kept = touches.frame.sort("user", "timestamp", "item").rows()
    assert [row[:3] for row in kept] == [("u", "a", 1), ("u", "b", 1), ("u", "a", 2), ("v", "a", 1)]
    assert "".join(row[3] for row in kept) == (
        "xyxq" if ties is Ties.file else "xwxp"
    )  # first in the file, or by context
    labelled = repeated(ties, Repeats.drop, True)
    found = labelled.frame.sort("user", "timestamp", "item").select("item", "label", "device").rows()
    assert found[0] == ("a", 1, "z")  # the click, not the impression beside it
    assert [row[1] for row in found] == [1, 0, 0, 1]
    whole = repeated(ties, Repeats.keep, True)
    assert whole.frame.height == 7 and whole.notes == {"repeats of user, item and time": 3}
    assert whole.dropped == {"blank lines": 2}


@pytest.mark.parametrize("label", [False, True])
def test_without_its_repeats_a_log_has_the_order_of_one_that_has_none(label: bool) -> None:
    rng = np.random.default_rng(0)
    for seed in range(20):
        once = repeated(Ties.random, Repeats.drop, label, seed=seed)
        again = repeated(Ties.random, Repeats.drop, label, rng.permutation(7).tolist(), seed)
        assert once.frame.equals(again.frame)
        columns = once.frame.columns
        bare = Events.build(
            once.frame.sample(fraction=1, shuffle=True, seed=seed), [], "test", seed=seed, context_features=["device"],
            label="label" if label else None,
        )  # fmt: skip
        assert once.frame.equals(bare.frame.select(columns))
