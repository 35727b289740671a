"""The most memory a run held, of the machine and of its GPU."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch

GIB = 2**30
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start() -> None:
    """Forget the peaks so far, so that a job of a sweep isn't told the memory of the one before it.

    Where the system keeps them (it isn't Linux, or forbids it) the peak is that of the whole process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        CLEAR.write_text("5")  # proc(5): sets the peak resident size to the present one


def memory() -> dict[str, float]:
    """`memory_gib`: the highest resident memory of this process since `start`, mapped pages of files included.

    `gpu_memory_gib`: the most that torch's tensors held on the GPU, where there is one. GiB; a peak that the system
    doesn't tell is left out.
    """
    found = {}
    try:
        lines = STATUS.read_text().splitlines()
        found["memory_gib"] = int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / GIB
    except (OSError, StopIteration):
        if sys.platform != "win32":
            import resource

            unit = 1 if sys.platform == "darwin" else 1024
            found["memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
    if torch.cuda.is_available():
        found["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / GIB
    return found
