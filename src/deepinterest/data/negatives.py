"""NegativeSampler: items a user might have touched and did not."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from deepinterest.config import Distribution, Exclude, NegativesConfig
from deepinterest.data.log import Log
from deepinterest.data.places import Places
from deepinterest.errors import UserError

CHUNK = 2_000_000  # draws at a time
ROUNDS = 200  # of rejection; each leaves only the rows whose every draw was excluded


class NegativeSampler:
    """Draws negatives for positive events: the same class for targets and for the auxiliary loss.

    popularity and uniform draw among what training saw. time_matched draws among all events near the positive's time
    whose item training knows: an evaluation negative is as recent as its positive, so recency tells nothing.
    With `whole_pool` each draws among all events of the log, as the published code does.
    """

    def __init__(self, log: Log, seen: np.ndarray, config: NegativesConfig) -> None:
        self.log, self.config = log, config
        if config.whole_pool:
            seen = np.ones(len(log), dtype=bool)
        if config.distribution is Distribution.time_matched:
            known = np.zeros(log.items, dtype=bool)
            known[log.item[seen]] = True
            events = np.flatnonzero(known[log.item])
            events = events[np.argsort(log.time[events], kind="stable")]
            self.pool, self.pool_time = log.item[events], log.time[events]
        elif config.distribution is Distribution.popularity:
            self.pool = log.item[seen]
        else:
            self.pool = np.unique(log.item[seen])

    def draw(self, random: np.random.Generator | Places, events: np.ndarray, count: int) -> np.ndarray:
        """(n,) positive events -> (n, count) catalogue rows, int32.

        Args:
            random: a generator, or n * count places: then each negative depends on its place and event alone.
        Raises: UserError where an event has no item left that is not excluded.
        """
        events = np.repeat(events, count)
        drawn = np.empty(len(events), dtype=self.pool.dtype)
        found = []
        for begin in range(0, len(events), CHUNK):
            part = slice(begin, begin + CHUNK)
            drawn[part] = self._propose(random, events[part], part, 0)
            found.append(begin + np.flatnonzero(self._excluded(events[part], drawn[part])))
        bad = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        for attempt in range(1, ROUNDS + 1):
            if len(bad) == 0:
                break
            drawn[bad] = self._propose(random, events[bad], bad, attempt)
            bad = bad[self._excluded(events[bad], drawn[bad])]
        else:
            if len(bad):
                raise UserError(
                    f"No negative was found for {len(bad):,} of {len(events):,} targets: with "
                    f"exclude={self.config.exclude.name} nearly every one of {len(np.unique(self.pool)):,} items is "
                    f"ruled out. Take exclude=positive or a wider time_window (now {self.config.time_window})."
                )
        return drawn.reshape(-1, count)

    def _propose(
        self, random: np.random.Generator | Places, events: np.ndarray, at: slice | np.ndarray, attempt: int
    ) -> np.ndarray:
        """Items for `events`, those that are `at` among all events of a draw."""

        def below(size: int) -> np.ndarray:
            if isinstance(random, Places):
                return random.below(size, at, attempt)
            return random.integers(size, size=len(events))

        size = len(self.pool)
        if self.config.distribution is not Distribution.time_matched:
            return self.pool[below(size)]
        width = min(2 * max(1, int(self.config.time_window * size)) + 1, size)
        rank = np.searchsorted(self.pool_time, self.log.time[events])
        first = np.clip(rank - width // 2, 0, size - width)  # at the log's ends the window shifts, it does not shrink
        return self.pool[first + below(width)]

    def _excluded(self, events: np.ndarray, items: np.ndarray) -> np.ndarray:
        exclude = self.config.exclude
        if exclude is Exclude.none:
            return np.zeros(len(events), dtype=bool)
        if exclude is Exclude.positive:
            return items == self.log.item[events]
        if exclude is Exclude.same_time:
            key = self.log.basket[events] * self.log.items + items
            return _contains(self._basket_items, key)
        keys, first_basket = self._user_items
        key = self.log.user[events].astype(np.int64) * self.log.items + items
        at = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        return (keys[at] == key) & (first_basket[at] <= self.log.basket[events])

    @cached_property
    def _basket_items(self) -> np.ndarray:
        keys = self.log.basket * self.log.items
        keys += self.log.item
        keys.sort()
        return keys

    @cached_property
    def _user_items(self) -> tuple[np.ndarray, np.ndarray]:
        keys, first = np.unique(self.log.user.astype(np.int64) * self.log.items + self.log.item, return_index=True)
        return keys, self.log.basket[first]


def _contains(ordered: np.ndarray, values: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    return ordered[at] == values
