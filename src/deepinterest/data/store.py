"""The prepared data set on disk: every event once, memory-mapped, shared by all processes.

It lies in the user's cache folder under a fingerprint of source, settings and this code. It is written beside its place
and renamed when complete, under a lock, so that jobs running side by side prepare it once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from filelock import FileLock
from platformdirs import user_cache_path

from deepinterest.config import DataConfig, Distribution, ProtocolConfig, SyntheticConfig
from deepinterest.data import sources
from deepinterest.data.loader import Samples
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.probes import probe_scores
from deepinterest.data.protocols import MINIMUM_EVENTS, SPLITS, split
from deepinterest.data.vocabulary import Vocabulary
from deepinterest.errors import UserError

STAGES = ("reading events", "splitting", "drawing negatives", "building vocabularies", "probing", "writing")
SAMPLE_ARRAYS = ("user", "history_end", "candidate_offsets", "candidates", "label")


@dataclass
class Store:
    log: Log
    seen: np.ndarray  # (E,) bool: what training may learn from
    catalogue: np.ndarray  # (items, F) int32: vocabulary ids of the item itself, then of its features
    sizes: list[int]  # (F,) vocabulary sizes, the unknown id 0 included
    user_catalogue: np.ndarray  # (U+1, 1) int32; row 0 is the unknown user
    user_sizes: list[int]
    samples: dict[str, Samples]
    probes: dict[str, np.ndarray]  # of the test rows, (R,) each
    card: dict[str, Any]
    folder: Path

    def item_names(self) -> list[str]:
        """Raw value of each catalogue row."""
        return ["unknown", *pl.read_parquet(self.folder / "items.parquet")["item"].cast(pl.String)]

    def user_names(self) -> pl.Series:
        """Raw value of each user, by index."""
        return pl.read_parquet(self.folder / "users.parquet")["user"]

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
    identity = {
        "source": sources.fingerprint(data),
        "data": _plain(asdict(data)),
        "protocol": _plain(asdict(protocol)),
        "code": _code_hash(),
    }
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]
    root = Path(cache) if cache else user_cache_path("deepinterest")
    folder = root / f"{data.name}-{protocol.name}-{key}"
    if (folder / "card.json").is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{folder.name}.lock"):
            if not (folder / "card.json").is_file():
                beside = Path(tempfile.mkdtemp(prefix=".preparing-", dir=root))
                try:
                    _write(beside, data, protocol, stage)
                    os.replace(beside, folder)
                finally:
                    shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"Prepared data could not be written to {root}: {error.strerror or error}. "
            "Name another folder by paths.cache=…"
        ) from error
    return folder


def load(folder: Path) -> Store:
    """Open a prepared data set; arrays stay on disk until they are read."""

    def array(name: str) -> np.ndarray:
        return np.load(folder / f"{name}.npy", mmap_mode="r")

    card = json.loads((folder / "card.json").read_text())
    sizes = json.loads((folder / "sizes.json").read_text())
    return Store(
        log=Log(array("item"), array("time"), array("user_offsets"), len(array("catalogue"))),
        seen=array("seen"),
        catalogue=array("catalogue"),
        sizes=sizes["items"],
        user_catalogue=array("user_catalogue"),
        user_sizes=sizes["users"],
        samples={name: Samples(*(array(f"{name}_{part}") for part in SAMPLE_ARRAYS)) for name in SPLITS},
        probes={path.stem.removeprefix("probe_"): array(path.stem) for path in sorted(folder.glob("probe_*.npy"))},
        card=card,
        folder=folder,
    )


def _write(folder: Path, data: DataConfig, protocol: ProtocolConfig, stage: Callable[[str], object]) -> None:
    stage("reading events")
    events = sources.load(data)
    fewest = MINIMUM_EVENTS.get(protocol.name, 2)
    kept = events.frame.filter(pl.len().over("user") >= fewest)
    lost = events.frame["user"].n_unique() - kept["user"].n_unique()
    if kept.is_empty():
        raise UserError(
            f"No user of {events.name} has {fewest} events or more, which protocol={protocol.name} needs; "
            "check that data.columns.user names the user's column."
        )
    events.frame = kept
    log, items, users = Log.of(events)
    stage("splitting")
    cut = split(log, protocol, data.seed)
    stage("drawing negatives")
    sampler = NegativeSampler(log, cut.seen, protocol.negatives)
    samples = {}
    for number, name in enumerate(SPLITS):
        rng = np.random.default_rng([data.seed, 5, number])
        negatives = sampler.draw(rng, cut.targets[name], protocol.negatives.per_positive)
        samples[name] = Samples.of_targets(log, cut.targets[name], negatives)

    # Vocabularies hold training's values only; an item they lack keeps its features.
    stage("building vocabularies")
    per_item = kept.group_by("item").agg(pl.col(name).first() for name in events.item_features)
    per_item = pl.DataFrame({"item": items}).join(per_item, on="item", how="left", maintain_order="left")
    training = kept.filter(pl.Series(cut.seen))
    vocabularies = [Vocabulary.build(training["item"], data.min_item_count)]
    vocabularies += [Vocabulary.build(training[name]) for name in events.item_features]
    columns = [v.encode(per_item[name]) for v, name in zip(vocabularies, ["item", *events.item_features], strict=True)]
    catalogue = np.concatenate([np.zeros((1, len(columns)), np.int32), np.stack(columns, axis=1)])
    user_vocabulary = Vocabulary.build(training["user"])
    user_catalogue = np.concatenate([[0], user_vocabulary.encode(users)]).astype(np.int32)[:, None]

    stage("probing")
    category = catalogue[:, 1] if events.item_features else None
    probes = probe_scores(log, cut.seen, samples["test"], category, protocol.max_history)
    if isinstance(data, SyntheticConfig) and protocol.negatives.distribution is Distribution.popularity:
        probes["best_reachable"] = _likelihood_ratio(log, cut.seen, samples["test"], items, data)

    card = {
        "source": events.name,
        "protocol": protocol.name,
        "events": len(log),
        "users": len(users),
        "items": len(items),
        "categories": vocabularies[1].values.len() if events.item_features else 0,
        **{f"{name}_rows": samples[name].rows for name in SPLITS},
        "positive_rate": float(np.mean(np.concatenate([s.label for s in samples.values()]))),
        **_history_lengths(log, samples["train"], protocol.max_history),
        "negatives": f"{protocol.negatives.distribution.name}, exclude {protocol.negatives.exclude.name}, "
        f"{protocol.negatives.per_positive} a positive, drawn {protocol.negatives.refresh.name}",
        "split_hash": _hash(
            *(getattr(s, part) for s in samples.values() for part in SAMPLE_ARRAYS), log.item, log.time
        ),
        "vocabulary_hash": _hash(catalogue, *(v.fingerprint().encode() for v in [*vocabularies, user_vocabulary])),
        **{f"dropped: {reason}": count for reason, count in {**events.dropped, **cut.dropped}.items()},
        f"dropped: users with fewer than {fewest} events": lost,
        **{f"note: {note}": count for note, count in events.notes.items()},
    }
    arrays: dict[str, np.ndarray] = {
        "item": log.item,
        "time": log.time,
        "user_offsets": log.user_offsets,
        "seen": cut.seen,
        "catalogue": catalogue,
        "user_catalogue": user_catalogue,
        **{f"{name}_{part}": getattr(s, part) for name, s in samples.items() for part in SAMPLE_ARRAYS},
        **{f"probe_{name}": score for name, score in probes.items()},
    }
    stage("writing")
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    per_item.write_parquet(folder / "items.parquet")
    pl.DataFrame({"user": users}).write_parquet(folder / "users.parquet")
    sizes = {"items": [len(v) for v in vocabularies], "users": [len(user_vocabulary)]}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    (folder / "card.json").write_text(json.dumps(card, indent=2))


def _history_lengths(log: Log, samples: Samples, most: int) -> dict[str, int]:
    length = np.minimum(samples.history_end - log.user_offsets[samples.user], most)
    return {f"history_{q}": int(np.quantile(length, q / 100)) for q in (5, 50, 95)}


def _likelihood_ratio(
    log: Log, seen: np.ndarray, samples: Samples, items: pl.Series, config: SyntheticConfig
) -> np.ndarray:
    """How much likelier a row is as a touch than as a negative: by Neyman and Pearson no score has a higher AUC."""
    raw = np.concatenate([[-1], items.to_numpy()])
    drawn = np.bincount(log.item[seen], minlength=log.items) / seen.sum()
    ratio = np.empty(samples.rows)
    for group in range(len(samples)):
        rows = slice(samples.candidate_offsets[group], samples.candidate_offsets[group + 1])
        begin, end = log.user_offsets[samples.user[group]], samples.history_end[group]
        candidates = samples.candidates[rows]
        touched = sources.synthetic.next_item_probability(config, raw[log.item[begin:end]], raw[candidates])
        ratio[rows] = touched / drawn[candidates]
    return ratio


def _hash(*parts: np.ndarray | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _code_hash() -> str:
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return _hash(*(path.read_bytes() for path in files))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.name if isinstance(value, Enum) else value
