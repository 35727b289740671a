"""Users whose interests walk along rings of categories, and the exact probability of what they do next.

A user has `interests` distinct rings. Each event is noise with chance `noise`. Otherwise the interest of the last
event that was no noise goes on with chance `stay`, or one of the user's other interests takes over. An interest met
for the first time starts anywhere on its ring; later its category moves on by one with chance `advance` or repeats.
Within a category the item of rank k is drawn in proportion to 1/k. Noise has items and categories of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from deepinterest.config import SyntheticConfig
from deepinterest.data.events import Events
from deepinterest.errors import UserError
from deepinterest.machine import check_memory

START_MS = 1_672_531_200_000  # 2023-01-01 UTC
YEAR_MS = 365 * 24 * 3600 * 1000
SHORTEST = 4  # events of a user


def generate(config: SyntheticConfig) -> Events:
    """Draw all users; the items are integers. Raises UserError if there are more interests than rings."""
    _check(config)
    _check_memory(config)
    rng = np.random.default_rng(config.seed)
    low = max(SHORTEST, config.events_per_user // 2)
    lengths = rng.integers(low, max(low, config.events_per_user * 3 // 2) + 1, size=config.users)
    items = _walk(config, rng, int(lengths.max()))
    times = _times(rng, lengths)

    happened = np.arange(items.shape[1]) < lengths[:, None]
    users = np.broadcast_to(np.arange(config.users)[:, None], items.shape)
    item = items[happened]
    names = pl.Series("category", category_names(config))
    frame = pl.DataFrame(
        {
            "user": users[happened],
            "item": item,
            "timestamp": times[happened],
            "category": names[item // config.items_per_category],
        }
    )
    return Events.build(frame, ["category"], config.name, {}, config.seed, config.limit_users, config.ties)


def fingerprint() -> dict[str, Any]:
    """The revision of the generator: raise it when the same settings give other events."""
    return {"name": "synthetic", "revision": 1}


def category_names(config: SyntheticConfig) -> list[str]:
    """By `item // items_per_category`: the rings' categories, then those of noise."""
    rings = [f"r{ring}c{place:02d}" for ring in range(config.rings) for place in range(config.ring_length)]
    return rings + [f"noise{place:02d}" for place in range(config.ring_length)]


def next_item_probability(
    config: SyntheticConfig, history: Sequence[int] | np.ndarray, candidates: Sequence[int] | np.ndarray
) -> np.ndarray:
    """The exact probability of each candidate being the user's next item, given all items so far (oldest first).

    Everything about the past is seen in the items, but for which rings the user has not walked yet. Nothing in a
    history tells those apart, so each ring not seen is equally likely to be one. Items that do not exist get 0.
    """
    _check(config)
    ring, place = _state(config, history)
    chance = np.full((config.rings, config.ring_length), 0.0)  # of the next category, given that it is no noise
    if ring is None:
        chance[:] = 1 / (config.rings * config.ring_length)
    else:
        other = (1 - config.stay) / (config.interests - 1) if config.interests > 1 else 0.0  # of each other interest
        unseen_rings = config.rings - len(place)
        if unseen_rings:
            unseen_interests = config.interests - len(place)
            chance[:] = unseen_interests * other / (unseen_rings * config.ring_length)
        for seen, at in place.items():
            share = other if seen != ring else config.stay if config.interests > 1 else 1.0
            chance[seen] = 0.0
            chance[seen, at] += share * (1 - config.advance)
            chance[seen, (at + 1) % config.ring_length] += share * config.advance

    in_category = (1 - config.noise) * chance.reshape(-1, 1) * _popularity(config)
    noise_items = config.items_per_category * config.ring_length
    table = np.concatenate([in_category.ravel(), np.full(noise_items, config.noise / noise_items)])
    asked = np.asarray(candidates, dtype=np.int64)
    exists = (asked >= 0) & (asked < len(table))
    return np.where(exists, table[np.where(exists, asked, 0)], 0.0)


def _check(config: SyntheticConfig) -> None:
    if config.interests > config.rings:
        raise UserError(
            f"data.interests is {config.interests} but there are only {config.rings} rings (data.rings): "
            "a user's interests are distinct rings, so lower the one or raise the other."
        )


def _check_memory(config: SyntheticConfig) -> None:
    events = config.users * (config.events_per_user * 3 // 2)
    categories = (config.rings + 1) * config.ring_length
    walks = config.users * config.rings  # numbers drawn for each user's choice of rings
    check_memory(
        40 * events + 16 * walks + 64 * categories + 24 * config.items_per_category,
        "These synthetic events",
        "set data.users, events_per_user, rings, ring_length or items_per_category lower",
    )


def _popularity(config: SyntheticConfig) -> np.ndarray:
    weights = 1 / np.arange(1, config.items_per_category + 1)
    return weights / weights.sum()


def _state(config: SyntheticConfig, history: Sequence[int] | np.ndarray) -> tuple[int | None, dict[int, int]]:
    """The ring of the last event that was no noise, and the last place on each ring seen."""
    categories = np.asarray(history, dtype=np.int64) // config.items_per_category
    categories = categories[categories < config.rings * config.ring_length]
    place = {int(c) // config.ring_length: int(c) % config.ring_length for c in categories}
    if len(place) > config.interests:
        raise ValueError(f"the history walks {len(place)} rings, more than interests={config.interests}")
    return (int(categories[-1]) // config.ring_length if len(categories) else None), place


def _walk(config: SyntheticConfig, rng: np.random.Generator, steps: int) -> np.ndarray:
    """Items of shape (users, steps), all users at once."""
    n, everyone = config.users, np.arange(config.users)
    rings = np.argsort(rng.random((n, config.rings)), axis=1)[:, : config.interests]
    place = np.full((n, config.interests), -1)  # on the ring of each interest; -1 before its first visit
    current = rng.integers(config.interests, size=n)
    begun = np.zeros(n, dtype=bool)
    cumulative = np.cumsum(_popularity(config))[:-1]
    noise_items = config.items_per_category * config.ring_length
    first_noise = config.rings * noise_items

    items = np.empty((n, steps), dtype=np.int64)
    for step in range(steps):
        noise = rng.random(n) < config.noise
        switch = (rng.random(n) >= config.stay) & begun & ~noise
        if config.interests > 1:
            away = rng.integers(1, config.interests, size=n)
            current = np.where(switch, (current + away) % config.interests, current)
        before = place[everyone, current]
        moved = (before + (rng.random(n) < config.advance)) % config.ring_length
        after = np.where(before < 0, rng.integers(config.ring_length, size=n), moved)
        place[everyone, current] = np.where(noise, before, after)
        begun |= ~noise
        category = rings[everyone, current] * config.ring_length + after
        rank = np.searchsorted(cumulative, rng.random(n), side="right")
        noise_item = first_noise + rng.integers(noise_items, size=n)
        items[:, step] = np.where(noise, noise_item, category * config.items_per_category + rank)
    return items


def _times(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Milliseconds of shape (users, steps): every user's events spread over the year, strictly increasing."""
    steps = int(lengths.max())
    gaps = rng.exponential(size=(len(lengths), steps + 1))
    passed = np.cumsum(gaps, axis=1)
    year = passed[np.arange(len(lengths)), lengths][:, None]  # with a gap after the last event
    share = np.minimum(passed[:, :steps] / year, 1.0)
    return START_MS + (share * (YEAR_MS - steps)).astype(np.int64) + np.arange(steps)
