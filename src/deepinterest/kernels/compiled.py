"""How functions are compiled for the CPU, and how threads share their work."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit, types
from numba.core import event

from deepinterest.kernels import threads
from deepinterest.launch import rank

log = logging.getLogger(__name__)
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",  # no check for a zero divisor in every division
    "fastmath": {"nsz", "arcp", "contract", "afn", "reassoc"},  # not nnan and ninf: nan stays nan
}
WORTH_A_THREAD = 12e6  # multiplications, 0.1 ms


def compiled(function: Callable[..., Any], signature: Any = None) -> Any:
    """The function, compiled when it is first called, or at once for a signature; kept for other processes."""
    try:
        return njit(signature, cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        _say_that_nothing_is_kept()
        return njit(signature, **_OPTIONS)(function)


@cache
def _say_that_nothing_is_kept() -> None:
    log.warning(
        "Compiled kernels can't be kept, so each run compiles them anew: neither %s nor the user's cache folder can be "
        "written. Name a folder by the variable NUMBA_CACHE_DIR.",
        Path(__file__).parent,
    )


class _Compiling(event.Listener):
    """Tells that a kernel is compiled, which is what numba does where none is kept that fits."""

    def on_start(self, event: Any) -> None:
        if str(event.data["dispatcher"].py_func.__module__).startswith("deepinterest.") and rank() == 0:
            _say_that_it_takes_a_while()

    def on_end(self, event: Any) -> None:
        pass


@cache
def _say_that_it_takes_a_while() -> None:
    log.info("Compiling kernels, once for this machine (about 10 s).")


event.register("numba:compile", _Compiling())


def compiled_once(function: Callable[..., None]) -> Any:
    """For a function of addresses and sizes that returns nothing: one version for all kinds of integers."""
    arguments = [types.intp] * len(inspect.signature(function).parameters)
    return compiled(function, types.void(*arguments))


def workers(tasks: int, products: float) -> int:
    """How many threads are worth starting for so many tasks that take so many multiplications together.

    No more than are allowed, and none for what is done sooner than a thread is woken.
    """
    return max(1, min(threads.allowed(), tasks, int(products / WORTH_A_THREAD)))


def share(workers: int, walk: Callable[..., None], *arguments: Any) -> None:
    """Call walk(worker, workers, *arguments) for each worker: here, and in threads. It frees the interpreter's lock."""
    others = [_pool(workers).submit(walk, worker, workers, *arguments) for worker in range(1, workers)]
    walk(0, workers, *arguments)
    for other in others:
        other.result()


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers - 1, thread_name_prefix="kernel")
