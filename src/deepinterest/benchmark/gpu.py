"""`gpu`: everything that needs a GPU, in one call: DIEN's training, the recurrences, and the tables' optimizer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepinterest.benchmark import kernels, measure, training
from deepinterest.benchmark.training import Settings
from deepinterest.benchmark.workload import make


def run(settings: Settings, batch_sizes: list[int], hidden: list[int]) -> None:
    """Training by each kernel of the device, at each batch size, precision and kind of lengths; then the kernels."""
    trained, results = [], []
    for lengths in ("realistic", "full"):
        workload = make(settings.size, lengths)
        for batch_size in batch_sizes:
            for precision in ("32", "bf16"):
                for kernel in kernels.available(settings.device, settings.hidden):
                    one = replace(
                        settings, lengths=lengths, batch_size=batch_size, precision=precision, kernel=kernel.value
                    )
                    rates = training.run(one, workload)
                    trained.append((one, rates))
                    results.append(training.describe(one) | rates.plain("samples_per_s"))
        del workload
    recurrences: list[dict[str, Any]] = []
    tables = [training.table(settings, trained)]
    for batch_size in batch_sizes:
        sized = replace(settings, batch_size=batch_size)
        found = [
            line
            for lengths in ("realistic", "full")
            for width in hidden
            for line in kernels.compare(sized, lengths, width)
        ]
        tables.append(kernels.table(sized, found))
        recurrences += [{"sequences": batch_size, **line} for line in found]
    measure.show(*tables)
    result = {"benchmark": "gpu", "training": results, "kernels": recurrences}
    measure.tell(result | measure.machine(settings.device, settings.threads))
