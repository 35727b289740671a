"""`training`: the product's loader, network, loss and optimiser; with the flag, within Lightning's Trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.table import Table
from torch import Tensor

from deepinterest import kernels
from deepinterest.benchmark import measure
from deepinterest.benchmark.measure import Clock, Rates, endless, machine, title
from deepinterest.benchmark.workload import MODELS, Size, Workload, make
from deepinterest.config import (
    Accelerator,
    ExperimentConfig,
    KernelName,
    LoggerConfig,
    LoggerMode,
    Precision,
    TrainerConfig,
)
from deepinterest.data.batch import Batch
from deepinterest.data.loader import BatchLoader
from deepinterest.training.callbacks import Curves, Throughput
from deepinterest.training.losses import total_loss
from deepinterest.training.module import ClickModel


@dataclass
class Settings:
    """Of one measurement."""

    model: str = "dien"
    lengths: str = "realistic"
    batch_size: int = 128
    candidates: int = 1
    seconds: float = 10.0
    threads: int = 1
    device: str = "cpu"
    precision: str = "32"
    kernel: str = "auto"
    hidden: int = 36
    compile: bool = False
    prefetch: bool | None = None  # null, as in a run: on a GPU alone
    scoring: bool = False
    through_lightning: bool = False
    logger: str = "wandb"
    size: Size = field(default_factory=Size)

    @property
    def auxiliary(self) -> bool:
        return self.model == "dien" and not self.scoring

    def loader(self, workload: Workload) -> BatchLoader:
        ahead = self.device == "cuda" if self.prefetch is None else self.prefetch
        return workload.loader(self.batch_size, self.auxiliary, ahead)

    def workload(self) -> Workload:
        return make(self.size, self.lengths, self.candidates)


def run(settings: Settings, workload: Workload | None = None) -> Rates:
    """Rows a second; a row is one candidate."""
    workload = workload or settings.workload()
    with kernels.using(KernelName(settings.kernel)):
        model = workload.model(settings.model, settings.hidden)
        work = _through_lightning if settings.through_lightning else _score if settings.scoring else _train
        with _compiled(settings, model):
            return work(settings, model, settings.loader(workload))


def _compiled(settings: Settings, model: ClickModel) -> AbstractContextManager[Any]:
    if not settings.compile:
        return nullcontext()
    from deepinterest.training.trainer import compiled

    return compiled(model, True)


def loss(model: ClickModel, batch: Batch) -> Tensor:
    """What `ClickModel.training_step` minimises, without a trainer to log to."""
    return total_loss(model.network(batch), batch.label, model.quirks, model.network.epsilon, model.aux_weight)[0]


def precision(settings: Settings) -> AbstractContextManager[Any]:
    if settings.precision == "bf16":
        return torch.autocast(settings.device, torch.bfloat16)
    return nullcontext()


def step_of(settings: Settings, model: ClickModel) -> Callable[[Batch], Tensor]:
    """One training step, which returns its loss; the model is put on its device."""
    model.to(settings.device).train()
    optimizer: Any = model.configure_optimizers()["optimizer"]

    def step(batch: Batch) -> Tensor:
        with precision(settings):
            value = loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        return value

    return step


def rates_of(settings: Settings, batches: Any, step: Callable[[Batch], object]) -> Rates:
    """Rates of steps over batches, which come from the CPU."""
    clock = Clock(settings.seconds, settings.device)
    for batch in endless(batches):
        step(batch if settings.device == "cpu" else batch.to(settings.device, non_blocking=True))
        if clock.tick(len(batch)):
            break
    return clock.result()


def _train(settings: Settings, model: ClickModel, loader: Any) -> Rates:
    return rates_of(settings, loader, step_of(settings, model))


def _score(settings: Settings, model: ClickModel, loader: Any) -> Rates:
    model.to(settings.device).eval()

    def step(batch: Batch) -> None:
        with torch.inference_mode(), precision(settings):
            model(batch)

    return rates_of(settings, loader, step)


class _Data(L.LightningDataModule):
    """Training alone: validation and saving are no part of the measurement."""

    def __init__(self, loader: Any) -> None:
        super().__init__()
        self.loader = loader

    def train_dataloader(self) -> Any:
        return self.loader

    def val_dataloader(self) -> list[Any]:
        return []


class _Watch(Callback):
    def __init__(self, settings: Settings) -> None:
        self.clock = Clock(settings.seconds, settings.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        if self.clock.tick(len(batch)):
            trainer.should_stop = True


def _through_lightning(settings: Settings, model: ClickModel, loader: Any) -> Rates:
    """The trainer of a run, with a run's callbacks and logger."""
    from deepinterest.training import loggers  # with all they import, which nothing else here needs
    from deepinterest.training.trainer import calm, make_trainer

    config = ExperimentConfig(
        data=None,
        protocol=None,
        model=MODELS[settings.model](use_user=True),
        logger=LoggerConfig(name=settings.logger, mode=LoggerMode.offline),
        trainer=TrainerConfig(
            accelerator=Accelerator.gpu if settings.device == "cuda" else Accelerator.cpu,
            precision=Precision["bf16-mixed" if settings.precision == "bf16" else "32-true"],
            max_epochs=1_000_000,
            validations_per_epoch=1,
            batch_size=settings.batch_size,
        ),
    )
    calm()
    watch = _Watch(settings)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as temporary:
        folder = Path(temporary)
        logger = loggers.make_logger(config.logger, folder, folder, "benchmark", {}, settings.model)
        data: Any = _Data(loader)
        trainer = make_trainer(config, folder, data, logger, [Curves(), Throughput(), watch])
        try:
            trainer.fit(model, datamodule=data)
        finally:
            loggers.finish(logger)
    return watch.clock.result()


def describe(settings: Settings) -> dict[str, Any]:
    """The settings, for the JSON line."""
    return {
        "benchmark": "training",
        **{name: value for name, value in vars(settings).items() if name != "size"},
        **vars(settings.size),
        **machine(settings.device, settings.threads),
    }


def table(settings: Settings, found: list[tuple[Settings, Rates]]) -> Table:
    """Rates of several measurements on one device."""
    rows = [
        (
            f"{each.model}{' scoring' if each.scoring else ''}{', Lightning' if each.through_lightning else ''}",
            each.lengths,
            f"{each.batch_size:,}",
            str(each.candidates),
            each.precision,
            each.kernel,
            str(rates),
            f"{1000 * each.batch_size / rates.median:.2f}",
            f"{rates.per_cpu_second:,.0f}",
        )
        for each, rates in found
    ]
    columns = ("model", "lengths", "batch", "candidates", "bits", "kernel", "rows/s", "ms a step", "rows per CPU s")
    return measure.table(title(settings.device, settings.threads), columns, rows)
