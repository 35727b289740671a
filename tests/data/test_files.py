"""Names of files that look like patterns, options of text files, and files that aren't what they should be."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from test_sources import WRITERS

from deepinterest.config import EventColumns, EventFileConfig, LeaveLastOutConfig, TemporalConfig, TimestampUnit
from deepinterest.data import sources, store
from deepinterest.data.columns import FEATURE_ROLES
from deepinterest.data.sources import event_file
from deepinterest.errors import UserError, tell
from deepinterest.report.data_card import show

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
        ({"timestamp_unit": TimestampUnit.s, "timestamp_format": FORMAT}, ["data.timestamp_format", "Leave it out"]),
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
    assert store.load(whole).card["first_time"] == "2024-01-01 00:00:00 Asia/Tokyo"


# --------------------------------------------------------------------------------------------------- columns and values


def three(**columns: Any) -> pl.DataFrame:
    """Three events, with other columns in place of theirs or beside them."""
    return pl.DataFrame(
        {"user": [1, 1, 2], "item": [1, 2, 1], "timestamp": [SECOND, SECOND + 1, SECOND + 2], **columns}
    )


def both_kinds(frame: pl.DataFrame, folder: Path) -> list[Path]:
    frame.write_csv(folder / "a.csv")
    frame.write_parquet(folder / "a.parquet")
    return [folder / "a.csv", folder / "a.parquet"]


HOSTILE = ["len", "values", "events", "touches", "before", "row", "count", "[/x]", "literal", "\x1b[31m", "a" * 200]


@pytest.mark.parametrize("partitions", [1, 3])
def test_features_of_any_name(partitions: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = {role: [f"{name}{n}" if n else name for name in HOSTILE] for n, role in enumerate(FEATURE_ROLES)}
    every = [name for role in names.values() for name in role]
    rows = pl.DataFrame({"user": rng.integers(9, size=300), "item": rng.integers(20, size=300)})
    rows = rows.with_columns(timestamp=SECOND + pl.int_range(300))
    rows = rows.with_columns(pl.Series(name, rng.integers(3, size=300)) for name in every)
    rows.write_parquet(tmp_path / "a.parquet")
    data = EventFileConfig(
        path=str(tmp_path / "a.parquet"), partitions=partitions, columns=EventColumns(**names, numeric=["len"])
    )
    made = store.load(store.prepare(data, TemporalConfig(), str(tmp_path / "cache")))
    assert all(name in made.card[f"{role} features"] for role in ("item", "user", "context") for name in HOSTILE)
    show(Console(file=io.StringIO(), width=80), made.card)


@pytest.mark.parametrize(
    ("header", "column", "refused"),
    [("user,item,item,timestamp", "item", True), ("user,item,x,x,timestamp", "item", False)],
)
def test_a_column_that_is_there_twice(header: str, column: str, refused: bool, tmp_path: Path) -> None:
    rows = [(*range(header.count(",")), SECOND + n) for n in range(2)]
    path = text(tmp_path, "a.csv", ",", header, rows)
    if refused:
        assert f"has 2 columns {column!r}, the name that data.columns.{column} gives" in refusal(path)
    else:
        assert len(load(path)) == 2


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize(
    ("times", "settings", "words"),
    [
        ([SECOND, SECOND * 1000, SECOND * 1000], {}, ["a time in ms", f"{SECOND} in row 1", "a time in s"]),
        ([SECOND, SECOND + 1, SECOND * 1000], {}, [f"{SECOND * 1000} in row 3", "data.timestamp_unit"]),
        ([SECOND * 1000] * 3, {"timestamp_unit": TimestampUnit.s}, ["a year beyond 9999", "2023 by ms"]),
        ([SECOND] * 3, {"timestamp_unit": TimestampUnit.ms}, ["1970", "2023 by s", "set data.timestamp_unit=s"]),
        ([SECOND * 10**6] * 3, {"timestamp_unit": TimestampUnit.ns}, ["1970", "2023 by us"]),
        ([1e9, float("nan"), 1.0], {}, ["row 2"]),
    ],
)
def test_times_that_contradict(
    kind: int, times: list[float], settings: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    said = refusal(both_kinds(three(timestamp=times), tmp_path)[kind], **settings)
    assert "'timestamp'" in said and "year 9999" not in said
    for word in words:
        assert word in said


def test_times_that_count_from_zero(tmp_path: Path) -> None:
    (path, _) = both_kinds(three(timestamp=[0, 1_000_000_000, 2_000_000_000]), tmp_path)
    assert load(path, timestamp_unit=TimestampUnit.ms)["timestamp"].to_list() == [0, 1_000_000_000, 2_000_000_000]


@pytest.mark.parametrize("kind", [0, 1])
def test_unsigned_numbers_of_64_bits(kind: int, tmp_path: Path) -> None:
    """Beyond what a signed number holds: ids, and nanoseconds in the year 2300."""
    large = [2**63 + 7, 2**63 + 7, 5]
    late = pl.Series([10_413_792_000_000_000_007] * 3, dtype=pl.UInt64)
    frame = three(
        user=pl.Series(large, dtype=pl.UInt64), item=pl.Series([*large[1:], 5], dtype=pl.UInt64), timestamp=late
    )
    found = load(both_kinds(frame, tmp_path)[kind])
    assert found["user"].to_list() == ["5", str(2**63 + 7), str(2**63 + 7)]
    assert found["timestamp"].to_list() == [10_413_792_000_000] * 3


@pytest.mark.parametrize("value", [1e300, 2.0**53, float("inf"), 1.5])
def test_ids_that_a_float_does_not_hold(value: float, tmp_path: Path) -> None:
    _, path = both_kinds(three(item=[1.0, value, 2.0]), tmp_path)
    assert f"holds {value} in row 2: use whole numbers below 2**53" in refusal(path)


def test_many_columns_are_not_all_named(tmp_path: Path) -> None:
    frame = pl.DataFrame({f"x{n}": [1] for n in range(5000)}).with_columns(users=pl.lit(1))
    for path in both_kinds(frame, tmp_path):
        said = refusal(path)
        assert "x11, … (5,001 in all)" in said and len(said) < 400 and "did you mean users?" in said


def test_nearest_names_of_user_item_and_time(tmp_path: Path) -> None:
    frame = three().rename({"user": "user_id", "item": "itemid", "timestamp": "time_stamp"})
    for path in both_kinds(frame, tmp_path):
        for columns, near in (
            (EventColumns(), "data.columns.user; did you mean user_id?"),
            (EventColumns("user_id"), "data.columns.item; did you mean itemid?"),
            (EventColumns("user_id", "itemid"), "data.columns.timestamp; did you mean time_stamp?"),
        ):
            assert near in refusal(path, columns=columns)
    (tmp_path / "b.csv").write_text("USER,Item,TimeStamp\n1,2,3\n")
    assert "did you mean USER?" in refusal(tmp_path / "b.csv")


def test_control_characters_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "\x1b[31mred\x07.csv"
    path.write_text("user,item,\x1b]0;title\x07\n1,2,3\n")
    tell(UserError(refusal(path)))
    told = capsys.readouterr().err
    assert "\x1b" not in told and "\x07" not in told and "\\x1b[31mred\\x07.csv" in told and "\\x1b]0;title" in told


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("user,item,timestamp\n1,2,3\n".encode("utf-16"), "is text in UTF-16"),
        ("user,item,timestamp\n1,2,3\n".encode("utf-16-le"), "is text in UTF-16"),
        (bytes(5000), "line 1: it begins with bytes of 0 and is no text"),
        ("user,item,timestamp\n1,2,3\n1,é,4\n".encode("latin-1"), "line 3: the byte 0xe9 is no UTF-8"),
        (b'user,item,timestamp\n1,2,3\n1,"2,4\n5,6,7\n8,9,10\n', 'line 3: a quote (") is not closed'),
        (b'user,item,timestamp\n1,2,3\n1,x"2,4\n5,6,7\n8,9,10\n', 'line 3: a quote (") is not closed'),
        (b'user,item,timestamp\n1,"2"x,3\n', 'line 2: a quote (") is not closed'),
        (b"user,item,timestamp\n1,2,3\n1,2,3,4\n", "line 3: 4 columns where 3 are expected"),
        (b'user,item,timestamp\n1,"a\nb",3\n\n1,,4\n', "has no value in row 2 (line 4)"),
        (b'user,item,timestamp\n1,"a\nb",3\n1,,4\n', "has no value in row 2 (line 4)"),
    ],
)
def test_text_that_cannot_be_read_is_told_with_its_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert words in refusal(tmp_path / "a.csv")


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    os.symlink("/dev/zero", tmp_path / "zero.csv")
    assert f"'{tmp_path / 'pipe.csv'}', a pipe and no file" in refusal(tmp_path / "pipe.csv")
    assert f"'{tmp_path / 'zero.csv'}', a device and no file" in refusal(tmp_path / "zero.csv")


def test_an_arrow_file_is_not_mapped_into_memory(tmp_path: Path) -> None:
    """Where it is, a file that is cut short while it is read ends the process by a signal."""
    path, read, seen = tmp_path / "a.arrow", threading.Event(), []
    log(1, 1_000_000).write_ipc(path)

    def watch() -> None:
        while not read.is_set():
            seen.append(str(path) in Path("/proc/self/maps").read_text())

    watching = threading.Thread(target=watch)
    watching.start()
    frame = event_file.read(path, EventFileConfig(path=str(path)))
    read.set()
    watching.join()
    assert frame is not None and frame.height == 1_000_000
    assert seen and not any(seen)


@pytest.mark.parametrize("partitions", [1, 2])
def test_a_source_that_changes_while_it_is_read(
    partitions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "a.csv", event_file.read
    pl.concat([log(user, 8) for user in range(1, 9)]).write_csv(path)
    data = EventFileConfig(path=str(path), partitions=partitions)

    def more(*arguments: Any) -> pl.DataFrame | None:
        frame = read(*arguments)
        with path.open("a") as file:
            file.write(f"1,2,{SECOND}\n")
        return frame

    monkeypatch.setattr(event_file, "read", more)
    with pytest.raises(UserError, match="source of data=events has changed while it was read"):
        store.prepare(data, LeaveLastOutConfig(), str(tmp_path / "cache"))
    monkeypatch.undo()
    assert len(store.load(store.prepare(data, LeaveLastOutConfig(), str(tmp_path / "cache"))).log) == 65
