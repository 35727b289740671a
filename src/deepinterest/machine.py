"""What a run may ask of the CPUs of this machine. Nothing here imports torch."""

from __future__ import annotations

import os

from deepinterest.config import Accelerator, TrainerConfig
from deepinterest.errors import UserError
from deepinterest.launch import launched

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
