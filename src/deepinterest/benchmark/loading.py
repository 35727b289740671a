"""`loading`: rows a second of the product's loader alone."""

from __future__ import annotations

from typing import Any

from deepinterest.benchmark import measure
from deepinterest.benchmark.measure import Clock, Rates, endless
from deepinterest.benchmark.training import Settings
from deepinterest.benchmark.workload import Workload, make


def rates(workload: Workload, batch_size: int, auxiliary: bool, seconds: float) -> Rates:
    clock = Clock(seconds)
    for batch in endless(workload.loader(batch_size, auxiliary=auxiliary)):
        if clock.tick(len(batch)):
            break
    return clock.result()


def run(settings: Settings, batch_sizes: list[int]) -> None:
    rows, results = [], []
    for candidates in (1, 2):
        workload = make(settings.size, settings.lengths, candidates)
        for auxiliary in (False, True):
            for size in batch_sizes:
                found = rates(workload, size, auxiliary, settings.seconds)
                rows.append((str(candidates), "yes" if auxiliary else "no", f"{size:,}", str(found)))
                results.append(
                    {"candidates": candidates, "auxiliary": auxiliary, "batch_size": size, **found.plain("rows_per_s")}
                )
    columns = ("candidates a history", "auxiliary negatives", "batch", "rows/s")
    measure.show(measure.table(measure.title("cpu", settings.threads), columns, rows))
    result: dict[str, Any] = {"benchmark": "loading", "lengths": settings.lengths, "results": results}
    measure.tell(result | vars(settings.size) | measure.machine("cpu", settings.threads))
