"""How far a sweep is, told from what its jobs write: so it is the same for every launcher."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.progress import Progress

from deepinterest.folders import MARK, metrics_of
from deepinterest.report import terminal

if TYPE_CHECKING:
    from deepinterest.sweep.jobs import Job

EVERY = 0.5  # seconds between two looks at the folders


class Watch:
    """While it is entered: a line for each job that begins, a bar on a terminal, and each data set's card once.

    Args:
        folder: of the sweep.
        jobs: that run now.
        total: number of the sweep's jobs.
        common: words of the command that all jobs share; left out.
        cards: which cards were shown; added to. None shows no cards: jobs of other tasks than train and test do.
    """

    def __init__(
        self, folder: Path, jobs: Sequence[Job], total: int, common: Sequence[str], cards: set[str] | None
    ) -> None:
        self.folder, self.total, self.cards = folder, total, cards
        self.words = {job.number: " ".join(word for word in job.overrides if word not in common) for job in jobs}
        self.waiting = {job.number: self._begun(job.number) for job in jobs}
        self.running: list[int] = []
        self.done = sum(metrics_of(folder / str(number)) is not None for number in range(total))
        self.console = terminal.progress()
        self.bar = Progress(
            console=self.console,
            transient=True,
            disable=not sys.stderr.isatty(),
            redirect_stdout=sys.stdout.isatty(),
        )
        self.task = self.bar.add_task("jobs", total=total, completed=self.done)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="sweep")

    def __enter__(self) -> Watch:
        self.bar.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self.look()
        self.bar.stop()

    def look(self) -> None:
        """Tell what happened since the last look."""
        for number, before in list(self.waiting.items()):
            if self._begun(number) != before:
                del self.waiting[number]
                self.running.append(number)
                line = f"job {number + 1} of {self.total}, in {self.folder / str(number)}: {self.words[number]}"
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        for number in list(self.running):
            if self.cards is not None:
                self._show_card(number)
            if metrics_of(self.folder / str(number)) is not None:
                self.running.remove(number)
                self.done += 1
        last = max(self.running, default=self.done - 1) + 1
        self.bar.update(self.task, completed=self.done, description=f"job {last} of {self.total}")

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.look()

    def _begun(self, number: int) -> int:
        """When the job last began, in nanoseconds; 0 if it never did."""
        mark = self.folder / str(number) / MARK
        return mark.stat().st_mtime_ns if mark.exists() else 0

    def _show_card(self, number: int) -> None:
        path = self.folder / str(number) / "data_card.json"
        if not path.exists() or self.cards is None:
            return
        card = json.loads(path.read_text())
        if (key := f"{card.get('source')} {card.get('split_hash')}") not in self.cards:
            self.cards.add(key)
            terminal.results().print(terminal.card_table(card))
