"""Files of rows, piece by piece: text and Parquet in, Parquet or CSV out."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from deepinterest.config import EventFileConfig
from deepinterest.data import paths
from deepinterest.data.columns import SEPARATORS
from deepinterest.data.text_file import TextFile, said
from deepinterest.errors import UserError

INPUTS = (".parquet", *SEPARATORS)
OUTPUTS = (".parquet", ".csv")
BLOCK = 8 << 20  # bytes of a text file at a time; a line is shorter
FORMULA = "^[ \t\r\n]*[=+\\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r]"  # what a spreadsheet takes for the start of one
NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"
BREAK = re.compile("[\r\n]")
DECIMAL = r"^-?(0|[1-9]\d{0,14})(\.\d{1,15})?([eE][-+]?\d{1,2})?$"  # what a float holds as well as its text does


class Input:
    """A file of rows. Text files give text columns, an empty field being null; raises UserError for what it isn't."""

    def __init__(self, config: EventFileConfig) -> None:
        self.path = Path(config.path).expanduser()
        if self.path.suffix.lower() not in INPUTS:
            raise UserError(f"data.path={config.path} is no file of rows to score: use one of {', '.join(INPUTS)}.")
        paths.file(self.path, "data.path")
        if self.path.stat().st_size == 0:
            raise UserError(f"{self.path} is empty: there is nothing to score.")
        self.text = TextFile.of(self.path, config)
        self._state = self._stat()
        try:
            with self._csv(self.text, None) if self.text else self._parquet() as opened:
                self.columns: list[str] = (opened.schema if self.text else opened.schema_arrow).names
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        if twice:
            raise UserError(f"{self.path} has two columns {min(twice)!r}: rename one.")

    def pieces(self, rows: int) -> Iterator[pl.DataFrame]:
        """The rows in their order; of Parquet at most so many at a time, of text at most BLOCK bytes."""
        try:
            if self.text is None:
                with self._parquet() as file:
                    for batch in file.iter_batches(batch_size=rows):
                        yield _frame(batch)
            else:
                with self._csv(self.text, pa.schema([(name, pa.string()) for name in self.columns])) as reader:
                    frame = pl.DataFrame()
                    for batch in reader:
                        frame = _frame(batch)
                        yield frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
                    # A quote that is never closed takes in all that follows, and no reader says so.
                    if any(BREAK.search(value) for row in frame.tail(1).rows() for value in row):
                        self._refuse_unclosed(self.text)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        if self._stat() != self._state:
            raise UserError(f"{self.path} has changed while it was read: run again when nothing writes to it any more.")

    def kinds(self, ids: Collection[str]) -> dict[str, pl.DataType]:
        """The type of each column: a text file's own where all of its values are numbers; the file is read for it.

        Args:
            ids: columns that are whole numbers, written as such, or text.
        """
        if self.text is None:
            return {}
        whole, decimal = set(self.columns), set(self.columns) - set(ids)
        valued: set[str] = set()
        every = pl.all()
        for frame in self.pieces(BLOCK):
            exact = (every.cast(pl.Int64, strict=False).cast(pl.String) == every).fill_null(False) | every.is_null()
            for held, fits in ((whole, exact), (decimal, every.str.contains(DECIMAL).fill_null(True))):
                held.intersection_update(_true(frame.select(fits.all())))
            valued |= set(_true(frame.select(every.is_not_null().any())))
        return {
            name: pl.Int64() if name in whole else pl.Float64()
            for name in self.columns
            if name in valued & (whole | decimal)
        }

    def _parquet(self) -> pyarrow.parquet.ParquetFile:
        return pyarrow.parquet.ParquetFile(self.path)

    def _csv(self, text: TextFile, schema: pa.Schema | None) -> pyarrow.csv.CSVStreamingReader:
        return pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK, column_names=None if text.header else text.names()),
            parse_options=pyarrow.csv.ParseOptions(delimiter=text.separator, newlines_in_values=True),
            convert_options=pyarrow.csv.ConvertOptions(column_types=schema, strings_can_be_null=False),
        )

    def _refuse_unclosed(self, text: TextFile) -> None:
        if fault := text.unclosed():
            raise UserError(f"{self.path} can't be read as {self.path.suffix.lower()} ({fault}): write it anew.")

    def _stat(self) -> tuple[int, int]:
        found = self.path.stat()
        return found.st_size, found.st_mtime_ns

    def _unreadable(self, error: Exception) -> UserError:
        reason = (self.text.fault() if self.text else None) or said(error)
        return UserError(f"{self.path} can't be read as {self.path.suffix.lower()} ({reason}): write it anew.")


def _true(row: pl.DataFrame) -> list[str]:
    """The names of the columns whose one value is true."""
    return [name for name, value in row.row(0, named=True).items() if value]


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))  # whose dictionaries differ between pieces


class Output:
    """Rows written beside `path`; they take its place when all are there, and vanish if anything goes wrong.

    Args:
        keep_formulas: leave texts in a CSV as they are that a spreadsheet would run; else they get a ' in front.
    """

    def __init__(self, path: str, keep_formulas: bool = False) -> None:
        self.keep_formulas = keep_formulas
        self.path = Path(path).expanduser()
        if self.path.suffix.lower() not in OUTPUTS:
            raise UserError(f"output={path} is no place for scores: use a name that ends with {' or '.join(OUTPUTS)}.")
        if self.path.is_dir():
            raise UserError(f"output={path} is a folder: name a file.")
        self._writer: pyarrow.parquet.ParquetWriter | None = None
        self._rows = 0

    def __enter__(self) -> Output:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{self.path.name}-", suffix=".partial", dir=self.path.parent)
        except OSError as error:
            raise self._unwritable(error) from error
        self._beside, self._file = Path(name), os.fdopen(handle, "wb")
        return self

    def write(self, frame: pl.DataFrame) -> None:
        try:
            if self.path.suffix.lower() == ".csv":
                _refuse_lists(frame, self.path)
                shown = frame if self.keep_formulas else _without_formulas(frame)
                shown.write_csv(self._file, include_header=self._rows == 0)
            else:
                table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
                if self._writer is None:
                    self._writer = pyarrow.parquet.ParquetWriter(self._file, table.schema, compression="zstd")
                self._writer.write_table(table)
        except (OSError, pa.ArrowException) as error:
            raise self._unwritable(error) from error
        self._rows += frame.height

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._writer is not None:
                self._writer.close()
            self._file.close()
            if kind is None:
                mask = os.umask(0)
                os.umask(mask)
                self._beside.chmod(0o666 & ~mask)  # mkstemp's are private
                os.replace(self._beside, self.path)
        except (OSError, pa.ArrowException) as failed:
            if kind is None:
                raise self._unwritable(failed) from failed
        finally:
            with suppress(OSError):
                self._file.close()
            self._beside.unlink(missing_ok=True)

    def _unwritable(self, error: Exception) -> UserError:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        return UserError(f"output={self.path} can't be written: {reason}. Make room, or name another file.")


def _without_formulas(frame: pl.DataFrame) -> pl.DataFrame:
    """Texts and names of columns that a spreadsheet would take for a formula, with a ' in front; no numbers."""
    text = pl.col(pl.String)
    runs = text.str.contains(FORMULA) & ~text.str.contains(NUMBER)
    frame = frame.with_columns(pl.when(runs).then("'" + text).otherwise(text).name.keep())
    for name in frame.columns:
        if re.match(FORMULA, name):
            free = f"'{name}"
            while free in frame.columns:
                free = f"'{free}"
            frame = frame.rename({name: free})
    return frame


def _refuse_lists(frame: pl.DataFrame, path: Path) -> None:
    nested = [name for name in frame.columns if frame[name].dtype.is_nested()]
    if nested:
        raise UserError(
            f"output={path} can't hold the lists of column {nested[0]!r}: use a name that ends with .parquet."
        )
