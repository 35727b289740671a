"""The published file layout: reading, refusing and writing it."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepinterest.config import CompleteJourneyConfig, EventFileConfig, ReferenceDataConfig, Repeats, Ties
from deepinterest.data import layout, plain_pickle, sources
from deepinterest.data.events import Events, PublishedRows
from deepinterest.data.sources import completejourney
from deepinterest.errors import UserError

GLOBO = Path(__file__).parents[3] / "shared" / "data" / "globo" / "reference_layout.tar.xz"
DAY = 86_400
START = 1_400_000_000  # seconds

Files = dict[str, bytes]


def tiny() -> Files:
    """Three users; u1's last two events are at one time; a4 has no category; a9 stands in item-info alone."""
    reviews = [
        ("u1", "a1", 0), ("u2", "a1", 0), ("u1", "a2", 2), ("u0", "a2", 5), ("u1", "a3", 1), ("u2", "a4", 1),
        ("u1", "a1", 2), ("u2", "a2", 2), ("u0", "a3", 1),
    ]  # fmt: skip
    train = [
        "0\tu1\ta4\tdefault_cat\ta1\x02a3\x02a2\tc1\x02c2\x02c1", "1\tu1\ta1\tc1\ta1\x02a3\x02a2\tc1\x02c2\x02c1",
        "0\tu2\ta3\tc2\ta1\x02a4\tc1\x02default_cat", "1\tu2\ta2\tc1\ta1\x02a4\tc1\x02default_cat",
    ]  # fmt: skip
    return {
        "item-info": b"a1\tc1\na2\tc1\na3\tc2\na4\tdefault_cat\na9\tc3\na1\tc2\n",
        "reviews-info": "".join(f"{u}\t{a}\t5.0\t{START + day * DAY}\n" for u, a, day in reviews).encode(),
        "local_train_splitByUser": "".join(f"{line}\n" for line in train).encode(),
        "local_test_splitByUser": b"0\tu0\ta1\tc1\ta3\tc2\n1\tu0\ta2\tc1\ta3\tc2\n",
        "uid_voc.pkl": pickle.dumps({"u2": 0, "u1": 1}, 0),
        "mid_voc.pkl": pickle.dumps({"default_mid": 0, "a1": 1, "a2": 3, "a3": 2}, 2),
        "cat_voc.pkl": b' {"default_cat": 0, "c1": 1, "c2": 2}',
    }


def save(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def pack(path: Path, files: Files, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def load(path: Path, **settings: object) -> Events:
    return sources.load(ReferenceDataConfig(path=str(path), **settings))  # type: ignore[arg-type]


def same_rows(left: PublishedRows | None, right: PublishedRows | None) -> bool:
    assert left is not None and right is not None
    same = left.train.equals(right.train) and left.test.equals(right.test)
    return same and all(v.to_list() == right.vocabularies[k].to_list() for k, v in left.vocabularies.items())


# ------------------------------------------------------------------------------------------------------------- reading


def test_events_and_rows(tmp_path: Path) -> None:
    events = load(save(tmp_path / "x", tiny()))
    ms = [(START + day * DAY) * 1000 for day in (1, 5, 0, 1, 2, 2, 0, 1, 2)]
    assert events.frame.to_dict(as_series=False) == {
        "user": ["u0"] * 2 + ["u1"] * 4 + ["u2"] * 3,
        "item": ["a3", "a2", "a1", "a3", "a2", "a1", "a1", "a4", "a2"],
        "timestamp": ms,
        "category": ["c2", "c1", "c1", "c2", "c1", "c1", "c1", None, "c1"],
    }
    assert events.item_features == ["category"]
    assert events.rows is not None
    assert events.rows.train.schema == {
        "user": pl.String, "item": pl.String, "label": pl.UInt8, "history": pl.Int64,
    }  # fmt: skip
    assert events.rows.train.rows() == [
        ("u1", "a4", 0, 3), ("u1", "a1", 1, 3), ("u2", "a3", 0, 2), ("u2", "a2", 1, 2),
    ]  # fmt: skip
    assert events.rows.test.rows() == [("u0", "a1", 0, 1), ("u0", "a2", 1, 1)]
    assert {kind: values.to_list() for kind, values in events.rows.vocabularies.items()} == {
        "user": ["u2", "u1"],
        "item": ["a1", "a3", "a2"],
        "category": ["c1", "c2"],
    }
    assert events.rows.items is not None
    assert events.rows.items.rows() == [("a1", "c1"), ("a2", "c1"), ("a3", "c2"), ("a4", None), ("a9", "c3")]


@pytest.mark.parametrize(
    ("suffix", "mode", "inside"),
    [(".tar", "w", ""), (".tar.gz", "w:gz", "./a/"), (".tar.bz2", "w:bz2", "x/"), (".tar.xz", "w:xz", "../../")],
)
def test_tar(tmp_path: Path, suffix: str, mode: str, inside: str) -> None:
    files = {f"{inside}{name}": data for name, data in tiny().items()}
    path = pack(tmp_path / f"x{suffix}", files | {f"{inside}readme": b"no part of it"}, mode)
    folder = load(save(tmp_path / "x", tiny()))
    packed = load(path)
    assert packed.frame.equals(folder.frame)
    assert same_rows(packed.rows, folder.rows)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x", path.name]  # nothing unpacked


def test_subfolder(tmp_path: Path) -> None:
    save(tmp_path / "x" / "inside", tiny())
    (tmp_path / "x" / "another").mkdir()
    assert load(tmp_path / "x").frame.height == 9


def test_sample_of_users_keeps_rows_consistent(tmp_path: Path) -> None:
    path = save(tmp_path / "x", tiny())
    seen = set()
    for seed in range(8):
        events = load(path, limit_users=2, seed=seed)
        kept = set(events.frame["user"])
        assert len(kept) == 2
        assert events.rows is not None
        assert set(events.rows.train["user"]) | set(events.rows.test["user"]) == kept
        assert len(events.rows.vocabularies["user"]) == 2  # ids are those of the files
        seen.add(tuple(sorted(kept)))
    assert len(seen) > 1


def test_random_ties_leave_the_rows_out(tmp_path: Path) -> None:
    path = save(tmp_path / "x", tiny())
    orders = {tuple(load(path, ties=Ties.random, seed=seed).frame["item"]) for seed in range(8)}
    assert len(orders) == 2  # u1's last two
    events = load(path, ties=Ties.random)
    assert events.rows is None
    assert events.notes == {"labelled rows left out, as data.ties is random": 6}


def test_fingerprint(tmp_path: Path) -> None:
    folder, tar = save(tmp_path / "x", tiny()), pack(tmp_path / "x.tar", tiny())
    for path in (folder, tar):
        before = sources.fingerprint(ReferenceDataConfig(path=str(path)))
        assert before == sources.fingerprint(ReferenceDataConfig(path=str(path)))
        if path is folder:
            (path / "item-info").write_bytes(b"a1\tc1\n")
        else:
            pack(path, tiny() | {"more": b"x" * 20_000})
        after = sources.fingerprint(ReferenceDataConfig(path=str(path)))
        assert after != before
        json.dumps(after)
    with pytest.raises(UserError, match="no such file or folder"):
        sources.fingerprint(ReferenceDataConfig(path=str(tmp_path / "y")))
    for call in (sources.fingerprint, sources.load):
        with pytest.raises(UserError, match="/dev/zero', a device and no file"):
            call(ReferenceDataConfig(path="/dev/zero"))


# ------------------------------------------------------------------------------------------------------------ refusals


def replaced(name: str, old: bytes, new: bytes) -> Files:
    files = tiny()
    assert old in files[name]
    return files | {name: files[name].replace(old, new, 1)}


TRAIN, TEST, REVIEWS, ITEMS = "local_train_splitByUser", "local_test_splitByUser", "reviews-info", "item-info"
BROKEN: dict[str, tuple[Files, str]] = {
    "5 columns": (replaced(TRAIN, b"\tc1\x02c2\x02c1\n", b"\n"), r"Train_file, line 1: the columns are 5 and not 6"),
    "7 columns": (replaced(TEST, b"\tc2\n1", b"\tc2\tx\n1"), r"Test_file, line 1: the columns are 7 and not 6"),
    "blank line": (replaced(TEST, b"\n1", b"\n\n1"), r"Test_file, line 2: the columns are 1 and not 6"),
    "label": (replaced(TRAIN, b"1\tu2", b"2\tu2"), r"Train_file, line 4: label '2' is neither 0 nor 1"),
    "lengths": (
        replaced(TRAIN, b"c1\x02c2\x02c1\n0", b"c1\x02c2\n0"), r"Train_file, line 2: the history has 3 items and 2 cat"
    ),
    "no history": (replaced(TEST, b"\ta3\tc2\n1", b"\t\t\n1"), r"Test_file, line 1: the history of user 'u0' is empty"),
    "no items": (replaced(TEST, b"\ta3\tc2\n1", b"\t\tc2\n1"), r"Test_file, line 1: column 5 .* without a name"),
    "gap": (replaced(TRAIN, b"a1\x02a4\tc", b"a1\x02\tc"), r"Train_file, line 3: column 5 .* 'a1\\x02'"),
    "row without category": (replaced(TEST, b"a2\tc1", b"a2\t"), r"Test_file, line 2: column 4 \(category\) is empty"),
    "row without user": (replaced(TEST, b"\tu0", b"\t"), r"Test_file, line 1: column 2 \(user\) is empty"),
    "item without column": (replaced(ITEMS, b"a3\tc2", b"a3"), r"item-info, line 3: the columns are 1 and not 2"),
    "item without category": (replaced(ITEMS, b"a3\tc2", b"a3\t"), r"item-info, line 3: column 2 \(category\) is"),
    "row not UTF-8": (replaced(TRAIN, b"a3\tc2", b"a\xff\tc2"), r"Train_file, line 3, column 3: the byte b'\\xff'"),
    "event not UTF-8": (replaced(REVIEWS, b"u0\t", b"u\xe9\t"), r"reviews-info, line 4, column 1: the byte b'\\xe9'"),
    "item not UTF-8": (replaced(ITEMS, b"c3", b"\xc3"), r"item-info, line 5, column 2: the byte b'\\xc3'"),
    "JSON not UTF-8": (replaced("cat_voc.pkl", b'"c2"', b'\n"\xc3"'), r"cat_voc.pkl, line 2, column 1: the byte"),
    "carriage return": (replaced(ITEMS, b"c2\n", b"c2\r\n"), r"item-info, line 3, column 2: there is a carriage"),
    "event of 3 columns": (replaced(REVIEWS, b"\t5.0", b""), r"reviews-info, line 1: the columns are 3 and not 4"),
    "time": (replaced(REVIEWS, b"\t1400172800\n", b"\tMonday\n"), r"reviews-info, line 3: time 'Monday' is no number"),
    "infinite time": (replaced(REVIEWS, b"\t1400172800\n", b"\tinf\n"), r"reviews-info, line 3: time 'inf' is no num"),
    "late time": (replaced(REVIEWS, b"\t1400172800\n", b"\t99999999999999\n"), r"row 3, .* beyond the year 9999: mend"),
    "empty": (tiny() | {TEST: b""}, r"Test_file is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_line(tmp_path: Path, case: str) -> None:
    files, said = BROKEN[case]
    said = said.replace("Train_file", TRAIN).replace("Test_file", TEST)
    with pytest.raises(UserError, match=said) as caught:
        load(save(tmp_path / "x", files))
    assert str(caught.value).endswith(".")
    with pytest.raises(UserError, match=said):
        load(pack(tmp_path / "x.tar", files))


RUNS = "different runs of the pipeline"
DIFFER: dict[str, tuple[Files, str]] = {
    "history": (
        replaced(TRAIN, b"1\tu1\ta1\tc1\ta1\x02a3", b"1\tu1\ta1\tc1\ta1\x02a2"),
        f"{TRAIN}, line 2, user 'u1': item 2 of the history is 'a2' and by reviews-info it is 'a3'; .*{RUNS}",
    ),
    "order of ties": (
        replaced(REVIEWS, b"u1\ta2\t", b"u1\ta1\t"),
        f"{TRAIN}, line 1, user 'u1': item 3 of the history is 'a2' and by reviews-info it is 'a1'",
    ),
    "later line": (
        replaced(TEST, b"c1\ta3\tc2\n1", b"c1\ta2\tc1\n1"),
        f"{TEST}, line 1, user 'u0': item 1 of the history is 'a2'",
    ),
    "positive": (
        replaced(TRAIN, b"1\tu2\ta2\tc1", b"1\tu2\ta3\tc2"),
        f"{TRAIN}, line 4, user 'u2': the item with label 1 is 'a3' and the event after the history is of 'a2'; ",
    ),
    "history of all events": (
        replaced(TEST, b"\ta3\tc2\n1", b"\ta3\x02a2\tc2\x02c1\n1"),
        f"{TEST}, line 1, user 'u0': the history has 2 items and no event comes after: reviews-info has 2",
    ),
    "unknown user": (replaced(TEST, b"0\tu0", b"0\tu7"), f"{TEST}, line 1, user 'u7': .* reviews-info has 0 events"),
    "category of history": (
        replaced(TRAIN, b"c1\x02default_cat", b"c1\x02c2"),
        f"{TRAIN}, line 3, user 'u2': category 2 of the history is 'c2' and by item-info it is 'default_cat'",
    ),
    "category of candidate": (
        replaced(TRAIN, b"a3\tc2", b"a3\tc1"),
        f"{TRAIN}, line 3, user 'u2': item 'a3' has the category 'c1' and by item-info it is 'c2'; .*{RUNS}",
    ),
}


@pytest.mark.parametrize("case", DIFFER)
def test_files_of_different_runs(tmp_path: Path, case: str) -> None:
    files, said = DIFFER[case]
    with pytest.raises(UserError, match=said):
        load(save(tmp_path / "x", files))


def test_item_without_metadata(tmp_path: Path) -> None:
    files = tiny()
    files[ITEMS] = files[ITEMS].replace(b"a4\tdefault_cat\n", b"")
    events = load(save(tmp_path / "x", files))
    assert events.frame.filter(pl.col("item") == "a4")["category"].to_list() == [None]


@pytest.mark.parametrize("name", layout.FILES)
def test_missing_file(tmp_path: Path, name: str) -> None:
    files = tiny()
    del files[name]
    folder, tar = save(tmp_path / "x", files), pack(tmp_path / "x.tar", files)
    for call in (lambda: load(folder), lambda: load(tar)):
        with pytest.raises(UserError, match=f"has no {name}: the published layout is .* correct data.path"):
            call()
    with pytest.raises(UserError, match=f"has no {name}:"):
        sources.fingerprint(ReferenceDataConfig(path=str(folder)))


def test_no_layout_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder: correct the path"):
        load(tmp_path / "x")
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="has no item-info and no reviews-info and no local_train"):
        load(tmp_path / "x")
    whole = pack(tmp_path / "x.tar.xz", {name: data * 50 for name, data in tiny().items()}, "w:xz").read_bytes()
    for number, data in enumerate((b"", b"no tar", whole[: len(whole) // 2])):
        (tmp_path / f"{number}.tar").write_bytes(data)
        with pytest.raises(UserError, match="cannot be read as a tar"):
            load(tmp_path / f"{number}.tar")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    with pytest.raises(UserError, match=r"item-info cannot be read \(Permission denied\): correct its permissions"):
        load(save(tmp_path / "x", tiny()))


def test_tar_with_links_or_twice_the_same(tmp_path: Path) -> None:
    files = tiny()
    with pytest.raises(UserError, match="holds item-info twice"):
        load(pack(tmp_path / "twice.tar", files | {"other/item-info": b"a1\tc1\n"}))
    secret = tmp_path / "secret"
    secret.write_bytes(files.pop(ITEMS))
    pack(tmp_path / "link.tar", files)
    with tarfile.open(tmp_path / "link.tar", "a") as archive:
        link = tarfile.TarInfo(ITEMS)
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    with pytest.raises(UserError, match="item-info is a link or a device"):
        load(tmp_path / "link.tar")


# -------------------------------------------------------------------------------------------------------- vocabularies

# As Python 2.7.18's cPickle wrote them, of protocols 0 to 2.
TEXT = {"ué": 0, "中\\": 1, "😀\n": 2}
BYTES = {"ué": 0, "it's\t\\": 1, "x": 2}
PYTHON_2 = [
    (b"(dp1\nV\\U0001f600\\u000a\np2\nI2\nsV\\u4e2d\\u005c\np3\nI1\nsVu\xe9\np4\nI0\ns.", TEXT),
    (
        b"}q\x01(X\x05\x00\x00\x00\xf0\x9f\x98\x80\nq\x02K\x02X\x04\x00\x00\x00\xe4\xb8\xad\\q\x03K\x01"
        b"X\x03\x00\x00\x00u\xc3\xa9q\x04K\x00u.",
        TEXT,
    ),
    (
        b"\x80\x02}q\x01(X\x05\x00\x00\x00\xf0\x9f\x98\x80\nq\x02K\x02X\x04\x00\x00\x00\xe4\xb8\xad\\q\x03K\x01"
        b"X\x03\x00\x00\x00u\xc3\xa9q\x04K\x00u.",
        TEXT,
    ),
    (b"(dp1\nV\\ud83d\\ude00\\u000a\np2\nI0\ns.", {"😀\n": 0}),  # a narrow build
    (b"(dp1\nS\"it's\\t\\\\\"\np2\nI1\nsS'x'\nL2L\nsS'u\\xc3\\xa9'\np3\nI0\ns.", BYTES),
    (b"}q\x01(U\x06it's\t\\q\x02K\x01U\x01xL2L\nU\x03u\xc3\xa9q\x03K\x00u.", BYTES),
    (b"\x80\x02}q\x01(U\x06it's\t\\q\x02K\x01U\x01x\x8a\x01\x02U\x03u\xc3\xa9q\x03K\x00u.", BYTES),
]


@pytest.mark.parametrize("number", range(len(PYTHON_2)))
def test_python_2_pickles(number: int) -> None:
    data, ids = PYTHON_2[number]
    assert layout.vocabulary(data, "x", "user").to_list() == sorted(ids, key=lambda key: ids[key])


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_protocols(protocol: int) -> None:
    ids = {f"ü{number}" + "x" * (number % 300): number for number in range(70_000)}
    assert layout.vocabulary(pickle.dumps(ids, protocol), "x", "user").to_list() == list(ids)
    assert plain_pickle.loads(pickle.dumps({}, protocol)) == {}
    large = {"a": 300, "b": 70_000, "c": 2**40, "d": -5, "e": 2**70}
    assert plain_pickle.loads(pickle.dumps(large, protocol)) == large
    shared = "same"
    with pytest.raises(plain_pickle.RefusedError, match="holds list"):
        plain_pickle.loads(pickle.dumps([shared, shared], protocol))


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_as_keys(protocol: int) -> None:
    assert layout.vocabulary(pickle.dumps({"ü".encode(): 0}, protocol), "x", "user").to_list() == ["ü"]
    with pytest.raises(UserError, match=r"the key b'\\xff' \(id 1, entry 2\) isn't UTF-8"):
        layout.vocabulary(pickle.dumps({b"a": 0, b"\xff": 1}, protocol), "x", "user")


def test_bytes_by_a_function_call() -> None:
    """Python 3 writes bytes in protocols 0 to 2 as a call, and no call is made."""
    with pytest.raises(UserError, match=r"asks for _codecs\.encode .*nothing of it was run.* with text as keys"):
        layout.vocabulary(pickle.dumps({b"a": 0}, 2), "x", "user")


class Evil:
    """Runs a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_runs(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trap"
    for value in (Evil(f"touch {trap}"), {Evil(f"touch {trap}"): 0}, {"a": Evil(f"touch {trap}")}):
        data = pickle.dumps(value, protocol)
        with pytest.raises(UserError, match=r"asks for (posix|nt)\.system .*nothing of it was run"):
            load(save(tmp_path / "x", tiny() | {"uid_voc.pkl": data}))
    assert not trap.exists()
    pickle.loads(data)  # it would have run
    assert trap.exists()


FOREIGN = {
    "INST": (b"(S'touch x'\nios\nsystem\n.", "asks for os.system"),
    "GLOBAL": (b"cos\nsystem\n(S'touch x'\ntR.", "asks for os.system"),
    "OBJ": (b"((lp0\no.", "holds list"),
    "REDUCE": (b"(dR.", "the instruction REDUCE"),
    "BUILD": (b"}}b.", "the instruction BUILD"),
    "NEWOBJ": (b"\x80\x02}}\x81.", "the instruction NEWOBJ"),
    "EXT": (b"\x80\x02\x82\x01.", "the instruction EXT1"),
    "PERSID": (b"Pos.system\n.", "the instruction PERSID"),
    "set": (pickle.dumps({"a": {1}}, 5), "holds set"),
    "set 2": (pickle.dumps({"a": {1}}, 2), "asks for __builtin__.set"),
    "frozenset": (pickle.dumps(frozenset([1]), 5), "holds frozenset"),
    "tuple": (pickle.dumps({"a": (1, 2)}, 2), "holds tuple"),
    "tuple as key": (pickle.dumps({(): 0}, 2), "holds tuple"),
    "None": (pickle.dumps({"a": None}, 0), "holds None"),
    "float": (pickle.dumps({"a": 1.0}, 0), "holds float"),
    "bool": (pickle.dumps({"a": True}, 2), "holds bool"),
    "bool 0": (pickle.dumps({"a": True}, 0), "holds bool"),
    "bytearray": (pickle.dumps({"a": bytearray(b"x")}, 5), "holds bytearray"),
    "text as value": (pickle.dumps({"a": "b"}, 2), "has str as the value of 'a'"),
    "number as key": (pickle.dumps({7: 0}, 2), "has int as a key"),
    "dict in a dict": (pickle.dumps({"a": {}}, 2), "has dict as the value of 'a'"),
    "text alone": (pickle.dumps("a", 2), "holds str"),
    "no dict": (b"I1\nS'a'\nI0\ns.", "has a key in int"),
    "itself": (b"}q\x00X\x01\x00\x00\x00ah\x00s.", "has dict as the value"),
    "twice": (b"}(X\x01\x00\x00\x00aK\x00X\x01\x00\x00\x00aK\x01u.", "the key 'a' twice"),
    "deep": (b"(" * 1_000_000 + b"d" * 1_000_000 + b".", "has a key|is broken|has dict"),
    "deep lists": (b"]" * 1_000_000, "holds list"),
    "memo without entry": (b"h\x07.", "is broken"),
    "huge text": (b"}X\xff\xff\xff\x7fa", "breaks off at byte 7"),
    "huge text 8": (b"}\x8d" + b"\xff" * 8 + b"a", "breaks off"),
    "negative length": (b"}\x8b\xff\xff\xff\xffa", "breaks off"),
    "odd items": (b"(S'a'\nd.", "a key without a value"),
    "odd update": (b"}(S'a'\nu.", "a key without a value"),
    "no mark": (b"}u.", "no mark"),
    "no number": (b"Ix\n.", "is broken at byte 0"),
    "no memo number": (b"}px\n.", "is broken at byte 1"),
    "long number": (b"I" + b"9" * 10_000 + b"\n.", "is broken at byte 0"),
    "no quotes": (b"Sabc\n.", "is broken at byte 0"),
    "lone surrogate": (b"V\\ud800\n.", "is broken at byte 0"),
    "text not UTF-8": (b"}X\x01\x00\x00\x00\xffK\x00s.", "isn't UTF-8"),
    "protocol 9": (b"\x80\x09}.", "pickle protocol 9"),
    "empty stack": (b".", "is broken"),
    "no pickle": (b"\xfeuser", "is no pickle"),
    "nothing": (b"", "breaks off at byte 0"),
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_pickles(case: str) -> None:
    data, said = FOREIGN[case]
    with pytest.raises(UserError, match=f"^the file.*({said})"):
        layout.vocabulary(data, "the file", "user")


def test_huge_memo_takes_no_memory() -> None:
    assert plain_pickle.loads(b"}r\xff\xff\xff\x7f.") == {}


def test_truncated_pickles() -> None:
    for protocol in range(6):
        data = pickle.dumps({"a": 0, "b": 1}, protocol)
        for end in range(len(data)):
            with pytest.raises(UserError, match="breaks off"):
                layout.vocabulary(data[:end], "x", "user")


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        plain_pickle.loads(data)
    except plain_pickle.RefusedError:
        return


IDS: list[tuple[str, dict[str, object], str]] = [
    ("user", {"u0": 0, "u1": 2}, "'u1' has the id 2, and 2 keys have the ids 0 to 1, each once"),
    ("user", {"u0": 0, "u1": -1}, "'u1' has the id -1"),
    ("user", {"u0": 1, "u1": 1}, "'u0' and 'u1' have the same id 1"),
    ("user", {"u0": 1, "u1": 2}, "'u1' has the id 2"),
    ("item", {"a1": 0, "a2": 1}, "'default_mid' is missing: id 0 must be that of 'default_mid'"),
    ("item", {"default_mid": 1, "a2": 0}, "'default_mid' has the id 1"),
    ("category", {"c1": 1, "default_cat": 2}, "'default_cat' has the id 2: .* data that don't hold 'default_cat'"),
    ("category", {"default_mid": 0, "c1": 1}, "'default_cat' is missing"),
]


@pytest.mark.parametrize(("kind", "ids", "said"), IDS)
def test_ids_of_vocabularies(kind: str, ids: dict[str, object], said: str) -> None:
    for data in (pickle.dumps(ids, 0), pickle.dumps(ids, 4), json.dumps(ids).encode()):
        with pytest.raises(UserError, match=f"^x: {said}"):
            layout.vocabulary(data, "x", kind)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 0, "a": 1}', "the key 'a' twice"),
        ('{"a": 0.0}', "the value of 'a' isn't a whole number"),
        ('{"a": true}', "the value of 'a' isn't a whole number"),
        ('{"a": {"b": 0}}', "the value of 'a' isn't a whole number"),
        ('{"\\ud800": 0}', "no text that UTF-8 can hold"),
        ('{"a": 0', "cannot be read as JSON"),
        ('{"a":' * 100_000, "cannot be read as JSON"),
    ],
)
def test_json_vocabularies(text: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^x.*{said}"):
        layout.vocabulary(text.encode(), "x", "user")


# ------------------------------------------------------------------------------------------------------------- writing


def write(folder: Path, events: Events, rows: PublishedRows) -> None:
    layout.write(folder, events.frame, rows.train, rows.test, rows.vocabularies, rows.items)


def test_written_files(tmp_path: Path) -> None:
    files = tiny()
    events = load(save(tmp_path / "x", files))
    assert events.rows is not None
    write(tmp_path / "deep" / "y", events, events.rows)
    written = {path.name: path.read_bytes() for path in (tmp_path / "deep" / "y").iterdir()}
    assert sorted(written) == sorted(layout.FILES)
    for name in (TRAIN, TEST):
        assert written[name] == files[name]
    assert written[ITEMS] == b"a3\tc2\na2\tc1\na1\tc1\na4\tdefault_cat\na9\tc3\n"
    assert written[REVIEWS].startswith(b"u0\ta3\t5.0\t1400086400000\nu0\ta2\t5.0\t1400432000000\nu1\ta1\t5.0\t")
    assert written["uid_voc.pkl"] == b"(dp0\nVu2\np1\nI0\nsVu1\np2\nI1\ns."
    assert pickle.loads(written["mid_voc.pkl"]) == {"default_mid": 0, "a1": 1, "a3": 2, "a2": 3}
    assert pickle.loads(written["cat_voc.pkl"]) == {"default_cat": 0, "c1": 1, "c2": 2}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["y"]
    again = load(tmp_path / "deep" / "y")
    assert again.frame.equals(events.frame)
    assert same_rows(again.rows, events.rows)


def test_whole_numbers_become_text(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {"user": [3, 3, 10, 10], "item": [7, 8, 7, 9], "timestamp": [10**12] * 4, "category": [1, 2, 1, None]}
    )
    train = pl.DataFrame({"user": [3, 3], "item": [9, 8], "label": [0, 1], "history": [1, 1]})
    test = pl.DataFrame({"user": [10, 10], "item": [8, 9], "label": [0, 1], "history": [1, 1]})
    vocabularies = {"user": pl.Series([3]), "item": pl.Series([7, 9, 8]), "category": pl.Series([1, 2])}
    layout.write(tmp_path / "x", frame, train, test, vocabularies)
    again = load(tmp_path / "x")
    assert again.frame.sort("user", "timestamp").rows() == [
        ("10", "7", 10**12, "1"), ("10", "9", 10**12, None), ("3", "7", 10**12, "1"), ("3", "8", 10**12, "2"),
    ]  # fmt: skip
    assert again.rows is not None
    assert again.rows.vocabularies["item"].to_list() == ["7", "9", "8"]


name = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\x02"), min_size=1, max_size=4)
no_default = name.filter(lambda text: not text.startswith("default"))


@settings(deadline=None)
@given(st.data())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """What was written is read, whatever the names, ties and lengths of histories."""
    items = data.draw(st.lists(no_default, min_size=2, max_size=5, unique=True), "items")
    categories = [data.draw(st.none() | no_default, "category") for _ in items]
    category = dict(zip(items, categories, strict=True))
    users = sorted(data.draw(st.lists(name, min_size=2, max_size=4, unique=True), "users"))
    log, rows = [], []
    for user in users:
        times = sorted(data.draw(st.lists(st.integers(0, 3), min_size=2, max_size=5), "times"))
        for time in times:
            item = data.draw(st.sampled_from(items), "item")
            log.append((user, item, (START + time) * 1000, category[item]))
        history = data.draw(st.integers(1, len(times) - 1), "history")
        positive = log[len(log) - len(times) + history][1]
        rows += [(user, data.draw(st.sampled_from(items), "negative"), 0, history), (user, positive, 1, history)]
    frame = pl.DataFrame(log, ["user", "item", "timestamp", "category"], orient="row").cast({"category": pl.String})
    schema = {"user": pl.String, "item": pl.String, "label": pl.UInt8, "history": pl.Int64}
    split = 2 * data.draw(st.integers(1, len(users) - 1), "training users")
    known = sorted({value for value in categories if value})
    given_rows = PublishedRows(
        train=pl.DataFrame(rows[:split], schema, orient="row"),
        test=pl.DataFrame(rows[split:], schema, orient="row"),
        vocabularies={
            "user": pl.Series(users[: split // 2]),
            "item": pl.Series(items[1:]),
            "category": pl.Series(known, dtype=pl.String),
        },
    )
    events = Events.build(frame, ["category"], "x", ties=Ties.file)
    folder = tmp_path_factory.mktemp("layout") / "x"
    write(folder, events, given_rows)
    again = load(folder)
    assert again.frame.equals(events.frame)
    assert same_rows(again.rows, given_rows)


@pytest.mark.parametrize(
    ("part", "old", "new", "said"),
    [
        ("user", "u2", "u\t2", r"The user 'u\\t2' of events"),
        ("item", "a2", "a\n2", r"The item 'a\\n2' of events"),
        ("item", "a2", "a\x022", r"The item 'a\\x022' of events"),
        ("item", "a2", "", "The item '' of events"),
        ("item", "a2", "default_mid", "The item 'default_mid' of events .* isn't 'default_mid'"),
        ("category", "c1", "default_cat", "The category 'default_cat' of events"),
        ("category", "c1", "c\r", r"The category 'c\\r' of events"),
    ],
)
def test_names_without_a_place(tmp_path: Path, part: str, old: str, new: str, said: str) -> None:
    events = load(save(tmp_path / "x", tiny()))
    assert events.rows is not None
    events.frame = events.frame.with_columns(pl.col(part).replace(old, new))
    with pytest.raises(UserError, match=said):
        write(tmp_path / "y", events, events.rows)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_names_of_rows_and_vocabularies(tmp_path: Path) -> None:
    events = load(save(tmp_path / "x", tiny()))
    assert events.rows is not None
    rows = events.rows
    rows.train = rows.train.with_columns(pl.col("item").replace("a4", "a\t4"))
    with pytest.raises(UserError, match=r"The item 'a\\t4' of train"):
        write(tmp_path / "y", events, rows)
    rows.train = rows.train.with_columns(pl.col("item").replace("a\t4", "a4"))
    rows.vocabularies["category"] = pl.Series(["c1", "default_cat"])
    with pytest.raises(UserError, match="The category 'default_cat' of the vocabularies"):
        write(tmp_path / "y", events, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_rows_that_cannot_be_written(tmp_path: Path) -> None:
    events = load(save(tmp_path / "x", tiny()))
    assert events.rows is not None
    rows = events.rows
    good = rows.train
    for bad in (good[1:], good.reverse(), good[[0, 3]]):
        rows.train = bad
        with pytest.raises(UserError, match=r"train rows aren't pairs of .* and then a positive.*per_positive=1"):
            write(tmp_path / "y", events, rows)
    for history in (0, 4):
        rows.train = good.with_columns(
            pl.when(pl.col("user") == "u1").then(history).otherwise("history").alias("history")
        )
        with pytest.raises(UserError, match=f"Row 1 of train has a history of {history} events of user 'u1'"):
            write(tmp_path / "y", events, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_no_half_written_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = load(save(tmp_path / "x", tiny()))
    assert events.rows is not None
    with pytest.raises(UserError, match="x is there already"):
        write(tmp_path / "x", events, events.rows)
    (tmp_path / "y").mkdir()

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / "y", events, events.rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]
    assert list((tmp_path / "y").iterdir()) == []
    write(tmp_path / "y", events, events.rows)  # into an empty folder
    assert load(tmp_path / "y").frame.equals(events.frame)


# ---------------------------------------------------------------------------------------------------------- file order


def ties(size: int) -> pl.DataFrame:
    """One user's `size` items at each of two times, in an order of no sort, and another user between them."""
    items = [f"i{(7 * number) % size:03d}" for number in range(size)]
    one = pl.DataFrame({"user": ["u1"] * size, "item": items, "timestamp": [2] * size})
    return pl.concat([
        one, one.with_columns(pl.lit("u0").alias("user")), one.reverse().with_columns(pl.lit(1).alias("timestamp")),
    ], how="vertical_relaxed")  # fmt: skip


def test_ties_of_a_file() -> None:
    frame = ties(500)
    events = Events.build(frame, [], "x", seed=3, ties=Ties.file).frame
    expected = [*frame["item"][500:1000], *frame["item"][1000:], *frame["item"][:500]]
    assert events["item"].to_list() == expected
    assert Events.build(frame, [], "x", seed=4, ties=Ties.file).frame.equals(events)
    assert Events.build(frame, [], "x", seed=3).frame["item"].to_list() != expected
    half = Events.build(frame, [], "x", limit_users=1, ties=Ties.file).frame
    assert half.equals(events.filter(pl.col("user") == half["user"][0]))


def test_ties_survive_the_repair_of_a_feature() -> None:
    frame = ties(500).with_columns(pl.Series("f", [None, "x", "y"] * 500))
    events = Events.build(frame, ["f"], "x", ties=Ties.file).frame
    assert events["item"].to_list() == Events.build(frame, [], "x", ties=Ties.file).frame["item"].to_list()


def test_ties_of_an_event_file(tmp_path: Path) -> None:
    frame = ties(50).with_columns(timestamp=datetime(2024, 5, 31))
    frame.write_parquet(tmp_path / "x.parquet")
    path = str(tmp_path / "x.parquet")
    settings = {ties: EventFileConfig(path=path, ties=ties, repeats=Repeats.keep) for ties in Ties}
    expected = [*frame["item"][50:100], *frame["item"][:50], *frame["item"][100:]]
    assert sources.load(settings[Ties.file]).frame["item"].to_list() == expected
    assert sources.load(settings[Ties.random]).frame["item"].to_list() != expected


def test_ties_of_complete_journey() -> None:
    """Events at one time stand as in the table of transactions, an item of a basket where it stands first."""
    frame = sources.load(CompleteJourneyConfig(ties=Ties.file, limit_users=50)).frame
    folder = completejourney._folder()
    expected = (
        pl.scan_parquet(folder / "transactions.parquet")
        .with_row_index("row")
        .join(pl.scan_parquet(folder / "products.parquet"), on="product_id")
        .filter(pl.col("quantity") > 0, pl.col("household_id").is_in(frame["user"].unique().implode()))
        .with_columns(item=pl.concat_str("product_category", "product_type", separator=" | "))
        .filter(pl.col("item").is_in(frame["item"].unique().implode()))
        .group_by("household_id", "basket_id", "item")
        .agg(pl.col("row").min(), pl.col("transaction_timestamp").min().dt.timestamp("ms").alias("timestamp"))
        .sort("household_id", "timestamp", "row")
        .select(pl.col("household_id").alias("user"), "item", "timestamp")
        .collect()
    )
    assert frame.select("user", "item", "timestamp").equals(expected)


# -------------------------------------------------------------------------------------------------------- the real one


@pytest.fixture(scope="module")
def globo() -> Events:
    if not GLOBO.exists():
        pytest.skip(f"{GLOBO.name} is not beside the repository (../shared/data/globo)")
    return load(GLOBO)


def test_globo(globo: Events) -> None:
    rows = globo.rows
    assert rows is not None
    assert globo.frame.height == 2_520_171
    assert globo.frame["user"].n_unique() == 158_323
    assert (rows.train.height, rows.test.height) == (284_930, 31_716)
    assert {kind: len(values) for kind, values in rows.vocabularies.items()} == {
        "user": 142_465, "item": 12_004, "category": 125,
    }  # fmt: skip
    # The training file fixes the vocabularies: every user of it, and by falling count.
    assert set(rows.vocabularies["user"]) == set(rows.train["user"])
    assert not set(rows.test["user"]) & set(rows.train["user"])
    assert rows.train["label"].mean() == 0.5
    assert globo.frame["timestamp"].min() == 1_506_826_800_026  # milliseconds, as they stand there


def test_globo_round_trip(globo: Events, tmp_path: Path) -> None:
    """Of the first few thousand users."""
    assert globo.rows is not None
    users = globo.frame["user"].unique(maintain_order=True)[:4000].implode()
    part = Events.build(globo.frame.filter(pl.col("user").is_in(users)), ["category"], "x", ties=Ties.file)
    rows = PublishedRows(
        *(frame.filter(pl.col("user").is_in(users)) for frame in (globo.rows.train, globo.rows.test)),
        globo.rows.vocabularies,
        globo.rows.items,
    )
    write(tmp_path / "x", part, rows)
    again = load(tmp_path / "x")
    assert again.frame.equals(part.frame)
    assert same_rows(again.rows, rows)
    assert again.rows is not None and again.rows.items is not None and rows.items is not None
    assert again.rows.items.sort("item").equals(rows.items.sort("item"))
