"""Text files of rows: how their lines are cut into columns, and what is wrong with one, by its line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from deepinterest.config import EventFileConfig
from deepinterest.data.columns import SEPARATORS, WORDS, separator
from deepinterest.errors import UserError, nearest, some

LONGEST = 1 << 26  # bytes of a line
QUOTE = 'line {}: a quote (") is not closed, or stands within a field'
USUAL = ("semicolon", "tab", "comma", "pipe")  # separators to guess at
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class TextFile:
    path: Path
    separator: str
    header: bool

    @classmethod
    def of(cls, path: Path, config: EventFileConfig) -> TextFile | None:
        """None for a file of another kind; raises UserError where it is no text, or only settings of text fit."""
        kind = path.suffix.lower()
        if kind in SEPARATORS:
            refuse_binary(path, str(path))
            return cls(path, separator(config.separator) or SEPARATORS[kind], config.header)
        for setting, given in (("separator", config.separator is not None), ("header=false", not config.header)):
            if given:
                raise UserError(f"data.{setting} is for text files, and {path} is none: leave it out.")
        return None

    def names(self) -> list[str]:
        """Of the columns: those in the first line, or column_1, column_2, … of a file without a header."""
        try:
            first = next((fields for _, fields in self._records() if fields), [])
        except csv.Error:
            return []
        return first if self.header else [f"column_{number}" for number in range(1, len(first) + 1)]

    def line(self, row: int, blank_rows: bool) -> int | None:
        """The line in which a row begins, from 1; None where the file's quotes leave that open.

        Args:
            row: counted from 0, without the header.
            blank_rows: whether a blank line counts as a row.
        """
        place = -2 if self.header else -1
        try:
            for line, fields in self._records():
                if fields or (blank_rows and place >= -1):
                    place += 1
                if place == row:
                    return line
        except csv.Error:
            pass
        return None

    def fault(self) -> str | None:
        """What is wrong with the first line that no reader takes, in words and with its number."""
        try:
            refuse_other_encodings(self.path, str(self.path))
            width = None
            for line, fields in self._records():
                width = width or len(fields)
                if len(fields) > width:
                    return f"line {line}: {len(fields)} columns where {width} are expected"
        except UserError as error:
            return str(error).removeprefix(f"{self.path}, ").rstrip(".")
        except csv.Error as error:
            return QUOTE.format(error)
        with self.path.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if text.count(b'"') % 2:
                    return QUOTE.format(number)
        return None

    def unclosed(self) -> str | None:
        """Where a quote that is never closed begins, in words; None where all are."""
        try:
            for _ in self._records():
                pass
        except csv.Error as error:
            return QUOTE.format(error)
        return None

    def missing(self, present: list[str]) -> str:
        """What may be the reason that a column isn't among the `present` ones, as the end of a sentence."""
        alone = present[0] if len(present) == 1 else ""
        others = [name for name in USUAL if WORDS[name] != self.separator and WORDS[name] in alone]
        if others:
            return f"; its columns seem to be separated by {others[0]}: data.separator={others[0]}"
        if self.header and any(map(_is_value, present)):
            return "; its first line looks like a row: data.header=false, and columns are called column_1, column_2, …"
        return ""

    def _records(self) -> Iterator[tuple[int, list[str]]]:
        """The line that each record begins in and its fields; raises csv.Error with the line for an odd quote."""
        csv.field_size_limit(LONGEST)
        line = 1
        with self.path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            reader = csv.reader(file, delimiter=self.separator, strict=True)
            try:
                for fields in reader:
                    yield line, fields
                    line = reader.line_num + 1
            except csv.Error as error:
                raise csv.Error(line) from error


def no_column(path: Path, column: str, key: str, present: list[str], text: TextFile | None) -> UserError:
    """The refusal of a file without the column that the setting `key` names."""
    hint = (text.missing(present) if text else "") or nearest(column, present)
    return UserError(f"{path} has no column {column!r}, only {some(present)}: correct {key}{hint}.")


def refuse_binary(path: Path, where: str) -> None:
    """Raise UserError for a file whose first line isn't UTF-8 text of a sensible length."""
    with path.open("rb") as file:
        first = file.readline(LONGEST + 1)
    refuse_utf_16(first, where)
    if b"\0" in first[:1024]:
        raise UserError(f"{where}, line 1: it begins with bytes of 0 and is no text: fetch or write the file anew.")
    if len(first) > LONGEST:
        raise UserError(too_long(where, 1))


def too_long(where: str, line: int) -> str:
    """What to say of a line that no file of rows has."""
    return f"{where}, line {line}: the line is longer than {LONGEST:,} bytes, so it holds no rows of text."


def refuse_utf_16(first: bytes, where: str) -> None:
    """Raise UserError for a file that begins as text in UTF-16 does, with its mark or without."""
    if first.startswith(UTF_16) or first[1:2] == b"\0" != first[:1]:
        raise UserError(f"{where} is text in UTF-16: write it anew as UTF-8.")


def refuse_other_encodings(path: Path, where: str) -> None:
    """Raise UserError with the first line that isn't UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{where}, line {number}: the byte 0x{line[error.start]:02x} is no UTF-8, as in Latin-1: write the "
                    "file anew as UTF-8."
                ) from None


def _is_value(name: str) -> bool:
    try:
        float(name)
        return True
    except ValueError:
        pass
    try:
        datetime.fromisoformat(name)
        return True
    except ValueError:
        return False


def said(error: BaseException) -> str:
    """The first line of what a library says of a file, for a sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200]
