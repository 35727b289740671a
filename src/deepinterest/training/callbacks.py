"""What a run watches of itself: its curves and its speed."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from deepinterest.data.batch import Batch


def logged(trainer: L.Trainer) -> bool:
    """Whether the step just taken is one whose figures are logged."""
    return trainer.global_step == 1 or trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]


class Curves(Callback):
    """Keeps every logged training and validation figure with its step, for plots that need no logger."""

    def __init__(self) -> None:
        self.points: dict[str, list[tuple[int, float]]] = {}

    def state_dict(self) -> dict[str, Any]:
        return {name: [list(point) for point in points] for name, points in self.points.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = {
            name: [(int(step), float(value)) for step, value in points] for name, points in state_dict.items()
        }

    def _keep(self, trainer: L.Trainer, prefix: str) -> None:
        for name, value in trainer.callback_metrics.items():
            points = self.points.setdefault(name, [])
            if name.startswith(prefix) and (not points or points[-1][0] != trainer.global_step):
                points.append((trainer.global_step, float(value)))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if logged(trainer):
            self._keep(trainer, "train/")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:  # not the last validation, of the best checkpoint
            self._keep(trainer, "val/")


class Throughput(Callback):
    """Rows trained and the seconds of it, validation left out; the logger gets the speed since it was told last.

    A run that goes on counts on; `before` are the seconds that all of it had taken when it was saved.
    """

    def __init__(self) -> None:
        self.rows, self.seconds, self._since = 0, 0.0, 0.0
        self.before, self._training, self._begin = 0.0, False, time.perf_counter()
        self._told, self._silent = (0, 0.0), True  # rows and seconds when the logger was told; not since a validation

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "seconds": self.so_far, "before": self.before + time.perf_counter() - self._begin}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = int(state_dict["rows"])
        self.seconds, self.before = float(state_dict["seconds"]), float(state_dict["before"])
        self._told = self.rows, self.seconds

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since, self._training = time.perf_counter(), True

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Batch, batch_index: int
    ) -> None:
        self.rows += len(batch) * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._tell(trainer)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return  # a validation of its own, not one within training
        if self._silent:
            self._tell(trainer)
        self._silent = True
        self._stop()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since, self._training = time.perf_counter(), trainer.state.fn == TrainerFn.FITTING

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._stop()

    def _tell(self, trainer: L.Trainer) -> None:
        now, (rows, seconds) = self.so_far, self._told
        if trainer.logger and now > seconds:
            speed = (self.rows - rows) / (now - seconds)
            trainer.logger.log_metrics({"train/samples_per_s": speed}, trainer.global_step - 1)  # as Lightning counts
        self._told, self._silent = (self.rows, now), False

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self._since
        self._since, self._training = time.perf_counter(), False

    @property
    def so_far(self) -> float:
        """Seconds of training, those since the last validation too."""
        return self.seconds + (time.perf_counter() - self._since if self._training else 0)

    @property
    def samples_per_second(self) -> float:
        return self.rows / self.seconds if self.seconds else 0.0
