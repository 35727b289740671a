"""Names of files that look like patterns, options of text files, and files that aren't what they should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from test_sources import WRITERS

from deepinterest.config import EventColumns, EventFileConfig, LeaveLastOutConfig, TimestampUnit
from deepinterest.data import sources, store
from deepinterest.errors import UserError

SECOND = 1_700_000_000


def log(user: int, events: int = 4) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "user": [user] * events,
            "item": [n % 4 for n in range(events)],
            "timestamp": [SECOND + n for n in range(events)],
        }
    )


# ------------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("extension", WRITERS)
def test_a_name_with_brackets_is_that_file(extension: str, tmp_path: Path) -> None:
    for name, user in (("q[1]", 1), ("q1", 2), ("q2", 3)):
        WRITERS[extension](log(user), tmp_path / f"{name}{extension}")

    def users(name: str) -> list[int]:
        return sources.load(EventFileConfig(path=str(tmp_path / f"{name}{extension}"))).frame["user"].to_list()

    assert users("q[1]") == [1] * 4
    assert users("q[2]") == [3] * 4  # there is no such file: it is a pattern
    assert users("q*") == [1] * 4 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("partitions", [1, 2])
def test_folders_with_brackets(partitions: int, tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    folder.mkdir()
    for user in range(1, 9):
        log(user, 8).write_parquet(folder / f"part[{user}].parquet")
    data = EventFileConfig(path=str(tmp_path / "a[[]b]" / "*.parquet"), partitions=partitions)
    prepared = store.load(store.prepare(data, LeaveLastOutConfig(), str(tmp_path / "cache[1]")))
    assert prepared.user_names().to_list() == list(range(1, 9))
    assert len(prepared.log) == 64


# ------------------------------------------------------------------------------------------------ options of text files

LINES = [(1, "a", "31/12/2023 23:30:00"), (1, "b", "01/01/2024 00:10:00"), (2, "a", "02/01/2024 12:00:00")]
FORMAT = "%d/%m/%Y %H:%M:%S"
MS = [1_704_065_400_000, 1_704_067_800_000, 1_704_196_800_000]  # in UTC


def text(folder: Path, name: str, separator: str, header: str | None, lines: Sequence[tuple[object, ...]]) -> Path:
    rows = [header] if header else []
    path = folder / name
    path.write_text("".join(f"{row}\n" for row in [*rows, *(separator.join(map(str, line)) for line in lines)]))
    return path


def load(path: Path, **settings: Any) -> pl.DataFrame:
    return sources.load(EventFileConfig(path=str(path), **settings)).frame


def refusal(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        load(path, **settings)
    said = str(error.value)
    assert "\n" not in said and said.endswith(".")
    return said


@pytest.mark.parametrize(
    ("name", "separator", "given"),
    [
        ("a.csv", ";", "semicolon"),
        ("a.csv", "|", "|"),
        ("a.txt", "\t", None),
        ("a.data", "\t", None),
        ("a.txt", ";", ";"),
        ("a.tsv", ",", "comma"),
        ("a.csv", "\t", "\\t"),
    ],
)
@pytest.mark.parametrize("header", [True, False])
def test_separator_header_and_format(
    name: str, separator: str, given: str | None, header: bool, tmp_path: Path
) -> None:
    path = text(tmp_path, name, separator, separator.join(("user", "item", "timestamp")) if header else None, LINES)
    columns = EventColumns() if header else EventColumns("column_1", "column_2", "column_3")
    frame = load(path, separator=given, header=header, columns=columns, timestamp_format=FORMAT)
    assert frame.sort("timestamp").rows() == [(user, item, ms) for (user, item, _), ms in zip(LINES, MS, strict=True)]


@pytest.mark.parametrize("iso", [True, False])
def test_timezone(iso: bool, tmp_path: Path) -> None:
    times = ["2024-07-01 12:00:00", "2024-01-01 12:00:00", "2024-03-31 02:30:00", "2024-10-27 02:30:00"]
    utc = ["2024-07-01T10:00Z", "2024-01-01T11:00Z", "2024-03-31T01:30Z", "2024-10-27T00:30Z"]
    expected = sorted(int(datetime.fromisoformat(time).timestamp() * 1000) for time in utc)
    path = text(tmp_path, "a.csv", ",", "user,item,timestamp", [(1, n, time) for n, time in enumerate(times)])
    settings = {"timezone": "Europe/Berlin", "timestamp_format": None if iso else "%Y-%m-%d %H:%M:%S"}
    assert load(path, **settings)["timestamp"].to_list() == expected
    local = pl.DataFrame({"user": 1, "item": range(4), "timestamp": times}).with_columns(
        pl.col("timestamp").str.to_datetime()
    )
    local.write_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", timezone="Europe/Berlin")["timestamp"].to_list() == expected
    zoned = text(tmp_path, "b.csv", ",", "user,item,timestamp", [(1, n, time) for n, time in enumerate(utc)])
    assert load(zoned, timezone="Europe/Berlin")["timestamp"].to_list() == expected


def test_numbers_that_are_dates(tmp_path: Path) -> None:
    path = text(tmp_path, "a.csv", ",", "user,item,timestamp", [(1, 1, 20240131), (1, 2, 20240201)])
    said = refusal(path)
    assert "20240131 in row 1 (line 2)" in said and "data.timestamp_format" in said
    days = load(path, timestamp_format="%Y%m%d")["timestamp"].to_list()
    assert days == [1_706_659_200_000, 1_706_745_600_000]
    pl.read_csv(path).write_parquet(tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet", timestamp_format="%Y%m%d")["timestamp"].to_list() == days
    assert load(path, timestamp_unit=TimestampUnit.s)["timestamp"].to_list() == [20_240_131_000, 20_240_201_000]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"separator": "::"}, ["data.separator=::", "semicolon"]),
        ({"separator": "a"}, ["data.separator=a"]),
        ({"timezone": "Europe/Berln"}, ["data.timezone=Europe/Berln", "did you mean Europe/Berlin"]),
        ({"timezone": "../x"}, ["data.timezone=../x"]),
        ({"timestamp_format": "%d.%m.%Y"}, ["'31/12/2023 23:30:00' in row 1 (line 2)", "%d.%m.%Y"]),
        ({}, ["'31/12/2023 23:30:00' in row 1 (line 2)", "data.timestamp_format"]),
        ({"timestamp_unit": TimestampUnit.s}, ["data.timestamp_unit=s does nothing"]),
        ({"timestamp_unit": TimestampUnit.s, "timestamp_format": FORMAT}, ["data.timestamp_format", "leave one"]),
        ({"category_missing": "x"}, ["data.category_missing=x does nothing"]),
        ({"ray_address": "auto"}, ["data.ray_address=auto does nothing"]),
        ({"header": False}, ["no column 'user', only column_1, column_2, column_3"]),
        ({"separator": ";"}, ["seem to be separated by comma: data.separator=comma"]),
    ],
    ids=str,
)
def test_options_that_are_impossible_or_do_nothing(settings: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    said = refusal(text(tmp_path, "a.csv", ",", "user,item,timestamp", LINES), **settings)
    for word in words:
        assert word in said


@pytest.mark.parametrize("settings", [{"separator": ","}, {"header": False}, {"timestamp_format": FORMAT}], ids=str)
def test_options_of_text_with_another_file(settings: dict[str, Any], tmp_path: Path) -> None:
    log(1).write_parquet(tmp_path / "a.parquet")
    said = refusal(tmp_path / "a.parquet", **settings)
    assert f"data.{next(iter(settings))}" in said and ("leave it out" in said or "1700000000" in said)


def test_no_header_is_recognised(tmp_path: Path) -> None:
    said = refusal(text(tmp_path, "a.csv", ",", None, [(1, "a", SECOND), (2, "b", SECOND)]))
    assert f"no column 'user', only 1, a, {SECOND}" in said and "data.header=false" in said


@pytest.mark.parametrize("partitions", [1, 3])
def test_options_are_part_of_the_fingerprint(partitions: int, tmp_path: Path) -> None:
    rows = [(user, n % 5, f"{n + 1:02d}/01/2024 0{user}:00:00") for user in range(9) for n in range(20)]
    path = text(tmp_path, "a.txt", ";", None, rows)
    config = EventFileConfig(
        path=str(path), separator=";", header=False, timestamp_format=FORMAT, timezone="Asia/Tokyo",
        columns=EventColumns("column_1", "column_2", "column_3"),
    )  # fmt: skip
    protocol = LeaveLastOutConfig()
    whole = store.prepare(config, protocol, str(tmp_path / "cache"))
    cut = store.prepare(replace(config, partitions=partitions), protocol, str(tmp_path / f"cache{partitions}"))
    for name in ("item.npy", "time.npy", "card.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    assert store.prepare(replace(config, timezone="UTC"), protocol, str(tmp_path / "cache")) != whole
