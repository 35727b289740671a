"""Probes: scores that need no network. What they reach of an AUC is the protocol's, not the model's.

`../docs/architecture.md` says what each reveals. A probe's score is a number a row; its AUC is taken where metrics are.
"""

from __future__ import annotations

import numpy as np

from deepinterest.data.log import Log
from deepinterest.data.samples import Samples, ranges

HOUR = 3_600_000  # milliseconds
CHUNK = 20_000  # groups at a time


def probe_scores(
    log: Log, seen: np.ndarray, samples: Samples, category: np.ndarray | None, max_history: int
) -> dict[str, np.ndarray]:
    """Scores (R,) float64 of every row of a split.

    Args:
        category: (items,) category id of each catalogue row, or None where the source has none.
    """
    counts = np.diff(samples.candidate_offsets)
    time = samples.row_time(log)
    item = samples.candidates
    scores = {"popularity": np.bincount(log.item[seen], minlength=log.items)[item].astype(np.float64)}
    hour, day = _touches(log, item, time, (HOUR, 24 * HOUR))
    scores |= {"popularity_hour_before": hour, "popularity_day_before": day}
    in_history, same_category = np.zeros(len(item)), np.zeros(len(item))
    for begin in range(0, len(samples), CHUNK):
        groups = np.arange(begin, min(begin + CHUNK, len(samples)))
        end = samples.history_end[groups]
        start = np.maximum(log.user_offsets[samples.user[groups]], end - max_history)
        rows = slice(samples.candidate_offsets[groups[0]], samples.candidate_offsets[groups[-1] + 1])
        # Each row with each event of its history.
        length = np.repeat(end - start, counts[groups])
        events, _ = ranges(np.repeat(start, counts[groups]), length)
        row = np.repeat(np.arange(len(length)), length)
        touched, candidate = log.item[events], item[rows][row]
        in_history[rows] = np.bincount(row[touched == candidate], minlength=len(length)) > 0
        if category is not None:
            same = (category[touched] == category[candidate]) & (category[candidate] > 0)
            same_category[rows] = np.bincount(row[same], minlength=len(length))
    scores["in_history"] = in_history
    if category is not None:
        scores["category_count"] = same_category
    return scores


def _touches(log: Log, item: np.ndarray, until: np.ndarray, before: tuple[int, ...]) -> list[np.ndarray]:
    """How often each item was touched by anybody so many milliseconds before `until` or less, but not at it."""
    # One ascending key (item, time). Where times are far apart, their ranks keep it within 64 bits.
    first, last = int(log.time.min()), int(log.time.max())
    span = last - first + 2
    times = None if log.items * span < 2**63 else np.unique(log.time)
    if times is not None:
        span = len(times) + 1

    def place(moment: np.ndarray) -> np.ndarray:
        return np.clip(moment, first, last + 1) - first if times is None else np.searchsorted(times, moment)

    keys = log.item.astype(np.int64)
    keys *= span
    if times is None:
        keys += log.time
        keys -= first
    else:
        keys += place(log.time)
    keys.sort()
    base = item.astype(np.int64) * span
    order = np.argsort(base + place(until))  # neighbours in the search are neighbours in memory
    result = [np.empty(len(item)) for _ in before]
    end = np.searchsorted(keys, (base + place(until))[order])
    for count, width in zip(result, before, strict=True):
        count[order] = end - np.searchsorted(keys, (base + place(until - width))[order])
    return result
