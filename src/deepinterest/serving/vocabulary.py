"""The vocabulary in a run's folder: raw values to catalogue rows, so that the folder serves on any machine.

`vocabulary/` holds items.parquet (raw item, and the ids of the item and of its features, by catalogue row), the same of
users where the network reads them, and one file for each context feature. vocabulary.json says which data set they are
of, and has a sha256 of each file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from deepinterest.atomic import beside
from deepinterest.data.prepare import vocabulary_file
from deepinterest.data.store import Store
from deepinterest.data.vocabulary import Buckets, Vocabulary
from deepinterest.data.vocabulary import load as load_vocabulary
from deepinterest.errors import UserError
from deepinterest.plain import read_json

FOLDER, MANIFEST = "vocabulary", "vocabulary.json"


class Lookup:
    """Rows of a catalogue by raw value; row 0 is the unknown one."""

    def __init__(self, values: pl.Series) -> None:
        """values: raw values of rows 1, 2, …, each once."""
        values = Vocabulary(values).values  # 64-bit integers or text
        self._order = None if values.is_sorted() else values.arg_sort().to_numpy()
        self._sorted = values if self._order is None else values.gather(self._order)

    def rows(self, values: pl.Series) -> np.ndarray:
        """(n,) raw values -> (n,) int64. Values of another type are compared by their text (7 is "7")."""
        given, known = Vocabulary(values).values, self._sorted
        if known.dtype != given.dtype:
            if known.dtype == pl.String:
                given = given.cast(pl.String)
            else:  # text that isn't how the number is written ("07") is another value
                numbers = given.cast(known.dtype, strict=False)
                given = pl.select(pl.when(numbers.cast(pl.String) == given).then(numbers)).to_series()
        if not len(known):
            return np.zeros(len(given), dtype=np.int64)
        distinct = given.unique().drop_nulls()
        place = known.search_sorted(distinct).to_numpy().astype(np.int64)
        found = (known.gather(np.minimum(place, len(known) - 1)) == distinct).to_numpy()
        row = (place if self._order is None else self._order[np.minimum(place, len(known) - 1)]) + 1
        pairs = pl.DataFrame({"value": distinct, "row": np.where(found, row, 0)})
        joined = given.alias("value").to_frame().join(pairs, on="value", how="left", maintain_order="left")
        return np.array(joined["row"].fill_null(0), dtype=np.int64)


@dataclass
class Known:
    """What a model knows by name."""

    items: Lookup
    catalogue: np.ndarray  # (items, F) int32, as in data/store.py
    sizes: list[int]  # (F,)
    users: Lookup | None  # None where the network reads nothing of users
    user_catalogue: np.ndarray  # (U+1, F') int32
    user_sizes: list[int]  # (F',)
    context: dict[str, Vocabulary | Buckets]  # by name of the feature
    hash: str  # of the vocabulary


def write(run: Path, store: Store, users: bool, context: list[str]) -> None:
    """Put the store's vocabulary into a run's folder, the manifest last; OSError for the disk.

    Args:
        users: whether the network reads users.
        context: names of the context features, in the network's order.
    """
    folder = run / FOLDER
    folder.mkdir(exist_ok=True)
    save: dict[str, Callable[[Path], object]] = {
        "items.parquet": _table(store.item_features()["item"], store.catalogue).write_parquet
    }
    if users:
        save["users.parquet"] = _table(store.user_names(), store.user_catalogue).write_parquet
    for name in context:
        save[vocabulary_file(name)] = store.vocabulary(name).save
    for name, write_to in save.items():
        with beside(folder / name) as own:
            write_to(own)
    manifest = {
        "vocabulary_hash": store.vocabulary_hash,
        "sizes": {"items": store.sizes, "users": store.user_sizes if users else [1]},
        "context": context,
        "files": {name: _digest(folder / name) for name in save},
    }
    with beside(folder / MANIFEST) as own:
        own.write_text(json.dumps(manifest, indent=2))


def read(run: Path) -> Known:
    """The vocabulary of a run's folder; raises UserError where it is missing or isn't what was written."""
    folder = run / FOLDER
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{run} has no {FOLDER}/{MANIFEST}, which says what the model's numbers mean: take a checkpoint from the "
            "folder of its run, and copy that folder as a whole."
        )
    manifest = read_json(folder / MANIFEST)
    try:
        for name, digest in manifest["files"].items():
            if _digest(folder / name) != digest:
                raise UserError(f"{folder / name} isn't the file that the run wrote: copy the run's folder again.")
        sizes = manifest["sizes"]
        items, catalogue = _columns(folder / "items.parquet", sizes["items"])
        users, user_catalogue = None, np.zeros((1, 1), dtype=np.int32)
        if "users.parquet" in manifest["files"]:
            users, user_catalogue = _columns(folder / "users.parquet", sizes["users"])
        return Known(
            Lookup(items),
            catalogue,
            sizes["items"],
            None if users is None else Lookup(users),
            user_catalogue,
            sizes["users"],
            {name: load_vocabulary(folder / vocabulary_file(name)) for name in manifest["context"]},
            manifest["vocabulary_hash"],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pl.exceptions.PolarsError) as error:
        raise UserError(
            f"{folder} can't be read ({type(error).__name__}: {error}): copy the run's folder again."
        ) from error


def _table(raw: pl.Series, ids: np.ndarray) -> pl.DataFrame:
    """raw [n] and ids (n+1, F), whose row 0 is the unknown."""
    columns = {f"id_{f}": ids[1:, f] for f in range(ids.shape[1])}
    return pl.DataFrame({"raw": raw, **columns})


def _columns(path: Path, sizes: list[int]) -> tuple[pl.Series, np.ndarray]:
    """Raw values (n,), and the ids (n+1, F) of each, the unknown's first; ValueError where `sizes` (F,) don't fit."""
    frame = pl.read_parquet(path, glob=False)
    if frame["raw"].null_count():
        raise ValueError(f"{path.name} has no raw value in row {1 + int(frame['raw'].is_null().arg_max() or 0)}")
    ids = frame.drop("raw")
    if not all(type(size) is int and 0 < size < 2**31 for size in sizes) or len(sizes) != ids.width:
        raise ValueError(f"the sizes {sizes} aren't those of {ids.width} features")
    for column, size in zip(ids.get_columns(), sizes, strict=True):
        wrong = column.is_null() | ~column.is_between(0, size - 1) if column.dtype.is_integer() else None
        if wrong is None or wrong.any():
            what = column.dtype if wrong is None else column.filter(wrong)[0]
            raise ValueError(f"{path.name} holds {what} as {column.name}: ids are whole numbers from 0 to {size - 1}")
    return frame["raw"], np.concatenate([np.zeros((1, len(sizes)), dtype=np.int32), ids.to_numpy().astype(np.int32)])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
