"""`task=tune`: a learning rate by a range test, and the batch size beyond which training gets no faster.

The range test (Smith, 2017, arXiv:1506.01186) trains a fresh network while the rate grows from step to step. A tenth of
the rate at which the loss is lowest is a good one to start a search from; it is no substitute for a sweep. (Where the
loss falls fastest, as often recommended, was 6e-5 for DNN and DIEN on completejourney: far below the default of 2e-3.)
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from deepinterest.config import TuneConfig
from deepinterest.data.batch import Batch
from deepinterest.data.datamodule import InteractionData
from deepinterest.errors import UserError
from deepinterest.report import plots, run_folder
from deepinterest.training import peak
from deepinterest.training.losses import total_loss
from deepinterest.training.module import ClickModel

log = logging.getLogger(__name__)

SMOOTH = 0.93  # what an average of losses keeps of the one before
DIVERGED = 1.5  # times the lowest loss: the test ends
EARLY = 10  # steps whose averages say too little
SHARE = 0.1  # of the rate at which the loss is lowest: beyond that one it diverges
LEAST_FALL = 0.005  # of the loss, or there is nothing to see
MORE_SIZES = 1  # that are tried after one that gains nothing: machines have bad moments
STEPS_AT_LEAST, WARM_UP = 3, 3  # of each batch size


def run(
    make: Callable[[], ClickModel], data: InteractionData, config: TuneConfig, folder: Path, console: Console
) -> dict[str, float]:
    """Both finders; writes tune.json and tune.png, and says in a sentence what was found.

    Args:
        make: a fresh model on its device.
    Raises UserError where nothing could be found, or the folder can't be written.
    """
    with console.status("Trying learning rates"):
        rates, losses = try_rates(make(), data, config)
    lr = suggested_rate(rates, losses)
    with console.status("Trying batch sizes"):
        sizes, ended = try_sizes(make(), data, config)
    batch_size = suggested_size(sizes, config.batch_gain)
    content = {
        "lr": {
            "suggested": lr,
            "batch_size": data.batch_size,
            "points": [
                [float(rate), float(loss), float(mean)]
                for rate, loss, mean in zip(rates, losses, smoothed(losses), strict=True)
            ],
        },
        "batch_size": {"suggested": batch_size, "sizes": sizes, "ended": ended},
    }
    run_folder.write_findings(folder, "tune", content, plots.tuning(content))
    chosen = next(size for size in sizes if size["batch_size"] == batch_size)
    log.info(
        "optimizer.lr=%.2g is a tenth of where the loss of a range test at trainer.batch_size=%d is lowest.\n"
        "trainer.batch_size=%d trains %s samples/s with %.2f GiB; %s\n"
        "Another batch size needs another rate: run task=tune again with it. Both: %s",
        *(lr, data.batch_size, batch_size, f"{chosen['samples_per_s']:,.0f}", chosen["memory_gib"], ended),
        folder / "tune.png",
    )
    return {"tune/lr": lr, "tune/batch_size": float(batch_size)}


# -------------------------------------------------------------------------------------------------------- learning rate


def try_rates(model: ClickModel, data: InteractionData, config: TuneConfig) -> tuple[np.ndarray, np.ndarray]:
    """Rates (n,) and the training loss (n,) at each; ends early where the loss diverges."""
    rates = np.geomspace(config.lr_low, config.lr_high, config.lr_steps)
    optimizer = _optimizer(model)
    losses: list[float] = []
    for rate, batch in zip(rates, _batches(data), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        losses.append(float(_step(model, optimizer, batch)))
        if len(losses) > EARLY:
            means = smoothed(np.array(losses))
            if not math.isfinite(losses[-1]) or means[-1] > DIVERGED * means[EARLY:].min():
                break
    optimizer.release()
    return rates[: len(losses)], np.array(losses)


def smoothed(losses: np.ndarray) -> np.ndarray:
    """(n,) running average, which forgets old losses; without the bias towards its start."""
    means, mean = np.empty(len(losses)), 0.0
    for step, loss in enumerate(losses):
        mean = SMOOTH * mean + (1 - SMOOTH) * float(loss)
        means[step] = mean / (1 - SMOOTH ** (step + 1))
    return means


def suggested_rate(rates: np.ndarray, losses: np.ndarray) -> float:
    """SHARE of the rate at which the smoothed loss is lowest; UserError where it hardly falls at any."""
    means = smoothed(losses)[EARLY:]
    means = means[np.isfinite(means)]
    if not len(means) or not means.min() < (1 - LEAST_FALL) * means[0]:
        raise UserError(
            f"The training loss falls at no rate between {rates[0]:.1e} and {rates[-1]:.1e}: give tune.lr_low a "
            "smaller number or tune.lr_steps a larger one, and see what debug=overfit says."
        )
    lowest = int(np.argmin(means))
    if lowest == len(losses) - EARLY - 1:
        log.warning("The loss still falls at the highest rate tried: give tune.lr_high a larger number.")
    return float(f"{SHARE * rates[lowest + EARLY]:.2g}")


# ----------------------------------------------------------------------------------------------------------- batch size


def try_sizes(model: ClickModel, data: InteractionData, config: TuneConfig) -> tuple[list[dict[str, float]], str]:
    """batch_size, samples_per_s and memory_gib of each size tried, and why no further one was, as a sentence."""
    rows = data.train_dataloader().samples.rows
    optimizer = _optimizer(model)
    found: list[dict[str, float]] = []
    size, idle = config.batch_low, 0
    ended = f"no size above tune.batch_high={config.batch_high} was tried."
    while size <= config.batch_high:
        if found and size > rows:
            ended = f"training has {rows:,} rows, so no larger size was tried."
            break
        try:
            found.append({"batch_size": size, **_speed(model, optimizer, data, size, config.batch_seconds)})
        except (MemoryError, RuntimeError) as error:
            if not found or not (isinstance(error, MemoryError) or "memory" in str(error)):
                raise
            ended = f"{size:,} rows don't fit into memory."
            break
        best = max((entry["samples_per_s"] for entry in found[:-1]), default=0.0)
        idle = 0 if found[-1]["samples_per_s"] > best * (1 + config.batch_gain) else idle + 1
        if idle > MORE_SIZES:
            ended = "larger sizes gain nothing."
            break
        size *= 2
    optimizer.release()
    return found, ended


def _speed(model: ClickModel, optimizer: Any, data: InteractionData, size: int, seconds: float) -> dict[str, float]:
    other = copy.copy(data)
    other.batch_size, other._training = size, None
    batches = _batches(other)
    for batch in islice(batches, WARM_UP):
        _step(model, optimizer, batch)
    peak.start()
    _wait(model)
    begin, rows, steps = time.perf_counter(), 0, 0
    while steps < STEPS_AT_LEAST or time.perf_counter() - begin < seconds:
        batch = next(batches)
        _step(model, optimizer, batch)
        rows, steps = rows + len(batch), steps + 1
        _wait(model)
    memory = peak.memory()
    spent = time.perf_counter() - begin
    return {
        "samples_per_s": rows / spent,
        "memory_gib": memory.get("gpu_memory_gib" if model.device.type == "cuda" else "memory_gib", math.nan),
    }


def suggested_size(sizes: list[dict[str, float]], gain: float) -> int:
    """The smallest size that no other one outdoes by more than `gain`, a share of its samples/s."""
    best = max(entry["samples_per_s"] for entry in sizes)
    return int(next(entry["batch_size"] for entry in sizes if entry["samples_per_s"] * (1 + gain) >= best))


# ---------------------------------------------------------------------------------------------------------------- parts


def _optimizer(model: ClickModel) -> Any:
    model.train()
    return model.configure_optimizers()["optimizer"]


def _step(model: ClickModel, optimizer: Any, batch: Batch) -> Tensor:
    """One step of training as ClickModel makes it; the loss."""
    batch = batch.to(model.device)
    optimizer.zero_grad()
    loss, _ = total_loss(model.network(batch), batch.label, model.quirks, model.network.epsilon, model.aux_weight)
    loss.backward()
    optimizer.step()
    return loss.detach()


def _batches(data: InteractionData) -> Iterator[Batch]:
    """Epoch after epoch, without end."""
    loader = data.train_dataloader()
    while True:
        yield from loader


def _wait(model: ClickModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
