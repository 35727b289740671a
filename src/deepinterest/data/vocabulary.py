"""Raw values to ids; id 0 is the unknown value. A category has a vocabulary, a quantity has buckets."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import polars as pl


class Vocabulary:
    """Ids from 1 by falling count, then by value; 0 stands for null and for every value not in the vocabulary.

    `values[id - 1]` is the raw value of an id; `len()` counts the unknown id too.
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = _canonical(values).alias("value")

    @classmethod
    def build(cls, values: pl.Series, min_count: int = 1) -> Vocabulary:
        """Of the values that occur at least `min_count` times."""
        return cls.of_counts(values, np.ones(len(values), dtype=np.int64), min_count)

    @classmethod
    def of_counts(cls, values: pl.Series, counts: np.ndarray, min_count: int = 1) -> Vocabulary:
        """Of values that occur counts (n,) times each; a value may stand there several times."""
        frame = pl.DataFrame({"value": _canonical(values), "count": counts}).lazy().drop_nulls("value")
        kept = (
            frame.group_by("value").agg(pl.col("count").sum())
            .filter(pl.col("count") >= min_count)
            .sort("count", "value", descending=[True, False])
            .collect()
        )  # fmt: skip
        return cls(kept["value"])

    def __len__(self) -> int:
        return len(self.values) + 1

    def encode(self, values: pl.Series) -> np.ndarray:
        """Ids as int32, in the order of `values`. Values of another type are compared by their text (7 is "7")."""
        known, given = self.values, _canonical(values).alias("value")
        if known.dtype != given.dtype:
            known, given = known.cast(pl.String), given.cast(pl.String)
        ids = pl.DataFrame({"value": known, "id": np.arange(1, len(self), dtype=np.int32)})
        joined = given.to_frame().join(ids, on="value", how="left", maintain_order="left")
        return joined["id"].fill_null(0).to_numpy().astype(np.int32, copy=False)

    def fingerprint(self) -> str:
        """A sha256 (hex) of the values, their order and their type."""
        digest = hashlib.sha256(str(self.values.dtype).encode())
        text = self.values.cast(pl.String)
        # Lengths too: otherwise ["ab", "c"] and ["a", "bc"] would be the same.
        digest.update(text.str.len_bytes().cast(pl.UInt32).to_numpy().astype("<u4").tobytes())
        digest.update("".join(text.to_list()).encode())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a parquet file with one column, `value`."""
        self.values.to_frame().write_parquet(path)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read what `save` wrote."""
        return cls(pl.read_parquet(path, glob=False)["value"])


class Buckets:
    """Ids from 1 by rising quantity; 0 stands for null, and for all where training had no value.

    Bucket `id` begins at `values[id - 1]` and ends before the next; the first and the last have no outer end.
    """

    def __init__(self, values: pl.Series) -> None:
        self.values = values.cast(pl.Float64).alias("from")

    @classmethod
    def of_counts(cls, values: pl.Series, counts: np.ndarray, buckets: int) -> Buckets:
        """At most so many buckets of as many occurrences each, of values that occur counts (n,) times each.

        Equal values share a bucket, so fewer are made where one value is frequent.
        """
        known = (values.is_not_null() & values.is_finite().fill_null(False)).to_numpy() & (counts > 0)
        numbers = values.to_numpy()[known].astype(np.float64)
        order = np.argsort(numbers, kind="stable")
        until = np.cumsum(counts[known][order])  # occurrences up to each value
        if len(until) == 0:
            return cls(pl.Series([], dtype=pl.Float64))
        first = np.searchsorted(until, until[-1] * np.arange(buckets) / buckets, side="right")
        return cls(pl.Series(np.unique(numbers[order][first])))

    def __len__(self) -> int:
        return len(self.values) + 1

    def encode(self, values: pl.Series) -> np.ndarray:
        """Ids as int32, in the order of `values`."""
        numbers = values.cast(pl.Float64).fill_nan(None)
        ids = np.searchsorted(self.values.to_numpy(), numbers.fill_null(0).to_numpy(), side="right")
        lowest = min(1, len(self.values))  # smaller than everything in training
        return np.where(numbers.is_null().to_numpy(), 0, np.maximum(ids, lowest)).astype(np.int32)

    def fingerprint(self) -> str:
        """A sha256 (hex) of the bounds."""
        return hashlib.sha256(b"buckets" + self.values.to_numpy().astype("<f8").tobytes()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a parquet file with one column, `from`."""
        self.values.to_frame().write_parquet(path)


def load(path: str | Path) -> Vocabulary | Buckets:
    """Read what `save` of either wrote."""
    frame = pl.read_parquet(path, glob=False)
    return Buckets(frame["from"]) if frame.columns == ["from"] else Vocabulary(frame["value"])


def _canonical(values: pl.Series) -> pl.Series:
    # Files hold ids in integers of any width; one width makes a vocabulary of one file fit another.
    if values.dtype.is_integer():
        wide = values.cast(pl.Int64, strict=False)
        return wide if wide.null_count() == values.null_count() else values.cast(pl.String)
    return values.cast(pl.String)
