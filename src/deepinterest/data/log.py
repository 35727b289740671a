"""The events of a source as flat arrays of numbers: what protocols, samplers and loaders work on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from deepinterest.config import HistoryTies
from deepinterest.data.events import LABEL, Events, plain


@dataclass
class Log:
    """E events of U users, each user's in time order and one user after the other.

    An event names a row of the item catalogue; row 0 is the unknown item and no event has it.
    """

    item: np.ndarray  # (E,)   int32, catalogue row
    time: np.ndarray  # (E,)   int64, milliseconds
    user_offsets: np.ndarray  # (U+1,) int64: user u has events user_offsets[u] .. user_offsets[u+1]
    items: int  # rows of the catalogue, the unknown one included
    context: np.ndarray | None = None  # (E, C) int32, vocabulary ids of each event's context, if it has any

    @classmethod
    def of(cls, events: Events, further_items: pl.Series | None = None) -> tuple[Log, pl.Series, pl.Series]:
        """Also the raw values of catalogue rows 1, 2, … and of users 0, 1, ….

        Of impressions with labels the touches are the log's events; all users and items are in it, touched or not.

        Args:
            further_items: raw items that get a catalogue row though they may have no event.
        """
        frame = events.frame
        items = frame["item"] if further_items is None else pl.concat([frame["item"], further_items])
        items = items.unique().sort()
        users = frame["user"].rle()
        lengths = users.struct.field("len").to_numpy()
        if events.labelled:
            touches = np.concatenate([[0], np.cumsum(frame[LABEL].to_numpy(), dtype=np.int64)])
            lengths = np.diff(touches[np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])])
            frame = frame.filter(pl.col(LABEL) == 1)
        log = cls(
            item=_rows(frame["item"], items),
            time=frame["timestamp"].to_numpy(),
            user_offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            items=len(items) + 1,
        )
        return log, plain(items), plain(users.struct.field("value"))

    def __len__(self) -> int:
        return len(self.item)

    @cached_property
    def user(self) -> np.ndarray:
        """(E,) int32: whose event it is."""
        lengths = np.diff(self.user_offsets)
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    @cached_property
    def basket(self) -> np.ndarray:
        """(E,) int64: events of one user at one time share a number; numbers ascend."""
        first = np.ones(len(self), dtype=bool)
        first[1:] = (self.user[1:] != self.user[:-1]) | (self.time[1:] != self.time[:-1])
        number = np.cumsum(first)
        number -= 1
        return number

    def history_end(self, events: np.ndarray, ties: HistoryTies) -> np.ndarray:
        """(n,) events -> the event before which the history of each ends, itself excluded: int64."""
        if ties is HistoryTies.order:
            return events
        return np.searchsorted(self.basket, self.basket[events])

    @property
    def position(self) -> np.ndarray:
        """(E,) int64: how many events of the user came before."""
        return np.arange(len(self)) - self.user_offsets[self.user]


def _rows(values: pl.Series, items: pl.Series) -> np.ndarray:
    """(n,) int32: the place of each value among `items`, from 1; all are there."""
    if isinstance(items.dtype, pl.Categorical):
        codes = items.to_physical().to_numpy()
        row = np.zeros(int(codes.max()) + 1, np.int32)
        row[codes] = np.arange(1, len(codes) + 1, dtype=np.int32)
        return row[values.to_physical().to_numpy()]
    known = pl.DataFrame({"item": items}).with_row_index("row", offset=1)
    found = pl.DataFrame({"item": values}).join(known, on="item", how="left", maintain_order="left")["row"]
    return found.cast(pl.Int32).to_numpy()
