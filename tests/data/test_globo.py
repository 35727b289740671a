"""The news clicks of Globo.com: hourly files, a table, and what may be wrong with them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deepinterest.config import EventColumns, EventFileConfig, GloboConfig
from deepinterest.data import sources
from deepinterest.data.events import Events
from deepinterest.data.sources import globo
from deepinterest.errors import UserError

CLICKS = Path(__file__).parents[2] / "../shared/data/globo/clicks.parquet"
NAMES = (
    "user_id,session_id,session_start,session_size,click_article_id,click_timestamp,click_environment,"
    "click_deviceGroup,click_os,click_country,click_region,click_referrer_type"
)


def line(user: int, article: int | str, time: int | str) -> str:
    return f"{user},1506825423271737,1506825423000,2,{article},{time},4,3,20,1,20,2"


T = 1_506_826_800_026
FILES = {
    "clicks_hour_000.csv": f"{NAMES}\n{line(7, 300, T)}\n{line(3, 100, T + 1)}\n".encode(),
    "clicks_hour_001.csv": f"{NAMES}\n".encode(),  # an hour without clicks
    "clicks_hour_002.csv": f"{NAMES}\n{line(3, 200, T + 7_200_000)}\n{line(7, 999, T + 7_200_001)}\n".encode(),
    "articles_metadata.csv": b"article_id,category_id,created_at_ts,publisher_id,words_count\n"
    b"100,1,1513144419000,0,168\n200,1,1405341936000,0,189\n300,281,1408667706000,0,250\n",
}
EVENTS = [
    (3, 100, T + 1, 1),
    (3, 200, T + 7_200_000, 1),
    (7, 300, T, 281),
    (7, 999, T + 7_200_001, None),
]


def folder_of(files: dict[str, bytes], folder: Path, clicks: str = "") -> Path:
    (folder / clicks).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / (clicks if name.startswith("clicks") else "") / name).write_bytes(content)
    return folder


def zip_of(files: dict[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"clicks/clicks/{name}" if name.startswith("clicks") else name, content)
        archive.writestr("clicks_sample.csv", FILES["clicks_hour_000.csv"])
    return path


def read(path: Path) -> Events:
    return sources.load(GloboConfig(path=str(path)))


def sentence(path: Path | None, call: Callable[..., object] = sources.load) -> str:
    with pytest.raises(UserError) as error:
        call(GloboConfig(path=None if path is None else str(path)))
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


def test_folder_and_zip(tmp_path: Path) -> None:
    for path in (
        folder_of(FILES, tmp_path / "flat"),
        folder_of(FILES, tmp_path / "deep", "clicks"),
        zip_of(FILES, tmp_path / "archive.zip"),
    ):
        events = read(path)
        assert events.frame.rows() == EVENTS
        assert events.item_features == ["category"]
        assert events.dropped == {}
        assert events.notes == {"articles that articles_metadata.csv lacks": 1}
        assert events.name == f"{path.name} (3 hours)"


def test_missing_hours_are_told(tmp_path: Path) -> None:
    folder_of(FILES, tmp_path)
    (tmp_path / "clicks_hour_001.csv").rename(tmp_path / "clicks_hour_010.csv")
    assert read(tmp_path).notes["hours missing between the first and the last"] == 8


def test_windows_lines_bom_blank_lines_and_other_columns(tmp_path: Path) -> None:
    files = {name: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n") for name, content in FILES.items()}
    files["clicks_hour_002.csv"] = files["clicks_hour_002.csv"].replace(b"\r\n", b"\r\n\r\n").rstrip()
    # Another order of columns in one hour.
    files["clicks_hour_001.csv"] = b"click_timestamp,more,user_id,click_article_id\n%d,x,3,100\n" % (T + 5)
    events = read(folder_of(files, tmp_path))
    assert events.frame.rows() == [EVENTS[0], (3, 100, T + 5, 1), *EVENTS[1:]]
    assert events.dropped == {"blank lines": 2}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (line(3, "", T), "click_article_id is missing"),
        (line(3, "news", T), "click_article_id is 'news' and no whole number"),
        (line(3, 100, T // 1000), f"click_timestamp is {T // 1000}: milliseconds since 1970 are expected"),
        (line(3, 100, T * 1000), "milliseconds since 1970 are expected"),
        (line(3, 100, "2017-10-01"), "click_timestamp is '2017-10-01'"),
        (line(3, 100, T) + ",5", "13 columns where 12"),
        ("3,1,2", "3 columns where 12"),
    ],
)
def test_bad_line(bad: str, words: str, tmp_path: Path) -> None:
    for path in (tmp_path / "log", tmp_path / "log.zip"):
        files = {**FILES, "clicks_hour_002.csv": FILES["clicks_hour_002.csv"] + f"{bad}\n{line(3, 100, T)}\n".encode()}
        text = sentence(zip_of(files, path) if path.suffix else folder_of(files, path))
        assert "clicks_hour_002.csv, line 4: " in text
        assert words in text


def test_truncated_last_line(tmp_path: Path) -> None:
    last = line(7, 999, T + 7_200_001)
    for cut in range(1, len(last)):
        content = FILES["clicks_hour_002.csv"].rstrip()[:-cut]
        text = sentence(folder_of({**FILES, "clicks_hour_002.csv": content}, tmp_path))
        assert "clicks_hour_002.csv, line 3: " in text and "cut short" in text
    content = FILES["articles_metadata.csv"].rstrip()[:-3]
    text = sentence(folder_of({**FILES, "articles_metadata.csv": content}, tmp_path / "b"))
    assert "articles_metadata.csv, line 4: words_count is missing" in text


def test_missing_columns_empty_and_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, column in (("clicks_hour_000.csv", b"user_id"), ("articles_metadata.csv", b"category_id")):
        text = sentence(folder_of({**FILES, name: FILES[name].replace(column, b"other")}, tmp_path))
        assert f"{tmp_path / name}, line 1: there is no column {column.decode()!r}" in text
        assert f"{tmp_path / name} is empty" in sentence(folder_of({**FILES, name: b""}, tmp_path))
    twice = FILES["clicks_hour_000.csv"].replace(b"session_id", b"user_id")
    assert "line 1: there are two columns 'user_id'" in sentence(
        folder_of({**FILES, "clicks_hour_000.csv": twice}, tmp_path)
    )
    folder_of(FILES, tmp_path)
    (tmp_path / "articles_metadata.csv").unlink()
    assert "holds no articles_metadata.csv" in sentence(tmp_path)
    only = {"articles_metadata.csv": FILES["articles_metadata.csv"], "clicks_sample.csv": b"x"}
    text = sentence(folder_of(only, tmp_path / "c"))
    assert "holds no clicks_hour_NNN.csv, only articles_metadata.csv, clicks_sample.csv" in text
    header = {name: content.partition(b"\n")[0] + b"\n" for name, content in FILES.items()}
    assert "there are no events" in sentence(folder_of({**FILES, **header}, tmp_path / "d"))
    monkeypatch.setattr(globo, "raw_folder", lambda name: tmp_path / "raw" / name)
    for call in (sources.load, sources.fingerprint):
        assert "no such file or folder" in sentence(tmp_path / "none", call)
        text = sentence(None, call)
        assert str(tmp_path / "raw" / "globo") in text and "data.path" in text and "kaggle.com" in text
    folder_of(FILES, tmp_path / "raw" / "globo")
    assert sources.load(GloboConfig()).frame.rows() == EVENTS


def test_one_hour_alone_lacks_its_articles(tmp_path: Path) -> None:
    folder_of(FILES, tmp_path)
    assert "holds no articles_metadata.csv" in sentence(tmp_path / "clicks_hour_000.csv")


def test_zip_cut_short(tmp_path: Path) -> None:
    path = zip_of(FILES, tmp_path / "archive.zip")
    path.write_bytes(path.read_bytes()[:-30])
    assert f"{path} cannot be unpacked" in sentence(path)


def test_table(tmp_path: Path) -> None:
    path = tmp_path / "clicks.parquet"
    table = pl.DataFrame(EVENTS, ["user", "item", "timestamp", "category"], orient="row")
    table = table.with_columns(pl.col("timestamp").cast(pl.Datetime("ms")), pl.col("category").fill_null(-1))
    table.write_parquet(path)
    assert read(path).frame.rows() == EVENTS
    before = sources.fingerprint(GloboConfig(path=str(path)))
    assert before["name"] == "globo"
    table.head(2).write_parquet(path)
    assert sources.fingerprint(GloboConfig(path=str(path))) != before
    table.drop("category").write_parquet(path)
    assert "has no column 'category'" in sentence(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read" in sentence(path)


def test_settings_reach_both_forms(tmp_path: Path) -> None:
    folder_of(FILES, tmp_path / "log")
    table = tmp_path / "clicks.parquet"
    pl.DataFrame(EVENTS, ["user", "item", "timestamp", "category"], orient="row").write_parquet(table)
    for path in (tmp_path / "log", table):
        for seed in range(4):
            config = GloboConfig(path=str(path), limit_users=1, seed=seed)
            expected = sources.load(
                EventFileConfig(path=str(table), columns=EventColumns(category="category"), limit_users=1, seed=seed)
            )
            assert sources.load(config).frame.rows() == expected.frame.rows()


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    folder_of({**FILES, "articles_embeddings.pickle": b"x"}, tmp_path)
    before = sources.fingerprint(GloboConfig(path=str(tmp_path)))
    (tmp_path / "articles_embeddings.pickle").unlink()
    assert sources.fingerprint(GloboConfig(path=str(tmp_path))) == before
    (tmp_path / "clicks_hour_001.csv").unlink()
    assert sources.fingerprint(GloboConfig(path=str(tmp_path))) != before


@pytest.mark.skipif(not CLICKS.is_file(), reason="the clicks of globo.com are not here")
def test_the_real_clicks(settings: Callable[..., Any], tmp_path: Path) -> None:
    """As data=events read them: the results in the README were made so."""
    config, _ = settings("dnn", tmp_path, "data=globo", f"data.path={CLICKS}")
    found = sources.load(config.data)
    columns = EventColumns(category="category")
    expected = sources.load(EventFileConfig(path=str(CLICKS), columns=columns, category_missing="-1"))
    assert found.frame.height == 2_988_181
    assert found.frame.equals(expected.frame)
