"""This project against its peers: each in an environment of its own, in turn, on the same ready batches.

    python -m benchmarks.compare_peers --model dien --lengths realistic --threads 1 --rounds 3

The first call makes the environments (about 1.2 GB each, below --folder) from PyPI; later ones find them. Timed are
network, loss and optimiser on ready tensors: peers read histories filled up to 100 events, ours reads them ragged. One
row more is the product's own path, its loader included. In each round every contestant runs once, in a rotated order.
A ratio is the median over rounds of the same round's ratio; rows per CPU second leave out the time that other work on
the machine took.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import ROOT, show
from deepinterest.errors import UserError

TORCH = "torch>=2.9,<2.14"
FOLDER = Path(__file__).parent / "peers"
T = 100  # events that histories are filled up to


@dataclass
class Contestant:
    """One line of the table: `adapter` runs in an environment with `packages`, or in this one where there are none."""

    name: str
    adapter: str
    packages: list[str] = field(default_factory=list)
    lacks: dict[str, str] = field(default_factory=dict)  # by model


PEERS = [
    Contestant(
        "deepctr-torch 0.3.0",
        "deepctr.py",
        ["deepctr-torch==0.3.0", "requests"],
        {"dien": "PReLU: its Dice fails; no history sum", "din": "PReLU: its Dice fails"},
    ),
    Contestant(
        "fuxictr 2.3.10",
        "fuxi.py",
        ["fuxictr==2.3.10"],
        {"dien": "no auxiliary net"},
    ),
    Contestant(
        "torch-rechub 0.9.0",
        "rechub.py",
        ["torch-rechub==0.9.0"],
        {"dien": "dot products for attention and auxiliary net; a GRU of 18 a feature", "din": "a net of 18 a feature"},
    ),
    Contestant(
        "recbole 1.2.1",
        "bole.py",
        ["recbole==1.2.1"],
        {"dien": "anomaly mode off; no history sum", "din": "anomaly mode off; attention without softmax; no user"},
    ),
]
OURS = Contestant("deepinterest", "ours.py", [], {"dien": "", "din": ""})
PRODUCT = "deepinterest, with its loader"


def environment(folder: Path, contestant: Contestant) -> Path:
    """The Python of a contestant's environment, which is made if it isn't there. Raises UserError."""
    if not contestant.packages:
        return Path(sys.executable)
    place = folder / contestant.name.replace(" ", "-")
    python = place / "bin" / "python"
    done = place / "complete"
    wanted = "\n".join([TORCH, *contestant.packages])
    if done.exists() and done.read_text() == wanted:
        return python
    print(f"Installing {contestant.name} into {place}", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted.split("\n")],
    ):
        found = subprocess.run(command, capture_output=True, text=True)
        if found.returncode:
            lines = [line for line in found.stderr.splitlines() if line.startswith("ERROR")] or [found.stderr.strip()]
            raise UserError(
                f"{contestant.name} could not be installed into {place}: {lines[0]} Is there a network? "
                f"--peers names others, or none."
            )
    done.write_text(wanted)
    return python


def write_batches(path: Path, size: Any, lengths: str, batch_size: int, count: int) -> None:
    """Batches of the canonical workload, as the product's loader gives them, filled up to T events."""
    from deepinterest.benchmark.workload import make

    workload = make(size, lengths)
    category = workload.features.catalogue[:, 1].numpy()
    columns: dict[str, list[np.ndarray]] = {}
    full = len(workload.samples) // batch_size * batch_size  # so that all batches have as many rows
    if not full:
        raise UserError(f"--batch-size {batch_size}: the log has {size.users} users. Take fewer rows.")
    workload.samples = workload.samples.take(np.arange(full))
    for _, batch in zip(range(count), workload.loader(batch_size), strict=False):
        assert batch.auxiliary_negatives is not None
        length = batch.offsets.diff().numpy()
        real = np.arange(T) < length[:, None]  # (B, T)
        item, negative = np.zeros((2, batch_size, T), np.int64)
        item[real], negative[real] = batch.history.numpy(), batch.auxiliary_negatives[:, 0].numpy()
        target = batch.candidates.numpy()
        row = {
            "user": batch.user.numpy(),
            "target_item": target,
            "target_category": category[target],
            "item": item,
            "category": category[item],
            "negative_item": negative,
            "negative_category": category[negative],
            "length": length,
            "label": batch.label.numpy(),
        }
        for name, values in row.items():
            columns.setdefault(name, []).append(values.astype(np.float32 if name == "label" else np.int32))
    sizes = np.array([size.users + 1, size.items + 1, size.categories + 1])
    arrays: dict[str, Any] = {name: np.stack(values) for name, values in columns.items()}
    np.savez(path, sizes=sizes, **arrays)


def _run(command: list[str], threads: int, who: str) -> dict[str, Any]:
    """The JSON of a process's last line. Raises UserError where it fails."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    found = subprocess.run(
        command, cwd=ROOT, env=os.environ | dict.fromkeys(names, str(threads)), capture_output=True, text=True
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{who} ended with status {found.returncode}: {last}. Its command was: {' '.join(command)}")
    result: dict[str, Any] = json.loads(found.stdout.strip().splitlines()[-1])
    return result


def compare(options: argparse.Namespace, contestants: list[Contestant], batches: Path) -> dict[str, Any]:
    """Rows a second of each contestant in each round, by name."""
    pythons = {each.name: environment(options.folder, each) for each in contestants}
    names = [each.name for each in contestants] + [PRODUCT] * options.loader
    adapters = {each.name: each.adapter for each in contestants}
    rates: dict[str, list[float]] = {name: [] for name in names}
    per_cpu_second: dict[str, list[float]] = {name: [] for name in names}
    facts: dict[str, dict[str, Any]] = {}
    common = ["--model", options.model, "--threads", str(options.threads), "--seconds", str(options.seconds)]
    for round_ in range(options.rounds):
        shift = round_ % len(names)
        for name in names[shift:] + names[:shift]:
            if name == PRODUCT:
                size = [f"--{key}={getattr(options, key)}" for key in ("users", "items", "categories")]
                more = ["--lengths", options.lengths, "--batch-size", str(options.batch_size), *size]
                command = [sys.executable, "-m", "deepinterest.benchmark", "training", *common, *more]
                found = _run(command, options.threads, name)
                rates[name].append(found["samples_per_s"])
            else:
                command = [str(pythons[name]), str(FOLDER / adapters[name]), str(batches), *common]
                found = _run(command, options.threads, name)
                rates[name].append(statistics.median(found["samples_per_s"]))
                facts[name] = {key: found[key] for key in ("parameters", "loss")}
            per_cpu_second[name].append(found["samples_per_cpu_s"])
            print(f"round {round_ + 1}, {name}: {rates[name][-1]:,.0f} rows/s", file=sys.stderr)
    return {"rates": rates, "rates_per_cpu_s": per_cpu_second, "facts": facts}


def ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """How many times as fast the project is on ready batches as each: the median of the rounds' ratios."""
    return {
        name: statistics.median(ours / other for ours, other in zip(rates[OURS.name], values, strict=True))
        for name, values in rates.items()
    }


def main(arguments: list[str] | None = None, peers: list[Contestant] | None = None) -> int:
    known = {each.name.split()[0]: each for each in (PEERS if peers is None else peers)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "outputs" / "peers", help="of the environments")
    parser.add_argument("--peers", nargs="*", choices=known, default=list(known), help="which ones; default: all")
    parser.add_argument("--model", choices=("dien", "din"), default="dien")
    parser.add_argument("--lengths", choices=("realistic", "full"), default="realistic")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--batches", type=int, default=200, help="different ones, used in turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run, after its warm-up")
    parser.add_argument("--loader", action=argparse.BooleanOptionalAction, default=True, help="run the product's path")
    parser.add_argument("--users", type=int, default=543_060)
    parser.add_argument("--items", type=int, default=367_983)
    parser.add_argument("--categories", type=int, default=1_601)
    options = parser.parse_args(arguments)
    low = [name for name in ("batch_size", "batches", "threads", "rounds", "seconds") if getattr(options, name) <= 0]
    if low:
        parser.error(f"--{low[0].replace('_', '-')} {getattr(options, low[0])} is not possible: more than 0")
    contestants = [*(known[name] for name in options.peers), OURS]
    from deepinterest.benchmark.workload import Size

    try:
        with tempfile.TemporaryDirectory(prefix="peers-") as temporary:
            batches = Path(temporary) / "batches.npz"
            size = Size(options.users, options.items, options.categories)
            write_batches(batches, size, options.lengths, options.batch_size, options.batches)
            found = compare(options, contestants, batches)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    report(options, contestants, found)
    return 0


def report(options: argparse.Namespace, contestants: list[Contestant], found: dict[str, Any]) -> None:
    from deepinterest.benchmark.measure import processor

    notes = {each.name: each.lacks.get(options.model, "") for each in contestants}
    times, cpu_times = ratios(found["rates"]), ratios(found["rates_per_cpu_s"])
    rows = [
        (
            name,
            f"{statistics.median(values):,.0f}",
            f"{min(values):,.0f}",
            f"{max(values):,.0f}",
            f"{times[name]:.2f}",
            f"{statistics.median(found['rates_per_cpu_s'][name]):,.0f}",
            f"{cpu_times[name]:.2f}",
            notes.get(name, ""),
        )
        for name, values in found["rates"].items()
    ]
    threads = f"{options.threads} thread{'s' if options.threads > 1 else ''}"
    show(
        f"{options.model}, {options.lengths}, batch {options.batch_size}, {threads}, {options.rounds} rounds, "
        f"{processor()}",
        ("who", "rows/s", "min", "max", "ours is x times as fast", "rows per CPU s", "x", "differs"),
        rows,
    )
    settings = {name: value for name, value in vars(options).items() if name not in ("folder", "peers")}
    print(json.dumps({"benchmark": "compare_peers", **settings, **found, "ratios": times, "device": processor()}))


if __name__ == "__main__":
    sys.exit(main())
