"""MovieLens in its three formats, and what may be wrong with its files."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepinterest.config import LabelledConfig, LeaveLastOutConfig, MovieLensConfig, MovieLensVersion, ProtocolConfig
from deepinterest.data import sources, store
from deepinterest.data.events import Events
from deepinterest.data.sources import movielens
from deepinterest.errors import UserError

GENRES = ("Comedy", "Drama", "Sci-Fi")
NONE = [0] * 19
COMEDY_ROMANCE = [*NONE[:5], 1, *NONE[6:14], 1, *NONE[15:]]

# The same ratings of the same films in each format. Film 3 has no genre, and 9 is not among the films.
FILES: dict[str, dict[str, bytes]] = {
    "100k": {
        "u.data": b"7\t1\t4\t881250949\n7\t2\t3\t881250950\n7\t3\t5\t881250951\n8\t9\t1\t881250952\n",
        "u.item": "\n".join(
            "|".join([film, title, "01-Jan-1995", "", "http://x", *map(str, flags)])
            for film, title, flags in (
                ("1", "Amélie (1995)", COMEDY_ROMANCE),
                ("2", "Drama: the film", [*NONE[:8], 1, *NONE[9:]]),
                ("3", "unknown", [1, *NONE[1:]]),
            )
        ).encode("latin-1")
        + b"\n",
    },
    "1m": {
        "ratings.dat": b"7::1::4::881250949\n7::2::3::881250950\n7::3::5::881250951\n8::9::1::881250952\n",
        "movies.dat": "1::Amélie (1995)::Comedy|Romance\n2::Drama: the film::Drama\n3::x::(no genres listed)\n".encode(
            "latin-1"
        ),
    },
    "25m": {
        "ratings.csv": b"userId,movieId,rating,timestamp\n7,1,4.0,881250949\n7,2,3.0,881250950\n7,3,5.0,881250951\n"
        b"8,9,1.0,881250952\n",
        "movies.csv": 'movieId,title,genres\n1,"Amélie, the ""one"" (1995)",Comedy|Romance\n2,Drama: the film,Drama\n'
        "3,x,(no genres listed)\n".encode(),
    },
}
EVENTS = [
    (7, 1, 881250949000, "Comedy"),
    (7, 2, 881250950000, "Drama"),
    (7, 3, 881250951000, None),
    (8, 9, 881250952000, None),
]
FORMATS = list(FILES)
RATINGS = {name: next(iter(files)) for name, files in FILES.items()}
MOVIES = {name: list(files)[1] for name, files in FILES.items()}


def folder_of(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def zip_of(files: dict[str, bytes], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ml/", "")
        archive.writestr("ml/README", "read me")
        for name, content in files.items():
            archive.writestr(f"ml/{name}", content)
    return path


def read(path: Path, label: str | None = None) -> Events:
    return sources.load(MovieLensConfig(path=str(path), label=label))


def sentence(config: MovieLensConfig | Path, call: Callable[[MovieLensConfig], object] = sources.load) -> str:
    config = MovieLensConfig(path=str(config)) if isinstance(config, Path) else config
    with pytest.raises(UserError) as error:
        call(config)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("name", FORMATS)
def test_formats_in_folder_and_zip(name: str, tmp_path: Path) -> None:
    for path in (
        folder_of(FILES[name], tmp_path / "plain"),
        folder_of(FILES[name], tmp_path / "outer" / "ml").parent,
        zip_of(FILES[name], tmp_path / "ml.zip"),
    ):
        events = read(path)
        assert events.frame.rows() == EVENTS
        assert events.item_features == ["category"]
        assert events.notes == {"films without a genre": 2}
        assert events.dropped == {}
        assert events.name == f"{path.name} ({RATINGS[name]})"


@pytest.mark.parametrize("name", FORMATS)
def test_windows_lines_bom_blank_lines_and_no_last_end(name: str, tmp_path: Path) -> None:
    files = {file: b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n") for file, text in FILES[name].items()}
    if name == "1m":  # with a BOM it is UTF-8
        files["movies.dat"] = b"\xef\xbb\xbf" + FILES[name]["movies.dat"].decode("latin-1").encode()
    files[RATINGS[name]] = files[RATINGS[name]].rstrip() + b"\r\n\r\n"
    events = read(folder_of(files, tmp_path / "a"))
    assert events.frame.rows() == EVENTS
    assert events.dropped == {"blank lines": 1}
    files[RATINGS[name]] = FILES[name][RATINGS[name]].rstrip()
    assert read(folder_of(files, tmp_path / "b")).frame.rows() == EVENTS


def test_latin1_and_utf8_titles_of_dat(tmp_path: Path) -> None:
    text = FILES["1m"]["movies.dat"].decode("latin-1")
    for encoding in ("latin-1", "utf-8"):
        files = {**FILES["1m"], "movies.dat": text.encode(encoding)}
        assert read(folder_of(files, tmp_path)).frame.rows() == EVENTS


def test_half_stars(tmp_path: Path) -> None:
    files = {**FILES["1m"], "ratings.dat": b"7::1::3.5::881250949\n7::2::4::881250950\n"}
    assert read(folder_of(files, tmp_path), "rating>3.5").frame["label"].to_list() == [0, 1]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("rating>=4", [1, 0, 1, 0]),
        (" rating > 4 ", [0, 0, 1, 0]),
        ("rating==3", [0, 1, 0, 0]),
        ("rating<=3.0", [0, 1, 0, 1]),
        ("rating<3", [0, 0, 0, 1]),
    ],
)
def test_label(label: str, expected: list[int], tmp_path: Path) -> None:
    events = read(folder_of(FILES["25m"], tmp_path), label)
    assert events.frame["label"].to_list() == expected
    assert events.labelled
    assert not read(tmp_path).labelled


@pytest.mark.parametrize("label", ["rating=>4", "4", "stars>=4", "rating>=good", "rating>=4 or 1"])
def test_wrong_label(label: str, tmp_path: Path) -> None:
    for call in (sources.load, sources.fingerprint):  # also before anything is fetched
        text = sentence(MovieLensConfig(version=MovieLensVersion["1m"], folder=str(tmp_path), label=label), call)
        assert f"data.label={label}" in text and "rating>=4" in text


BAD_LINES = {
    "100k": b"7\t1\t4\n",
    "1m": b"7::1::4\n",
    "25m": b"7,1,4\n",
}


@pytest.mark.parametrize("name", FORMATS)
def test_wrong_columns_and_truncated_last_line(name: str, tmp_path: Path) -> None:
    lines = FILES[name][RATINGS[name]].splitlines(keepends=True)
    begin = len(lines) - 4
    for bad, words in (
        (BAD_LINES[name], "3 columns where 4 are expected"),
        (lines[-1].replace(b"\n", {"100k": b"\t5\n", "1m": b"::5\n", "25m": b",5\n"}[name]), "5 columns where 4"),
    ):
        files = {**FILES[name], RATINGS[name]: b"".join([*lines[: begin + 1], bad, *lines[begin + 1 :]])}
        text = sentence(folder_of(files, tmp_path))
        assert f"{tmp_path / RATINGS[name]}, line {begin + 2}: {words}" in text
    whole = FILES[name][RATINGS[name]]
    for cut in (2, 6, 12):  # in the time, so that it is too small; and before it
        text = sentence(folder_of({**FILES[name], RATINGS[name]: whole[:-cut]}, tmp_path))
        assert f"{RATINGS[name]}, line {begin + 4}: " in text and "cut short" in text
    assert "expected" in text


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"881250951", b"soon", "timestamp is 'soon' and no whole number"),
        (b"881250951", b"881250951000", "timestamp is 881250951000, before or long after"),
        (b"881250951", b"", "timestamp is missing"),
        (b"881250951", b"12", "timestamp is 12, before or long after"),
        (b"7{s}3{s}5", b"7{s}3{s}50", "rating is 50"),
        (b"7{s}3{s}5", b"7{s}3{s}0", "rating is 0"),
        (b"7{s}3{s}5", b"7{s}3{s}nan", "rating is nan"),
        (b"7{s}3{s}5", b"7{s}3000000000{s}5", "'3000000000' and no whole number below 2**31"),
        (b"7{s}3{s}5", b"\xff{s}3{s}5", "is no UTF-8 text"),
    ],
)
def test_bad_values(name: str, old: bytes, new: bytes, words: str, tmp_path: Path) -> None:
    separator = {"100k": b"\t", "1m": b"::", "25m": b","}[name]
    whole = FILES[name][RATINGS[name]].replace(b".0", b"")
    line = whole.splitlines().index(next(line for line in whole.splitlines() if b"881250951" in line)) + 1
    changed = whole.replace(old.replace(b"{s}", separator), new.replace(b"{s}", separator))
    text = sentence(folder_of({**FILES[name], RATINGS[name]: changed}, tmp_path))
    assert f"{RATINGS[name]}, line {line}: " in text
    assert words in text


def test_single_colon_in_dat(tmp_path: Path) -> None:
    files = {**FILES["1m"], "ratings.dat": FILES["1m"]["ratings.dat"].replace(b"7::2::", b"7:0:2::")}
    assert "line 2: 3 columns where 4" in sentence(folder_of(files, tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("100k", b"1|x|1995||http|0|1\n", "line 1: 7 columns where 24"),
        (
            "100k",
            FILES["100k"]["u.item"].replace(b"|0|", b"|2|"),
            "line 1: 24 columns where 24 are expected, the last 19",
        ),
        ("1m", b"1::x::Drama\n2::y\n", "line 2: 2 columns where 3"),
        ("1m", b"one::x::Drama\n", "line 1: the film's id is 'one'"),
        ("25m", b"movieId,title,genres\n1,x,Drama\n2,y\n", "line 3: 2 columns where 3"),
        ("25m", b"movieId,title\n1,x\n", "line 1: there is no column 'genres'"),
        ("25m", b"", "is empty"),
    ],
)
def test_bad_films(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    text = sentence(folder_of({**FILES[name], MOVIES[name]: content}, tmp_path))
    assert MOVIES[name] in text and words in text


@pytest.mark.parametrize("name", FORMATS)
def test_empty_and_missing_files(name: str, tmp_path: Path) -> None:
    ratings, movies = RATINGS[name], MOVIES[name]
    assert f"{tmp_path / ratings} is empty" in sentence(folder_of({**FILES[name], ratings: b""}, tmp_path))
    only_blank = b"".join(FILES[name][ratings].splitlines(keepends=True)[:-4]) + b"\n\n"
    assert "there are no events" in sentence(folder_of({**FILES[name], ratings: only_blank}, tmp_path))
    (tmp_path / movies).unlink()
    assert f"holds {ratings} and no {movies}" in sentence(tmp_path)
    (tmp_path / ratings).unlink()
    text = sentence(tmp_path)
    assert "u.data with u.item" in text and "data.path" in text
    for call in (sources.load, sources.fingerprint):
        assert "no such file or folder" in sentence(MovieLensConfig(path=str(tmp_path / "none.zip")), call)


def test_missing_header(tmp_path: Path) -> None:
    files = {**FILES["25m"], "ratings.csv": FILES["25m"]["ratings.csv"].partition(b"\n")[2]}
    text = sentence(folder_of(files, tmp_path))
    assert "ratings.csv, line 1: there is no column 'userId', only 7, 1, 4.0, 881250949: give" in text


def test_several_data_sets_in_a_folder(tmp_path: Path) -> None:
    folder_of(FILES["1m"], tmp_path / "ml-1m")
    folder_of(FILES["25m"], tmp_path / "ml-25m")
    assert "ratings.dat and ratings.csv" in sentence(tmp_path)
    folder_of(FILES["25m"], tmp_path / "ml-20m")
    (tmp_path / "ml-1m" / "ratings.dat").unlink()
    assert "holds ratings.csv 2 times" in sentence(tmp_path)


def test_broken_zips(tmp_path: Path) -> None:
    path = zip_of({**FILES["1m"], "ratings.dat": FILES["1m"]["ratings.dat"] * 500}, tmp_path / "ml.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert f"{path} cannot be unpacked" in sentence(path)
    begin = whole.index(b"ml/ratings.dat") + 40
    path.write_bytes(whole[:begin] + bytes(byte ^ 255 for byte in whole[begin : begin + 20]) + whole[begin + 20 :])
    assert f"{path} cannot be unpacked" in sentence(path)
    path.write_bytes(b"")
    assert f"{path} is empty" in sentence(path)
    zip_of({**FILES["1m"], "ratings.dat": b"7::1::4\n"}, path)
    assert f"{path}, ratings.dat, line 1: 3 columns" in sentence(path)


def test_version_is_found_or_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fetch(url: str, target: Path, sha256: str | None = None) -> Path:
        asked.append((url, sha256))
        return target if target.exists() else zip_of(FILES["1m"], target)

    monkeypatch.setattr(movielens, "fetch", fetch)
    config = MovieLensConfig(version=MovieLensVersion["1m"], folder=str(tmp_path / "raw"))
    before = sources.fingerprint(config)
    assert asked == [("https://files.grouplens.org/datasets/movielens/ml-1m.zip", movielens.SHA256["1m"])]
    assert sources.load(config).frame.rows() == EVENTS
    assert sources.load(config).name == "ml-1m.zip (ratings.dat)"
    assert sources.fingerprint(config) == before
    asked.clear()
    for version, folder in (("10m", "ml-10M100K"), ("latest-small", "ml-latest-small")):
        folder_of(FILES["1m" if version == "10m" else "25m"], tmp_path / "raw" / folder)
        config = MovieLensConfig(version=MovieLensVersion[version], folder=str(tmp_path / "raw"))
        assert sources.load(config).frame.rows() == EVENTS
    assert asked == []


def test_every_version_has_an_address() -> None:
    assert set(movielens.SHA256) < set(MovieLensVersion.__members__)
    assert all(len(checksum) == 64 for checksum in movielens.SHA256.values())


def test_hints_name_the_settings_of_movielens(tmp_path: Path) -> None:
    alone = FILES["25m"]["ratings.csv"].splitlines(keepends=True)
    path = folder_of({**FILES["25m"], "ratings.csv": alone[0] + alone[-1]}, tmp_path / "all")
    text = sentence(MovieLensConfig(path=str(path), label="rating>=0.5"))
    assert "is 1 in all" in text and "set data.label to null" in text and "data.columns" not in text

    def prepare(protocol: ProtocolConfig) -> str:
        cache = str(tmp_path / "cache")
        return sentence(MovieLensConfig(path=str(path)), lambda data: store.prepare(data, protocol, cache))

    for protocol, words in ((LabelledConfig(), "rating>=4"), (LeaveLastOutConfig(), "take more of the source")):
        said = prepare(protocol)
        assert words in said and "data.columns" not in said
    for call in (sources.load, sources.fingerprint):
        text = sentence(MovieLensConfig(path=str(path), folder=str(tmp_path)), call)
        assert f"data.folder={tmp_path} does nothing beside data.path" in text


def test_path_or_version() -> None:
    text = sentence(MovieLensConfig())
    assert "data.version" in text and "data.path" in text
    text = sentence(MovieLensConfig(path="ml.zip", version=MovieLensVersion["1m"]))
    assert "data.path=ml.zip" in text and "data.version=1m" in text


def test_fingerprint_follows_the_files(tmp_path: Path) -> None:
    config = MovieLensConfig(path=str(folder_of(FILES["1m"], tmp_path)))
    before = sources.fingerprint(config)
    (tmp_path / "notes.txt").write_text("no part of it")
    assert sources.fingerprint(config) == before
    (tmp_path / "movies.dat").write_bytes(b"1::x::Drama\n")
    assert sources.fingerprint(config) != before


def test_labelled_protocol(settings: Callable[..., Any], tmp_path: Path) -> None:
    """Each rating becomes a row with its label; under other protocols the low ones are left out."""
    rng = np.random.default_rng(0)
    ratings = [
        (user, item, int(rng.integers(1, 6)), 956_703_932 + int(rng.integers(10**6)))
        for user in range(60)
        for item in rng.permutation(30)[:20]
    ]
    text = "".join(f"{user}::{item}::{rating}::{time}\n" for user, item, rating, time in ratings).encode()
    films = "".join(f"{item}::a film::{GENRES[item % 3]}|War\n" for item in range(30)).encode()
    path = folder_of({"ratings.dat": text, "movies.dat": films}, tmp_path / "ml")
    high = sum(rating >= 4 for _, _, rating, _ in ratings)
    overrides = ("data=movielens", f"data.path={path}", 'data.label="rating>=4"')
    for protocol in ("labelled", "leave_last_out"):
        targets = "protocol.targets_per_user={train: null, validation: null, test: null}"
        config, _ = settings("dnn", tmp_path, *overrides, f"protocol={protocol}", targets)
        made = store.load(store.prepare(config.data, config.protocol, str(tmp_path / "cache")))
        if protocol == "labelled":
            labels = np.concatenate([made.samples[split].label for split in store.SPLITS])
            assert (len(labels), labels.sum()) == (len(ratings), high)
        else:
            assert made.card["events"] == high
            assert made.card["dropped: label 0"] == len(ratings) - high
        assert made.item_features()["category"].unique().sort().to_list() == sorted(GENRES[:3])
