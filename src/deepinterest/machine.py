"""What a run may ask of this machine: CPUs and memory. Nothing here imports torch."""

from __future__ import annotations

import os
import sys

from deepinterest.config import Accelerator, TrainerConfig
from deepinterest.errors import UserError
from deepinterest.launch import launched

CGROUP = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of versions 2 and 1
PROCESSES = 2  # that any machine may have: trainer=ddp_cpu


def cpus() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check(config: TrainerConfig) -> None:
    """Raise a UserError for more threads, or more processes on CPUs, than there are CPUs."""
    here = f"this process may run on {cpus()} CPU{'s' if cpus() > 1 else ''}"
    if config.threads is not None and config.threads > cpus():
        raise UserError(
            f"trainer.threads={config.threads} is out of range: {here}. Give at most {cpus()}, or leave it out"
        )
    if config.accelerator is Accelerator.cpu:
        check_processes(config)


def check_processes(config: TrainerConfig) -> None:
    """Raise a UserError for a number of processes that a run on CPUs can't have."""
    devices, most = str(config.devices), max(PROCESSES, cpus())
    if devices == "auto" or launched() is not None:
        return
    if not devices.isdecimal() or not 1 <= int(devices) <= most:
        raise UserError(
            f"trainer.devices={devices} is out of range: on CPUs it is the number of processes, from 1 to {most} here"
        )


def memory() -> int:
    """Bytes that this process may have: the machine's, or its control group's where that has fewer."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else sys.maxsize
    limits = [int(text) for path in CGROUP if (text := _content(path)).isdecimal()]
    return min([machine, *limits])


def check_memory(size: float, what: str, mend: str) -> None:
    """Raise a UserError for what would take more bytes than there are, before they are asked for."""
    most = memory()
    if size > most:
        raise UserError(f"{what} would take {_gib(size)} GiB or more, and this process may have {_gib(most)}: {mend}")


def _content(path: str) -> str:
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError:  # no such limit here
        return ""


def _gib(size: float) -> str:
    return f"{size / 2**30:,.0f}" if size >= 10 * 2**30 else f"{size / 2**30:.1f}"
