"""A log in many files, prepared as a whole and in partitions: memory, seconds, and that both are the same.

    python -m benchmarks.partitions --events 5_000_000 --partitions 16

The log has the shape of Taobao's (benchmarks/taobao.py), with ids of text and a file for each stretch of time, as logs
come. Each way is a process of its own. `--ray` adds a Ray of this machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks import taobao
from benchmarks.measure import GIB, OwnPeak, show, step
from deepinterest.config import Engine, EventColumns, EventFileConfig, LeaveLastOutConfig
from deepinterest.data import store

FILES = 16
COLUMNS = EventColumns(category="category")


def generate(folder: Path, events: int) -> None:
    """Write FILES parquet files, one after the other in time."""
    folder.mkdir(parents=True)
    whole = folder / "whole"
    taobao.generate(whole, events)
    log = pl.read_parquet(whole).sort("timestamp").with_columns(
        pl.format("user-{}", "user").alias("user"), pl.format("item-{}", "item").alias("item")
    )  # fmt: skip
    whole.unlink()
    rows = -(-log.height // FILES)
    for number in range(FILES):
        log.slice(number * rows, rows).write_parquet(folder / f"part-{number:03}.parquet")


def prepare(log: Path, cache: Path, partitions: int, engine: str) -> dict[str, Any]:
    """Seconds and GiB of reading, of all, and the folder. What Ray's processes hold isn't counted."""
    begin, peak, told = time.perf_counter(), OwnPeak(), {}

    def stage(name: str) -> None:
        if name == "splitting":
            told["reading"], told["reading_gib"] = time.perf_counter() - begin, peak.look() / GIB

    data = EventFileConfig(path=str(log / "*.parquet"), columns=COLUMNS, partitions=partitions, engine=Engine(engine))
    folder = store.prepare(data, LeaveLastOutConfig(), str(cache), stage)
    return {**told, "all": time.perf_counter() - begin, "gib": peak.look() / GIB, "folder": str(folder)}


def same(one: Path, other: Path) -> bool:
    """Whether two prepared folders hold the same files."""
    return (one / "checksums.json").read_bytes() == (other / "checksums.json").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.partitions", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--partitions", type=int, default=16)
    parser.add_argument("--ray", action="store_true", help="also on a Ray of this machine")
    parser.add_argument("--step", nargs=4, metavar=("LOG", "CACHE", "PARTITIONS", "ENGINE"), help="one way, as JSON")
    given = parser.parse_args()
    if given.step:
        log, cache, partitions, engine = given.step
        print(json.dumps(prepare(Path(log), Path(cache), int(partitions), engine)))
        return
    ways = [(1, "local"), (given.partitions, "local"), *([(given.partitions, "ray")] if given.ray else [])]
    with tempfile.TemporaryDirectory(prefix="partitions-") as name:
        folder = Path(name)
        generate(folder / "log", given.events)
        found, rows = [], []
        for number, (partitions, engine) in enumerate(ways):
            words = [str(folder / "log"), str(folder / f"cache-{number}"), str(partitions), engine]
            found.append(step("benchmarks.partitions", ["--step", *words]))
            told = found[-1]
            equal = same(Path(found[0]["folder"]), Path(told["folder"]))
            numbers = [f"{told[key]:.2f}" for key in ("reading", "reading_gib", "all", "gib")]
            rows.append([f"{partitions} {engine}", *numbers, "yes" if equal else "NO"])
    columns = ("partitions", "reading s", "reading GiB", "all s", "GiB", "same files")
    show(f"{given.events:,} events in {FILES} files", columns, rows)


if __name__ == "__main__":
    main()
