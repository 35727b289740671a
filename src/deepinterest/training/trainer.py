"""The Lightning trainer of a run, and the device it computes on."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric import Fabric
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from deepinterest import kernels
from deepinterest.config import Accelerator, ExperimentConfig, KernelName, Precision, Tables, TrainerConfig
from deepinterest.data.datamodule import InteractionData
from deepinterest.errors import UserError
from deepinterest.launch import launched
from deepinterest.machine import check_processes
from deepinterest.nn.mlp import Head
from deepinterest.training import distributed, naming
from deepinterest.training.callbacks import Throughput
from deepinterest.training.checkpoints import Checkpoints, Patience, WholeFiles
from deepinterest.training.divergence import Divergence
from deepinterest.training.module import LOG_EVERY, ClickModel
from deepinterest.training.progress import ProgressLine, ProgressLog


def make_trainer(
    experiment: ExperimentConfig, folder: Path, data: InteractionData, logger: Any, callbacks: list[Callback]
) -> L.Trainer:
    """With our checkpoints, early stopping and progress line; `data` is told which share of the rows is its own."""
    config, monitor = experiment.trainer, "val/published_auc" if experiment.quirks.published_auc else "val/auc"
    callbacks = [
        Divergence(),
        *callbacks,
        Checkpoints(
            folder,
            monitor,
            config.checkpoint_minutes and 60 * config.checkpoint_minutes,
            naming.going_on(folder),
            logger.version if isinstance(logger, WandbLogger) and not getattr(rank_zero_only, "rank", 0) else None,
        ),
    ]
    if config.patience:
        callbacks.append(Patience(monitor=monitor, mode="max", patience=config.patience))
    if config.progress and not getattr(rank_zero_only, "rank", 0):
        speed = next(callback for callback in callbacks if isinstance(callback, Throughput))
        if not sys.stderr.isatty():
            callbacks.append(ProgressLog(monitor, speed))
        elif not naming.in_sweep():
            callbacks.append(ProgressLine(experiment.model.name, monitor, speed))
    arranged = distributed.arrangement(config)
    trainer = L.Trainer(
        accelerator=config.accelerator.value,
        devices=arranged["devices"],
        num_nodes=arranged["num_nodes"],
        strategy=arranged["strategy"],
        precision=config.precision.value,
        max_epochs=config.max_epochs,
        max_steps=config.max_steps or -1,
        val_check_interval=1,  # set below
        check_val_every_n_epoch=None if config.validate_every else 1,  # None counts steps across epochs
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        use_distributed_sampler=False,  # it would pad evaluation; the loader shards by itself
        enable_progress_bar=False,  # ours is ProgressLine
        enable_model_summary=False,
        logger=logger or False,
        callbacks=callbacks,
        plugins=[WholeFiles(mapped=experiment.embedding is Tables.sharded), *arranged["plugins"]],
        default_root_dir=folder,
    )
    distributed.check(experiment, trainer.world_size)
    data.trainer = trainer
    steps = len(data.train_dataloader())  # each process's share
    interval = max(1, min(config.validate_every or steps // config.validations_per_epoch, config.max_steps or steps))
    trainer.val_check_interval = interval
    return trainer


def check_device(config: TrainerConfig) -> None:
    """Raises UserError for a device that this machine lacks, or a kernel that isn't for it."""
    wanted = config.accelerator
    missing = {
        Accelerator.gpu: not (torch.cuda.is_available() or torch.backends.mps.is_available()),
        Accelerator.cuda: not torch.cuda.is_available(),
        Accelerator.mps: not torch.backends.mps.is_available(),
    }
    if missing.get(wanted):
        raise UserError(
            f"trainer.accelerator={wanted.value}, but this machine shows no such device to torch; take trainer=cpu, or "
            "install a torch build for your GPU."
        )
    device = device_of(config).type
    if device == "cpu":
        check_processes(config)
    elif device == "cuda":
        _check_gpus(config)
    if (config.kernel, device) in ((KernelName.gpu, "cpu"), (KernelName.cpu, "cuda")):
        raise UserError(
            f"trainer.kernel={config.kernel.value}, but the model will be on the {device.replace('cuda', 'gpu')}; "
            "take trainer.kernel=auto."
        )


def _check_gpus(config: TrainerConfig) -> None:
    devices, count = str(config.devices), torch.cuda.device_count()
    highest = max(map(int, devices.split(","))) + 1 if "," in devices else int(devices) if devices != "auto" else 0
    if highest > count and launched() is None:
        raise UserError(f"trainer.devices={devices} is out of range: this machine shows {count} GPUs to torch.")


@contextmanager
def threads(config: TrainerConfig) -> Iterator[None]:
    """`trainer.threads`, for a while: the kernels' where those compute in one process on a CPU, otherwise torch's."""
    before = torch.get_num_threads()
    count = config.threads or before
    one_process = str(config.devices) in ("1", "auto") and launched() is None
    ours = config.kernel in (KernelName.auto, KernelName.cpu) and config.precision is Precision["32-true"]
    try:
        if one_process and ours and not config.compile and _on_cpu(config):
            with kernels.for_kernels(count):
                yield
        else:
            torch.set_num_threads(count)
            yield
    finally:
        torch.set_num_threads(before)


def _on_cpu(config: TrainerConfig) -> bool:
    anything_else = torch.cuda.is_available() or torch.backends.mps.is_available()
    return config.accelerator is Accelerator.cpu or (config.accelerator is Accelerator.auto and not anything_else)


def device_of(config: TrainerConfig) -> torch.device:
    """Where a model is looked at without a trainer: one device of the trainer's kind."""
    device: torch.device = Fabric(accelerator=config.accelerator.value, devices=1).device
    return device


def prefetch(config: TrainerConfig) -> bool:
    """Whether batches are made ahead. Beside a step on a CPU a batch takes 0.1 ms: there a thread gains nothing."""
    if config.prefetch is not None:
        return config.prefetch
    return torch.cuda.is_available() and config.accelerator is not Accelerator.cpu


@contextmanager
def compiled(model: ClickModel, wanted: bool) -> Iterator[None]:
    """Train with a compiled head: the one part with a fixed width for which torch has no hand-written kernel here.

    Raises UserError where torch can't compile.
    """
    if wanted:
        head = model.network.head
        assert isinstance(head, Head)
        head.compile(dynamic=True)
    try:
        yield
    except Exception as error:
        if not wanted or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(
            "trainer.compile=true: torch could not compile the network "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); take trainer.compile=false."
        ) from error


def calm() -> None:
    """Lightning prints each line itself and hands it on to the root logger: once is enough."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # our metrics are of all processes' rows
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # its successor is newer than our oldest torch
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*exists and is not empty.*")  # the run folder holds the log already
    warnings.filterwarnings("ignore", message=".*Trying to infer the `batch_size`.*")
