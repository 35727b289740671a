"""Preparing a data set: from a source's events to the arrays and the card of a folder that `store.load` opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from deepinterest.config import DataConfig, Distribution, LastEventConfig, ProtocolConfig, SyntheticConfig
from deepinterest.data import labelled, sources
from deepinterest.data.core import keep_core
from deepinterest.data.events import Events, PublishedRows
from deepinterest.data.labelled import Labelled
from deepinterest.data.loader import Samples
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.probes import probe_scores
from deepinterest.data.protocols import MINIMUM_EVENTS, SPLITS
from deepinterest.data.vocabulary import Vocabulary
from deepinterest.errors import UserError

STAGES = ("reading events", "splitting", "drawing negatives", "building vocabularies", "probing", "writing")
SAMPLE_ARRAYS = ("user", "history_end", "candidate_offsets", "candidates", "label", "position")
HASHED_ARRAYS = SAMPLE_ARRAYS[:-1]


def write(folder: Path, data: DataConfig, protocol: ProtocolConfig, stage: Callable[[str], object]) -> None:
    """Prepare and write; `stage` hears each of STAGES as it begins.

    Raises UserError for whatever is wrong with the source or leaves a split empty, and OSError for the disk.
    """
    stage("reading events")
    events = _read(data, protocol)
    rows = events.rows if isinstance(protocol, LastEventConfig) else None
    further = pl.concat([rows.train["item"], rows.test["item"]]) if rows else None
    log, items, users = Log.of(events, further)
    if rows and isinstance(protocol, LastEventConfig):
        stage("splitting")
        result = labelled.published(log, items, users, rows, protocol, data.seed)
        stage("drawing negatives")  # they stand in the rows
    else:
        result = labelled.draw(log, protocol, data.seed, stage)
    samples = result.samples

    stage("building vocabularies")
    per_item = _features(events, items, rows)
    vocabularies = _vocabularies(log, result, per_item, users, data, protocol, rows)
    *item_vocabularies, user_vocabulary = vocabularies.values()
    columns = [vocabularies[name].encode(per_item[name]) for name in per_item.columns]
    catalogue = np.concatenate([np.zeros((1, len(columns)), np.int32), np.stack(columns, axis=1)])
    user_catalogue = np.concatenate([[0], user_vocabulary.encode(users)]).astype(np.int32)[:, None]

    stage("probing")
    category = catalogue[:, 1] if events.item_features else None
    probes = probe_scores(log, result.seen, samples["test"], category, protocol.max_history)
    if isinstance(data, SyntheticConfig) and protocol.negatives.distribution is Distribution.popularity:
        pool = NegativeSampler(log, result.seen, protocol.negatives).pool
        probes["best_reachable"] = _likelihood_ratio(log, pool, samples["test"], items, data)

    negatives = protocol.negatives
    card = {
        "source": events.name,
        "protocol": protocol.name,
        "events": len(log),
        "users": len(users),
        "items": len(items),
        "categories": item_vocabularies[1].values.len() if events.item_features else 0,
        **{f"{name}_rows": samples[name].rows for name in SPLITS},
        "positive_rate": float(np.mean(np.concatenate([s.label for s in samples.values()]))),
        **_history_lengths(log, samples["train"], protocol.max_history),
        "negatives": "those of the published rows"
        if rows
        else f"{negatives.distribution.name}, exclude {negatives.exclude.name}, {negatives.per_positive} a positive, "
        f"drawn {negatives.refresh.name}{', among all events' if negatives.whole_pool else ''}",
        "split_hash": hash_of(
            *(getattr(s, part) for s in samples.values() for part in HASHED_ARRAYS), log.item, log.time
        ),
        "vocabulary_hash": hash_of(catalogue, *(v.fingerprint().encode() for v in vocabularies.values())),
        **{f"dropped: {reason}": count for reason, count in {**events.dropped, **result.dropped}.items()},
        **{f"note: {note}": count for note, count in events.notes.items()},
    }
    arrays: dict[str, np.ndarray] = {
        "item": log.item,
        "time": log.time,
        "user_offsets": log.user_offsets,
        "seen": result.seen,
        "catalogue": catalogue,
        "user_catalogue": user_catalogue,
        **{f"{name}_{part}": getattr(s, part) for name, s in samples.items() for part in SAMPLE_ARRAYS},
        **{f"probe_{name}": score for name, score in probes.items()},
    }
    stage("writing")
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values)
    for name, vocabulary in vocabularies.items():
        vocabulary.save(folder / f"vocabulary_{name}.parquet")
    per_item.write_parquet(folder / "items.parquet")
    pl.DataFrame({"user": users}).write_parquet(folder / "users.parquet")
    sizes = {"items": [len(v) for v in item_vocabularies], "users": [len(user_vocabulary)]}
    (folder / "sizes.json").write_text(json.dumps(sizes))
    (folder / "card.json").write_text(json.dumps(card, indent=2))


def hash_of(*parts: np.ndarray | bytes) -> str:
    """16 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:16]


def _read(data: DataConfig, protocol: ProtocolConfig) -> Events:
    """The source's events, of its core, of users with enough of them."""
    events = keep_core(sources.load(data), data.core)
    fewest = MINIMUM_EVENTS.get(protocol.name, 2)
    if fewest == 1:
        return events
    kept = events.frame.filter(pl.len().over("user") >= fewest)
    if kept.is_empty():
        raise UserError(
            f"No user of {events.name} has {fewest} events or more, which protocol={protocol.name} needs; "
            "check that data.columns.user names the user's column."
        )
    lost = events.frame["user"].n_unique() - kept["user"].n_unique()
    events.dropped[f"users with fewer than {fewest} events"] = lost
    events.frame = kept
    return events


def _features(events: Events, items: pl.Series, rows: PublishedRows | None) -> pl.DataFrame:
    """item and its features, raw, of catalogue rows 1, 2, …."""
    columns = ["item", *events.item_features]
    known = events.frame.select(columns)
    if rows and rows.items is not None:  # a negative may have no event
        known = pl.concat([known, rows.items.select(columns)])
    known = known.group_by("item").agg(pl.col(name).first() for name in events.item_features)
    return pl.DataFrame({"item": items}).join(known, on="item", how="left", maintain_order="left")


def _vocabularies(
    log: Log,
    result: Labelled,
    per_item: pl.DataFrame,
    users: pl.Series,
    data: DataConfig,
    protocol: ProtocolConfig,
    rows: PublishedRows | None,
) -> dict[str, Vocabulary]:
    """Of item, its features, and user. They hold training's values only; an item they lack keeps its features.

    Training's values are those of the events it may learn from. Under last_event they are those of the rows of train
    and validation, negatives included, counted as the published code counts: a history once for each of its rows.
    """
    if rows:
        if data.min_item_count > 1:
            raise UserError(
                f"data.min_item_count={data.min_item_count} is not possible with {data.name}: its files fix the "
                "vocabularies. Set data.min_item_count=1."
            )
        return {name: Vocabulary(rows.vocabularies[name]) for name in (*per_item.columns, "user")}
    if isinstance(protocol, LastEventConfig):
        of_item, of_user = labelled.occurrences(log, [result.samples["train"], result.samples["validation"]])
    else:
        of_item = np.bincount(log.item[result.seen], minlength=log.items)
        of_user = np.bincount(log.user[result.seen], minlength=len(users))
    least = {"item": data.min_item_count}
    held = {name: Vocabulary.of_counts(per_item[name], of_item[1:], least.get(name, 1)) for name in per_item.columns}
    return {**held, "user": Vocabulary.of_counts(users, of_user)}


def _history_lengths(log: Log, samples: Samples, most: int) -> dict[str, int]:
    length = np.minimum(samples.history_end - log.user_offsets[samples.user], most)
    return {f"history_{q}": int(np.quantile(length, q / 100)) for q in (5, 50, 95)}


def _likelihood_ratio(
    log: Log, pool: np.ndarray, samples: Samples, items: pl.Series, config: SyntheticConfig
) -> np.ndarray:
    """How much likelier a row is as a touch than as a negative: by Neyman and Pearson no score has a higher AUC."""
    raw = np.concatenate([[-1], items.to_numpy()])
    drawn = np.bincount(pool, minlength=log.items) / len(pool)
    ratio = np.empty(samples.rows)
    for group in range(len(samples)):
        rows = slice(samples.candidate_offsets[group], samples.candidate_offsets[group + 1])
        begin, end = log.user_offsets[samples.user[group]], samples.history_end[group]
        candidates = samples.candidates[rows]
        touched = sources.synthetic.next_item_probability(config, raw[log.item[begin:end]], raw[candidates])
        with np.errstate(divide="ignore"):  # an item that is never drawn can only be a touch
            ratio[rows] = touched / drawn[candidates]
    return ratio
