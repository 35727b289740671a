"""A table split over processes: our exchange beside torch's own distributed tensors.

    python -m benchmarks.sharding --processes 2 --rows 100000 1000000

Every process looks up `--ids` random rows and gets their gradients; there is no optimizer. torch's row-wise parallel
embedding computes the same vectors, but has no sparse gradient: each process gets one as large as the whole table.
Told is the quickest of a few steps, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

from deepinterest.benchmark import measure
from deepinterest.benchmark.__main__ import number
from deepinterest.nn import sharded

WAYS = ("ours", "DTensor", "DTensor, sparse")
STEPS = 7
MIB = 2**20


def table_of(way: str, rows: int, dim: int, world: int) -> Any:
    """A function of ids (n,) -> vectors (n, dim), and the module whose weight gets the gradient."""
    if way == "ours":
        table = sharded.Shard(rows, dim)
        table.draw()
        tables = nn.ModuleList([table])
        sharded.split(tables)
        return (lambda ids: sharded.lookup(tables, ids.unsqueeze(1))), table
    whole = nn.Embedding(rows, dim, sparse=way.endswith("sparse"))
    plan = RowwiseParallel(input_layouts=Shard(0), output_layouts=Shard(0))
    split = parallelize_module(whole, init_device_mesh("cpu", (world,)), plan)
    return split, split


def work(rank: int, world: int, port: int, folder: Path, way: str, rows: int, count: int, dim: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    measure.settle(1, "cpu")
    dist.init_process_group("gloo", rank=rank, world_size=world)
    look, table = table_of(way, rows, dim, world)
    ids = torch.randint(rows, (count,), generator=torch.Generator().manual_seed(rank))
    found: dict[str, Any] = {}
    times = []
    try:
        for _ in range(STEPS):
            table.weight.grad = None
            dist.barrier()
            begin = time.perf_counter()
            look(ids).square().sum().backward()
            times.append(time.perf_counter() - begin)
        grad = table.weight.grad
        local = grad.to_local() if isinstance(grad, DTensor) else grad
        held = local._values().nbytes + local._indices().nbytes if local.is_sparse else local.nbytes
        found = {"ms": 1e3 * min(times), "gradient": held}
    except NotImplementedError as error:
        found = {"refused": str(error).splitlines()[0]}
    if rank == 0:
        torch.save(found, folder / "result.pt")
    dist.barrier()
    dist.destroy_process_group()


def measured(way: str, rows: int, options: argparse.Namespace) -> dict[str, Any]:
    """Start the processes, and give back what the first of them found."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        shared = (options.processes, port, Path(folder), way, rows, options.ids, options.dim)
        mp.spawn(work, shared, nprocs=options.processes)
        found: dict[str, Any] = torch.load(Path(folder) / "result.pt", weights_only=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.sharding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=number(2), default=2)
    parser.add_argument("--rows", type=number(1), nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--ids", type=number(1), default=5000, help="that each process looks up")
    parser.add_argument("--dim", type=number(1), default=18)
    options = parser.parse_args(arguments)
    lines, results = [], []
    for rows in options.rows:
        for way in WAYS:
            found = measured(way, rows, options)
            results.append({"way": way, "rows": rows, **found})
            if "refused" in found:
                lines.append((way, f"{rows:,}", "refused", found["refused"]))
            else:
                lines.append((way, f"{rows:,}", f"{found['ms']:.1f}", f"{found['gradient'] / MIB:.2f}"))
    heading = f"{options.processes} processes of {options.ids:,} ids; {measure.title('cpu', 1)}"
    columns = ("table", "rows", "ms, forward and backward", "gradient in each process, MiB")
    measure.show(measure.table(heading, columns, lines))
    plain = {name: getattr(options, name) for name in ("processes", "ids", "dim")}
    measure.tell({"benchmark": "sharding", **plain, "results": results, **measure.machine("cpu", 1)})


if __name__ == "__main__":
    main()
