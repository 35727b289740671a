"""Raw files as their publishers give them: found in a folder or zip, read as typed tables, a bad line named."""

from __future__ import annotations

import gzip
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, NoReturn, Protocol

import polars as pl

from deepinterest.data import paths, text_file
from deepinterest.errors import UserError, some

BOM = b"\xef\xbb\xbf"
DEPTH = ("*", "*/*", "*/*/*")  # how deep a folder is searched


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True)
class RawFile:
    """A plain file on disk, and what to call it: a file of a zip lies somewhere else than its user thinks."""

    path: Path
    where: str

    def last_line(self) -> bytes:
        """As it stands in the file, with its end if it has one; of a very long one the end."""
        with self.path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return file.read().splitlines(keepends=True)[-1]

    def lines(self) -> int:
        """How many there are, the last one whether it has an end or not."""
        with self.path.open("rb") as file:
            return sum(1 for _ in file)


class RawFiles(AbstractContextManager["RawFiles"]):
    """The files of a folder or a zip, or one file, plain or gz.

    Zip and gz are unpacked to a temporary folder, on disk so that memory doesn't hold them, and only the files asked
    for. They go with the context. Raises UserError if `path` is missing, and for a broken archive.
    """

    def __init__(self, path: Path, key: str = "data.path") -> None:
        self.path, self.key = paths.file_or_folder(path, key), key
        self._entries: dict[str, list[Path | str]] = {}  # by name without folder; paths, or names in the zip
        self._unpacked: dict[str, RawFile] = {}
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if path.is_dir():
            for pattern in DEPTH:
                for file in sorted(path.glob(pattern)):
                    if file.is_file():
                        self._entries.setdefault(file.name, []).append(file)
        elif path.stat().st_size == 0:
            raise UserError(f"{path} is empty: fetch it anew or correct {key}.")
        elif path.suffix.lower() == ".zip":
            with self._readable(), zipfile.ZipFile(path) as archive:
                for entry in archive.namelist():
                    if not entry.endswith("/"):
                        self._entries.setdefault(PurePosixPath(entry).name, []).append(entry)
        else:
            self._entries[path.name.removesuffix(".gz")] = [path]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def names(self) -> list[str]:
        """Names of all files, without folders."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def file(self, name: str) -> RawFile:
        """The file called `name`; raises UserError if there are several, if it is empty or the archive is broken."""
        entries = self._entries[name]
        if len(entries) > 1:
            raise UserError(f"{self.path} holds {name} {len(entries)} times: name the folder of one by {self.key}.")
        if name not in self._unpacked:
            file = self._unpack(entries[0], name)
            text_file.refuse_binary(file.path, file.where)
            self._unpacked[name] = file
        return self._unpacked[name]

    def _unpack(self, entry: Path | str, name: str) -> RawFile:
        if isinstance(entry, Path) and entry.suffix.lower() != ".gz":
            if entry.stat().st_size == 0:
                raise UserError(f"{entry} is empty: fetch it anew.")
            return RawFile(entry, str(entry))
        if self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="deepinterest-")
        target = Path(self._temporary.name) / name
        with self._readable():
            if isinstance(entry, str):
                with zipfile.ZipFile(self.path) as archive, archive.open(entry) as member:
                    self._copy(member, target, f"{self.path}, {name}")
            else:
                with gzip.open(entry) as member:
                    self._copy(member, target, str(entry))
        where = f"{self.path}, {name}" if isinstance(entry, str) else str(entry)
        if target.stat().st_size == 0:
            raise UserError(f"{where} is empty: fetch it anew.")
        return RawFile(target, where)

    def _copy(self, source: Readable, target: Path, where: str) -> None:
        """Raises UserError for a line that no file has: a few bytes of gz may hold gigabytes without an end of line."""
        try:
            file = target.open("wb")
        except OSError as error:
            self._no_room(error, target)
        lines = length = 0  # lines that have ended; bytes of the one that hasn't
        with file:
            while piece := source.read(1 << 20):
                lines += piece.count(b"\n")
                end = piece.rfind(b"\n") + 1
                length = len(piece) - end + (0 if end else length)
                if length > text_file.LONGEST:
                    raise UserError(text_file.too_long(where, lines + 1))
                try:
                    file.write(piece)
                except OSError as error:
                    self._no_room(error, target)

    def _no_room(self, error: OSError, target: Path) -> NoReturn:
        raise UserError(
            f"{self.path} could not be unpacked to {target.parent}: {error.strerror or error}. Set TMPDIR to a folder "
            f"with more room, or unpack it yourself and give what comes out by {self.key}."
        ) from error

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, EOFError, OSError, zlib.error, RuntimeError) as error:
            reason = str(error).strip().rstrip(".") or type(error).__name__
            raise UserError(
                f"{self.path} cannot be unpacked ({reason}): it is cut short or damaged, fetch it anew."
            ) from (error)


def fingerprint(path: Path, name: str, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Path, sizes (bytes) and times of change (ns) of the file, or of the wanted files of a folder."""
    files = [path]
    if path.is_dir():
        files = sorted(f for pattern in DEPTH for f in path.glob(pattern) if f.is_file() and wanted(f.name))
    stats = [file.stat() for file in files]
    return {
        "name": name,
        "path": str(path.resolve()),
        "files": [file.name for file in files],
        "size": [stat.st_size for stat in stats],
        "mtime_ns": [stat.st_mtime_ns for stat in stats],
    }


# --------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Column:
    """A column of a file; without a type it is there and not read."""

    name: str
    type: type[pl.DataType] | None = None
    low: float | None = None
    high: float | None = None
    choices: Sequence[str] = ()
    remark: str = ""  # what a value out of range means

    def valid(self) -> pl.Expr:
        """False or null for a missing or impossible value."""
        value = pl.col(self.name)
        valid = value.is_not_null()
        if self.choices:
            valid &= value.is_in(list(self.choices))
        if self.low is not None:
            valid &= value >= self.low
        if self.high is not None:
            valid &= value <= self.high
        return valid

    def fault(self, text: str) -> str | None:
        """What is wrong with a field, in words."""
        if self.type is None:
            return None
        if text == "":
            return f"{self.name} is missing"
        if self.choices and text not in self.choices:
            return f"{self.name} is {text!r} and none of {', '.join(self.choices)}"
        if not self.type.is_numeric():
            return None
        value = pl.Series([text]).cast(self.type, strict=False)[0]
        if value is None:
            kind = "whole number" if self.type.is_integer() else "number"
            return f"{self.name} is {text[:60]!r} and no {kind}{' below 2**31' if self.type is pl.Int32 else ''}"
        if (self.low is not None and not value >= self.low) or (self.high is not None and not value <= self.high):
            return f"{self.name} is {text}{self.remark}"
        return None


@dataclass(frozen=True)
class Table:
    """Text files of one layout. `separator` is one character, or one character twice."""

    files: Sequence[RawFile]
    columns: Sequence[Column]
    separator: str = ","
    header: bool = False

    @property
    def read(self) -> list[Column]:
        return [column for column in self.columns if column.type is not None]

    def scan(self) -> pl.LazyFrame:
        """The columns with a type and `good` (bool): null for a blank line, false for one that `refuse` will name."""
        schema: dict[str, Any] = {}
        empty: list[str] = []  # a doubled separator leaves an empty column
        for column in self.columns:
            if len(self.separator) == 2 and schema:
                empty.append(f"between {len(empty)}")
                schema[empty[-1]] = pl.String
            schema[column.name] = column.type or pl.String
        if any(column.type is None for column in self.columns):  # then the reader passes over fields beyond the last
            empty.append("beyond the last")
            schema[empty[-1]] = pl.String
        scan = pl.scan_csv(
            [file.path for file in self.files],
            separator=self.separator[0],
            has_header=False,
            skip_lines=int(self.header),
            schema=schema,
            quote_char=None,
            glob=False,
            missing_columns="insert",  # of a blank or short first line; nulls tell of them
        )
        names = [column.name for column in self.read]
        valid = pl.all_horizontal(
            *(column.valid().fill_null(False) for column in self.read), *(pl.col(name).is_null() for name in empty)
        )
        blank = pl.all_horizontal(pl.col(name).is_null() for name in (*names, *empty))
        return scan.select(*names, pl.when(~blank).then(valid).alias("good"))

    @contextmanager
    def naming_lines(self) -> Iterator[None]:
        """Turn what the reader says of a file into a UserError that names the line."""
        try:
            yield
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            self.refuse((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")[:200])

    def collect(self) -> tuple[pl.DataFrame, int]:
        """The rows, all of them good, and how many blank lines there were; raises UserError for a bad line."""
        with self.naming_lines():
            frame = self.scan().collect(engine="streaming")
        good = frame["good"]
        if not good.all():
            self.refuse()
        blank = good.null_count()
        frame = frame.drop("good")
        return (frame.filter(good.is_not_null()) if blank else frame), blank

    def refuse(self, reason: str = "its lines don't fit the layout") -> NoReturn:
        """Raise the UserError of the first bad line; read again, a line at a time."""
        for file in self.files:
            with file.path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    fault = None if number == 1 and self.header else self._fault(line, number)
                    if fault:
                        cut = (
                            ""
                            if line.endswith(b"\n")
                            else "; it is the last line and has no end: the file is cut short"
                        )
                        raise UserError(
                            f"{file.where}, line {number}: {fault}{cut}. Fetch the file anew or mend the line."
                        )
        where = self.files[0].where if len(self.files) == 1 else f"{self.files[0].where} and those beside it"
        raise UserError(f"{where} cannot be read ({reason}): fetch the file anew.")

    def _fault(self, line: bytes, number: int) -> str | None:
        line = (line.removeprefix(BOM) if number == 1 else line).rstrip(b"\r\n")
        if not line:
            return None
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return f"{line[:60]!r} is no UTF-8 text"
        fields = text.split(self.separator)
        if len(fields) != len(self.columns):
            expected = ", ".join(column.name for column in self.columns)
            return f"{len(fields)} columns where {len(self.columns)} are expected ({expected}): {text[:60]!r}"
        faults = (column.fault(field) for column, field in zip(self.columns, fields, strict=True))
        return next((fault for fault in faults if fault), None)


def header(file: RawFile, wanted: Sequence[Column], separator: str = ",") -> list[Column]:
    """All columns of a file, in its order, the wanted ones typed; raises UserError if its first line lacks one."""
    with file.path.open("rb") as lines:
        first = lines.readline().removeprefix(BOM).rstrip(b"\r\n").decode(errors="replace")
    names = [name.strip().strip('"') for name in first.split(separator)]
    typed = {column.name: column for column in wanted}
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file.where}, line 1: there are two columns {twice!r}: give the file as it is published.")
    for name in typed:
        if name not in names:
            raise UserError(
                f"{file.where}, line 1: there is no column {name!r}, only {some(names)}: "
                "give the file as it is published."
            )
    return [typed.get(name, Column(name)) for name in names]


def lines_of(file: RawFile) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and texts of the lines that are not blank, for small files; Latin-1 where it is no UTF-8."""
    content = file.path.read_bytes().removeprefix(BOM)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a title may hold odd separators
        if line.strip():
            yield number, line.rstrip("\r")
