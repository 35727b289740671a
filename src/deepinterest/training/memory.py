"""Memory that a training step frees is kept for the next one."""

from __future__ import annotations

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD = -3, -1, -2  # mallopt's names, malloc.h
MIB = 2**20


def keep_freed_memory() -> bool:
    """Ask glibc not to give freed memory back to the system; whether it will. Elsewhere nothing happens.

    A step frees tensors of megabytes and asks for the same again. By default each may come as fresh pages, which the
    system has to clear one by one: 1,000 to 4,000 faults a step, up to a third of its time.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    settings = {_MMAP_THRESHOLD: 32 * MIB, _TRIM_THRESHOLD: 512 * MIB, _TOP_PAD: 64 * MIB}
    return all(mallopt(name, value) == 1 for name, value in settings.items())
