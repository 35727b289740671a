"""A process of a run that dies: the others say so, end, and leave what was saved."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from deepinterest.training import naming

LOOK = 0.2  # seconds between two looks at the others
GRACE = 2.0  # seconds in which the main thread may notice by itself
TELLING = ("gloo", "nccl", "connection closed by peer", "connection reset by peer", "broken pipe")


class LostProcess(Callback):
    """Watches the processes that this one started. Nobody waits for one that is gone: a collective never ends then.

    Lightning kills all others without a word some seconds later, also where they are just writing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.died = folder, ""
        self._others: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        started = getattr(trainer.strategy.launcher, "procs", [])
        if started and not self._others:
            self._others = list(started)
            for thread in threading.enumerate():
                if thread.name == "child-process-observer" and hasattr(thread, "_child_processes"):
                    thread._child_processes = []  # ours says what happened
            threading.Thread(target=self._watch, daemon=True, name="lost-process").start()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        end = time.monotonic() + GRACE
        while self._others and not self._look() and isinstance(exception, RuntimeError) and time.monotonic() < end:
            time.sleep(LOOK)
        self.end()  # the others end now because this one does

    def end(self) -> None:
        """Stop watching."""
        self._over.set()

    def said(self, error: RuntimeError) -> str | None:
        """What to tell the user of an error that comes from a lost process; None where it is another."""
        telling = any(word in str(error).lower() for word in TELLING)
        if not telling:
            return None
        reason = str(error).strip().splitlines()[0]
        return self._sentence(self.died or f"another process of this run is gone ({reason[:200]})")

    def _look(self) -> str:
        for number, process in enumerate(self._others, start=1):
            code = process.poll()
            if code and not self.died:
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with code {code}"
                self.died = f"process {number} of {len(self._others) + 1} ended {how}"
        return self.died

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            if self._look() and not self._over.wait(GRACE):
                print(f"error: {self._sentence(self.died)}", file=sys.stderr, flush=True)
                for process in self._others:
                    process.kill()
                os._exit(1)  # the main thread waits for one that is gone

    def _sentence(self, what: str) -> str:
        if (self.folder / "last.ckpt").is_file():
            again = f"the run goes on by: {naming.going_on(self.folder)}"
        else:
            again = "nothing was saved yet: start it again"
        return f"{what}; what it said stands above or in the logs of {self.folder}. Where memory is short the system " \
               f"ends processes by SIGKILL. {again[0].upper()}{again[1:]}"  # fmt: skip
