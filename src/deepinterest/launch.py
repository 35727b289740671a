"""Who started this process: we ourselves, or torchrun or SLURM with others of the same run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta

from deepinterest.errors import UserError

START = "DEEPINTEREST_START"  # environment: the part of a run folder's name that tells runs apart (conf/config.yaml)
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which a user starts things by hand
PATIENCE = timedelta(minutes=5)  # for the other processes to start


@dataclass(frozen=True)
class Launched:
    """This process's place among those that torchrun or SLURM started."""

    by: str  # "torchrun" or "slurm"
    rank: int
    machines: int
    here: int  # processes on each machine


def launched() -> Launched | None:
    """None where the run starts its further processes itself."""
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        world, here = int(env["WORLD_SIZE"]), int(env["LOCAL_WORLD_SIZE"])
        return Launched("torchrun", int(env["RANK"]), world // here, here)
    tasks = int(env.get("SLURM_NTASKS", "1"))
    if tasks > 1 and "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in INTERACTIVE:
        machines = int(env.get("SLURM_NNODES", "1"))
        return Launched("slurm", int(env["SLURM_PROCID"]), machines, tasks // machines)
    return None


def rank() -> int:
    """This process's number among those of the run, before the run itself has begun."""
    mine = launched()
    return mine.rank if mine else int(os.environ.get("LOCAL_RANK", "0"))


def joined(arguments: list[str]) -> list[str]:
    """The command line of a process that a launcher started: all of them write to one folder, the first its settings.

    Raises UserError for a sweep, which starts processes of its own.
    """
    mine = launched()
    if mine is None or mine.machines * mine.here == 1:
        return arguments
    if {"-m", "--multirun"} & set(arguments):
        raise UserError(
            f"A sweep starts its jobs' processes itself, and {mine.by} has started {mine.machines * mine.here} of it: "
            "start a sweep without it"
        )
    if START not in os.environ:
        os.environ[START] = _of_job() if mine.by == "slurm" else _agreed(mine.rank)
    if mine.rank == 0:
        return arguments
    return [*arguments, f"hydra.job.name=run_process_{mine.rank}"]


def _of_job() -> str:
    """The name of a SLURM job's step, the same for all its tasks."""
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    return "_".join(["slurm", *(os.environ[name] for name in names if name in os.environ)])


def _agreed(rank: int) -> str:
    """The time at which process 0 started, told to the others through torchrun's own store."""
    from torch.distributed import TCPStore  # takes seconds to import

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    key = f"deepinterest/start/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    try:
        store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
        if rank == 0:
            store.set(key, f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")  # no other run has the same microsecond
        return store.get(key).decode()
    except RuntimeError as error:
        raise UserError(
            f"The processes that torchrun started can't reach its store at {address}:{port} ({error}). Give "
            "--rdzv-backend=c10d, or name the run folder yourself by hydra.run.dir=... and set "
            f"{START}=name for all of them"
        ) from error
