"""Preparing a data set: from a source's events to the arrays and the card of a folder that `store.load` opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import polars as pl
from isal import isal_zlib

from deepinterest.config import (
    DataConfig,
    Distribution,
    EventFileConfig,
    LabelledConfig,
    LastEventConfig,
    MovieLensConfig,
    ProtocolConfig,
    SyntheticConfig,
)
from deepinterest.data import catalogue, labelled, partitions, sources
from deepinterest.data.core import keep_core
from deepinterest.data.events import Events
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.probes import probe_scores
from deepinterest.data.protocols import MINIMUM_EVENTS, SPLITS
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError

STAGES = ("reading events", "splitting", "drawing negatives", "building vocabularies", "probing", "writing")
SAMPLE_ARRAYS = ("user", "history_end", "candidate_offsets", "candidates", "label", "position")
OPTIONAL_ARRAYS = ("target", "time", "context")  # the first of targets whose history ends before, others of impressions
PIECE = 1 << 16  # bytes that are written at once
CHECKSUMS = "checksums.json"
CHUNK = 2_000_000  # events at a time
CHECKED = 1 << 20  # bytes that are read at once
HASHED_ARRAYS = (*SAMPLE_ARRAYS[:-1], "time")


def write(
    folder: Path, data: DataConfig, protocol: ProtocolConfig, stage: Callable[[str], object], scratch: Path
) -> None:
    """Prepare and write; `stage` hears each of STAGES as it begins. Parts of a log in partitions lie in `scratch`.

    Raises UserError for whatever is wrong with the source or leaves a split empty, and OSError for the disk.
    """
    stage("reading events")
    events = _read(data, protocol, scratch)
    rows = events.rows if isinstance(protocol, LastEventConfig) else None
    further = pl.concat([rows.train["item"], rows.test["item"]]) if rows else None
    log, items, users = Log.of(events, further)
    if isinstance(events, partitions.CodedEvents):
        per_item, per_user = events.catalogues(items, users)
    else:
        per_item, per_user = catalogue.raw(events, items, users, rows)
    if not events.labelled:
        events.frame = events.frame.select(events.context_features)  # the log has what else is needed
    if rows and isinstance(protocol, LastEventConfig):
        stage("splitting")
        result = labelled.published(log, items, users, rows, protocol, data.seed)
        stage("drawing negatives")  # they stand in the rows
    elif isinstance(protocol, LabelledConfig):
        stage("splitting")
        result = labelled.impressions(log, items, events.frame, protocol, data.seed)
        stage("drawing negatives")  # they are the impressions with label 0
    else:
        result = labelled.draw(log, protocol, data.seed, stage)
    samples = result.samples

    stage("building vocabularies")
    held = catalogue.build(events, log, result, per_item, per_user, rows, data, protocol)
    if held.context is not None:
        if result.impressions is None:
            log.context = held.context
        else:
            for name, samples_of in samples.items():
                samples_of.context = held.context[result.impressions.rows[name]]

    stage("probing")
    category = held.item_rows[:, held.items.columns.index("category")] if "category" in held.items.columns else None
    probes = probe_scores(log, result.seen, samples["test"], category, protocol.max_history)
    if isinstance(data, SyntheticConfig) and protocol.negatives.distribution is Distribution.popularity:
        pool = NegativeSampler(log, result.seen, protocol.negatives).pool
        probes["best_reachable"] = _likelihood_ratio(log, pool, samples["test"], items, data)

    negatives = protocol.negatives
    times = events.frame["timestamp"].to_numpy() if events.labelled else log.time
    card = {
        "source": events.name,
        "protocol": protocol.name,
        "rows_read": (events.frame.height if events.labelled else len(log)) + sum(events.dropped.values()),
        **({"impressions": events.frame.height} if events.labelled else {}),
        "events": len(log),
        "repeat_events": _repeat_events(log),
        "first_time": _date(times.min(), data.timezone),
        "last_time": _date(times.max(), data.timezone),
        "users": len(users),
        **held.known(),
        **held.described(),
        **{f"{name}_rows": samples[name].rows for name in SPLITS},
        "positive_rate": float(np.mean(np.concatenate([s.label for s in samples.values()]))),
        **_history_lengths(log, samples["train"], protocol.max_history),
        "history_ties": protocol.ties.name,
        "test_same_time_history": _same_time_history(log, samples["test"]),
        "negatives": "those of the published rows"
        if rows
        else "the impressions with label 0"
        if events.labelled
        else f"{negatives.distribution.name}, exclude {negatives.exclude.name}, {negatives.per_positive} a positive, "
        f"drawn {negatives.refresh.name}{', among all events' if negatives.whole_pool else ''}",
        "split_hash": hash_of(
            *(getattr(s, part) for s in samples.values() for part in HASHED_ARRAYS if getattr(s, part) is not None),
            log.item,
            log.time,
        ),
        "vocabulary_hash": hash_of(held.item_rows, *(v.fingerprint().encode() for v in held.vocabularies.values())),
        **{f"dropped: {reason}": count for reason, count in events.dropped.items()},
        **{f"dropped targets: {reason}": count for reason, count in result.dropped.items()},
        **{f"note: {note}": count for note, count in events.notes.items()},
    }
    arrays: dict[str, np.ndarray] = {
        "item": log.item,
        "time": log.time,
        "user_offsets": log.user_offsets,
        "seen": result.seen,
        **({} if log.context is None else {"context": log.context}),
        "catalogue": held.item_rows,
        "user_catalogue": held.user_rows,
        **{
            f"{name}_{part}": getattr(s, part)
            for name, s in samples.items()
            for part in (*SAMPLE_ARRAYS, *OPTIONAL_ARRAYS)
            if getattr(s, part) is not None
        },
        **{f"probe_{name}": score for name, score in probes.items()},
    }
    stage("writing")
    for name, values in arrays.items():
        save(folder / f"{name}.npy", values)
    for name, vocabulary in held.vocabularies.items():
        vocabulary.save(folder / vocabulary_file(name))
    held.items.write_parquet(folder / "items.parquet")
    held.users.write_parquet(folder / "users.parquet")
    (folder / "sizes.json").write_text(json.dumps(held.sizes()))
    (folder / "card.json").write_text(json.dumps(card, indent=2))
    checks = {path.name: _check(path) for path in sorted(folder.iterdir())}
    (folder / CHECKSUMS).write_text(json.dumps(checks, indent=0))


def damaged(folder: Path) -> list[str]:
    """The files of a prepared folder that aren't what was written: changed, cut short, or gone.

    Every byte is read, at several GB a second where it is in the system's cache.
    """
    try:
        checks: dict[str, list[int]] = json.loads((folder / CHECKSUMS).read_text())
        return [name for name, known in checks.items() if _check(folder / name) != known]
    except (OSError, ValueError, AttributeError):
        return [CHECKSUMS]


def _check(path: Path) -> list[int]:
    """Size in bytes and CRC-32; no file is -1."""
    if not path.is_file():
        return [-1, 0]
    size = check = 0
    with path.open("rb") as file:
        while piece := file.read(CHECKED):
            size, check = size + len(piece), isal_zlib.crc32(piece, check)
    return [size, check]


def save(path: Path, values: np.ndarray) -> None:
    """What np.save writes, in small pieces.

    The system's cache keeps a file in the pieces it was written in, and who reads one row of a mapped file gets the
    whole piece: of one big write the first batch would hold almost all of the file.
    """
    values = np.ascontiguousarray(values)
    rows, size = values.reshape(-1), PIECE // values.itemsize
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(values))
        for begin in range(0, len(rows), size):
            file.write(rows[begin : begin + size].data)


def vocabulary_file(name: str) -> str:
    """A column may be called anything; a file may not."""
    return f"vocabulary_{quote(name, safe='')}.parquet"


def hash_of(*parts: np.ndarray | bytes) -> str:
    """16 hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]


def _read(data: DataConfig, protocol: ProtocolConfig, scratch: Path) -> Events:
    """The source's events, of its core, of users with enough of them; labels only where the protocol takes them."""
    if isinstance(data, EventFileConfig) and data.partitions > 1:
        events: Events = partitions.load(data, scratch)
    else:
        events = sources.load(data)
    if not isinstance(protocol, LabelledConfig):
        events = events.positives()
    elif not events.labelled:
        raise UserError(
            f"protocol=labelled needs labels of 0 and 1, and data={data.name} has none: {_labels_by(data)}, or take "
            "another protocol."
        )
    events = keep_core(events, data.core)
    fewest = MINIMUM_EVENTS.get(protocol.name, 2)
    if fewest == 1:
        return events
    lengths = events.frame["user"].rle().struct.field("len").to_numpy()  # the frame is sorted by user
    few = lengths < fewest
    if not few.any():
        return events
    kept = events.frame.filter(pl.Series(np.repeat(~few, lengths)))
    if kept.is_empty():
        raise UserError(
            f"No user of {events.name} has {fewest} events or more, which protocol={protocol.name} needs"
            f"{_check_users(data)}."
        )
    events.dropped[f"of users with fewer than {fewest} events"] = int(lengths[few].sum())
    events.notes[f"users with fewer than {fewest} events"] = int(few.sum())
    events.frame = kept
    return events


def _labels_by(data: DataConfig) -> str:
    if isinstance(data, MovieLensConfig):
        return "say which ratings have 1 ('data.label=\"rating>=4\"')"
    where = "data" if isinstance(data, EventFileConfig) else "data=events data"
    return f"name the column that holds them ({where}.columns.label=...)"


def _check_users(data: DataConfig) -> str:
    if isinstance(data, EventFileConfig):
        return f"; check that data.columns.user={data.columns.user} is the column of the users"
    return ": take more of the source, or another protocol"


def _history_lengths(log: Log, samples: Samples, most: int) -> dict[str, int]:
    length = np.minimum(samples.history_end - log.user_offsets[samples.user], most)
    return {f"history_length_quantile_{share}": int(np.quantile(length, share)) for share in (0.05, 0.5, 0.95)}


def _same_time_history(log: Log, samples: Samples) -> float:
    """The share of targets, or of groups of impressions, whose history holds an event at their own time."""
    time = samples.row_time(log)[samples.candidate_offsets[:-1]]
    held = samples.history_end > log.user_offsets[samples.user]
    held[held] = log.time[samples.history_end[held] - 1] == time[held]
    return round(float(held.mean()), 4)


def _repeat_events(log: Log) -> int:
    """How many events are of an item that their user touched before."""
    repeats = first = 0
    while first < len(log):
        last = len(log)
        if first + CHUNK < last:  # whole users
            last = int(log.user_offsets[np.searchsorted(log.user_offsets, first + CHUNK)])
        pairs = pl.Series(log.user[first:last].astype(np.int64) * log.items + log.item[first:last])
        repeats += len(pairs) - pairs.n_unique()
        first = last
    return repeats


def _date(milliseconds: np.integer, zone: str) -> str:
    moment = pl.Series([int(milliseconds)]).cast(pl.Datetime("ms", "UTC")).dt.convert_time_zone(zone)
    return f"{moment.dt.strftime('%Y-%m-%d %H:%M:%S')[0]} {zone}"


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
