"""How many threads compute: the CPU's kernels share a step's large parts, and torch needs none for what is left.

That is many small operations. To wake torch's threads for each costs more than they gain, most of all where another
process wants the core: at batch 128 two threads for both trained at 0.8 of one thread's rows/s, two for the kernels
alone at 1.07 (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_of_kernels: int | None = None


def allowed() -> int:
    """The most threads that a kernel may use: those of `for_kernels`, or as many as torch."""
    return _of_kernels or torch.get_num_threads()


def give_kernels(count: int | None, torchs: int = 1) -> None:
    """From now on the kernels may use `count` threads (None: as many as torch), and torch uses `torchs`."""
    global _of_kernels
    _of_kernels = count
    torch.set_num_threads(torchs)


@contextmanager
def for_kernels(count: int) -> Iterator[None]:
    """`give_kernels` for a while."""
    before = _of_kernels, torch.get_num_threads()
    give_kernels(count)
    try:
        yield
    finally:
        give_kernels(*before)
