"""What the benchmarks share: settings of the process, rates over slices of time, tables, and one JSON line."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from deepinterest import kernels
from deepinterest.errors import UserError
from deepinterest.training.memory import keep_freed_memory

SLICES = 10
WIDTH = 110  # of a table in a file
WARM_STEPS, WARM_SECONDS = 3, 1.0


@dataclass
class Rates:
    """Of each slice of time, sorted."""

    values: list[float]
    per_cpu_second: float = 0.0  # of all slices together: what a machine that others use too disturbs less

    def __post_init__(self) -> None:
        self.values = sorted(self.values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        return f"{self.median:,.0f} ({self.values[0]:,.0f} to {self.values[-1]:,.0f})"

    def plain(self, name: str) -> dict[str, float]:
        """For the JSON line: `name` is the median."""
        found = {name: self.median, f"{name}_min": self.values[0], f"{name}_max": self.values[-1]}
        return found | (
            {f"{name.removesuffix('_per_s')}_per_cpu_s": self.per_cpu_second} if self.per_cpu_second else {}
        )


class Clock:
    """Cuts work into slices of equal time: `tick` after each step; warm-up comes first and isn't counted.

    On a GPU, which works behind, it waits for the device where a slice ends.
    """

    def __init__(self, seconds: float, device: str = "cpu") -> None:
        self.seconds, self.device = seconds, device
        self.rates: list[float] = []
        self._cpu, self._counted = 0.0, 0
        self._warm, self._begin = 0, time.perf_counter()
        self._slice, self._rows = -1.0, 0

    def tick(self, rows: int) -> bool:
        """A step of so many rows is done; whether to stop."""
        now = time.perf_counter()
        if self._slice < 0:
            self._warm += 1
            if self._warm >= WARM_STEPS and now - self._begin >= min(WARM_SECONDS, self.seconds):
                synchronize(self.device)
                self._begin = self._slice = time.perf_counter()
                self._cpu = time.process_time()
            return False
        self._rows += rows
        self._counted += rows
        if now - self._slice >= self.seconds / SLICES:
            synchronize(self.device)
            now = time.perf_counter()
            self.rates.append(self._rows / (now - self._slice))
            self._slice, self._rows = now, 0
        return now - self._begin >= self.seconds and len(self.rates) > 0

    def result(self) -> Rates:
        """What was counted so far; a slice must be complete."""
        return Rates(self.rates, self._counted / max(time.process_time() - self._cpu, 1e-9))


def endless(iterable: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from iterable


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def clock(device: str) -> Callable[[], float]:
    """What pieces of work are timed with: of one thread its CPU time, which leaves out what others took."""
    return time.thread_time if device == "cpu" and kernels.allowed() == 1 else time.perf_counter


def seconds_of(work: Callable[[], object], least: float = 0.2, device: str = "cpu", rounds: int = 5) -> float:
    """Seconds of one call: the best of several rounds, together about `least` seconds. Noise only adds to it."""
    now = clock(device)
    work()
    synchronize(device)
    begin = now()
    work()
    synchronize(device)
    calls = max(1, math.ceil(least / rounds / max(now() - begin, 1e-6)))
    best = math.inf
    for _ in range(rounds):
        begin = now()
        for _ in range(calls):
            work()
        synchronize(device)
        best = min(best, (now() - begin) / calls)
    return best


def settle(threads: int, device: str, kernel: str = "auto") -> None:
    """Make the process one that a run is measured in. Raises UserError where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: this machine shows no GPU to torch. Take --device cpu.")
    if device == "cpu" and kernel in ("auto", "cpu"):
        kernels.give_kernels(threads)
    else:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.set_flush_denormal(True)  # as a run does
    keep_freed_memory()


def machine(device: str, threads: int) -> dict[str, Any]:
    """What a figure needs beside it to mean anything."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    found = {"device": name, "threads": threads, "torch": torch.__version__}
    return found | ({"load": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {})  # who else works there


def title(device: str, threads: int) -> str:
    """Above a table: where its figures are from."""
    found = machine(device, threads)
    many = f"{threads} thread{'s' if threads > 1 else ''}, " if device == "cpu" else ""
    return f"{found['device']}, {many}torch {found['torch']}"


def processor() -> str:
    """The CPU's name, as far as the system tells, and how many cores there are."""
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        named = (line.split(":", 1)[1].strip() for line in information.read_text().splitlines() if "model name" in line)
        name = next(named, name)
    return f"{name}, {os.cpu_count()} cores"


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The first column is words, the others are figures."""
    found = Table(title=title)
    for number, column in enumerate(columns):
        found.add_column(column, justify="right" if number else "left")
    for row in rows:
        found.add_row(*row)
    return found


def show(*tables: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for each in tables:
        console.print(each)


def tell(result: dict[str, Any]) -> None:
    """The one JSON line."""
    print(json.dumps(result), flush=True)
