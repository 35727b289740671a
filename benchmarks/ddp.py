"""Training in several processes: rows a second, bytes that travel, and memory, beside one process.

    python -m benchmarks.ddp --processes 2 --device cpu

The log is that of `deepinterest.benchmark`: made up, with the tables of Amazon Books. Every process has a batch of
`--batch-size` rows. Three ways to keep the tables are compared:

    replicated  all rows in each process; the rows touched are exchanged (the product's default)
    sharded     each row in one process; rows are asked of it and gradients sent to it (embedding=sharded)
    dense       all rows in each process, and gradients as large as the tables are all-reduced: what DDP alone does

Bytes are those that a process receives in a step. An all-reduce of n bytes among W processes takes 2 (W - 1) / W n,
which is the least there is; the statistics of the norms, some hundred numbers, are left out. Rates are those of all
processes, and rows of one process for each second of its CPU time, both as multiples of one process's; `held` are the
tables of a process with their Adam state.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepinterest.benchmark import measure
from deepinterest.benchmark.__main__ import number
from deepinterest.benchmark.workload import Size, click_model, make
from deepinterest.nn import sharded
from deepinterest.nn.synced import synchronise
from deepinterest.training import distributed, peak
from deepinterest.training.losses import total_loss
from deepinterest.training.optimizers import DeferredAdam

WAYS = ("replicated", "sharded", "dense")
WARM, SLICES = 5, 5
MIB = 2**20


@dataclass
class Settings:
    """Of one measurement; picklable, as processes are given it."""

    way: str
    processes: int
    model: str
    batch_size: int  # rows of each process
    steps: int
    device: str
    size: Size
    port: int = 0


@dataclass
class Result:
    """Of process 0."""

    rows_per_s: list[float]  # of all processes, in each slice of the steps
    rows_per_cpu_s: float  # of its own rows and its own CPU time: what other work on the machine disturbs least
    table_bytes: float  # received in a step for the sake of the tables
    other_bytes: float  # and for all other parameters
    table_mib: float  # tables and their optimizer state
    memory_gib: float  # highest resident memory


def work(rank: int, settings: Settings, folder: Path) -> None:
    """One process."""
    world, device = settings.processes, settings.device
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")
    measure.settle(1, device)
    if world > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(settings.port)}
        if device == "cuda":
            torch.cuda.set_device(rank)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=world)
    workload = make(settings.size)
    peak.start()
    workload.features.sharded = settings.way == "sharded"
    model = click_model(workload.features, settings.model)
    sharded.split(model.network)
    network = model.network.to(device)
    loader = workload.loader(settings.batch_size, settings.model == "dien", rank=rank, world=world)
    tables = [part for part in network.modules() if isinstance(part, nn.Embedding)]
    optimizer: torch.optim.Optimizer
    if settings.way == "dense":
        for table in tables:
            table.sparse = False
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    else:
        optimizer = model.configure_optimizers()["optimizer"]  # type: ignore[assignment]
        names = distributed.apart(network, "")
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(network, names)
    parallel: nn.Module = network
    if world > 1:
        synchronise(network)
        parallel = DistributedDataParallel(network, broadcast_buffers=False)
    network.train()

    batches = measure.endless(loader)

    def step() -> int:
        batch = next(batches).to(device)
        loss, _ = total_loss(parallel(batch), batch.label, model.quirks, network.epsilon, model.aux_weight, batch.share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return len(batch)

    for _ in range(WARM):
        step()
    before, rates, all_rows, cpu = travelled(optimizer, tables), [], 0, time.process_time()
    for _ in range(SLICES):
        if world > 1:
            dist.barrier()
        measure.synchronize(device)
        begin, rows = time.perf_counter(), 0
        for _ in range(settings.steps // SLICES):
            rows += step()
        measure.synchronize(device)
        rates.append(world * rows / (time.perf_counter() - begin))
        all_rows += rows
    count = settings.steps // SLICES * SLICES
    reduced = 2 * (world - 1) / world
    state = [value for table in tables for value in optimizer.state[table.weight].values() if value.dim()]
    table_bytes = sum(table.weight.nbytes for table in tables)
    other = sum(parameter.nbytes for parameter in network.parameters()) - table_bytes
    result = Result(
        rates,
        all_rows / (time.process_time() - cpu),
        reduced * table_bytes if settings.way == "dense" else (travelled(optimizer, tables) - before) / count,
        reduced * other,
        (table_bytes + sum(value.nbytes for value in state)) / MIB,
        peak.memory()["memory_gib"],
    )
    if rank == 0:
        torch.save(asdict(result), folder / "result.pt")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def travelled(optimizer: torch.optim.Optimizer, tables: list[nn.Embedding]) -> int:
    """Bytes that this process has received for the tables so far; of sharded ones it counts those it sent."""
    first = tables[0]
    if isinstance(first, sharded.Shard):
        assert first.exchange is not None
        return first.exchange.sent
    if isinstance(optimizer, DeferredAdam) and optimizer.exchange is not None:
        return optimizer.exchange.received
    return 0


def measured(settings: Settings) -> Result:
    """Start the processes, and give back what the first of them found."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        settings.port = place.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(work, (settings, Path(folder)), nprocs=settings.processes)
        return Result(**torch.load(Path(folder) / "result.pt", weights_only=True))


def ways(options: argparse.Namespace) -> list[tuple[str, int]]:
    return [("replicated", 1), *((way, options.processes) for way in options.ways)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.ddp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=number(2), default=2)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--model", choices=("dien", "din", "dnn"), default="dien")
    parser.add_argument("--batch-size", type=number(1), default=256, help="rows of each process")
    parser.add_argument("--steps", type=number(SLICES), default=50)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: a GPU each, over NCCL")
    parser.add_argument("--users", type=number(1), default=Size.users)
    parser.add_argument("--items", type=number(2), default=Size.items)
    parser.add_argument("--categories", type=number(1), default=Size.categories)
    options = parser.parse_args(arguments)
    size = Size(options.users, options.items, options.categories)
    lines, results, one, per_cpu = [], [], 0.0, 0.0
    for way, processes in ways(options):
        settings = Settings(way, processes, options.model, options.batch_size, options.steps, options.device, size)
        found = measured(settings)
        rate = measure.Rates(found.rows_per_s)
        one = one or rate.median
        per_cpu = per_cpu or found.rows_per_cpu_s
        figures = (rate.median / one, found.rows_per_cpu_s / per_cpu, found.table_bytes / 1e6, found.other_bytes / 1e6)
        words = (f"{figure:,.2f}" for figure in figures)
        lines.append((way if processes > 1 else "one process", *words, f"{found.table_mib:,.0f}"))
        results.append({"way": way, "processes": processes, **asdict(found), "ratio": rate.median / one})
    columns = ("tables", "rows/s", "rows/CPU s", "tables, MB", "other, MB", "held, MiB")
    heading = f"{options.processes} processes of {options.batch_size} rows; {measure.title(options.device, 1)}"
    measure.show(measure.table(heading, columns, lines))
    plain = {name: getattr(options, name) for name in ("model", "batch_size", "steps")}
    measure.tell({"benchmark": "ddp", **plain, "results": results, **vars(size), **measure.machine(options.device, 1)})


if __name__ == "__main__":
    main()
