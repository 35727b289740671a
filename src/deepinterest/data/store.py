"""The prepared data set on disk: every event once, memory-mapped, shared by all processes.

It lies in the user's cache folder under a fingerprint of source, settings and this code. It is written beside its place
and renamed when complete, under a lock, so that jobs running side by side prepare it once. Who opens it compares every
file with the checksum it was written with; what doesn't fit is prepared anew.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from deepinterest.config import DataConfig, ProtocolConfig
from deepinterest.data import sources
from deepinterest.data.log import Log
from deepinterest.data.prepare import OPTIONAL_ARRAYS, SAMPLE_ARRAYS, STAGES, damaged, hash_of, vocabulary_file, write
from deepinterest.data.protocols import SPLITS
from deepinterest.data.samples import Samples
from deepinterest.data.vocabulary import Buckets, Vocabulary
from deepinterest.data.vocabulary import load as load_vocabulary
from deepinterest.errors import UserError, no_room

__all__ = ["SPLITS", "STAGES", "Store", "load", "prepare"]

log = logging.getLogger(__name__)
PATIENCE = 3.0  # seconds that a process waits for another one without a word
HOW = ("partitions", "engine", "ray_address")  # settings that don't change the result
_whole: dict[Path, int] = {}  # folders that this process has checked, and when they were written


@dataclass
class Store:
    log: Log
    seen: np.ndarray  # (E,) bool: what training may learn from
    catalogue: np.ndarray  # (items, F) int32: vocabulary ids of the item itself, then of its features
    sizes: list[int]  # (F,) vocabulary sizes, the unknown id 0 included
    user_catalogue: np.ndarray  # (U+1, F') int32: of the user itself, then of its features; row 0 is the unknown user
    user_sizes: list[int]  # (F',)
    context_sizes: list[int]  # (C,) of the context features
    samples: dict[str, Samples]
    probes: dict[str, np.ndarray]  # of the test rows, (R,) each
    card: dict[str, Any]
    folder: Path

    def item_names(self) -> list[str]:
        """Raw value of each catalogue row."""
        return ["unknown", *self.item_features()["item"].cast(pl.String)]

    def category(self) -> np.ndarray | None:
        """(items,) category id of each catalogue row, or None where the source has no categories."""
        columns = list(pl.read_parquet_schema(self.folder / "items.parquet"))
        return self.catalogue[:, columns.index("category")] if "category" in columns else None

    def user_names(self) -> pl.Series:
        """Raw value of each user, by index."""
        return pl.read_parquet(self.folder / "users.parquet", glob=False)["user"]

    def item_features(self) -> pl.DataFrame:
        """item and its features, raw, of catalogue rows 1, 2, …."""
        return pl.read_parquet(self.folder / "items.parquet", glob=False)

    def user_features(self) -> pl.DataFrame:
        """user and its features, raw, by index."""
        return pl.read_parquet(self.folder / "users.parquet", glob=False)

    def vocabulary(self, name: str) -> Vocabulary | Buckets:
        """Of `item`, of `user`, or of a feature by the name of its column, such as `category`."""
        return load_vocabulary(self.folder / vocabulary_file(name))

    @property
    def vocabulary_hash(self) -> str:
        return str(self.card["vocabulary_hash"])


def prepare(
    data: DataConfig,
    protocol: ProtocolConfig,
    cache: str | None,
    stage: Callable[[str], object] = lambda name: None,
) -> Path:
    """The folder of the prepared data set; made if it isn't there. `stage` hears each of STAGES as it begins.

    Raises UserError for whatever is wrong with the source, and for a cache folder that can't be written.
    """
    source = sources.fingerprint(data)
    identity = {
        "source": source,
        "data": {key: value for key, value in _plain(asdict(data)).items() if key not in HOW},
        "protocol": _plain(asdict(protocol)),
        "code": _code_hash(),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    root = Path(cache) if cache else user_cache_path("deepinterest")
    folder = root / f"{data.name}-{protocol.name}-{key}"
    if folder.is_dir() and _fine(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{folder.name}.lock"):
            if folder.is_dir() and not _fine(folder):
                log.warning("%s is damaged (%s); it is prepared anew.", folder, ", ".join(damaged(folder)))
                os.replace(folder, _emptied(folder.with_name(f".damaged-{folder.name}")))  # a run may still read it
            if not folder.is_dir():
                _prepare(folder, data, protocol, stage, source)
    except Exception as error:
        reason = no_room(error) or (isinstance(error, OSError) and (error.strerror or str(error)))
        if not reason:
            raise
        raise UserError(
            f"Prepared data could not be written to {root}: {reason}. Name another folder by paths.cache=…"
        ) from error
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone with the folder that the lock is of; a process that has to wait says for what."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.warning("Another process prepares the same data and holds %s; waiting until it is done.", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _prepare(
    folder: Path,
    data: DataConfig,
    protocol: ProtocolConfig,
    stage: Callable[[str], object],
    source: dict[str, Any],
) -> None:
    """Fill `folder`, under its lock. Only a kill leaves something beside it, and the next to come here clears that.

    Raises UserError where the source isn't what its fingerprint `source` says any more.
    """
    _emptied(folder.with_name(f".damaged-{folder.name}"))
    beside = _emptied(folder.with_name(f".preparing-{folder.name}"))
    scratch = folder.with_name(f".partitions-{getattr(data, 'partitions', 1)}-{folder.name}")
    beside.mkdir()
    try:
        write(beside, data, protocol, stage, scratch)
        if sources.fingerprint(data) != source:
            raise UserError(
                f"The source of data={data.name} has changed while it was read: run again when nothing writes to it."
            )
        os.replace(beside, folder)
    except Exception as error:
        if isinstance(error, OSError | UserError) or no_room(error):
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for scratch in folder.parent.glob(f".partitions-*-{folder.name}"):
        shutil.rmtree(scratch, ignore_errors=True)


def _emptied(path: Path) -> Path:
    if path.exists():
        shutil.rmtree(path)
    return path


def _fine(folder: Path) -> bool:
    """Whether all files are as they were written; a process reads them through once."""
    try:
        written = (folder / "card.json").stat().st_mtime_ns
    except OSError:
        return False
    if _whole.get(folder) != written:
        if damaged(folder):
            return False
        _whole[folder] = written
    return True


def load(folder: Path) -> Store:
    """Open a prepared data set; arrays stay on disk until they are read."""

    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    def optional(name: str) -> Any:
        return array(name) if (folder / f"{name}.npy").is_file() else None

    card = json.loads((folder / "card.json").read_text())
    sizes = json.loads((folder / "sizes.json").read_text())
    return Store(
        log=Log(array("item"), array("time"), array("user_offsets"), len(array("catalogue")), optional("context")),
        seen=array("seen"),
        catalogue=array("catalogue"),
        sizes=sizes["items"],
        user_catalogue=array("user_catalogue"),
        user_sizes=sizes["users"],
        context_sizes=sizes["context"],
        samples={
            name: Samples(
                **{part: array(f"{name}_{part}") for part in SAMPLE_ARRAYS},
                **{part: optional(f"{name}_{part}") for part in OPTIONAL_ARRAYS},
            )
            for name in SPLITS
        },
        probes={path.stem.removeprefix("probe_"): array(path.stem) for path in sorted(folder.glob("probe_*.npy"))},
        card=card,
        folder=folder,
    )


def _code_hash() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hash_of(*(path.read_bytes() for path in files))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.name if isinstance(value, Enum) else value
