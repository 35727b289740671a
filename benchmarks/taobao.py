"""A log of Taobao's size, made up, then prepared and read: seconds and memory.

    python -m benchmarks.taobao --events 5_000_000 --folder /tmp/taobao

Of the shape of Taobao are: events a user (mean 100, lognormal), items (4 for 100 events), 9,439 categories, a power law
of items and of categories, nine days of whole seconds with quiet nights. Users have no taste and no sessions: the file
serves for speed, not for quality. A smaller log has fewer users and items in proportion, so figures grow linearly.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measure import GIB, OwnPeak, Stages, memory, show, since_start, step

CATEGORIES = 9_439
EVENTS_PER_USER, EVENTS_PER_ITEM = 100, 25
DAY, DAYS, FIRST = 86_400, 9, 1_511_539_200  # seconds; 2017-11-25 in China
SPREAD = 0.8  # of the logarithm of a user's events
LONGEST = 1_000  # events of a user
HOURS = np.array([5, 3, 2, 1, 1, 1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 9, 10, 9, 7], dtype=np.float64)
CHUNK = 20_000  # users at a time
ROWS = 1_024  # of a batch


# ------------------------------------------------------------------------------------------------------------ generator


def power_law(rng: np.random.Generator, size: int, values: int, exponent: float, flat: float) -> np.ndarray:
    """(size,) int64 ranks from 0 below `values`, with chances about (rank + flat) ** -exponent; exponent is not 1."""
    power = 1 - exponent
    low, high = flat**power, (values + flat) ** power
    return np.minimum(((low + rng.random(size) * (high - low)) ** (1 / power) - flat).astype(np.int64), values - 1)


def lengths(rng: np.random.Generator, users: int, events: int) -> np.ndarray:
    """(users,) int64 events of each, `events` together."""
    drawn = rng.lognormal(0.0, SPREAD, users)
    drawn = np.clip(drawn * events / drawn.sum(), 1, LONGEST).astype(np.int64)
    missing = events - int(drawn.sum())
    return drawn + np.bincount(rng.integers(users, size=max(0, missing)), minlength=users)


def generate(path: Path, events: int, seed: int = 0) -> None:
    """Write a parquet file of the columns user, item, category and timestamp (seconds), one user after the other."""
    rng = np.random.default_rng(seed)
    users, items = max(10, events // EVENTS_PER_USER), max(50, events // EVENTS_PER_ITEM)
    length = lengths(rng, users, events)
    name_of_user = rng.permutation(users).astype(np.int32)
    name_of_item = rng.permutation(items).astype(np.int32)
    category = power_law(rng, items, min(CATEGORIES, items), 0.9, 10).astype(np.int32)
    schema = pa.schema(
        [("user", pa.int32()), ("item", pa.int32()), ("category", pa.int32()), ("timestamp", pa.int32())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for begin in range(0, users, CHUNK):
            user = np.repeat(name_of_user[begin : begin + CHUNK], length[begin : begin + CHUNK])
            item = power_law(rng, len(user), items, 0.8, 20)
            day = rng.integers(DAYS, size=len(user))
            hour = np.searchsorted(np.cumsum(HOURS / HOURS.sum())[:-1], rng.random(len(user)), side="right")
            time_ = FIRST + day * DAY + hour * 3_600 + rng.integers(3_600, size=len(user))
            columns = (user, name_of_item[item], category[item], time_.astype(np.int32))
            writer.write_table(pa.table(list(columns), schema=schema))


# ---------------------------------------------------------------------------------------------------------------- steps


def overrides(path: Path, cache: Path) -> list[str]:
    """The settings of a run on the log: all else has its defaults."""
    return [
        "data=events",
        f"data.path={path}",
        "data.columns.category=category",
        "protocol=leave_last_out",
        "model=din",
        f"trainer.batch_size={ROWS}",
        "trainer=cpu",
        "trainer.threads=1",
        "logger=none",
        f"paths.cache={cache}",
        f"paths.run={cache / 'run'}",
    ]


def _config(path: Path, cache: Path) -> Any:
    from hydra import compose, initialize_config_dir

    from benchmarks.measure import ROOT
    from deepinterest.settings import register, typed

    register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose("config", overrides(path, cache)))


def prepare(path: Path, cache: Path) -> dict[str, Any]:
    from deepinterest.data import store

    config, stages = _config(path, cache), Stages()
    begin = time.perf_counter()
    folder = store.prepare(config.data, config.protocol, config.paths.cache, stages)
    seconds = time.perf_counter() - begin
    size = sum(file.stat().st_size for file in folder.iterdir())
    return {
        "prepare": seconds,
        **stages.finish(),
        "bytes": size,
        "card": json.loads((folder / "card.json").read_text()),
    }


def _data(config: Any) -> Any:
    from deepinterest.data.datamodule import InteractionData

    return InteractionData(
        config.data,
        config.protocol,
        batch_size=config.trainer.batch_size,
        eval_batch_size=config.trainer.eval_batch_size,
        seed=config.seed,
        cache=config.paths.cache,
    )


def load(path: Path, cache: Path, rounds: int = 5, batches: int = 400) -> dict[str, Any]:
    """Rows a second of each round; a short split starts its next epoch within a round."""
    import torch

    torch.set_num_threads(1)
    loader = _data(_config(path, cache)).train_dataloader()
    iterator = iter(loader)
    speed, begin_cpu, served = [], time.process_time(), 0
    for _ in range(rounds):
        begin, rows = time.perf_counter(), 0
        for _ in range(batches):
            batch = next(iterator, None)
            if batch is None:
                iterator = iter(loader)
                batch = next(iterator)
            rows += len(batch)
        speed.append(rows / (time.perf_counter() - begin))
        served += rows
    cpu = served / (time.process_time() - begin_cpu)
    return {"rows_per_s": speed, "rows_per_cpu_s": cpu, "batches": len(loader), "peak": memory("VmHWM")}


def start(path: Path, cache: Path) -> dict[str, Any]:
    """What a run does until its first training batch, then until its model stands."""
    own = OwnPeak()
    config = _config(path, cache)
    from deepinterest import experiment

    data = _data(config)
    data.prepare_data()
    next(iter(data.train_dataloader()))
    first = {
        "first_batch": since_start(),
        "cpu": time.process_time(),
        "peak": memory("VmHWM"),
        "own_peak": own.look(),
    }
    model = experiment._model(config, data.store)
    parameters = sum(weight.numel() for weight in model.parameters())
    return first | {
        "model": since_start(),
        "model_peak": memory("VmHWM"),
        "model_own_peak": own.look(),
        "parameters": parameters,
    }


STEPS = {"prepare": prepare, "load": load, "start": start}


def measure(folder: Path, events: int, seed: int, limit: float | None) -> dict[str, Any]:
    """Generate (unless the file is there), prepare, read and start; the results as plain values."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"taobao-{events}-{seed}.parquet"
    if not path.exists():
        beside = path.with_suffix(".part")
        generate(beside, events, seed)
        beside.rename(path)
    arguments = ["--folder", str(folder), "--events", str(events), "--seed", str(seed), "--step"]
    return {"events": events, "file": path.stat().st_size} | {
        name: step("benchmarks.taobao", [*arguments, name], limit) for name in STEPS
    }


def report(result: dict[str, Any]) -> None:
    prepared, loaded, started = result["prepare"], result["load"], result["start"]
    speed = sorted(loaded["rows_per_s"])
    rows = [
        ("prepare, seconds", f"{prepared['prepare']:,.0f}"),
        ("prepare, CPU seconds", f"{sum(s['cpu'] for s in prepared['stages'].values()):,.0f}"),
        ("prepare, peak GiB", f"{prepared['peak'] / GIB:.2f}"),
        ("prepared, GiB on disk", f"{prepared['bytes'] / GIB:.2f}"),
        (
            f"loader, rows/s in batches of {ROWS:,}",
            f"{speed[len(speed) // 2]:,.0f} ({speed[0]:,.0f} to {speed[-1]:,.0f})",
        ),
        ("loader, rows per CPU second", f"{loaded['rows_per_cpu_s']:,.0f}"),
        ("first batch, seconds", f"{started['first_batch']:.1f}"),
        ("first batch, CPU seconds", f"{started['cpu']:.1f}"),
        ("first batch, peak GiB", f"{started['peak'] / GIB:.2f}"),
        ("first batch, peak GiB without mapped files", f"{started['own_peak'] / GIB:.2f}"),
        ("DIN built, seconds", f"{started['model']:.1f}"),
        ("DIN built, peak GiB", f"{started['model_peak'] / GIB:.2f}"),
        ("DIN built, peak GiB without mapped files", f"{started['model_own_peak'] / GIB:.2f}"),
    ]
    show(f"{result['events']:,} events", ("what", "value"), rows)
    stages = [
        (name, f"{s['seconds']:,.1f}", f"{s['cpu']:,.1f}", f"{s['peak'] / GIB:.2f}")
        for name, s in prepared["stages"].items()
    ]
    show("prepare by stage", ("stage", "seconds", "CPU seconds", "peak GiB"), stages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="for the log and the cache; a temporary one if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, help="GiB of memory at which a step is ended")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        path = options.folder / f"taobao-{options.events}-{options.seed}.parquet"
        print(json.dumps(STEPS[options.step](path, options.folder / "cache")))
        return
    with tempfile.TemporaryDirectory(prefix="taobao-") as temporary:
        result = measure((options.folder or Path(temporary)).resolve(), options.events, options.seed, options.limit)
    report(result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
