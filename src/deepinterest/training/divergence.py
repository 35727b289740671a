"""A run whose loss, scores or weights are no numbers ends in a sentence, and what it saved before stays."""

from __future__ import annotations

import math
from itertools import chain
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import nn

from deepinterest.errors import UserError
from deepinterest.training.callbacks import logged

if TYPE_CHECKING:  # the module knows its callbacks' module no more than they know it
    from deepinterest.training.module import ClickModel


class Divergence(Callback):
    """Looks at the training loss where it is logged anyway: a look at each step would make a GPU wait."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if logged(trainer):
            loss = float(trainer.callback_metrics["train/loss"])
            if not math.isfinite(loss):
                raise diverged(f"The training loss is {loss}", module)


def diverged(what: str, module: Any) -> UserError:
    """What to tell a user whose run can't go on."""
    model: ClickModel = module
    precision = model.trainer.precision
    other = "" if precision == "32-true" else f", or trainer.precision=32-true in place of {precision}"
    return UserError(
        f"{what} at step {model.global_step:,}, so nothing more can be learned. Take a smaller optimizer.lr than "
        f"{model.optimizer_config.lr:g} (task=tune finds one){other}. Checkpoints saved before are as they were."
    )


def finite(module: nn.Module) -> bool:
    """Whether all weights and running statistics are numbers."""
    tensors = chain(module.parameters(), module.buffers())
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor.is_floating_point())
