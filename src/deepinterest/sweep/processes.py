"""Processes of a run: one that takes several devices gets its own inside a sweep, and none outlives its parent.

Lightning starts a run's further processes by repeating the command line. In a sweep that is the whole sweep, and in a
launcher's worker it isn't ours at all. So such a job of a sweep runs as `python -m deepinterest.sweep.processes FILE`:
FILE holds its settings as plain values, and repeating that command is right for every process of it.
"""

from __future__ import annotations

from deepinterest import ctrl_c

if __name__ == "__main__":  # before anything slow is imported
    ctrl_c.quit_at_once()

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from deepinterest.config import ExperimentConfig
from deepinterest.errors import Interrupted, UserError, sentence
from deepinterest.folders import metrics_of
from deepinterest.settings import restored
from deepinterest.training import naming

log = logging.getLogger(__name__)
PARENT = "DEEPINTEREST_PARENT"  # environment: the process whose end is ours too
EVERY = 0.5  # seconds between two looks at it


def follow_parent() -> None:
    """End this process when the one that started it has ended, however that came about; then lead those to come."""
    parent = os.environ.get(PARENT, "")
    if parent.isdigit() and int(parent) != os.getpid():
        threading.Thread(target=_watch, args=(int(parent),), daemon=True, name="parent").start()


def lead() -> None:
    """Let processes that this one starts end with it."""
    os.environ[PARENT] = str(os.getpid())


def _watch(parent: int) -> None:
    while alive(parent):
        time.sleep(EVERY)
    os._exit(1)  # not sys.exit: the main thread may wait for a process that is gone


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for its exit code yet doesn't."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    except OSError:  # no /proc here, or gone between the two lines
        return not Path("/proc/self").exists()


def own_process(config: ExperimentConfig) -> bool:
    """Whether a sweep's job may start processes itself, and so needs one of its own."""
    outside = "TORCHELASTIC_RUN_ID" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return str(config.trainer.devices) != "1" and not outside


def run_alone(settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """Run a job in a process of its own; raises UserError with what went wrong there."""
    folder.mkdir(parents=True, exist_ok=True)
    job, failure = folder / ".hydra" / "job.json", folder / ".hydra" / "error.txt"
    job.parent.mkdir(exist_ok=True)
    failure.unlink(missing_ok=True)
    job.write_text(json.dumps(settings, indent=1))
    scheduler = ("SLURM_", "SUBMITIT_")  # a task of one: its processes are Lightning's, not the scheduler's
    ranks = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PL_GLOBAL_SEED")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(scheduler) and name not in ranks
    }
    command = [sys.executable, "-m", "deepinterest.sweep.processes", str(job)]
    config = restored(settings)
    # Told here: our command line says it, that process has none.
    told = {naming.NAME: naming.run_name(config), naming.GROUP: naming.group_of(config), naming.JOB: str(folder)}
    process = subprocess.Popen(command, env={**environment, **told, PARENT: str(os.getpid())})
    try:
        code = process.wait()
    except (KeyboardInterrupt, Interrupted):  # the terminal has told that process too; it saves
        process.wait()
        code = 128 + signal.SIGINT
    if code > 128:
        raise Interrupted(failure.read_text(encoding="utf-8") if failure.is_file() else "", code - 128)
    if failure.is_file():
        raise UserError(failure.read_text(encoding="utf-8"))
    if code:
        ended = f"by signal {-code}" if code < 0 else f"with code {code}"
        raise UserError(f"the processes of this job ended {ended}; what they said is above and in {folder / 'run.log'}")
    return metrics_of(folder) or {}


def main(path: Path) -> int:
    """Run the job that a file describes, as one of its processes; the exit code is 1 where it failed."""
    follow_parent()
    lead()
    rank = os.environ.get("LOCAL_RANK", "0")
    settings = json.loads(path.read_text())
    folder = Path(settings["paths"]["run"])
    name = "run.log" if rank == "0" else f"run_process_{rank}.log"
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s][%(name)s][%(levelname)s] - %(message)s",
                        filename=folder / name)  # fmt: skip
    if rank == "0":
        console = logging.StreamHandler()
        console.setFormatter(logging.Formatter("%(message)s"))
        logging.getLogger().addHandler(console)
    try:
        config = restored(settings)
        from deepinterest.experiment import run

        ctrl_c.clean_up_first()
        run(config, settings)
        return 0
    except Interrupted as error:
        (path.parent / "error.txt").write_text(str(error), encoding="utf-8")
        return 128 + error.number
    except Exception as error:
        text = sentence(error)
        log.error("%s", text or f"{type(error).__name__}: {error}", exc_info=None if text else error)
        if rank == "0":
            last = traceback.format_exception_only(error)[-1].strip()
            (path.parent / "error.txt").write_text(
                text or f"{last} (the traceback is in {folder / name})", encoding="utf-8"
            )
        return 1


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code) if code else sys.exit(0)  # a failed process may still wait for others inside the exit handlers
