"""What the benchmarks share: a step in a process of its own, its seconds and its peak memory. Linux only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
GIB = 2**30
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def memory(field: str, process: int | str = "self") -> int:
    """Bytes of a line of /proc/PID/status: VmRSS is resident now, VmHWM the highest so far, RssAnon what no file backs.

    Not ru_maxrss, which a process inherits from the one that started it. VmRSS and VmHWM count mapped files that have
    been read; the machine takes these back when it needs room.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0  # a process that has ended


def reset_peak() -> None:
    """Let VmHWM of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


class OwnPeak:
    """`peak`: the most bytes of memory that no file backs, looked at 100 times a second from now on."""

    def __init__(self) -> None:
        self.peak = memory("RssAnon")
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.look()
            time.sleep(0.01)

    def look(self) -> int:
        self.peak = max(self.peak, memory("RssAnon"))
        return self.peak


def step(module: str, arguments: Sequence[str], limit: float | None = None) -> dict[str, Any]:
    """Run `python -m module arguments`; what it prints last is JSON, returned with `seconds` of the whole process.

    Torch and BLAS get one thread; polars takes all.

    Args:
        limit: GiB of resident memory at which the process is ended.
    Raises: RuntimeError where it fails or grows beyond the limit.
    """
    begin = time.time()
    with subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | ONE_THREAD | {"BENCHMARK_BEGAN": repr(begin)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        if limit is not None:
            while process.poll() is None:
                try:
                    resident = memory("VmRSS", process.pid)
                except (FileNotFoundError, ProcessLookupError):
                    break
                if resident > limit * GIB:
                    process.kill()
                    raise RuntimeError(f"{module} {' '.join(arguments)} grew beyond {limit:g} GiB and was ended")
                time.sleep(0.2)
        text = process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} ended with status {process.returncode}")
    return {"seconds": time.time() - begin, **json.loads(text.splitlines()[-1])}


def since_start() -> float:
    """Seconds since `step` started this process."""
    return time.time() - float(os.environ["BENCHMARK_BEGAN"])


class Stages:
    """Seconds, CPU seconds and peak bytes of each stage of `store.prepare`, which calls it as each begins."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self.peak = 0
        self._name, self._begin, self._cpu = "before", time.perf_counter(), time.process_time()

    def __call__(self, name: str) -> None:
        peak = memory("VmHWM")
        self.peak = max(self.peak, peak)
        now, cpu = time.perf_counter(), time.process_time()
        self.stages[self._name] = {"seconds": now - self._begin, "cpu": cpu - self._cpu, "peak": peak}
        self._name, self._begin, self._cpu = name, now, cpu
        reset_peak()

    def finish(self) -> dict[str, Any]:
        """`peak` of all and `stages`."""
        self("end")
        self.stages.pop("before")
        return {"peak": self.peak, "stages": self.stages}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for the terminal, and the same in Markdown for the documents."""
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(stderr=True).print(table)
    print(f"| {' | '.join(columns)} |")
    print(f"|---{'|---:' * (len(columns) - 1)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
