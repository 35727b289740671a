"""The scores as a torchmetrics metric: rows are kept, gathered from all processes, and scored exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from deepinterest.config import EvaluationConfig
from deepinterest.training.scores import (
    Gauc,
    NotFiniteError,
    accuracy,
    auc,
    calibration_error,
    evaluate,
    gauc,
    logloss,
    published_auc,
    refuse_numbers,
)

__all__ = [
    "ClickMetrics",
    "Gauc",
    "NotFiniteError",
    "accuracy",
    "auc",
    "calibration_error",
    "evaluate",
    "gauc",
    "logloss",
]


DTYPES = {"user": torch.int64, "label": torch.float32, "probability": torch.float32}


class ClickMetrics(Metric):
    """`evaluate` over all batches and all processes, however many rows each of them has.

    The rows stay on the CPU (16 bytes each) and travel to the metric's device only to be gathered.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    user: list[Tensor] | Tensor
    label: list[Tensor] | Tensor
    probability: list[Tensor] | Tensor

    def __init__(self, config: EvaluationConfig | None = None, published: bool = False, **kwargs: Any) -> None:
        """published: tell the published code's AUC too."""
        super().__init__(**{"compute_on_cpu": True, **kwargs})
        self.config, self.published = config or EvaluationConfig(), published
        for name in DTYPES:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, user: Tensor, label: Tensor, probability: Tensor) -> None:
        """Adds rows: user [n] whole numbers, label [n] of 0 and 1, probability [n] in [0, 1]."""
        if not len(user) == len(label) == len(probability):
            raise ValueError(
                f"A batch has {len(user)} users, {len(label)} labels and {len(probability)} probabilities; "
                "it needs one of each per row."
            )
        for name, rows in (("user", user), ("label", label), ("probability", probability)):
            getattr(self, name).append(rows.detach().reshape(-1).to(DTYPES[name]))

    def compute(self) -> dict[str, float]:
        """The scores by name, of the rows of all processes; nan where there are no rows.

        Raises NotFiniteError where a probability is none.
        """
        user, label, probability = self._rows()
        refuse_numbers(probability)
        values = evaluate(user, label, probability, self.config)
        return values | {"published_auc": published_auc(label, probability)} if self.published else values

    def predictions(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        """(user, label, probability), each [n], of all processes in their order; every process must call it."""
        if self._is_synced:
            return self._rows()
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, process_group=self.process_group):
            return self._rows()

    def _rows(self) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
        user, label, probability = (self._joined(name).cpu().numpy() for name in DTYPES)
        return user, label, probability

    def _joined(self, name: str) -> Tensor:
        """A state as one tensor [n]; before a gather it is a list, after it a tensor."""
        state: list[Tensor] | Tensor = getattr(self, name)
        if isinstance(state, Tensor):
            return state
        return torch.cat(state) if state else torch.empty(0, dtype=DTYPES[name])

    def _sync_dist(
        self, dist_sync_fn: Callable[..., Any] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # torchmetrics would send float32 for a process without rows, and NCCL takes no CPU tensors.
        for name in DTYPES:
            setattr(self, name, [self._joined(name).to(self.device)])
        super()._sync_dist(dist_sync_fn, process_group)
