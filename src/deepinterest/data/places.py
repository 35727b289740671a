"""Random numbers that belong to places, not to an order: who draws them, and what else is drawn, changes nothing.

A process of several draws only for its own rows. A common generator would have to run through those of all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Steele, Lea and Flood (OOPSLA 2014): SplitMix64's step and the multipliers of its output function.
STEP, FIRST, SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
AGAIN = 0xD1342543DE82EF95  # an odd step of its own, from one attempt to the next


class Places:
    """A row of random numbers for each of n places.

    Args:
        key: what all places share, such as seed and epoch.
        group, number: (n,) whole numbers that name a place; those of a group follow one another.
    """

    def __init__(self, key: list[int], group: NDArray[np.integer], number: NDArray[np.integer]) -> None:
        start = np.random.SeedSequence(key).generate_state(1, np.uint64)
        self._state = _mixed(group.astype(np.uint64) * STEP + start) + number.astype(np.uint64) * STEP

    def below(self, size: int, at: slice | NDArray[np.integer], attempt: int) -> NDArray[np.int64]:
        """A whole number in [0, size) for the places `at`; each attempt has another."""
        x = _mixed(self._state[at] + np.uint64(attempt * AGAIN % 2**64))
        x >>= np.uint64(11)
        return (x * (size * 2.0**-53)).astype(np.int64)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function, in place."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        x ^= x >> np.uint64(shift)
        x *= factor
    x ^= x >> np.uint64(31)
    return x
