"""Warnings in a sentence about a run that trains but can't be right: docs/debug.md.

They look at the first loss, the label rate, embedding rows that nothing trains, and a validation AUC that doesn't rise.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from deepinterest.data.samples import Samples
from deepinterest.data.store import Store
from deepinterest.nn import sharded
from deepinterest.training.callbacks import logged

if TYPE_CHECKING:  # the module knows its callbacks' module no more than they know it
    from deepinterest.training.module import ClickModel

log = logging.getLogger(__name__)

LN2 = math.log(2)
LOSS_TOLERANCE = 0.5  # of the first batch's loss around ln 2; sound networks began at 0.70 to 1.02 on completejourney
LOW_RATE, HIGH_RATE = 0.005, 0.8  # of label 1 among a split's rows
DEAD_SHARE = 0.5  # of a table's rows
MINIMUM_STEPS = 100  # of a run that can learn something, and whose AUC can be called flat
FLAT_AUC = 0.52  # below it a validation AUC counts as flat
FALL = 0.005  # of the AUC since the first validation
STILL = 0.001  # the AUC moved by less
SAME = 1e-3  # standard deviation of probabilities that are all the same
LEARNS = 0.97  # of the first training loss: a last one above it hasn't fallen


class Checks(Callback):
    """Warns once for each thing that looks wrong."""

    def __init__(self, store: Store, steps: int, advice: Sequence[str] = ()) -> None:
        """steps: of an epoch; advice: what is to be said of the data."""
        self.store, self.steps, self.advice = store, steps, advice
        self.auc: list[float] = []
        self.loss: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"auc": list(self.auc), "loss": list(self.loss)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.auc, self.loss = ([float(value) for value in state_dict[name]] for name in ("auc", "loss"))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            for text in self.advice:
                _warn(trainer, text)
            for name, samples in self.store.samples.items():
                _warn(trainer, label_rate(name, samples))
            if "note: debug" not in self.store.card:  # which asks for few steps
                _warn(trainer, few_steps(trainer.estimated_stepping_batches))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if not logged(trainer) or "train/click_loss" not in trainer.callback_metrics:
            return
        loss = float(trainer.callback_metrics["train/click_loss"])
        self.loss.append(loss)
        if trainer.global_step == 1:
            _warn(trainer, first_loss(loss, LN2 / 2 if _model(module).quirks.half_loss else LN2))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and "val/auc" in trainer.callback_metrics:
            self.auc.append(float(trainer.callback_metrics["val/auc"]))

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch == 0 and trainer.global_step >= self.steps:
            for name, dead, size in dead_rows(_model(module), trainer.optimizers[0], self.store):
                _warn(trainer, dead_table(name, dead, size))

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self.auc or trainer.global_step < MINIMUM_STEPS:
            return
        _, _, probability = _model(module).val_metrics.predictions()
        _warn(trainer, flat_auc(self.auc, self.loss, float(np.std(probability)), _model(module).optimizer_config.lr))


def _model(module: L.LightningModule) -> ClickModel:
    from deepinterest.training.module import ClickModel

    assert isinstance(module, ClickModel)
    return module


def _warn(trainer: L.Trainer, text: str | None) -> None:
    if text and trainer.is_global_zero:
        log.warning("%s", text)


def few_steps(steps: float) -> str | None:
    """A sentence where training has too few steps to learn anything."""
    if steps >= MINIMUM_STEPS:
        return None
    return (
        f"Training has {steps:.0f} steps, too few to learn anything (at least {MINIMUM_STEPS}, better thousands): take "
        "a smaller trainer.batch_size, more of trainer.max_epochs or max_steps, or more data."
    )


def label_rate(split: str, samples: Samples) -> str | None:
    """A sentence where a split's share of label 1 is odd; None where it isn't."""
    positives = int(np.count_nonzero(samples.label))
    rate = positives / samples.rows
    if positives in (0, samples.rows):
        return (
            f"All {samples.rows:,} rows of {split} have label {int(positives > 0)}, so there is nothing to tell apart: "
            "look at data.columns.label and at the time cuts of the protocol."
        )
    if rate < LOW_RATE:
        return (
            f"Only {rate:.3%} of the {samples.rows:,} rows of {split} have label 1 ({positives:,}): scores will be "
            "noisy. Is data.columns.label the right column?"
        )
    if rate > HIGH_RATE:
        return (
            f"{rate:.1%} of the {samples.rows:,} rows of {split} have label 1, which is rare for clicks: do the labels "
            "hold what wasn't touched too?"
        )
    return None


def first_loss(loss: float, expected: float) -> str | None:
    """A sentence where the first batch's click loss is far from that of a network that knows nothing yet."""
    if abs(loss - expected) <= LOSS_TOLERANCE * expected / LN2:  # false for nan
        return None
    return (
        f"The first batch's loss is {loss:.3f}, far from {expected:.3f} (ln 2 for a network that knows nothing yet): "
        "the initial weights are too large, or the network isn't new."
    )


def dead_rows(model: ClickModel, optimizer: Any, store: Store) -> list[tuple[str, int, int]]:
    """Of each embedding table: its name, rows that never had a gradient, and all rows; row 0, the unknown, aside.

    Such a row's second moment is zero: Adam never forgets a gradient entirely.
    """
    network = model.network
    parts = [("item", network.items, store.item_features().columns)]
    if network.users is not None:
        users = store.user_features().columns
        parts.append(("user", network.users, users[-len(network.users.tables) :]))
    found = []
    for whose, part, names in parts:
        for table, name in zip(part.tables, names, strict=True):
            square = optimizer.state[table.weight]["exp_avg_sq"]  # (rows, D)
            title = name if name == whose else f"{whose} feature {name}"
            found.append((title, *sharded.count(table, (square == 0).all(1))))
    return found


def dead_table(name: str, dead: int, size: int) -> str | None:
    """A sentence where most rows of an embedding table had no gradient in the first epoch."""
    if dead <= DEAD_SHARE * size:
        return None
    return (
        f"{dead:,} of {size:,} embeddings of the {name} ({dead / size:.0%}) had no gradient in the first epoch and "
        "keep their random start: let rare values share the unknown one (data.min_item_count) or train on more "
        "targets (protocol.targets_per_user.train)."
    )


def flat_auc(auc: list[float], loss: list[float], spread: float, lr: float) -> str | None:
    """A sentence where the validation AUC is near one half, falls or stands still, with its likely cause.

    Args:
        auc: of each validation within training, in order.
        loss: training losses of clicks, in order.
        spread: standard deviation of the last validation's probabilities.
    """
    best = max(auc)
    if best < FLAT_AUC:
        begin = f"The validation AUC is at most {best:.3f}, hardly more than chance:"
        if spread < SAME:
            return (
                f"{begin} all rows get nearly the same probability, as if the network were dead. A smaller "
                f"optimizer.lr than {lr} may help (task=tune finds one)."
            )
        few = max(1, min(5, len(loss) // 2))  # a single batch's loss is noisy
        first, last = sum(loss[:few]) / few, sum(loss[-few:]) / few
        if len(loss) < 2 or last > LEARNS * first:
            return (
                f"{begin} the training loss doesn't fall either. Too few steps or too small an optimizer.lr ({lr}; "
                "task=tune finds one), or neither items nor histories tell anything of the label: see the probes."
            )
        return (
            f"{begin} though the training loss falls ({first:.3f} to {last:.3f}), so the network learns rows by "
            "heart. Are the validation rows of another kind or time, or model.use_user=true?"
        )
    if len(auc) >= 3 and best == auc[0] and auc[-1] < auc[0] - FALL:
        return (
            f"The validation AUC has fallen since the first validation ({auc[0]:.4f} to {auc[-1]:.4f}): the network "
            f"overfits before it is first looked at. Validate more often (trainer.validations_per_epoch) or take a "
            f"smaller optimizer.lr than {lr}."
        )
    if len(auc) >= 4 and max(auc) - min(auc) < STILL:
        return (
            f"The validation AUC has stood still at {best:.4f} since the first validation: all there is was learned "
            "before it (validate more often: trainer.validations_per_epoch), or the learning rate has decayed too far."
        )
    return None
