"""A run in several processes: how Lightning arranges them, what DDP leaves alone, and what needs one process."""

from __future__ import annotations

from typing import Any

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed import broadcast, get_world_size, is_initialized

from deepinterest.config import ExperimentConfig, Precision, TrainerConfig
from deepinterest.errors import UserError
from deepinterest.launch import launched
from deepinterest.models.network import Network

# What these add depends on which rows are in a batch, so with several processes it would be something else.
OF_A_BATCH = ("batch_dice", "padded_sum", "padded_auxiliary")


def arrangement(config: TrainerConfig) -> dict[str, Any]:
    """Arguments of `Trainer`: devices, machines, strategy, and in `plugins` who starts the processes.

    torchrun and SLURM have started them already, and say how many. Raises UserError where SLURM is to and has not.
    """
    mine = launched()
    if config.slurm and (mine is None or mine.by != "slurm"):
        raise UserError(
            "trainer.slurm=true, but this process is none of several SLURM tasks: start it by srun in a job with "
            "--ntasks-per-node=GPUS, or take trainer=ddp for the GPUs of one machine"
        )
    devices, machines = config.devices, 1
    plugins: list[ClusterEnvironment] = []
    if mine is not None:
        devices, machines = mine.here, mine.machines
        # A job that SLURM cuts short saves on SIGTERM and goes on by `resume`: see training/checkpoints.py.
        plugins = [SLURMEnvironment(auto_requeue=False) if mine.by == "slurm" else TorchElasticEnvironment()]
    elif str(devices) != "1":
        plugins = [LightningEnvironment()]  # not that of a SLURM job of one task
    strategy: Any = config.strategy.value
    if strategy == "ddp" or (strategy == "auto" and mine is not None and mine.here * mine.machines > 1):
        # Buffers are the same everywhere: catalogues, and statistics over the rows of all processes.
        strategy = DDPStrategy(broadcast_buffers=False, gradient_as_bucket_view=True)
    return {"devices": devices, "num_nodes": machines, "strategy": strategy, "plugins": plugins}


def check(experiment: ExperimentConfig, world: int) -> None:
    """Raise a UserError for settings with which `world` processes would not compute what one does."""
    if world == 1:
        return
    for name in OF_A_BATCH:
        if getattr(experiment.quirks, name):
            raise UserError(
                f"quirks.{name} needs one process, here are {world}: it depends on which rows share a batch. "
                f"Set trainer.devices=1 or quirks.{name}=false."
            )
    if experiment.trainer.compile:
        raise UserError(
            f"trainer.compile=true needs one process, here are {world}, whose norms talk to each other. Leave it out."
        )
    if experiment.trainer.precision is Precision["16-mixed"]:
        raise UserError(
            f"trainer.precision=16-mixed needs one process, here are {world}: each would leave out other steps. "
            "Take bf16-mixed."
        )


def several() -> bool:
    """Whether this is one of several processes that know each other."""
    return is_initialized() and get_world_size() > 1


def apart(network: Network, prefix: str) -> list[str]:
    """Names of what DDP is to leave alone: tables, whose rows the optimizer exchanges, and catalogues of features."""
    tables = {table.weight for table in network.embeddings}
    names = [name for name, parameter in network.named_parameters() if parameter in tables]
    names += [name for name, _ in network.named_buffers() if name.rpartition(".")[2] == "catalogue"]
    return [prefix + name for name in names]


def same_start(network: Network) -> None:
    """Give every process the replicated tables of process 0, as DDP gives it the other parameters."""
    for table in network.embeddings:
        if not getattr(table, "sharded", False):
            broadcast(table.weight.data, 0)
