"""Taobao's UserBehavior.csv, and what may be wrong with it."""

from __future__ import annotations

import gzip
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deepinterest.config import Behaviour, LeaveLastOutConfig, TaobaoConfig
from deepinterest.data import sources, store, text_file
from deepinterest.data.events import Events
from deepinterest.data.sources import taobao
from deepinterest.errors import UserError

FIRST = 1_511_539_200  # 2017-11-25 00:00:00 in Beijing
LAST = 1_512_316_799  # 2017-12-03 23:59:59
LINES = [
    f"1,10,5,pv,{FIRST}",
    f"1,11,6,buy,{FIRST + 60}",
    f"1,12,5,cart,{LAST}",
    f"1,12,5,pv,{LAST + 1}",
    f"2,10,5,fav,{FIRST + 5}",
    f"2,11,6,pv,{FIRST - 1}",
    "2,11,6,pv,-2134949234",
]
TEXT = ("\n".join(LINES) + "\n").encode()
EVENTS = [
    (1, 10, FIRST * 1000, 5),
    (1, 11, (FIRST + 60) * 1000, 6),
    (1, 12, LAST * 1000, 5),
    (2, 10, (FIRST + 5) * 1000, 5),
]
OUTSIDE = {"before data.first_time": 2, "after data.last_time": 1}


def write(folder: Path, content: bytes = TEXT, name: str = "UserBehavior.csv") -> Path:
    path = folder / name
    if name.endswith(".zip"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("UserBehavior.csv", content)
    else:
        path.write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)
    return path


def read(path: Path, **settings: Any) -> Events:
    return sources.load(TaobaoConfig(path=str(path), **settings))


def sentence(path: Path | None, call: Callable[..., object] = sources.load, **settings: Any) -> str:
    with pytest.raises(UserError) as error:
        call(TaobaoConfig(path=None if path is None else str(path), **settings))
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("name", ["UserBehavior.csv", "part.csv", "UserBehavior.csv.gz", "UserBehavior.csv.zip"])
def test_plain_gz_and_zip(name: str, tmp_path: Path) -> None:
    events = read(write(tmp_path, name=name))
    assert events.frame.rows() == EVENTS
    assert events.dropped == OUTSIDE
    assert events.item_features == ["category"]
    assert events.name == name
    assert events.frame.dtypes == [pl.Int32, pl.Int32, pl.Int64, pl.Int32]  # lean


def test_behaviours(tmp_path: Path) -> None:
    path = write(tmp_path)
    events = read(path, behaviours=[Behaviour.pv])
    assert events.frame.rows() == EVENTS[:1]
    assert events.dropped == {**OUTSIDE, "behaviour buy": 1, "behaviour cart": 1, "behaviour fav": 1}
    events = read(path, behaviours=[Behaviour.fav, Behaviour.buy])
    assert events.frame.rows() == [EVENTS[1], EVENTS[3]]
    assert events.frame.height + sum(events.dropped.values()) == len(LINES)


def test_times(tmp_path: Path) -> None:
    path = write(tmp_path)
    everything = read(path, first_time=None, last_time=None)
    assert everything.frame.height == len(LINES)
    assert everything.dropped == {}
    assert everything.frame["timestamp"].min() == -2134949234000
    assert read(path, last_time="2017-12-04").dropped == {"before data.first_time": 2}
    assert read(path, last_time="2017-12-03T23:59:58").dropped == {**OUTSIDE, "after data.last_time": 2}
    assert read(path, first_time="2017-11-25T00:00:05").dropped == {**OUTSIDE, "before data.first_time": 3}
    assert read(path, first_time="2017-11-24T16:00:05+00:00").dropped == {**OUTSIDE, "before data.first_time": 3}


def test_wrong_settings(tmp_path: Path) -> None:
    path = write(tmp_path)
    for call in (sources.load, sources.fingerprint):
        text = sentence(path, call, first_time="soon")
        assert "data.first_time=soon" in text and "2017-11-25" in text
        text = sentence(path, call, first_time="2017-12-03", last_time="2017-12-02")
        assert "data.first_time=2017-12-03 is after data.last_time=2017-12-02" in text


def test_nothing_left(tmp_path: Path) -> None:
    text = sentence(write(tmp_path), first_time="2020-01-01", last_time=None)
    assert "there are no events left" in text and "before data.first_time: 7" in text


@pytest.mark.parametrize(
    "content",
    [
        TEXT.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + TEXT,
        b"\xef\xbb\xbf" + TEXT.replace(b"\n", b"\r\n"),
        TEXT.rstrip(),
    ],
    ids=["windows", "bom", "both", "no last end"],
)
def test_windows_lines_and_bom(content: bytes, tmp_path: Path) -> None:
    events = read(write(tmp_path, content))
    assert events.frame.rows() == EVENTS
    assert events.dropped == OUTSIDE


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_blank_lines_are_counted(end: bytes, tmp_path: Path) -> None:
    content = end + TEXT.replace(b"\n", end).replace(end, end + end, 1) + end
    events = read(write(tmp_path, content))
    assert events.frame.rows() == EVENTS
    assert events.dropped == {**OUTSIDE, "blank lines": 3}


def test_line_cut_in_its_time(tmp_path: Path) -> None:
    last = f"2,12,5,pv,{FIRST + 70}"
    for name in ("UserBehavior.csv", "UserBehavior.csv.gz"):
        for cut in (1, 5, 8, 9):
            path = write(tmp_path, TEXT + last[:-cut].encode(), name)
            assert f"{path}, line {len(LINES) + 1}: time is {last[10:-cut]!r}" in sentence(path, first_time=None)
        assert read(write(tmp_path, TEXT + last.encode(), name)).frame.height == len(EVENTS) + 1
    early = write(tmp_path, TEXT + b"2,12,5,pv,15\n")  # a whole line says what it means
    assert read(early).dropped == {**OUTSIDE, "before data.first_time": 3}


def test_a_small_gz_of_zeros_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "LONGEST", 1 << 21)
    for number, content in enumerate((b"", TEXT)):
        path = write(tmp_path, content + bytes(1 << 25), f"{number}.csv.gz")
        line = 1 + len(LINES) * number
        assert f"{path}, line {line}: the line is longer than 2,097,152 bytes" in sentence(path)
    assert "line 1: it begins with bytes of 0" in sentence(write(tmp_path, bytes(100)))
    assert "is text in UTF-16" in sentence(write(tmp_path, TEXT.decode().encode("utf-16")))


def test_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    for call in (sources.load, sources.fingerprint):
        assert f"data.path is '{tmp_path / 'pipe.csv'}', a pipe and no file" in sentence(tmp_path / "pipe.csv", call)
        assert "data.path is '/dev/zero', a device and no file" in sentence(Path("/dev/zero"), call)


def test_times_are_of_the_zone(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert read(path, timezone="UTC").dropped["before data.first_time"] == 5
    assert "data.timezone=Peking is no time zone" in sentence(path, timezone="Peking")


@pytest.mark.parametrize("name", ["UserBehavior.csv", "UserBehavior.csv.gz", "UserBehavior.csv.zip"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"2,11,6,pv", "4 columns where 5 are expected (user, item, category, behaviour, time): '2,11,6,pv'"),
        (b"2,11,6,pv,1511539210,7", "6 columns where 5"),
        (b"2,11,6,click,1511539210", "behaviour is 'click' and none of pv, buy, cart, fav"),
        (b"2,11,6,,1511539210", "behaviour is missing"),
        (b"2,,6,pv,1511539210", "item is missing"),
        (b"two,11,6,pv,1511539210", "user is 'two' and no whole number below 2**31"),
        (b"2,11,6.5,pv,1511539210", "category is '6.5' and no whole number"),
        (b"2,9999999999,6,pv,1511539210", "item is '9999999999' and no whole number below 2**31"),
        (b"2,11,6,pv,2017-11-25 10:00:00", "time is '2017-11-25 10:00:00' and no whole number"),
        (b'"2",11,6,pv,1511539210', "user is '\"2\"' and no whole number"),
        (b"2,11,6,\xff,1511539210", "is no UTF-8 text"),
    ],
)
@pytest.mark.parametrize("place", [0, 3])
def test_bad_line(place: int, line: bytes, words: str, name: str, tmp_path: Path) -> None:
    lines = TEXT.splitlines(keepends=True)
    path = write(tmp_path, b"".join([*lines[:place], line, b"\n", *lines[place:]]), name)
    where = f"{path}, UserBehavior.csv" if name.endswith(".zip") else str(path)
    text = sentence(path)
    assert text.startswith(f"{where}, line {place + 1}: ")
    assert words in text


def test_truncated_last_line(tmp_path: Path) -> None:
    for line in ("3", "3,1", "3,11,", "3,11,6,p", "3,11,6,pv", "3,11,6,pv,"):
        text = sentence(write(tmp_path, TEXT + line.encode()))
        assert f"line {len(LINES) + 1}: " in text and "cut short" in text


@pytest.mark.parametrize("name", ["UserBehavior.csv.gz", "UserBehavior.csv.zip"])
def test_archives_cut_short(name: str, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(1, 10**6, size=(2000, 2))
    path = write(tmp_path, b"".join(f"{user},{item},5,pv,{FIRST}\n".encode() for user, item in numbers), name)
    assert read(path).frame.height == 2000
    whole = path.read_bytes()
    for length in (len(whole) - 4, len(whole) // 2, 5):
        path.write_bytes(whole[:length])
        text = sentence(path)
        assert f"{path} cannot be unpacked" in text and "cut short" in text
    path.write_bytes(TEXT)
    assert "cannot be unpacked" in sentence(path)


def test_empty_and_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UserBehavior.csv", "UserBehavior.csv.gz", "UserBehavior.csv.zip"):
        assert "is empty" in sentence(write(tmp_path, b"", name))
        (tmp_path / name).write_bytes(b"")
        assert f"{tmp_path / name} is empty" in sentence(tmp_path / name)
        (tmp_path / name).unlink()
    assert "there are no events" in sentence(write(tmp_path, b"\n\n"))
    monkeypatch.setattr(taobao, "raw_folder", lambda name: tmp_path / "raw" / name)
    for call in (sources.load, sources.fingerprint):
        assert "no such file" in sentence(tmp_path / "none.csv", call)
        text = sentence(None, call)
        assert f"UserBehavior.csv is not in {tmp_path / 'raw' / 'taobao'}" in text
        assert "data.path" in text and "https://tianchi.aliyun.com" in text
    (tmp_path / "raw" / "taobao").mkdir(parents=True)
    write(tmp_path / "raw" / "taobao", name="UserBehavior.csv.gz")
    assert sources.load(TaobaoConfig()).frame.rows() == EVENTS


def test_folder(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, b"", "README")
    assert read(tmp_path).frame.rows() == EVENTS
    before = sources.fingerprint(TaobaoConfig(path=str(tmp_path)))
    write(tmp_path, TEXT * 2)
    assert sources.fingerprint(TaobaoConfig(path=str(tmp_path))) != before
    (tmp_path / "UserBehavior.csv").rename(tmp_path / "UserBehavior.txt")
    assert "holds no UserBehavior.csv, only README, UserBehavior.txt" in sentence(tmp_path)


def test_temporary_files_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    read(write(tmp_path, name="UserBehavior.csv.gz"))
    sentence(write(tmp_path, b"1,2\n", name="UserBehavior.csv.gz"))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_settings_by_name(settings: Callable[..., Any], tmp_path: Path) -> None:
    path = write(tmp_path)
    overrides = (f"data.path={path}", "data.behaviours=[buy,fav]", "data.first_time=null", "data.last_time=2017-12-01")
    config, _ = settings("dnn", tmp_path, "data=taobao", *overrides)
    assert config.data == TaobaoConfig(
        path=str(path), behaviours=[Behaviour.buy, Behaviour.fav], first_time=None, last_time="2017-12-01"
    )
    with pytest.raises(UserError, match=r"data\.behaviours=\[\] is not possible"):
        settings("dnn", tmp_path, "data=taobao", "data.behaviours=[]")


def test_prepared(tmp_path: Path) -> None:
    lines = [f"{user},{10 + step % 4},5,pv,{FIRST + 100 * step + user}" for user in range(9) for step in range(12)]
    config = TaobaoConfig(path=str(write(tmp_path, "\n".join(lines).encode())))
    folder = store.prepare(config, LeaveLastOutConfig(), str(tmp_path / "cache"))
    assert store.load(folder).card["events"] == len(lines)
    fewer = TaobaoConfig(path=config.path, behaviours=[Behaviour.pv])  # what is read is a part of the folder's name
    assert store.prepare(fewer, LeaveLastOutConfig(), str(tmp_path / "cache")) != folder
