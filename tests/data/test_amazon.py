"""Amazon files of every year and fault: the right events, or a sentence with file and line."""

from __future__ import annotations

import ast
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deepinterest.config import AmazonConfig, DataConfig, ItemCategory, LastEventConfig, Ties
from deepinterest.data import sources, store
from deepinterest.data.events import Events
from deepinterest.data.sources import amazon, json_lines
from deepinterest.errors import UserError

DAY = 86_400_000  # ms


def review(user: str, item: str, day: int, **more: Any) -> dict[str, Any]:
    """As of 2014."""
    text = f'It\'s "good", {{really}}: \\o/ "unixReviewTime": {day} é'
    record = {"reviewerID": user, "asin": item, "reviewerName": "A'B", "helpful": [0, 1], "reviewText": text}
    return {**record, "overall": 5.0, "unixReviewTime": day * 86_400, "reviewTime": "01 1, 2014", **more}


REVIEWS = [review("u2", "i1", 3), review("u1", "i2", 2), review("u1", "i1", 1), review("u2", "i3", 4)]
EVENTS = [("u1", "i1", DAY), ("u1", "i2", 2 * DAY), ("u2", "i1", 3 * DAY), ("u2", "i3", 4 * DAY)]
METADATA = [
    {"asin": "i1", "title": "It's a \"title\"", "categories": [["Books", "Art"], ["Arts", "Design", "Men's"]],
     "salesRank": {"Books": 3}, "related": {"also_bought": ["i2"]}, "brand": "Acme"},
    {"categories": [["Books", "Children's \"Books\" \\ Kids"]], "price": 1.5, "asin": "i2"},
    {"asin": "i3", "categories": [["Books"]], "title": "'asin': 'i1', 'categories': [['x']]", "brand": ""},
]  # fmt: skip


def as_json(record: Any) -> str:
    return json.dumps(record)


def write(path: Path, records: list[Any], form: Callable[[Any], str] = as_json, end: str = "\n") -> Path:
    """Strings are written as they are."""
    text = "".join((line if isinstance(line, str) else form(line)) + end for line in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(reviews: Path, metadata: Path | None = None, **settings: Any) -> Events:
    return sources.load(AmazonConfig(reviews=str(reviews), metadata=str(metadata) if metadata else None, **settings))


def sentence(reviews: Path, metadata: Path | None = None, **settings: Any) -> str:
    """The one-sentence refusal of the files."""
    with pytest.raises(UserError) as error:
        load(reviews, metadata, **settings)
    text = str(error.value)
    assert "\n" not in text
    assert text.endswith((".", "?"))
    return text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"year": 2018}, "data.year=2018 does nothing without data.category"),
        ({"five_core": True}, "data.five_core=True does nothing without data.category"),
        ({"folder": "x"}, "data.folder=x does nothing without data.category"),
        ({"item_category": ItemCategory.brand}, "data.item_category=brand does nothing without data.metadata"),
        ({"buckets": 5}, "data.buckets=5 does nothing with data=amazon"),
    ],
)
def test_settings_that_do_nothing(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in sentence(write(tmp_path / "reviews.json", REVIEWS), **settings)


def test_swapped_files_are_named_with_their_folder(tmp_path: Path) -> None:
    reviews, metadata = write(tmp_path / "r.json", REVIEWS), write(tmp_path / "m.json", METADATA)
    assert f"give it by data.metadata={metadata}." in sentence(metadata, reviews)
    assert f"give it by data.reviews={reviews}." in sentence(reviews, reviews)


def test_utf_16_and_pipes(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes("\n".join(map(as_json, REVIEWS)).encode("utf-16-le"))
    assert f"{path} is text in UTF-16" in sentence(path)
    assert "data.reviews is '/dev/zero', a device and no file" in sentence(Path("/dev/zero"))


# ------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("form", [as_json, repr])
@pytest.mark.parametrize("name", ["reviews_Books.json.gz", "reviews_Books.json"])
@pytest.mark.parametrize("block", [1, 300, 1 << 23])
def test_2014(form: Callable[[Any], str], name: str, block: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", block)
    monkeypatch.setattr(json_lines, "PIECE", block)
    monkeypatch.setattr(json_lines, "PACKED", block)
    reviews = write(tmp_path / name, REVIEWS, form)
    events = load(reviews, write(tmp_path / "meta_Books.json.gz", METADATA, repr))
    category = {"i1": "Art", "i2": 'Children\'s "Books" \\ Kids', "i3": "Books"}
    assert events.frame.rows() == [(*event, category[event[1]]) for event in EVENTS]
    assert events.item_features == ["category"]
    assert events.name == f"amazon 2014, {name} with 2014 metadata, category: first_path_last"
    assert (events.dropped, events.notes) == ({}, {})


EXPECTED = {
    2014: {"first_path_last": "Art", "last_path_last": "Men's", "main": "Books", "brand": "Acme"},
    2018: {"first_path_last": "Fun & Games", "last_path_last": "Fun & Games", "main": "Toys", "brand": "Acme"},
    2023: {"first_path_last": "Fun & Games", "last_path_last": "Fun & Games", "main": "All Toys", "brand": "Acme"},
}


@pytest.mark.parametrize("which", ItemCategory)
@pytest.mark.parametrize("year", amazon.YEARS)
@pytest.mark.parametrize("form", [as_json, repr])
def test_item_category(which: ItemCategory, year: int, form: Callable[[Any], str], tmp_path: Path) -> None:
    path = ["Toys", "Fun & Games"]
    first = {
        2014: METADATA[0],
        2018: {"category": path, "asin": "i1", "brand": "Acme", "main_cat": "Toys", "tech1": ""},
        2023: {"main_category": "All Toys", "categories": path, "parent_asin": "i1", "store": "Acme", "asin": "old"},
    }[year]
    keys = {2018: ("category", "brand", "main_cat"), 2023: ("categories", "store", "main_category")}.get(year, ())
    bare = {key: value for key, value in first.items() if key not in keys}
    empty: dict[str, Any] = {**first, **dict.fromkeys(keys[1:], ""), keys[0]: []} if keys else METADATA[2]
    item = "parent_asin" if year == 2023 else "asin"
    metadata = [first, {**bare, item: "i2"}, {**empty, item: "i3", "categories": []} if year != 2018 else
                {**empty, item: "i3"}]  # fmt: skip
    events = load(write(tmp_path / "r.json", REVIEWS), write(tmp_path / "m.json", metadata, form), item_category=which)
    found = dict(events.frame.select("item", "category").rows())
    assert found["i1"] == EXPECTED[year][which.value]
    assert found["i3"] is None
    if year != 2014:
        assert found["i2"] is None
        assert events.notes["items of which metadata name no category"] == 2
    assert f"with {year} metadata, category: {which.value}" in events.name


@pytest.mark.parametrize("block", [1, 1 << 23])
def test_2018(block: int, tmp_path: Path, monkeypatch: Any) -> None:
    """Some reviews are there twice, also with another text; main_cat may be a picture, whose text is the name."""
    monkeypatch.setattr(json_lines, "BLOCK", block)
    monkeypatch.setattr(json_lines, "PACKED", block)
    rows = [{**record, "verified": True, "style": {"Color:": " Red"}} for record in REVIEWS]
    again = [{**rows[1], "reviewText": "edited"}, rows[2], {**rows[2], "unixReviewTime": 86_400 * 9}]
    picture = {"asin": "i1", "category": ["Music"], "main_cat": '<img src="x.png" class="nav" alt="Digital Music"/>'}
    metadata = [picture, picture, {"asin": "i1", "main_cat": "Other"}, {"asin": "i9", "main_cat": "Books"}]
    files = write(tmp_path / "Books_5.json.gz", rows + again), write(tmp_path / "meta_Books.json.gz", metadata)
    events = load(*files, item_category=ItemCategory.main)
    category = {"i1": "Digital Music"}
    expected = [*EVENTS[:2], ("u1", "i1", 9 * DAY), *EVENTS[2:]]
    assert events.frame.rows() == [(*event, category.get(event[1])) for event in expected]
    assert events.dropped == {"repeat of a review": 2}
    assert events.notes == {"items without metadata": 2}
    assert events.name.startswith("amazon 2018, Books_5.json.gz with 2018 metadata")


def test_2023(tmp_path: Path) -> None:
    start = 1_600_000_000_007
    rows = [
        {"rating": 5.0, "user_id": r["reviewerID"], "asin": "old", "parent_asin": r["asin"], "images": [],
         "timestamp": start + r["unixReviewTime"] * 1000, "text": r["reviewText"]}
        for r in REVIEWS
    ]  # fmt: skip
    events = load(write(tmp_path / "Books.jsonl.gz", rows))
    assert events.frame.rows() == [(user, item, start + time) for user, item, time in EVENTS]
    assert (events.name, events.item_features) == ("amazon 2023, Books.jsonl.gz", [])


def test_settings_of_all_sources(tmp_path: Path) -> None:
    """Order of ties, and a sample of users."""
    rows = [review("u1", f"i{n}", 1) for n in range(30)] + [review("u2", "i1", 1)]
    reviews = write(tmp_path / "r.json", rows)
    kept = load(reviews, ties=Ties.file).frame["item"].to_list()[:30]
    assert kept == [f"i{n}" for n in range(30)]
    assert load(reviews).frame["item"].to_list()[:30] != kept
    assert load(reviews, limit_users=1).frame["user"].n_unique() == 1


def test_prepared_and_fingerprinted(tmp_path: Path) -> None:
    """Through to a prepared data set; a changed file is another one."""
    rows = [review(f"u{n % 40}", f"i{n * 7 % 23}", n) for n in range(1, 400)]
    metadata = [{"asin": f"i{n}", "categories": [["Books", f"c{n % 4}"]]} for n in range(23)]
    config = AmazonConfig(
        reviews=str(write(tmp_path / "r.json.gz", rows)), metadata=str(write(tmp_path / "m.json.gz", metadata, repr))
    )
    before = store.prepare(config, LastEventConfig(), str(tmp_path / "cache"))
    card = json.loads((before / "card.json").read_text())
    assert (card["events"], card["users"], card["items"], card["categories"]) == (399, 40, 23, 4)
    assert card["source"].startswith("amazon 2014, r.json.gz")
    write(tmp_path / "r.json.gz", rows[:-1])
    assert store.prepare(config, LastEventConfig(), str(tmp_path / "cache")) != before


# ------------------------------------------------------------------------------------------------------------ literals

PIECES = [
    "'",
    '"',
    "\\",
    "\n",
    "\x02",
    "'asin': 'fake', ",
    "'categories': [['fake']]",
    "[",
    "}",
    "{",
    "]",
    ", ",
    "é",
    "B",
]


def nasty(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(6)))


def test_literals_mean_what_python_says(tmp_path: Path) -> None:
    rng = random.Random(0)
    records = []
    for number in range(1500):
        record: dict[str, Any] = {
            "asin": f"i{number}",
            "title": nasty(rng),
            "categories": [[nasty(rng) + "." for _ in range(rng.randrange(4))] for _ in range(rng.randrange(4))],
            "salesRank": {nasty(rng): 3, "n": None},
            "related": {"also": [nasty(rng), "B1"]},
            "brand": nasty(rng),
        }
        keys = [key for key in record if key == "asin" or rng.random() < 0.9]
        rng.shuffle(keys)
        records.append({key: record[key] for key in keys})
    path = write(tmp_path / "m.json", records, repr)
    read_back = [ast.literal_eval(line) for line in path.read_text().splitlines()]
    assert read_back == records
    for field, meant in (
        (json_lines.Field("categories", False, 2, 0, -1), lambda r: r.get("categories", [])[:1]),
        (json_lines.Field("categories", False, 2, -1, -1), lambda r: r.get("categories", [])[-1:]),
        (json_lines.Field("categories", False, 2, 0, 0), lambda r: [part[:1] for part in r.get("categories", [])[:1]]),
        (json_lines.Field("brand", False), lambda r: [[r["brand"]]] if "brand" in r else []),
    ):
        frame = pl.concat(json_lines.read(path, {"item": json_lines.Field("asin"), "category": field}))
        expected = [(meant(record) or [[]])[0] for record in records]
        assert frame["item"].to_list() == [record["asin"] for record in records]
        assert frame["category"].to_list() == [(path or [None])[-1] for path in expected]
        assert frame["line"].to_list() == list(range(1, len(records) + 1))


@pytest.mark.parametrize("form", [as_json, repr])
def test_ordinary_lines_never_go_one_by_one(form: Callable[[Any], str], tmp_path: Path, monkeypatch: Any) -> None:
    """With missing brands, too: one by one is 20 times slower."""
    reviews, metadata = write(tmp_path / "r.json", REVIEWS, form), write(tmp_path / "m.json", METADATA[:2], repr)
    monkeypatch.setattr(json_lines, "sample", lambda path: REVIEWS if path == reviews else METADATA)
    monkeypatch.setattr(json_lines, "_record", lambda *_: pytest.fail("read one by one"))
    assert len(load(reviews, metadata).frame) == 4
    brand = load(reviews, metadata, item_category=ItemCategory.brand).frame
    assert dict(brand.select("item", "category").rows()) == {"i1": "Acme", "i2": None, "i3": None}


def test_json_and_literals_in_one_file(tmp_path: Path) -> None:
    rows = [json.dumps(REVIEWS[0]), repr(REVIEWS[1]), json.dumps(REVIEWS[2]), "u" + repr(REVIEWS[3])[1:]]
    rows[3] = repr(REVIEWS[3]).replace("'u2'", "u'u2'").replace("'i3'", "'i' '3'")  # Python 2, and strings in a row
    assert load(write(tmp_path / "r.json", rows)).frame.rows() == EVENTS


# ---------------------------------------------------------------------------------------------------------------- ugly


@pytest.mark.parametrize("form", [as_json, repr])
def test_windows_lines_bom_and_blanks(form: Callable[[Any], str], tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", [*REVIEWS[:2], "", "  ", *REVIEWS[2:], ""], form, "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load(path).frame.rows() == EVENTS
    assert ", line 6: " in sentence(write(path, [*REVIEWS[:2], "", "  ", REVIEWS[2], {"asin": "i"}], form, "\r\n"))


@pytest.mark.parametrize("raw", [True, False])
def test_control_character(raw: bool, tmp_path: Path) -> None:
    """JSON forbids a bare one; it is kept all the same, as a literal keeps its escape."""
    rows = [as_json(review("u\x02x", "i1", 1)), as_json(REVIEWS[1])]
    if raw:
        rows[0] = rows[0].replace("\\u0002", "\x02")
    metadata = [{"asin": "i1", "categories": [["Rock\x02Pop"]]}]
    events = load(write(tmp_path / "r.json", rows), write(tmp_path / "m.json", metadata, repr))
    assert events.frame.rows() == [("u\x02x", "i1", DAY, "Rock\x02Pop"), ("u1", "i2", 2 * DAY, None)]


def test_no_category(tmp_path: Path) -> None:
    """Missing metadata, an empty list, an empty path, none at all, null."""
    rows = [review("u1", f"i{n}", n) for n in range(1, 7)]
    metadata = ["{'asin': 'i1', 'categories': []}", "{'asin': 'i2', 'categories': [[]]}", "{'asin': 'i3'}",
                '{"asin": "i4", "categories": null}', "{'asin': 'i5', 'categories': [['A', 'B']]}"]  # fmt: skip
    events = load(write(tmp_path / "r.json", rows), write(tmp_path / "m.json", metadata))
    assert events.frame["category"].to_list() == [None, None, None, None, "B", None]
    assert events.notes == {"items without metadata": 1, "items of which metadata name no category": 4}


@pytest.mark.parametrize(
    "times",
    [
        [3 * 86_400, 2 * 86_400, 86_400, 4 * 86_400],
        ["259200", "172800.0", 86_400.0, "345600"],
        ["1970-01-04", "1970-01-03T00:00:00Z", "1970-01-02 00:00:00", "1970-01-05T02:00:00+02:00"],
        [172_800, "1970-01-03", 86_400, "1970-01-05"],
    ],
)
@pytest.mark.parametrize("block", [1, 1 << 23])
def test_times(times: list[Any], block: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", block)
    monkeypatch.setattr(json_lines, "PIECE", block)
    rows = [{**record, "unixReviewTime": time} for record, time in zip(REVIEWS, times, strict=True)]
    frame = load(write(tmp_path / "r.json", rows)).frame
    if times[0] == 172_800:
        assert frame["timestamp"].to_list() == [DAY, 2 * DAY, 2 * DAY, 4 * DAY]
    else:
        assert frame.rows() == EVENTS


@pytest.mark.parametrize(("unit", "ms"), [("s", 1000), ("ms", 1), ("us", 1 / 1000), ("ns", 1 / 1_000_000)])
def test_units_of_time(unit: str, ms: float, tmp_path: Path) -> None:
    start = 1_400_000_000_000
    rows = [review(f"u{n}", "i", n, unixReviewTime=int((start + 1000 * n) / ms)) for n in range(3)]
    assert load(write(tmp_path / "r.json", rows)).frame["timestamp"].to_list() == [start, start + 1000, start + 2000]
    rows.append(review("u3", "i", 3, unixReviewTime=10**18))
    if unit == "s":
        assert "r.json, line 4: 'unixReviewTime' holds 1000000000000000000, which in s lies beyond the year 9999" in (
            sentence(write(tmp_path / "r.json", rows))
        )


BAD_LINES = {
    "[1, 2]": "holds '[1, 2]', which is no object",
    "17": "holds '17', which is no object",
    "null": "holds 'null', which is no object",
    '{"asin": "i1", "unixReviewTime": 1}': "there is no 'reviewerID'",
    '{"reviewerID": "u", "asin": null, "unixReviewTime": 1}': "there is no 'asin'",
    "{'reviewerID': 'u', 'asin': 'i'}": "there is no 'unixReviewTime'",
    '{"reviewerID": "u", "asin": "i", "unixReviewTime": "soon"}': "'unixReviewTime' holds 'soon', which is no time",
    '{"reviewerID": "u", "asin": {"a": 1}, "unixReviewTime": 1}': "which is not a text or a number",
    '{"reviewerID": "u", "asin": "i", "unixRev': "can't be read as a JSON object or a Python literal",
    "{'reviewerID': 'u', 'asin': 'i', 'unixReviewTime': 1": "can't be read as a JSON object or a Python literal",
    "u,i,5.0,1400000000": "can't be read as a JSON object or a Python literal",
}


@pytest.mark.parametrize("line", BAD_LINES)
@pytest.mark.parametrize("block", [100, 1 << 23])
def test_bad_line(line: str, block: int, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_lines, "BLOCK", block)
    monkeypatch.setattr(json_lines, "PIECE", block)
    monkeypatch.setattr(json_lines, "PACKED", block)
    monkeypatch.setattr(json_lines, "SAMPLED", 1)
    path = write(tmp_path / "r.json", [*REVIEWS, line, *REVIEWS])
    assert f"{path}, line 5: " in (text := sentence(path))
    assert BAD_LINES[line] in text


@pytest.mark.parametrize("form", [as_json, repr])
def test_last_line_breaks_off(form: Callable[[Any], str], tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", REVIEWS, form)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # only its end of line is missing
    assert load(path).frame.rows() == EVENTS
    path.write_bytes(whole[:-30])
    assert f"{path}, line 4: the line breaks off" in sentence(path)


def test_gz_cut_short(tmp_path: Path, monkeypatch: Any) -> None:
    rng = random.Random(0)
    rows = [review(f"u{n}", "i", n, reviewText=rng.randbytes(300).hex()) for n in range(500)]
    whole = write(tmp_path / "r.json.gz", rows).read_bytes()
    path = tmp_path / "r.json.gz"
    path.write_bytes(whole[: len(whole) // 2])
    text = sentence(path)
    line = int(text.partition("after line ")[2].partition(":")[0])
    assert "is cut short" in text
    assert 150 < line < 350
    path.write_bytes(whole[:1000] + bytes(200) + whole[1200:])
    assert f"{path} is damaged (" in sentence(path)


def test_line_without_end(tmp_path: Path, monkeypatch: Any) -> None:
    """It isn't held in memory whole."""
    monkeypatch.setattr(json_lines, "LONGEST", 5000)
    monkeypatch.setattr(json_lines, "BLOCK", 1000)
    path = tmp_path / "r.json"
    assert f"{path}, line 1: the line is longer than 5,000 bytes" in sentence(write(path, ["[" + "1, " * 5000 + "1]"]))


def test_gz_of_several_members(tmp_path: Path) -> None:
    path = tmp_path / "r.json.gz"
    path.write_bytes(b"".join(gzip.compress((json.dumps(row) + "\n").encode()) for row in REVIEWS))
    assert load(path).frame.rows() == EVENTS


def test_no_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "r.json", REVIEWS)
    lines = path.read_bytes().replace(b"i1", b"i\xff", 1).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[1:], lines[0]]))
    assert f"{path}, line 4: the byte 0xff is no UTF-8" in sentence(path)


@pytest.mark.parametrize("content", ["", "\n\n"])
@pytest.mark.parametrize("name", ["r.json", "r.json.gz"])
def test_empty_file(content: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, [content], end="")
    assert sentence(path) == f"{path} is empty: it must hold one record a line."


def test_wrong_file(tmp_path: Path) -> None:
    reviews, metadata = write(tmp_path / "r.json", REVIEWS), write(tmp_path / "m.json", METADATA, repr)
    assert f"{metadata} holds metadata (asin, brand, " in (text := sentence(metadata))
    assert "give it by data.metadata=" in text
    assert f"{reviews} holds reviews (" in (text := sentence(reviews, reviews))
    assert "give it by data.reviews=" in text
    other = write(tmp_path / "o.json", [{"name": "x"}])
    assert "o.json holds no reviews: line 1 and those after it have name" in sentence(other)
    assert "o.json holds no metadata: line 1 and those after it have name" in sentence(reviews, other)
    strangers = write(tmp_path / "s.json", [{"asin": "z", "categories": [["A"]]}])
    assert f"{strangers} describes none of the 3 items of {reviews}" in sentence(reviews, strangers)
    shapeless = write(tmp_path / "m.json", [*METADATA, {"asin": "i4", "categories": ["Books"]}], repr)
    assert f"{shapeless}, line 4: 'categories' holds 'Books'" in sentence(reviews, shapeless)


# --------------------------------------------------------------------------------------------------------------- files


def test_which_files(tmp_path: Path) -> None:
    def refusal(**settings: Any) -> str:
        with pytest.raises(UserError) as error:
            sources.fingerprint(AmazonConfig(**settings))
        return str(error.value)

    assert "data=amazon needs data.reviews=PATH and" in refusal()
    assert "data.year=2014|2018|2023" in refusal()
    assert "data.reviews is 'nowhere.json', and there is no such file" in refusal(reviews="nowhere.json")
    assert f"data.metadata is {str(tmp_path)!r}, a folder" in refusal(
        reviews=str(write(tmp_path / "r.json", REVIEWS)), metadata=str(tmp_path)
    )
    assert "leave out either it or the paths" in refusal(reviews="r.json", category="Books")
    assert "data.year=2015 is not possible: one of 2014, 2018, 2023" in refusal(category="Books", year=2015)
    assert "data.category=../x is not possible" in refusal(category="../x")
    assert "set data.core=5" in refusal(category="Books", year=2023, five_core=True)


@pytest.mark.parametrize(
    ("year", "five_core", "reviews", "metadata"),
    [
        (2014, False, "reviews_Toys.json.gz", "meta_Toys.json.gz"),
        (2014, True, "reviews_Toys_5.json.gz", "meta_Toys.json.gz"),
        (2018, False, "Toys.json.gz", "meta_Toys.json.gz"),
        (2018, True, "Toys_5.json.gz", "meta_Toys.json.gz"),
        (2023, False, "Toys.jsonl.gz", "meta_Toys.jsonl.gz"),
    ],
)
def test_category_and_year(
    year: int, five_core: bool, reviews: str, metadata: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """Files in the folder are taken, packed or not; absent ones are fetched."""
    asked: list[tuple[str, Path]] = []

    def fetch(url: str, target: Path) -> Path:
        asked.append((url, target))
        raise UserError(f"{url} could not be fetched: put the file at {target}.")

    config = AmazonConfig(category="Toys", year=year, five_core=five_core, folder=str(tmp_path))
    monkeypatch.setattr(amazon, "fetch", fetch)
    with pytest.raises(UserError, match="could not be fetched"):
        sources.fingerprint(config)
    ((url, target),) = asked
    assert target == tmp_path / reviews
    assert url.startswith(("http://snap.stanford.edu/", "https://mcauleylab.ucsd.edu/"))
    assert url.endswith(f"/{reviews}")

    monkeypatch.setattr(amazon, "fetch", lambda url, target: target if target.is_file() else pytest.fail(str(target)))
    write(tmp_path / reviews.removesuffix(".gz"), REVIEWS)
    write(tmp_path / metadata, METADATA)
    assert sources.fingerprint(config)["path"] == [
        str(tmp_path / reviews.removesuffix(".gz")), str(tmp_path / metadata)
    ]  # fmt: skip
    assert sources.load(config).frame.height == 4


def test_default_folder(monkeypatch: Any) -> None:
    asked = []
    monkeypatch.setattr(amazon, "fetch", lambda url, target: asked.append(target) or Path(__file__))
    config: DataConfig = AmazonConfig(category="Books")
    sources.fingerprint(config)
    assert [path.parts[-3:-1] for path in asked] == [("raw", "amazon")] * 2
