"""The seven files of the published pipeline: their text, their vocabularies, and writing them.

Lines end in LF, columns are separated by a tab and the entries of a history by the byte 2. All text is UTF-8.

    item-info                  item, category
    reviews-info               user, item, rating, time; a rating is never used
    local_train_splitByUser    label, user, item, category, items of the history, their categories, both oldest first
    local_test_splitByUser     the same; a user is in one of the two files
    uid_voc.pkl                ids of users from 0
    mid_voc.pkl, cat_voc.pkl   ids of items and categories from 1; id 0 is default_mid or default_cat, the unknown
"""

from __future__ import annotations

import json
import lzma
import pickle
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from deepinterest.data import paths, plain_pickle
from deepinterest.errors import UserError

ITEM_INFO, REVIEWS = "item-info", "reviews-info"
TRAIN, TEST = "local_train_splitByUser", "local_test_splitByUser"
VOCABULARIES = {"user": "uid_voc.pkl", "item": "mid_voc.pkl", "category": "cat_voc.pkl"}
FILES = (ITEM_INFO, REVIEWS, TRAIN, TEST, *VOCABULARIES.values())
ZERO = {"user": None, "item": "default_mid", "category": "default_cat"}  # the key of id 0
UNKNOWN_CATEGORY = "default_cat"
BETWEEN = "\x02"
REVIEW_COLUMNS = ("user", "item", "rating", "time")
ROW_COLUMNS = ("label", "user", "item", "category", "items", "categories")
ANEW = "mend the line or make the file anew"


# --------------------------------------------------------------------------------------------------------------- files


class Content(NamedTuple):
    """Of a file."""

    data: bytes
    where: str  # what errors call it


def read(path: Path) -> dict[str, Content]:
    """The seven files of a folder or a tar; raises UserError if one is missing, or if the path is neither."""
    if path.is_dir():
        files = folder_files(path)
        try:
            return {name: Content(file.read_bytes(), str(file)) for name, file in files.items()}
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}): correct its permissions.") from None
    return _read_tar(paths.file_or_folder(path, "data.path"))


def folder_files(path: Path) -> dict[str, Path]:
    """The seven files of a folder or of its one subfolder; raises UserError if one is missing."""
    inside = [path, *sorted(below for below in path.iterdir() if below.is_dir())]
    best = max(inside, key=lambda folder: sum((folder / name).is_file() for name in FILES))
    _refuse_missing(path, [name for name in FILES if not (best / name).is_file()])
    return {name: best / name for name in FILES}


def _read_tar(path: Path) -> dict[str, Content]:
    # Nothing is unpacked, so a member's path can't lead anywhere; one pass, as going back means to decompress again.
    found: dict[str, Content] = {}
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name not in FILES or member.isdir():
                    continue
                if name in found:
                    raise UserError(f"{path} holds {name} twice: keep the files of one run.")
                content = archive.extractfile(member) if member.isreg() else None
                if content is None:
                    raise UserError(f"{path}: {member.name} is a link or a device, not a file: pack the file itself.")
                found[name] = Content(content.read(), f"{path}: {member.name}")
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        reason = str(error).rstrip(".") or type(error).__name__
        raise UserError(
            f"{path} cannot be read as a tar ({reason}): give a folder, or a .tar, .tar.gz, .tar.bz2 or .tar.xz."
        ) from None
    _refuse_missing(path, [name for name in FILES if name not in found])
    return found


def _refuse_missing(path: Path, missing: list[str]) -> None:
    if missing:
        raise UserError(
            f"{path} has no {' and no '.join(missing)}: the published layout is {', '.join(FILES)}, "
            "all in one folder; add what is missing or correct data.path."
        )


# ------------------------------------------------------------------------------------------------------------- reading


def items(data: bytes, where: str) -> pl.DataFrame:
    """item and category, each item once: its first line wins. Raises UserError for a broken line."""
    frame = _columns(data, where, ("item", "category"))
    return frame.unique("item", keep="first", maintain_order=True)


def reviews(data: bytes, where: str) -> pl.DataFrame:
    """user, item and time (a number in the file's unit), in the file's order; raises UserError for a broken line."""
    frame = _columns(data, where, REVIEW_COLUMNS)
    time = frame["time"].cast(pl.Int64, strict=False)
    if time.null_count():
        time = frame["time"].cast(pl.Float64, strict=False)
    _refuse(time.is_null() | ~time.is_finite(), where, frame["time"], "time {!r} is no number")
    return frame.select("user", "item", time.alias("time"))


def rows(data: bytes, where: str) -> pl.DataFrame:
    """label (UInt8), user, item, category, and items and categories of the history as lists.

    Raises UserError for a broken line.
    """
    frame = _columns(data, where, ROW_COLUMNS, may_be_empty=("items", "categories"))
    _refuse(~frame["label"].is_in(["0", "1"]), where, frame["label"], "label {!r} is neither 0 nor 1")
    empty = (frame["items"] == "") & (frame["categories"] == "")
    _refuse(empty, where, frame["user"], "the history of user {!r} is empty (columns 5 and 6)")
    for number, name in ((5, "items"), (6, "categories")):
        gap = frame[name].str.contains("^(\x02|$)|\x02\x02|\x02$")
        _refuse(gap, where, frame[name], f"column {number} ({name} of the history) has an entry without a name: {{!r}}")
    frame = frame.with_columns(pl.col("label").cast(pl.UInt8), pl.col("items", "categories").str.split(BETWEEN))
    lengths = frame.select(items=pl.col("items").list.len(), categories=pl.col("categories").list.len())
    said = lengths.select(pl.format("{} items and {} categories", "items", "categories")).to_series()
    differ = lengths["items"] != lengths["categories"]
    _refuse(differ, where, said, "the history has {} (columns 5 and 6), which must be as many")
    return frame


def _columns(data: bytes, where: str, names: tuple[str, ...], may_be_empty: tuple[str, ...] = ()) -> pl.DataFrame:
    """The columns of all lines, as text."""
    lines = _lines(data, where)
    count = lines.str.count_matches("\t", literal=True) + 1
    said = f"the columns are {{}} and not {len(names)} ({', '.join(names)})"
    _refuse(count != len(names), where, count, said)
    split = lines.str.split_exact("\t", len(names) - 1).struct.rename_fields(list(names)).struct.unnest()
    for number, name in enumerate(names, start=1):
        if name not in may_be_empty:
            _refuse(split[name] == "", where, lines, f"column {number} ({name}) is empty: {{!r}}")
    return split


def _lines(data: bytes, where: str) -> pl.Series:
    if b"\r" in data:
        line, column = _place(data, data.index(b"\r"))
        raise UserError(
            f"{where}, line {line}, column {column}: there is a carriage return, and lines must end in LF alone: "
            "write the file anew."
        )
    text = _decoded(data, where).removesuffix("\n")
    if not text:
        raise UserError(f"{where} is empty: make the file anew.")
    return pl.Series("line", [text]).str.split("\n").explode()


def _decoded(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(data, error.start)
        raise UserError(
            f"{where}, line {line}, column {column}: the byte {data[error.start : error.start + 1]!r} isn't UTF-8: "
            "write the file anew as UTF-8."
        ) from None


def _place(data: bytes, at: int) -> tuple[int, int]:
    """Line and column, from 1, of a byte."""
    begin = data.rfind(b"\n", 0, at) + 1
    return data.count(b"\n", 0, at) + 1, data.count(b"\t", begin, at) + 1


def _refuse(wrong: pl.Series, where: str, values: pl.Series, said: str) -> None:
    """Raise UserError about the first line that is wrong; `said` is about its entry of `values`."""
    if wrong.any():
        line = int(wrong.arg_max() or 0)
        value = values[line]
        value = value[:60] if isinstance(value, str) else value
        raise UserError(f"{where}, line {line + 1}: {said.format(value)}: {ANEW}.")


# -------------------------------------------------------------------------------------------------------- vocabularies


def vocabulary(data: bytes, where: str, kind: str) -> pl.Series:
    """Raw values by id, without default_mid or default_cat: those of a user start at id 0, others at 1.

    Args:
        data: a pickle (of protocol 0 to 5, also of Python 2) or JSON of a dict from text to id.
        kind: user, item or category.

    Raises UserError where the content is something else, or where n keys don't have the ids 0 … n-1.
    """
    mapping = _json(data, where) if data.lstrip()[:1] == b"{" else _pickle(data, where)
    zero = ZERO[kind]
    if zero is not None and mapping.get(zero) != 0:
        raise UserError(
            f"{where}: {_default(zero, mapping)}: id 0 must be that of {zero!r}, the unknown. "
            f"Make the vocabularies anew from data that don't hold {zero!r} themselves."
        )
    by_id: list[str | None] = [None] * len(mapping)
    for key, number in mapping.items():
        if not 0 <= number < len(mapping):
            raise UserError(
                f"{where}: {key!r} has the id {number}, and {len(mapping)} keys have the ids 0 to {len(mapping) - 1}, "
                "each once: make the vocabularies anew."
            )
        if (other := by_id[number]) is not None:
            raise UserError(f"{where}: {other!r} and {key!r} have the same id {number}: make the vocabularies anew.")
        by_id[number] = key
    return pl.Series(kind, by_id[0 if zero is None else 1 :], dtype=pl.String)


def _default(zero: str, mapping: Mapping[str, int]) -> str:
    if zero not in mapping:
        return f"{zero!r} is missing"
    # The published script gives the literal word a second id where the data hold it.
    return f"{zero!r} has the id {mapping[zero]}"


def _pickle(data: bytes, where: str) -> dict[str, int]:
    try:
        found = plain_pickle.loads(data)
    except plain_pickle.RefusedError as error:
        raise UserError(
            f"{where} {error}: a vocabulary is a pickled dict of text to whole numbers and nothing else; "
            "nothing of it was run. Make it anew, with text as keys, or give JSON."
        ) from None
    mapping: dict[str, int] = {}
    for place, (key, number) in enumerate(found.items(), start=1):
        try:
            text = key.decode("utf-8") if isinstance(key, bytes) else key
        except UnicodeDecodeError:
            raise UserError(
                f"{where}: the key {key!r} (id {number}, entry {place}) isn't UTF-8: make it anew with text in UTF-8."
            ) from None
        if text in mapping:
            raise UserError(f"{where} has the key {text!r} twice: make the vocabularies anew.")
        mapping[text] = number
    return mapping


def _json(data: bytes, where: str) -> dict[str, int]:
    text = _decoded(data, where)
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read as JSON ({error}): make it anew.") from None
    mapping: dict[str, int] = {}
    for key, value in pairs:
        if type(value) is not int:
            raise UserError(
                f"{where}: the value of {key!r} isn't a whole number: a vocabulary is a dict of text to id."
            )
        if any("\ud800" <= sign <= "\udfff" for sign in key):
            raise UserError(f"{where}: the key {key!r} is no text that UTF-8 can hold: make the vocabularies anew.")
        if key in mapping:
            raise UserError(f"{where} has the key {key!r} twice: make the vocabularies anew.")
        mapping[key] = value
    return mapping


# ------------------------------------------------------------------------------------------------------------- writing


def write(
    folder: Path,
    events: pl.DataFrame,
    train: pl.DataFrame,
    test: pl.DataFrame,
    vocabularies: Mapping[str, pl.Series],
    items: pl.DataFrame | None = None,
) -> None:
    """Write the seven files, which the published code reads, into `folder`; it appears whole or not at all.

    Args:
        events: user, item, timestamp (milliseconds) and category (null: not known), each user's in order.
        train, test, vocabularies, items: as in `PublishedRows`; rows are pairs, the negative first.

    Raises:
        UserError: for a name the layout can't hold, rows that are no pairs or that fit no event, or a folder with
            something in it.
        OSError: of the disk.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: remove it, or choose another place.")
    events = _as_text(events, "events")
    known = events.select("item", "category")
    if items is not None:
        known = pl.concat([known, _as_text(items, "items").select("item", "category")])
    known = known.unique("item", keep="first", maintain_order=True).with_columns(
        pl.col("category").fill_null(UNKNOWN_CATEGORY)
    )
    texts = {
        ITEM_INFO: known.select(pl.concat_str("item", "category", separator="\t")),
        REVIEWS: events.select(pl.concat_str("user", "item", pl.lit("5.0"), "timestamp", separator="\t")),
        TRAIN: _row_lines(_as_text(train, "train"), "train", events, known),
        TEST: _row_lines(_as_text(test, "test"), "test", events, known),
    }
    pickles = {name: _ids(vocabularies[kind], kind) for kind, name in VOCABULARIES.items()}

    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    beside.mkdir()
    try:
        for name, text in texts.items():
            with (beside / name).open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in text.to_series())
        for name, ids in pickles.items():
            # Protocol 0 with text as keys: Python 2 reads them as unicode, which the published code encodes itself.
            (beside / name).write_bytes(pickle.dumps(ids, protocol=0))
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def _as_text(frame: pl.DataFrame, called: str) -> pl.DataFrame:
    """Users, items and categories as text; raises UserError for one that the layout can't hold."""
    names = [name for name in ("user", "item", "category") if name in frame.columns]
    frame = frame.with_columns(pl.col(name).cast(pl.String) for name in names)
    for name in names:
        _refuse_names(frame[name], name, called)
    return frame


def _refuse_names(values: pl.Series, kind: str, called: str) -> None:
    used = values.drop_nulls().unique(maintain_order=True)
    wrong = used.str.contains("[\t\n\r\x02]|^$") | (used == ZERO[kind] if ZERO[kind] else False)
    if wrong.any():
        value = used[int(wrong.arg_max() or 0)]
        reserved = f" and isn't {ZERO[kind]!r}" if ZERO[kind] else ""
        raise UserError(
            f"The {kind} {value!r} of {called} has no place in the published layout, where a name isn't empty, has no "
            f"tab, line break or byte 2{reserved}: rename it in the source."
        )


def _row_lines(rows: pl.DataFrame, called: str, events: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The lines of a row file; `known` has item and category of all items."""
    label, pair = rows["label"].to_numpy(), rows.select("user", "history")
    if rows.height % 2 or (label != np.arange(rows.height) % 2).any() or not pair[::2].equals(pair[1::2]):
        raise UserError(
            f"The {called} rows aren't pairs of a negative and then a positive of one user and one history, which the "
            "published code reads: set protocol.negatives.per_positive=1."
        )
    events = events.select("user", "item").join(known, on="item", how="left", maintain_order="left")
    past = events.group_by("user").agg(pl.col("item").alias("items"), pl.col("category").alias("categories"))
    rows = rows.join(past, on="user", how="left", maintain_order="left")
    fits = (rows["history"] > 0) & (rows["history"] < rows["items"].list.len()).fill_null(False)
    if not fits.all():
        row = int((~fits).arg_max() or 0)
        raise UserError(
            f"Row {row + 1} of {called} has a history of {rows['history'][row]} events of user {rows['user'][row]!r}, "
            "and the events have no history of such a length with an event after it: take both from one data set."
        )
    rows = rows.join(known, on="item", how="left", maintain_order="left").with_columns(
        pl.col("category").fill_null(UNKNOWN_CATEGORY),
        *(pl.col(name).list.head(pl.col("history")).list.join(BETWEEN) for name in ("items", "categories")),
    )
    return rows.select(pl.concat_str([pl.col(name).cast(pl.String) for name in ROW_COLUMNS], separator="\t"))


def _ids(values: pl.Series, kind: str) -> dict[Any, int]:
    values = values.cast(pl.String)
    _refuse_names(values, kind, "the vocabularies")
    names = [zero] if (zero := ZERO[kind]) else []
    return {name: number for number, name in enumerate([*names, *values.to_list()])}
