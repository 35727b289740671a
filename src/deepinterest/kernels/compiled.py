"""How functions are compiled for the CPU, and how threads share their work."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from numba import njit, types

_OPTIONS: dict[str, Any] = {
    "cache": True,
    "nogil": True,
    "error_model": "numpy",  # no check for a zero divisor in every division
    "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"},  # not nnan and ninf: nan stays nan
}
compiled = njit(**_OPTIONS)


def compiled_once(function: Callable[..., None]) -> Any:
    """For a function of addresses and sizes that returns nothing: one version for all kinds of integers."""
    arguments = [types.intp] * len(inspect.signature(function).parameters)
    return njit(types.void(*arguments), **_OPTIONS)(function)


def workers(tasks: int) -> int:
    """How many threads are worth starting for so many tasks: no more than torch may use."""
    return max(1, min(torch.get_num_threads(), tasks))


def share(workers: int, walk: Callable[..., None], *arguments: Any) -> None:
    """Call walk(worker, workers, *arguments) for each worker, in threads; it frees the interpreter's lock."""
    if workers == 1:
        walk(0, 1, *arguments)
    else:
        list(_pool(workers).map(lambda worker: walk(worker, workers, *arguments), range(workers)))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="kernel")
