"""`threads`: what a second thread brings, alone and beside a process that keeps one core busy."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from deepinterest import kernels
from deepinterest.benchmark import measure
from deepinterest.benchmark.measure import Rates
from deepinterest.benchmark.training import Settings, rates_of, step_of
from deepinterest.config import KernelName

WAITS, SECONDS = 200, 0.005  # of pauses between pieces of parallel work


def run(settings: Settings, rounds: int) -> None:
    """Rounds of one thread and of `settings.threads`, without and with the busy process, all by one process.

    The threads are the kernels', as in a run; torch has one.
    Where the system can, process and busy process are kept to as many cores as there are threads.
    """
    many = settings.threads
    workload = settings.workload()
    with kernels.using(KernelName(settings.kernel)), _cores(many):
        step = step_of(settings, workload.model(settings.model, settings.hidden))
        loader = settings.loader(workload)
        found: dict[tuple[int, bool], list[float]] = {(n, busy): [] for busy in (False, True) for n in (1, many)}
        for _ in range(rounds):
            for (threads, busy), rates in found.items():
                with kernels.for_kernels(threads), _busy(busy):
                    rates.append(rates_of(settings, loader, step).median)
        torch.set_num_threads(many)
        waiting = waiting_share()
    kept = median(two / one for one, two in zip(found[1, True], found[many, True], strict=True))
    columns = ("threads", "beside a busy process", "rows/s")
    rows = [(str(n), "yes" if busy else "no", str(Rates(rates))) for (n, busy), rates in found.items()]
    measure.show(measure.table(measure.title("cpu", many), columns, rows))
    print(f"Beside the busy process {many} threads have {kept:.2f} of one thread's rows/s.")
    print(f"While it waits the process uses {waiting:.2f} cores.")
    results = [
        {"threads": n, "busy": busy, **Rates(rates).plain("samples_per_s")} for (n, busy), rates in found.items()
    ]
    policy = os.environ.get("OMP_WAIT_POLICY")
    result = {"benchmark": "threads", "results": results, "kept": kept, "waiting": waiting, "wait_policy": policy}
    measure.tell(result | measure.machine("cpu", many))


def waiting_share() -> float:
    """CPU seconds a second that the process uses in short pauses between pieces of parallel work."""
    x = torch.zeros(200_000)
    used = waited = 0.0
    for _ in range(WAITS):
        x.sigmoid()
        cpu, begin = time.process_time(), time.perf_counter()
        time.sleep(SECONDS)
        used, waited = used + time.process_time() - cpu, waited + time.perf_counter() - begin
    return used / waited


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """While another process computes without end."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if other is not None:
            other.kill()
            other.wait()


@contextmanager
def _cores(count: int) -> Iterator[None]:
    """On no more than so many cores, and so are the processes started meanwhile."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
