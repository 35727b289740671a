"""How functions are compiled for the CPU."""

from __future__ import annotations

from numba import njit

compiled = njit(
    cache=True,
    nogil=True,
    error_model="numpy",  # no check for a zero divisor in every division
    fastmath={"nsz", "arcp", "contract", "afn", "reassoc"},  # not nnan and ninf: nan stays nan
)
