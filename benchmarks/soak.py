"""Train, kill, resume, evaluate, again and again on two processes: `python -m benchmarks.soak --minutes 120`.

One run of DIEN on synthetic data goes on and on. Each cycle starts `run.py resume=…`, lets it train for a while, kills
one of its processes by SIGKILL (the first, the second, in turns), waits until all of them have ended, and evaluates
what was saved. Measured are what a leak would make grow: memory and open files of the training processes, processes
left behind, files in the run's folder, in the folder of temporary files, in /tmp and in /dev/shm. It prints a line a
cycle and then a table with the growth, and exits with 1 where something grows.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path

from deepinterest.config import of_host

ROOT = Path(__file__).parents[1]
MARK = "DEEPINTEREST_SOAK"  # environment: tells the processes of this soak from others
SHARED = (Path("/dev/shm"), Path("/tmp"))
MIB = 2**20
SETTINGS = (
    "data=synthetic", "data.users=3000", "protocol=leave_last_out", "model=dien", "trainer=ddp_cpu",
    "trainer.batch_size=128", "trainer.threads=1", "trainer.max_epochs=1000000", "trainer.patience=null",
    "trainer.checkpoint_minutes=0.05", "trainer.validate_every=100", "logger=none",
)  # fmt: skip


@dataclass
class Limit:
    """What may grow over all cycles together: a share of the level, or so many."""

    unit: str
    share: float = 0.0
    count: float = 0.0


# Memory moves by a few percent from start to start. Of all else nothing may be added, but a file that is just open.
LIMITS = {
    "memory": Limit("MiB", share=0.05),  # own memory of the larger process when it is killed
    "memory_gain": Limit("MiB", share=0.05),  # of it, from the middle of its life to the end; held against `memory`
    "open_files": Limit("", count=2),
    "threads": Limit("", count=2),
    "left_behind": Limit(""),  # processes that run on after the kill
    "run_files": Limit("", count=1),  # hidden ones included
    "temporary": Limit(""),  # of the folder of temporary files
    "shared": Limit(""),  # new ones of /dev/shm and /tmp that no other process holds
}


@dataclass
class Cycle:
    """What one cycle ended with."""

    number: int
    killed: str
    steps: int  # of the run, as saved
    auc: float  # of the test rows
    seconds: float
    measured: dict[str, float] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------ measuring


def own_memory(process: int) -> float:
    """MiB that no other process and no file holds; 0 where the process has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def open_files(process: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return 0


def threads(process: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/task"))
    except OSError:
        return 0


def marked(mark: str) -> list[int]:
    """The processes that run with this mark in their environment, oldest first."""
    found, sign = [], f"{MARK}={mark}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if stat[0] != "Z" and sign in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((int(stat[19]), int(entry.name)))
            except OSError:  # another user's, or just gone
                continue
    return [process for _, process in sorted(found)]


def held_by_others(ours: set[int]) -> set[str]:
    """Paths that other processes have open."""
    paths = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in ours:
            try:
                paths |= {os.readlink(file) for file in (entry / "fd").iterdir()}
            except OSError:
                continue
    return paths


def new_files(before: set[Path]) -> set[Path]:
    """Of /dev/shm and /tmp, apart from those before and from those that others hold."""
    held = held_by_others(set())
    return {
        path
        for path in _shared() - before
        if not any(name == str(path) or name.startswith(f"{path}/") for name in held)
    }


def _shared() -> set[Path]:
    return {path for folder in SHARED if folder.is_dir() for path in folder.iterdir()}


def count(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*")) if folder.is_dir() else 0


# -------------------------------------------------------------------------------------------------------------- verdict


def slope(values: Sequence[float]) -> float:
    """Growth from one value to the next: the median over all pairs, so that a stray one doesn't count."""
    pairs = [(b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2)]
    return statistics.median(pairs) if pairs else 0.0


@dataclass
class Growth:
    name: str
    first: float
    last: float
    each: float  # cycle
    total: float
    allowed: float

    @property
    def fine(self) -> bool:
        return self.total <= self.allowed


def growth(cycles: Sequence[Cycle]) -> list[Growth]:
    """Of each measure, from the second cycle on: the first fills the cache of prepared data and makes the folders.

    A measure that must stay where it is counts by its last value too, so that a late leak isn't outvoted.
    """
    settled = cycles[1:] if len(cycles) > 1 else cycles
    level = statistics.median(cycle.measured["memory"] for cycle in settled)
    found = []
    for name, limit in LIMITS.items():
        values = [cycle.measured[name] for cycle in settled]
        each = slope(values)
        total = each * (len(values) - 1)
        if name == "memory_gain":  # is itself a growth
            total = statistics.median(values)
        elif not limit.share:
            total = max(total, values[-1] - values[0])
        if name == "left_behind":
            total = max(values)
        found.append(Growth(name, values[0], values[-1], each, total, limit.share * level + limit.count))
    return found


def report(cycles: Sequence[Cycle]) -> str:
    """A table for docs/scale.md and the verdict."""
    lines = ["| measure | first | last | growth a cycle | growth in all | allowed |", "|---|---:|---:|---:|---:|---:|"]
    found = growth(cycles)
    for one in found:
        unit = LIMITS[one.name].unit
        name = f"{one.name.replace('_', ' ')}{f', {unit}' if unit else ''}"
        lines.append(
            f"| {name} | {one.first:.1f} | {one.last:.1f} | {one.each:+.3f} | {one.total:+.1f} | {one.allowed:.1f} |"
        )
    grown = [one.name.replace("_", " ") for one in found if not one.fine]
    minutes = sum(cycle.seconds for cycle in cycles) / 60
    verdict = f"growth of {', '.join(grown)}" if grown else "no growth"
    lines += ["", f"verdict: {verdict} in {len(cycles)} cycles, {minutes:.0f} minutes and {cycles[-1].steps:,} steps"]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------- cycles


class Soak:
    """Args:
    folder: for the run, its evaluation, the prepared data and temporary files.
    seconds: that the run trains before it is killed, from its first new checkpoint on.
    """

    def __init__(self, folder: Path, seconds: float, overrides: Sequence[str] = (), seed: int = 1) -> None:
        self.folder, self.seconds, self.overrides = folder, seconds, [*SETTINGS, *overrides]
        self.run, self.evaluation, self.temporary = folder / "run", folder / "test", folder / "temporary"
        self.temporary.mkdir(parents=True, exist_ok=True)
        self.mark, self.random = uuid.uuid4().hex, random.Random(seed)
        self.before = _shared()
        keep = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
        self.environment = {
            **keep, MARK: self.mark, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
        }  # fmt: skip

    def cycles(self) -> Iterator[Cycle]:
        number = 0
        while True:
            number += 1
            begin = time.perf_counter()
            measured, killed = self._train(number)
            auc = self._evaluate()
            for name, value in (
                ("run_files", count(self.run)),
                ("temporary", count(self.temporary)),
                ("shared", len(new_files(self.before))),
            ):
                measured[name] = float(value)
            yield Cycle(number, killed, self._saved(), auc, time.perf_counter() - begin, measured)

    def _train(self, number: int) -> tuple[dict[str, float], str]:
        """Go on with the run, watch it, kill one of its processes, and wait for the end of the others."""
        last = self.run / "last.ckpt"
        common = self._common()
        host = [word for word in common if of_host(word.partition("=")[0])]
        words = (
            [f"resume={self.run}", *host]
            if last.is_file()
            else [*common, "overwrite=true", f"hydra.run.dir={self.run}"]
        )
        began = self._saved()
        log = (self.folder / "train.log").open("w")
        with log:
            process = self._start(words, log)
            while self._saved() <= began:  # it trains, and saves
                self._refuse_end(process, "train.log")
                time.sleep(0.2)
            memory: list[tuple[float, ...]] = []
            until = time.monotonic() + self.seconds + self.random.uniform(0, 3)  # at any moment, also while it saves
            while time.monotonic() < until:
                self._refuse_end(process, "train.log")
                memory.append(tuple(own_memory(one) for one in self._ranks(process)))
                time.sleep(0.5)
            ranks = self._ranks(process)
            opened, tasks = max(map(open_files, ranks)), max(map(threads, ranks))
            which = (number - 1) % len(ranks)
            os.kill(ranks[which], signal.SIGKILL)
            left = self._after_kill(process)
        highest = [max(row, default=0.0) for row in memory]
        half = len(highest) // 2
        settled, end = highest[half : half + max(1, half // 4)], highest[-max(1, half // 4) :]
        return {
            "memory": statistics.median(end),
            "memory_gain": statistics.median(end) - statistics.median(settled),
            "open_files": float(opened),
            "threads": float(tasks),
            "left_behind": float(left),
        }, f"process {which} of {len(ranks)}"

    def _evaluate(self) -> float:
        """The AUC of the test rows by the last checkpoint, on two processes."""
        words = [
            "task=test",
            f"checkpoint={self.run / 'last.ckpt'}",
            *self._common(),
            f"hydra.run.dir={self.evaluation}",
            "overwrite=true",
        ]
        with (self.folder / "test.log").open("w") as log:
            code = self._start([word for word in words if not word.startswith("model=")], log).wait()
        if code:
            raise SystemExit(f"evaluating failed with {code}:\n{(self.folder / 'test.log').read_text()[-3000:]}")
        metrics = json.loads((self.evaluation / "metrics.json").read_text())
        return float(metrics["test/auc"])

    def _common(self) -> list[str]:
        return [*self.overrides, f"paths.cache={self.folder / 'cache'}", f"paths.output={self.folder / 'outputs'}"]

    def _start(self, words: list[str], log: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "run.py"), *words]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)  # type: ignore[call-overload]

    def _ranks(self, process: subprocess.Popen[bytes]) -> list[int]:
        return [process.pid, *(one for one in marked(self.mark) if one != process.pid)]

    def _refuse_end(self, process: subprocess.Popen[bytes], log: str) -> None:
        if process.poll() is not None:
            raise SystemExit(f"training ended by itself:\n{(self.folder / log).read_text()[-3000:]}")

    def _after_kill(self, process: subprocess.Popen[bytes], patience: float = 60) -> int:
        """How many processes run on after so many seconds; they are ended then."""
        end = time.monotonic() + patience
        while time.monotonic() < end and (process.poll() is None or marked(self.mark)):
            time.sleep(0.2)
        left = marked(self.mark)
        for one in left:
            os.kill(one, signal.SIGKILL)
        process.wait()
        return len(left)

    def _saved(self) -> int:
        """The step of the last checkpoint."""
        import torch

        last = self.run / "last.ckpt"
        return int(torch.load(last, weights_only=True, mmap=True)["global_step"]) if last.is_file() else 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=120, help="it ends with the first cycle after so many")
    parser.add_argument("--cycles", type=int, help="at most so many cycles")
    parser.add_argument("--seconds", type=float, default=60, help="of training in each cycle")
    parser.add_argument("--folder", type=Path, help="kept at the end; without it all lies in a temporary folder")
    parser.add_argument("overrides", nargs="*", help="further settings of the run")
    given = parser.parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        raise SystemExit("memory and open files are read from /proc, which this system doesn't have")
    own = None if given.folder else tempfile.TemporaryDirectory(prefix="soak-")
    folder = (given.folder or Path(own.name if own else "")).resolve()
    soak, cycles, begin = Soak(folder, given.seconds, given.overrides), [], time.monotonic()
    try:
        for cycle in soak.cycles():
            cycles.append(cycle)
            numbers = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in cycle.measured.items())
            print(f"cycle {cycle.number}: killed {cycle.killed}, {cycle.steps:,} steps, test auc {cycle.auc:.4f}, "
                  f"{numbers}, {cycle.seconds:.0f} s", flush=True)  # fmt: skip
            (folder / "soak.json").write_text(json.dumps([asdict(one) for one in cycles], indent=1))
            if time.monotonic() - begin > 60 * given.minutes or cycle.number == given.cycles:
                break
    except KeyboardInterrupt:
        print("stopped")
    finally:
        for process in marked(soak.mark):
            os.kill(process, signal.SIGKILL)
        if own:
            own.cleanup()
    if not cycles:
        return 1
    print(report(cycles))
    return int(not all(one.fine for one in growth(cycles)))


if __name__ == "__main__":
    sys.exit(main())
