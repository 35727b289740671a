"""`task=predict`: a probability for each row of a file, read and written piece by piece: ../docs/predict.md.

Rows of a piece that share a history are scored together, so it is encoded once, as in training.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.text import Text

from deepinterest.config import EventColumns, EventFileConfig, ExperimentConfig, HistoryTies, TimestampUnit
from deepinterest.data import store as prepared
from deepinterest.data import times
from deepinterest.data.events import refuse_nulls
from deepinterest.data.log import Log
from deepinterest.data.samples import ranges
from deepinterest.data.text_file import no_column
from deepinterest.data.values import ids
from deepinterest.data.where import Where
from deepinterest.errors import UserError, some, visible
from deepinterest.serving import checkpoint
from deepinterest.serving.files import Input, Output
from deepinterest.serving.model import Model
from deepinterest.serving.vocabulary import Lookup

log = logging.getLogger(__name__)

HISTORY, PROBABILITY = "history", "probability"
ROWS, ROWS_OF_LISTS = 65_536, 4_096  # at a time; of lists fewer, as each holds many items
BETWEEN = "|"  # items of a history in a text file


def run(config: ExperimentConfig, console: Console, device: torch.device) -> dict[str, float]:
    """Scores the rows of data.path into `config.output`; raises UserError for whatever is wrong with either.

    Returns: rows and scores; scores whose item, and rows whose user, training didn't know; rows without a history;
    seconds and rows a second.
    """
    if not isinstance(config.data, EventFileConfig):
        raise UserError(f"data={config.data.name} holds no rows to score: take data=events data.path=NEW.parquet.")
    file, output = Input(config.data), Output(str(config.output), config.keep_formulas)
    if output.path.exists() and output.path.samefile(file.path):
        raise UserError(f"output={config.output} is data.path itself: name another file.")
    read = checkpoint.read(str(config.checkpoint))
    model = Model.of(read, device)
    model.batch_size = config.trainer.eval_batch_size
    columns = Columns.of(file, config.data, model)
    histories = None
    if columns.history is None:
        with console.status(Text(f"Preparing {model.config.data.name}")):
            histories = Histories.of(model.config, config.paths.cache, read.vocabulary_hash)
    begin = time.perf_counter()
    scorer = Scorer(model, file, columns, histories, config.data)
    kinds = file.kinds(columns.ids) if output.path.suffix.lower() == ".parquet" else {}
    with output, console.status(Text(visible(f"Scoring {file.path.name}"))):
        for frame in scorer.scored():
            output.write(frame.cast(kinds))  # type: ignore[arg-type]
        if not scorer.counts["rows"]:
            raise UserError(f"{file.path} has no rows: there is nothing to score.")
    seconds = time.perf_counter() - begin
    counts = {name: float(scorer.counts[name]) for name in COUNTED}
    log.info("%s; %s in %.1f s", scorer.told(), output.path, seconds)
    return {**counts, "seconds": seconds, "rows_per_s": counts["rows"] / seconds}


COUNTED = ("rows", "scores", "unknown_items", "unknown_history_items", "unknown_users", "empty_histories")


@dataclass(frozen=True)
class Columns:
    """The file's columns by what they hold."""

    item: str
    user: str | None
    timestamp: str | None
    history: str | None
    history_length: str | None

    @classmethod
    def of(cls, file: Input, config: EventFileConfig, model: Model) -> Columns:
        """Raises UserError for a column that is needed and missing, and for one that the scores would take."""
        named, present = config.columns, file.columns
        given = some(present)
        if named.item not in present:
            raise no_column(file.path, named.item, "data.columns.item", present, file.text)
        user, timestamp, length = (
            _optional(file, role, getattr(named, role)) for role in ("user", "timestamp", "history_length")
        )
        history = HISTORY if HISTORY in present else None
        if user is None and history is None:
            raise UserError(
                f"{file.path} has neither a column {named.user!r} nor a column {HISTORY!r}, only {given}: set "
                f"data.columns.user to the column of the users, or give each row its items touched as {HISTORY!r}."
            )
        if PROBABILITY in present:
            raise UserError(f"{file.path} has a column {PROBABILITY!r}, which the scores need: rename or drop it.")
        for name in model.known.context:
            if name not in present:
                raise UserError(f"{file.path} has no column {name!r}, only {given}; the model reads it: add it.")
        if history is not None:
            return cls(named.item, None if model.known.users is None else user, None, history, None)
        if length is not None and length not in model.known.context:
            return cls(named.item, user, None, None, length)
        return cls(named.item, user, timestamp, None, None)

    @property
    def ids(self) -> list[str]:
        """Columns of items and users."""
        return [name for name in (self.item, self.user, self.history) if name]


def _optional(file: Input, role: str, name: str | None) -> str | None:
    """The column, or None where it isn't there; one that was named on purpose has to be."""
    if name is None:
        return None
    if name not in file.columns and name != getattr(EventColumns, role):
        raise no_column(file.path, name, f"data.columns.{role}", file.columns, file.text)
    return name if name in file.columns else None


@dataclass
class Histories:
    """What each user of the prepared log touched."""

    log: Log
    users: Lookup

    @classmethod
    def of(cls, config: ExperimentConfig, cache: str | None, vocabulary_hash: str | None) -> Histories:
        """Of the data set that `config` was trained on, prepared anew where the cache hasn't got it.

        Raises UserError where it can't be prepared, or has changed.
        """
        try:
            store = prepared.load(prepared.prepare(config.data, config.protocol, cache))
        except UserError as error:
            raise UserError(
                "the users' histories can't be read from the log that the model was trained on: "
                f"{str(error).rstrip('.')}. "
                f"Or give rows their own histories, in a column {HISTORY!r}."
            ) from error
        if store.vocabulary_hash != vocabulary_hash:
            raise UserError(
                f"the log that data={config.data.name} prepares now has another vocabulary ({store.vocabulary_hash}) "
                f"than the checkpoint's ({vocabulary_hash}): the source has changed since; give rows their own "
                f"histories, in a column {HISTORY!r}."
            )
        return cls(store.log, Lookup(store.user_names()))

    def of_users(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and last event (n,), the last excluded, of users (n,).

        Users count from 1, as `users.rows` gives them; 0, the unknown one, has no event.
        """
        offsets = np.concatenate([[0], self.log.user_offsets])
        return offsets[user], offsets[user + 1]


def first_at_or_after(times: np.ndarray, start: np.ndarray, end: np.ndarray, time: np.ndarray) -> np.ndarray:
    """For each i the first place in start[i] .. end[i] whose time isn't before time[i]; times rise within each."""
    low, high = start.copy(), end.copy()
    while (open_ := low < high).any():  # halved all at once
        middle = np.where(open_, (low + high) // 2, 0)
        before = open_ & (times[middle] < time)
        low = np.where(before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low


class Scorer:
    """Scores a file's pieces, and counts what the model doesn't know."""

    def __init__(
        self, model: Model, file: Input, columns: Columns, histories: Histories | None, settings: EventFileConfig
    ) -> None:
        self.model, self.file, self.columns, self.histories, self.settings = model, file, columns, histories, settings
        self.counts: Counter[str] = Counter()
        self.where = Where(str(file.path), file.text, blank_rows=False)

    def scored(self) -> Iterator[pl.DataFrame]:
        """The pieces with their probabilities, without the histories, in the file's order."""
        for frame in self._pieces():
            self.where = replace(self.where, first=self.counts["rows"])
            probability = self._score(frame)
            kept = frame.drop(self.columns.history) if self.columns.history else frame
            self.counts["rows"] += frame.height
            yield kept.with_columns(probability.alias(PROBABILITY))

    def told(self) -> str:
        """The counts in a sentence."""
        counts = self.counts
        parts = [
            f"{counts[name]:,} {words}"
            for name, words in (
                ("unknown_items", "of them of items that training never saw"),
                ("unknown_history_items", "such items in histories"),
                ("unknown_users", "rows of users that aren't known"),
                ("empty_histories", "rows without a history"),
            )
            if counts[name]
        ]
        if counts["tied"]:
            parts.append(
                f"{counts['tied']:,} rows at the time of an event of their user, none of which is in their history "
                "(the model's protocol.ties=order: a column history_length can say how many of the events are)"
            )
        if self.columns.history is not None:
            histories = "each row with its own history"
        elif self.columns.history_length is not None:
            histories = f"each row with the first {self.columns.history_length} events of its user"
        elif self.columns.timestamp is not None:
            histories = "each row with what its user touched before its time"
        else:
            histories = "each row with all that its user touched"
        return ", ".join([f"{counts['scores']:,} scores of {counts['rows']:,} rows, {histories}", *parts])

    def _pieces(self) -> Iterator[pl.DataFrame]:
        """Of as many rows as memory bears, whatever the file's own pieces are."""
        for frame in self.file.pieces(ROWS):
            lists = any(frame[name].dtype.is_nested() for name in frame.columns) or self.columns.history is not None
            yield from frame.iter_slices(ROWS_OF_LISTS if lists else ROWS)

    def _score(self, frame: pl.DataFrame) -> pl.Series:
        items, of_row = self._items(frame)
        user = self._column(frame, self.columns.user) if self.columns.user else None
        events, start, end, group = self._histories(frame, user)
        model, known = self.model, self.model.known
        rows = known.items.rows(items)
        reads = known.users is not None and user is not None
        user_row = model.user_rows(user) if reads and user is not None else np.zeros(frame.height, dtype=np.int64)
        if reads:
            self.counts["unknown_users"] += int((known.user_catalogue[user_row, 0] == 0).sum())
        # Rows of one user and one history are a group; the groups ascend, and each has a first row.
        key = pl.DataFrame({"group": group, "user": user_row}).select(pl.struct("group", "user").rank("dense"))
        index = key.to_series().to_numpy().astype(np.int64) - 1
        first = np.unique(index, return_index=True)[1]
        order = np.argsort(index[of_row], kind="stable")
        histories, offsets = ranges(start[first], end[first] - start[first])
        context = model.context_rows({name: frame[name] for name in known.context}, frame.height, self.where)
        answer = np.empty(len(rows), dtype=np.float32)
        answer[order] = model.score_rows(
            events[histories].astype(np.int64),
            offsets,
            user_row[first],
            rows[order],
            index[of_row][order],
            None if context is None else context[of_row[order]],
        )
        self.counts["scores"] += len(rows)
        self.counts["unknown_items"] += int((~model.learned(rows)).sum())
        self.counts["empty_histories"] += int((start == end).sum())
        if frame[self.columns.item].dtype.is_nested():
            lists = pl.DataFrame({"row": of_row, "answer": answer}).group_by("row", maintain_order=True).agg("answer")
            every = pl.DataFrame({"row": np.arange(frame.height)}).join(
                lists, on="row", how="left", maintain_order="left"
            )
            return every["answer"].fill_null(pl.lit([], dtype=pl.List(pl.Float32)))
        return pl.Series(answer)

    def _items(self, frame: pl.DataFrame) -> tuple[pl.Series, np.ndarray]:
        """The items to score (B,), and the row of the frame that each stands in."""
        values = frame[self.columns.item]
        if not values.dtype.is_nested():
            return self._column(frame, self.columns.item), np.arange(frame.height)
        items, offsets = self._lists(values, self.columns.item)
        return items, np.repeat(np.arange(frame.height), np.diff(offsets))

    def _histories(
        self, frame: pl.DataFrame, user: pl.Series | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Catalogue rows of events; each row's history among them, from and to (n,); and a number of it (n,)."""
        if self.histories is None:
            assert self.columns.history is not None
            values = frame[self.columns.history]
            if self.file.text:
                # No value is an empty history: a text file can't tell the two apart.
                values = values.fill_null("").str.split(BETWEEN).list.eval(pl.element().filter(pl.element() != ""))
            elif not values.dtype.is_nested():
                raise UserError(f"{self.file.path}: column {HISTORY!r} is of type {values.dtype}: give lists of items.")
            items, offsets = self._lists(values, HISTORY)
            rows = self.model.known.items.rows(items)
            self.counts["unknown_history_items"] += int((~self.model.learned(rows)).sum())
            # Equal lists get one number.
            first = pl.DataFrame({"list": values}).with_row_index("row").select(
                pl.col("row").first().over("list")
            )  # fmt: skip
            return rows, offsets[:-1], offsets[1:], first["row"].to_numpy().astype(np.int64)
        assert user is not None
        known = self.histories.users.rows(user)
        if self.model.known.users is None:
            self.counts["unknown_users"] += int((known == 0).sum())
        start, end = self.histories.of_users(known)
        if self.columns.history_length is not None:
            end = start + self._lengths(frame[self.columns.history_length], end - start, known > 0)
        elif self.columns.timestamp is not None:
            times, time = self.histories.log.time, self._times(frame[self.columns.timestamp])
            last, end = end, first_at_or_after(self.histories.log.time, start, end, time)
            if self.model.config.protocol.ties is HistoryTies.order:
                there = end < last
                self.counts["tied"] += int((times[end[there]] == time[there]).sum())
        # A history is told by its user and its end.
        key = known * (len(self.histories.log) + 1) + end
        return self.histories.log.item, start, end, np.unique(key, return_inverse=True)[1]

    def _times(self, values: pl.Series) -> np.ndarray:
        called = f"column {values.name!r} (data.columns.timestamp)"
        numbers = times.numbers(values, self.where, called, self.settings)
        if numbers is not None and self.settings.timestamp_unit is TimestampUnit.auto:
            # The first piece decides for the whole file.
            unit = times.unit_of(numbers, self.where, called)
            self.settings = replace(self.settings, timestamp_unit=unit)
        return times.milliseconds(values, self.where, called, self.settings).to_numpy()

    def _lengths(self, values: pl.Series, events: np.ndarray, known: np.ndarray) -> np.ndarray:
        """(n,) how many events of each row's user are its history; of an unknown user none. `events` (n,) are all."""
        numbers = [None] * len(values) if values.dtype.is_nested() else values.cast(pl.Float64, strict=False)
        length = pl.Series(numbers, dtype=pl.Float64).fill_null(-1).to_numpy()
        wrong = (length != np.floor(length)) | (length < 0) | (known & (length > events))
        if wrong.any():
            row = int(wrong.argmax())
            raise UserError(
                f"{self.where}: column {values.name!r} (data.columns.history_length) holds {values[row]!r} in "
                f"{self.where.row(row)}, whose user has {events[row]:,} events in the log: give the number of those "
                "that come before the row, or drop the column."
            )
        return np.where(known, length, 0).astype(np.int64)

    def _column(self, frame: pl.DataFrame, name: str) -> pl.Series:
        values = ids(frame[name], self.where, f"column {name!r}")
        refuse_nulls(values, self.where, f"column {name!r}")
        return values

    def _lists(self, values: pl.Series, name: str) -> tuple[pl.Series, np.ndarray]:
        """The items of all lists, one after the other, and the offsets (n+1,) of each list."""
        refuse_nulls(values, self.where, f"column {name!r}")
        offsets = np.concatenate([[0], values.list.len().cast(pl.Int64).to_numpy().cumsum()])
        filled = values.filter(values.list.len() > 0)  # explode makes a null of an empty list
        items = filled.explode()
        if items.null_count():
            row = int(np.searchsorted(offsets, int(items.is_null().arg_max() or 0), side="right")) - 1
            raise UserError(
                f"{self.file.path}: column {name!r} holds a list with no value in {self.where.row(row)}: drop it."
            )
        return ids(items, self.where, f"column {name!r}"), offsets
