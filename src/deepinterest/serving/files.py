"""Files of rows, piece by piece: CSV, TSV and Parquet in, Parquet or CSV out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from deepinterest.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
OUTPUTS = (".parquet", ".csv")
BLOCK = 8 << 20  # bytes of a text file at a time; a line is shorter


class Input:
    """A file of rows. Text files give text columns, an empty field being null; raises UserError for what it isn't."""

    def __init__(self, path: str) -> None:
        self.path = Path(path).expanduser()
        self.text = self.path.suffix.lower() in SEPARATORS
        if not self.text and self.path.suffix.lower() != ".parquet":
            raise UserError(f"data.path={path} is no file of rows to score: use .parquet, .csv or .tsv.")
        if not self.path.is_file():
            raise UserError(f"data.path={path} is no file: correct the path.")
        try:
            with self._parquet() if not self.text else self._csv(None) as opened:
                self.columns: list[str] = (opened.schema if self.text else opened.schema_arrow).names
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error
        twice = {name for name in self.columns if self.columns.count(name) > 1}
        if twice:
            raise UserError(f"{self.path} has two columns {min(twice)!r}: rename one.")

    def pieces(self, rows: int) -> Iterator[pl.DataFrame]:
        """The rows in their order; of Parquet at most so many at a time, of text at most BLOCK bytes."""
        try:
            if not self.text:
                with self._parquet() as file:
                    for batch in file.iter_batches(batch_size=rows):
                        yield _frame(batch)
            else:
                with self._csv(pa.schema([(name, pa.string()) for name in self.columns])) as reader:
                    for batch in reader:
                        frame = _frame(batch)
                        yield frame.with_columns(pl.when(pl.all() != "").then(pl.all()))
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from error

    def _parquet(self) -> pyarrow.parquet.ParquetFile:
        return pyarrow.parquet.ParquetFile(self.path)

    def _csv(self, schema: pa.Schema | None) -> pyarrow.csv.CSVStreamingReader:
        return pyarrow.csv.open_csv(
            self.path,
            read_options=pyarrow.csv.ReadOptions(block_size=BLOCK),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=SEPARATORS[self.path.suffix.lower()], newlines_in_values=True
            ),
            convert_options=pyarrow.csv.ConvertOptions(column_types=schema, strings_can_be_null=False),
        )

    def _unreadable(self, error: Exception) -> UserError:
        reason = str(error).strip().splitlines()[0].rstrip(".")[:200]
        return UserError(f"{self.path} can't be read as {self.path.suffix.lower()} ({reason}): write it anew.")


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    frame = pl.from_arrow(batch)
    assert isinstance(frame, pl.DataFrame)
    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))  # whose dictionaries differ between pieces


class Output:
    """Rows written beside `path`; they take its place when all are there, and vanish if anything goes wrong."""

    def __init__(self, path: str) -> None:
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
                frame.write_csv(self._file, include_header=self._rows == 0)
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


def _refuse_lists(frame: pl.DataFrame, path: Path) -> None:
    nested = [name for name in frame.columns if frame[name].dtype.is_nested()]
    if nested:
        raise UserError(
            f"output={path} can't hold the lists of column {nested[0]!r}: use a name that ends with .parquet."
        )
