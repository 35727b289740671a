"""Files of one record a line, JSON or Python literals, plain or gz: a few fields of each, read in blocks.

A block of strict JSON goes through polars at once. Lines of Python literals (what `print(record)` writes: the Amazon
metadata of 2014) go through regular expressions that hold for a whole line only. Whatever neither is sure of is read
line by line, and what can't be read is told with its line.
"""

from __future__ import annotations

import ast
import json
import warnings
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import polars as pl
from isal import isal_zlib
from isal.igzip_lib import IsalError

from deepinterest.data.text_file import LONGEST, refuse_utf_16
from deepinterest.errors import UserError

BLOCK = 1 << 21  # bytes, after unpacking
PIECE = 1 << 20  # bytes that are read at once
PACKED = 1 << 15  # the same of a gz; what comes out is small enough for memory that is used again and again
SAMPLED = 100  # lines that tell a file's format
GZIP = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"

# A Python literal: a string; brackets that hold brackets, three deep; the rest of a record between two fields.
STRING = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
OTHER = r"""[^'"\[\]{}]"""
BRACKETS = OTHER
for _ in range(3):
    BRACKETS = rf"[\[{{](?:{STRING}|{BRACKETS}|{OTHER})*[\]}}]"
BETWEEN = rf"(?:{STRING}|{BRACKETS}|{OTHER}+)*"
PATH = rf"\[(?:{STRING}(?:, )?)*\]"


@dataclass(frozen=True)
class Field:
    """One value a record: text or a number (kept as text), or one string of a list of strings or of lists of them."""

    key: str
    required: bool = True
    depth: int = 0  # 1: a list of strings, 2: a list of such lists
    path: int = 0  # of depth 2, the list to look at: 0 the first, -1 the last
    place: int = 0  # of the list, the string to take: 0 the first, -1 the last

    @property
    def dtype(self) -> pl.DataType:
        dtype: pl.DataType = pl.String()
        for _ in range(self.depth):
            dtype = pl.List(dtype)
        return dtype

    def take(self) -> pl.Expr:
        """The one string or number of a column `key` of `dtype`; null where a list is empty."""
        value = pl.col(self.key)
        if self.depth == 2:
            value = value.list.get(self.path, null_on_oob=True)
        return value.list.get(self.place, null_on_oob=True) if self.depth else value

    @property
    def literal(self) -> str:
        """The pattern of the value in a Python literal."""
        return (rf"(?:{STRING}|-?[0-9.]+)", PATH, rf"\[(?:{PATH}(?:, )?)*\]")[self.depth]

    @property
    def taken(self) -> str:
        """The pattern of the key and the value up to what `take` takes, which is its group."""
        if not self.depth:
            return rf"'{self.key}': ({self.literal[3:-1]})"
        path = rf"\[(?:{STRING}, )*({STRING})\]" if self.place else rf"\[({STRING})"
        if self.depth == 2:
            path = (
                rf"\[(?:{PATH}, )*{path}{'' if self.place else rf'(?:, {STRING})*]'}\]" if self.path else rf"\[{path}"
            )
        return f"'{self.key}': {path}"


class Block(NamedTuple):
    """Whole lines of a file."""

    data: bytes
    first_line: int  # counted from 1
    lines: int
    last: bool = False  # the file ends here, without an end of line


def sample(path: Path) -> list[dict[str, Any]]:
    """The first SAMPLED records; raises UserError if there is none, or for the first line that is none."""
    for block in _blocks(path):
        lines = [(block.first_line + n, text) for n, text in enumerate(block.data.split(b"\n")) if text.strip()]
        if lines:
            return [_record(path, line, text, block.last) for line, text in lines[:SAMPLED]]
    raise UserError(f"{path} is empty: it must hold one record a line.")


def read(path: Path, fields: dict[str, Field]) -> Iterator[pl.DataFrame]:
    """Frames, in the file's order: a String column for each of `fields` under its name, and `line` (from 1).

    Raises UserError, with the line, for a line that is no record or lacks a required field, a file cut short, and bytes
    that are no UTF-8. Blank lines are passed over.
    """
    for block in _ahead(_blocks(path)):
        frame = _strict(block, fields)
        yield frame if frame is not None else _mixed(path, block, fields)


# -------------------------------------------------------------------------------------------------------------- blocks


def _blocks(path: Path) -> Iterator[Block]:
    """The file in blocks; where a gz breaks off the lines before are given first."""
    line, broken, ended = 1, "", False
    held: list[bytes] = []  # read since the last block
    size = 0  # of them
    pieces = _pieces(path)
    while not ended:
        try:
            piece = next(pieces, None)
        except (EOFError, OSError, zlib.error, IsalError) as error:  # type: ignore[misc]  # its stub has an instance
            piece, broken = None, "is cut short" if isinstance(error, EOFError) else f"is damaged ({error})"
        if piece is None:
            piece, held, ended = b"".join(held), [], True
        cut = piece.rfind(b"\n") + 1
        if cut and (ended or size >= BLOCK):
            held.append(piece[:cut])
            data, held, size, piece = b"".join(held), [], 0, piece[cut:]
            lines = int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))  # faster than data.count
            yield Block(data, line, lines)
            line += lines
        held.append(piece)
        size += len(piece)
        if size > LONGEST:
            raise UserError(f"{path}, line {line}: the line is longer than {LONGEST:,} bytes: is it one record?")
    if broken:
        raise UserError(f"{path} {broken} after line {line - 1}: fetch or copy the file anew.")
    if held[0]:
        yield Block(held[0], line, 1, True)


def _pieces(path: Path) -> Iterator[bytes]:
    """The content, unpacked if need be, without its mark of UTF-8; raises EOFError where a gz breaks off."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise UserError(f"{path} can't be opened ({error.strerror or error}): correct its rights.") from error
    with raw:
        packed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        pieces = _unpacked(raw) if packed else iter(lambda: raw.read(PIECE), b"")
        first = next(pieces, b"")
        refuse_utf_16(first, str(path))
        yield first.removeprefix(BOM)
        yield from pieces


def _unpacked(raw: BinaryIO) -> Iterator[bytes]:
    """Of one or more gz members; what a cut or damaged one holds is given before the error."""
    unpack = None
    while packed := raw.read(PACKED):
        while packed:
            unpack = unpack or isal_zlib.decompressobj(wbits=31)  # gz, with its checksum
            yield unpack.decompress(packed)
            packed, unpack = (unpack.unused_data.lstrip(b"\0"), None) if unpack.eof else (b"", unpack)
    if unpack is not None:
        raise EOFError


def _ahead(blocks: Iterator[Block]) -> Iterator[Block]:
    """The same blocks; while one is in use the next is read and unpacked."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(next, blocks, None)
        while (block := pending.result()) is not None:
            pending = pool.submit(next, blocks, None)
            yield block


# --------------------------------------------------------------------------------------------------------------- lines


def _strict(block: Block, fields: dict[str, Field]) -> pl.DataFrame | None:
    """The fields of a block of JSON; None if one line is something else, is blank or lacks a required field."""
    try:
        frame = pl.read_ndjson(block.data, schema={field.key: field.dtype for field in fields.values()})
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    if frame.height != block.lines:
        return None
    if any(field.required and frame[field.key].null_count() for field in fields.values()):
        return None
    # Where text is asked for, polars gives any value as text: an object begins with a brace.
    text = pl.col([field.key for field in fields.values() if not field.depth]).str
    nested = pl.any_horizontal((text.starts_with("{") | text.starts_with("[")).any())
    frame = frame.select(
        _lines(block, frame.height), *(field.take().alias(name) for name, field in fields.items()), __nested=nested
    )
    return None if frame["__nested"][0] else frame.drop("__nested")


def _mixed(path: Path, block: Block, fields: dict[str, Field]) -> pl.DataFrame:
    """The fields of a block, by patterns where they are sure and one by one elsewhere."""
    _decoded(path, block.data, block.first_line)
    lines = pl.read_lines(block.data, name="text")
    lines = lines.select(_lines(block, lines.height), "text")
    lines = lines.filter(pl.col("text").str.contains(r"\S"))
    sure, odd = _literals(lines, fields)
    required = {name: field for name, field in fields.items() if field.required}
    if len(required) < len(fields) and odd.height:
        # An optional field may be absent; its name in quotes anywhere leaves that open.
        named = "|".join(rf"""{field.key}['"]""" for field in fields.values() if not field.required)
        more, still = _literals(odd.filter(~pl.col("text").str.contains(named)), required)
        odd = pl.concat([odd.filter(pl.col("text").str.contains(named)), still])
        sure = pl.concat([sure, more], how="diagonal")
    return pl.concat([sure, _one_by_one(path, odd, fields, block)], how="diagonal").sort("line")


def _literals(lines: pl.DataFrame, fields: dict[str, Field]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The fields of the lines that are, for sure, one Python literal with each field once; and the other lines."""
    text = pl.col("text")
    parts = [f"'{field.key}': {field.literal}" for field in fields.values()]
    orders = "|".join(BETWEEN.join(order) for order in permutations(parts))
    whole = text.str.contains(rf"^\{{{BETWEEN}(?:{orders}){BETWEEN}\}}\s*$")
    # Once in the line: so the pattern of the field finds the place that the pattern of the line found.
    once = [text.str.count_matches(f"'{field.key}': ", literal=True) == 1 for field in fields.values()]
    lines = lines.with_columns(pl.all_horizontal(whole, *once).alias("sure"))
    taken = lines.filter("sure").select("line", *(text.str.extract(f.taken).alias(name) for name, f in fields.items()))
    return taken.with_columns(_unquoted(taken[name]) for name in fields), lines.filter(~pl.col("sure")).drop("sure")


def _one_by_one(path: Path, lines: pl.DataFrame, fields: dict[str, Field], block: Block) -> pl.DataFrame:
    """The fields of lines of any kind; raises UserError for the first that is no record or lacks a required field."""
    values: dict[str, list[Any]] = {name: [] for name in fields}
    for line, text in lines.sort("line").iter_rows():
        record = _record(path, line, text, block.last)
        for name, field in fields.items():
            values[name].append(_value(path, line, field, record.get(field.key)))
    frame = pl.DataFrame(
        [pl.Series(field.key, values[name], dtype=field.dtype) for name, field in fields.items()]
    ).select(field.take().alias(name) for name, field in fields.items())
    return frame.with_columns(lines["line"].sort())


def _record(path: Path, line: int, text: str | bytes, last: bool) -> dict[str, Any]:
    where = f"{path}, line {line}"
    if isinstance(text, bytes):
        text = _decoded(path, text, line)
    try:
        record = json.loads(text, strict=False)  # a control character in a name does no harm
    except ValueError:
        try:
            with warnings.catch_warnings(action="ignore"):  # of \d and other escapes that Python doesn't know
                record = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            what = "breaks off" if last else "can't be read as a JSON object or a Python literal"
            does = "fetch or copy the file anew" if last else "mend the line or take it out"
            raise UserError(f"{where}: the line {what} ({text.strip()[:40]!r}): {does}.") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: the line holds {text.strip()[:40]!r}, which is no object: mend it or take it out.")
    return record


def _value(path: Path, line: int, field: Field, value: Any, depth: int | None = None) -> Any:
    """The value as `field.dtype` has it; raises UserError if it is another thing or missing."""
    depth = field.depth if depth is None else depth
    if value is None:
        if field.required:
            raise UserError(f"{path}, line {line}: there is no {field.key!r}: mend the line or take it out.")
        return None
    if depth and isinstance(value, list):
        return [_value(path, line, field, part, depth - 1) for part in value]
    if depth or isinstance(value, dict | list | tuple | set | bool):
        wanted = ("a text or a number", "a list of texts", "a list of lists of texts")[field.depth]
        raise UserError(
            f"{path}, line {line}: {field.key!r} holds {str(value)[:40]!r}, which is not {wanted}: mend it."
        )
    # Half of a surrogate pair, which a cut text may hold, is no character.
    return str(value).encode(errors="replace").decode()


def _decoded(path: Path, data: bytes, first_line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = first_line + data.count(b"\n", 0, error.start)
        raise UserError(
            f"{path}, line {line}: the byte 0x{data[error.start]:02x} is no UTF-8: write the file anew as UTF-8."
        ) from None


def _lines(block: Block, count: int) -> pl.Series:
    """`line` (UInt32) of the first `count` lines of the block."""
    return pl.Series("line", np.arange(block.first_line, block.first_line + count, dtype=np.uint32))


def _unquoted(texts: pl.Series) -> pl.Series:
    """What the string literals hold; numbers and nulls stay."""
    frame = texts.alias("text").to_frame()
    text = pl.col("text")
    plain = frame.select(
        pl.when(text.str.contains(r"""^['"]""")).then(text.str.slice(1, text.str.len_chars() - 2)).otherwise(text)
    ).to_series()
    escaped: Sequence[str] = texts.filter(texts.str.contains("\\", literal=True)).unique().to_list()
    if escaped:
        with warnings.catch_warnings(action="ignore"):
            meant = [ast.literal_eval(literal).encode(errors="replace").decode() for literal in escaped]
        replaced = texts.replace_strict(escaped, meant, default=None, return_dtype=pl.String)
        plain = pl.select(pl.coalesce(replaced, plain)).to_series()
    return plain.alias(texts.name)
