"""How far a run is: a line that moves on a terminal, elsewhere a line at each validation."""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from datetime import timedelta
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text
from torch import Tensor

from deepinterest.data.batch import Batch
from deepinterest.training.callbacks import Throughput

log = logging.getLogger(__name__)
RECENT = 50  # steps whose mean loss a line tells
EVERY = 0.5  # seconds between two looks at loss and speed; reading a loss makes a GPU wait
KEPT = 0.98  # of the running mean of the loss, at each step


class Left(ProgressColumn):
    """The time that is left, at the speed of the last half minute."""

    max_refresh = EVERY

    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        if task.finished or seconds is None:
            return Text("")
        minutes, seconds = divmod(int(seconds), 60)
        return Text(f"{minutes // 60}:{minutes % 60:02}:{seconds:02} left", style="progress.remaining")


class ProgressLine(Callback):
    """One line for the whole training, not one for each epoch: steps, loss, validation AUC, samples/s, time left.

    A second line comes and goes with each validation, and one is for the test. The loss is the running mean of what is
    trained on, the auxiliary loss included.
    """

    def __init__(self, title: str, monitor: str, speed: Throughput, console: Console | None = None) -> None:
        """monitor: which of the validation's figures is shown; console: standard error's by default."""
        self.title, self.monitor, self.speed = title, monitor, speed
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._loss: Tensor | None = None
        self._rate = 0.0  # samples/s
        self._seen, self._shown = (0, 0.0), 0.0  # rows and seconds of training when it was measured; when it was shown
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._seen = (self.speed.rows, self.speed.seconds)
        self._add(self.title, trainer.estimated_stepping_batches, trainer.global_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        loss = outputs["loss"].detach()
        self._loss = loss if self._loss is None else self._loss * KEPT + loss * (1 - KEPT)
        if time.perf_counter() - self._shown > EVERY:
            self._show(trainer)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._show(trainer)
        self._stop()

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._add("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, *_: Any) -> None:
        self._advance("validation")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return self._stop()
        if self._bar is not None:
            self._bar.remove_task(self._tasks.pop("validation"))
        self._show(trainer)

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._add("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, *_: Any) -> None:
        self._advance("test")

    def on_test_end(self, *_: Any) -> None:
        self._stop()

    def on_exception(self, *_: Any) -> None:
        self._stop()

    def _show(self, trainer: L.Trainer) -> None:
        if self._bar is None or self.title not in self._tasks:
            return
        self._shown, now, (rows, seconds) = time.perf_counter(), self.speed.so_far, self._seen
        if now - seconds > EVERY or not self._rate:
            self._rate = (self.speed.rows - rows) / max(now - seconds, 1e-9)
            self._seen = (self.speed.rows, now)
        words = [] if self._loss is None else [f"loss {float(self._loss):.4f}"]
        if self.monitor in trainer.callback_metrics:
            words.append(f"{self.monitor} {float(trainer.callback_metrics[self.monitor]):.4f}")
        words.append(f"{self._rate:,.0f} samples/s")
        self._bar.update(self._tasks[self.title], completed=trainer.global_step, figures=" ".join(words))

    def _add(self, name: str, total: float, completed: int = 0) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn())
            self._bar = Progress(
                *columns,
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
                Left(Column(no_wrap=True)),
                console=self.console,
                transient=True,
                expand=True,
                refresh_per_second=4,
                redirect_stdout=sys.stdout.isatty(),
            )
            self._bar.start()
            self._lead_logs(sys.__stdout__, sys.stdout)
            self._lead_logs(sys.__stderr__, sys.stderr)
        self._tasks[name] = self._bar.add_task(name, total=total, completed=completed, figures="")

    def _lead_logs(self, before: Any, now: Any) -> None:
        """Let handlers that write to a terminal write above the line: they hold the stream of their own start."""
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before and now is not before:
                self._handlers.append((handler, before))
                handler.setStream(now)

    def _advance(self, name: str) -> None:
        if self._bar is not None and name in self._tasks:
            self._bar.advance(self._tasks[name])

    def _stop(self) -> None:
        if self._bar is None:
            return
        self._bar.stop()
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._bar, self._tasks, self._handlers = None, {}, []


class ProgressLog(Callback):
    """For a file or a pipe, a line in the log at each validation: steps, loss, validation AUC, rows/s, time left."""

    def __init__(self, monitor: str, speed: Throughput) -> None:
        """monitor: which of the validation's figures is told."""
        self.monitor, self.speed = monitor, speed
        self._losses: deque[Tensor] = deque(maxlen=RECENT)
        self._seen = (0, 0.0)  # rows and seconds of training at the validation before
        self._begin = (0, 0.0)  # step and time when training began

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._seen = (self.speed.rows, self.speed.seconds)
        self._begin = (trainer.global_step, time.perf_counter())

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        self._losses.append(outputs["loss"].detach())

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or not self._losses:
            return
        (rows, seconds), (first, begin) = self._seen, self._begin
        self._seen = (self.speed.rows, self.speed.seconds)
        step, last = trainer.global_step, int(trainer.estimated_stepping_batches)
        left = (time.perf_counter() - begin) * (last - step) / (step - first)
        log.info(
            "step %s of %s: loss %.4f, %s %.4f, %s rows/s, %s left",
            *(f"{step:,}", f"{last:,}", float(torch.stack(list(self._losses)).mean())),
            *(self.monitor, float(trainer.callback_metrics[self.monitor])),
            *(f"{(self._seen[0] - rows) / max(self._seen[1] - seconds, 1e-9):,.0f}", timedelta(seconds=round(left))),
        )
