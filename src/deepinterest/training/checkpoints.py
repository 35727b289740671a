"""What a run saves of itself while it trains, and when: `best.ckpt` to use, `last.ckpt` to go on from."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from deepinterest.atomic import beside
from deepinterest.errors import Interrupted, UserError
from deepinterest.training.divergence import diverged, finite

ASK_EVERY = 50  # steps between two times that several processes agree on whether to save
IDENTITY = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a run's id in Weights & Biases
SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill meanwhile leaves the one before.

    Args:
        mapped: leave tensors on the disk when reading, for whoever takes only a part of each.
    """

    def __init__(self, mapped: bool = False) -> None:
        self.mapped = mapped

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, place: storage, weights_only: bool | None = True
    ) -> dict[str, Any]:
        if not self.mapped:
            return super().load_checkpoint(path, map_location, weights_only)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return state

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside(path) as own:
                torch.save(checkpoint, own)
        except RuntimeError as error:  # how torch's own writer says that the disk took no more
            if not any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "file write")):
                raise
            raise OSError(errno.ENOSPC, f"{path.name} could not be written whole: no room is left") from error


class Checkpoints(Checkpoint):
    """Saves `best.ckpt` at each validation with a better score, and `last.ckpt` at each validation and every so often.

    A run that goes on from `last.ckpt` continues as if never interrupted. Saving changes nothing in what follows. The
    state of training is whole in two moments: after a step that no validation follows, and after a validation. SIGTERM
    and Ctrl-C wait for the next one, save, and raise `Interrupted`; a second of them ends the process at once.

    Args:
        monitor: the figure whose highest value is the best.
        seconds: of training after which `last.ckpt` is written anew; None leaves it to validations.
        command: how a user goes on with the run; told when a signal ends it.
        logger: the logger's name of the run, kept for one that goes on.
    """

    def __init__(
        self, folder: Path, monitor: str, seconds: float | None, command: str, logger: str | None = None
    ) -> None:
        self.folder, self.monitor, self.seconds, self.command = folder, monitor, seconds, command
        self.logger = logger
        self.best: float | None = None
        self._saved = 0.0
        self._received: int | None = None
        self._handlers: dict[int, Any] = {}
        self._random: dict[str, Any] = {}

    # ----------------------------------------------------------------------------------------------------------- saving

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            return
        score = float(trainer.callback_metrics[self.monitor])
        self._refuse(trainer)
        if self.best is None or score > self.best:
            self.best = score if score == score else float("-inf")  # where there is no AUC, any one is better
            trainer.save_checkpoint(self.folder / "best.ckpt")
            if trainer.is_global_zero:
                copy(self.folder / "best.ckpt", self.folder / "last.ckpt")
            self._saved = time.monotonic()
        else:
            self._save_last(trainer)
        if self._agreed(trainer, self._received is not None):
            self._stop(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        wanted = self._received is not None
        due = wanted or (self.seconds is not None and time.monotonic() - self._saved > self.seconds)
        if trainer.world_size > 1:
            if trainer.global_step % ASK_EVERY:
                return
            wanted, due = self._agreed(trainer, wanted), self._agreed(trainer, due)
        if not due:
            return
        loop = trainer.fit_loop.epoch_loop
        # The last step of an epoch is told apart from the end of the epoch by Lightning alone: the next one will do.
        if loop.batch_progress.is_last_batch or loop._should_check_val_fx(trainer.fit_loop._data_fetcher):  # type: ignore[arg-type]
            return
        self._refuse(trainer)
        self._save_last(trainer)
        if wanted:
            self._stop(trainer)

    def _refuse(self, trainer: L.Trainer) -> None:
        """Raise a UserError where the folder is gone, or where weights are no numbers: good ones would be lost."""
        if self._agreed(trainer, not self.folder.is_dir()):
            raise UserError(
                f"The run folder {self.folder} was deleted while the run trained, so there is no place to save it: "
                "start the run again"
            )
        if self._agreed(trainer, not finite(trainer.lightning_module)):
            raise diverged("Some weights are no numbers", trainer.lightning_module)

    def _save_last(self, trainer: L.Trainer) -> None:
        trainer.save_checkpoint(self.folder / "last.ckpt")
        self._saved = time.monotonic()

    @staticmethod
    def _agreed(trainer: L.Trainer, wanted: bool) -> bool:
        """Whether any process wants it; each must ask at the same moment."""
        if trainer.world_size == 1:
            return wanted
        return trainer.strategy.reduce_boolean_decision(wanted, all=False)

    def state_dict(self) -> dict[str, Any]:
        random: dict[str, Any] = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        return {"best": self.best, "random": random, "logger": self.logger}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # In a new folder there may be no best checkpoint: then the best is chosen among those to come.
        self.best = state_dict["best"] if (self.folder / "best.ckpt").is_file() else None
        self._random = state_dict["random"]

    @contextmanager
    def taking_over(self, start: Path | None) -> Iterator[None]:
        """Around `fit` from the checkpoint `start`: a state that can't be taken over becomes a sentence."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of whatever reads a part of the state
            if start is None or self._saved:
                raise
            raise UserError(
                f"{start} can't be gone on from ({type(error).__name__}: {str(error).strip()[:300]}): what it holds of "
                "training isn't this run's. Take another checkpoint of it, or start the run again"
            ) from error

    # ---------------------------------------------------------------------------------------------------------- signals

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self._random:
            torch.set_rng_state(self._random["cpu"].cpu())
            if "cuda" in self._random and torch.cuda.is_available():
                torch.cuda.set_rng_state(self._random["cuda"].cpu())
            self._random = {}
        self._saved = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}

    def _receive(self, number: int, frame: Any) -> None:
        self._received = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._give_back()
        if self._agreed(trainer, self._received is not None):
            self._stop(trainer)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _stop(self, trainer: L.Trainer) -> None:
        number = self._received or signal.SIGTERM  # another process got it
        if not (self.folder / "last.ckpt").is_file():
            raise Interrupted(f"{SIGNALS[signal.Signals(number)]} stopped the run before anything was saved.", number)
        raise Interrupted(
            f"{SIGNALS[signal.Signals(number)]} stopped the run after step {trainer.global_step:,}; it goes on by: "
            f"{self.command}",
            number,
        )


class Patience(EarlyStopping):
    """Early stopping that also ends a run that was cut off between its last validation and its end."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


def state_of(path: Path) -> dict[str, Any]:
    """What `Checkpoints` keeps in a checkpoint; raises UserError where the file is none to go on from."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["callbacks"]
        own: dict[str, Any] = state[Checkpoints.__qualname__]
        best, random, logger = own["best"], own["random"], own["logger"]
        if not (best is None or isinstance(best, float)) or not all(isinstance(r, Tensor) for r in random.values()):
            raise ValueError(f"its best score is {best}")
        if logger is not None and not IDENTITY.fullmatch(logger):
            raise ValueError(f"its run's id is {logger!r}")
    except Exception as error:  # bytes that are no pickle raise nearly anything
        raise UserError(
            f"{path} can't be gone on from ({type(error).__name__}: {str(error)[:200]}): name a last.ckpt or best.ckpt "
            "of a training run"
        ) from error
    return own


def take_best(start: Path, folder: Path) -> None:
    """Bring the best checkpoint before `start` into another folder, where it lies beside it."""
    best = start.with_name("best.ckpt")
    elsewhere = start.parent.resolve() != folder.resolve()
    if elsewhere and best.is_file() and state_of(best)["best"] == state_of(start)["best"]:
        copy(best, folder / "best.ckpt")


def copy(path: Path, place: Path) -> None:
    """Make `place` the same file as `path`, in one step; where the disk has no links, a file of the same content."""
    with beside(place) as own:
        own.unlink(missing_ok=True)
        try:
            os.link(path, own)
        except OSError:
            shutil.copyfile(path, own)
