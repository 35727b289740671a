"""ClickModel: the one LightningModule that trains, validates and tests every network."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from deepinterest.config import EvaluationConfig, OptimizerConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import Network
from deepinterest.nn import sharded
from deepinterest.nn.synced import synchronise
from deepinterest.training import distributed
from deepinterest.training.calibration import Calibration
from deepinterest.training.divergence import diverged
from deepinterest.training.exchange import Exchange
from deepinterest.training.losses import probability, total_loss
from deepinterest.training.metrics import ClickMetrics, NotFiniteError
from deepinterest.training.optimizers import DeferredAdam
from deepinterest.training.saved_state import check_progress
from deepinterest.training.scores import refuse_numbers

LOG_EVERY = 50  # steps between two points of the training curves; logging costs as much as a small step


class ClickModel(L.LightningModule):
    """Binary cross-entropy plus `aux_weight` times the network's auxiliary loss, under Adam.

    Args:
        network: its `embeddings` are the tables that DeferredAdam watches.
        vocabulary_hash: of the data set; kept in the checkpoint, where another one is refused.
        name: the model's name in the config; kept in the checkpoint.
        settings: of the run, as plain values; kept in the checkpoint, so that it can be used without repeating them.
    """

    def __init__(
        self,
        network: Network,
        optimizer: OptimizerConfig,
        evaluation: EvaluationConfig,
        quirks: Quirks | None = None,
        *,
        aux_weight: float = 0.0,
        vocabulary_hash: str = "",
        name: str = "",
        settings: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer_config, self.aux_weight = optimizer, aux_weight
        self.quirks = quirks or Quirks()
        self.vocabulary_hash, self.name, self.settings = vocabulary_hash, name, settings
        self.calibration: Calibration | None = None  # learned after training; changes what `forward` answers
        self.val_metrics = ClickMetrics(evaluation, self.quirks.published_auc)
        self.test_metrics = ClickMetrics(evaluation, self.quirks.published_auc)
        self.uncalibrated_metrics = ClickMetrics(evaluation)  # of the test, where there is a calibration
        self.scores: dict[str, float] = {}  # the latest, as computed: Lightning rounds what is logged to float32

    def forward(self, batch: Batch) -> Tensor:
        """Probability of a touch (B,), calibrated where there is a calibration; UserError where one isn't finite."""
        probability = self._calibrated(self._uncalibrated(batch))
        refuse_numbers(probability.detach().float().cpu().numpy())
        return probability

    def _uncalibrated(self, batch: Batch) -> Tensor:
        return probability(self.network(batch).logit, self.quirks, self.network.epsilon)

    def _calibrated(self, probability: Tensor) -> Tensor:
        if self.calibration is None:
            return probability
        return torch.from_numpy(self.calibration(probability.detach().cpu().numpy())).to(probability.device)

    def configure_model(self) -> None:
        """Once the processes know each other: split tables get their rows, and DDP leaves these alone."""
        sharded.split(self.network)
        self._ddp_params_and_buffers_to_ignore = distributed.apart(self.network, "network.")

    def on_fit_start(self) -> None:
        if distributed.several():
            synchronise(self.network)
            distributed.same_start(self.network)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        prediction = self.network(batch)
        loss, click_loss = total_loss(
            prediction, batch.label, self.quirks, self.network.epsilon, self.aux_weight, batch.share
        )
        values = {"train/click_loss": click_loss}
        if prediction.auxiliary_loss is not None:
            values["train/auxiliary_loss"] = prediction.auxiliary_loss * (1 if batch.share is None else batch.share[1])
        # Lightning hands figures to the logger after every LOG_EVERY-th step: those of an earlier step would be stale.
        if self.global_step == 0 or (self.global_step + 1) % LOG_EVERY == 0:
            # Each process has its share of the loss: the mean is that of all rows.
            values["train/loss"] = loss
            self.log_dict(values, batch_size=len(batch), sync_dist=distributed.several())
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        # Uncalibrated: a calibration is learned from these very rows.
        self._collect(self.val_metrics, batch, self._uncalibrated(batch))

    def test_step(self, batch: Batch, batch_index: int) -> None:
        uncalibrated = self._uncalibrated(batch)
        self._collect(self.test_metrics, batch, self._calibrated(uncalibrated))
        if self.calibration is not None:
            self._collect(self.uncalibrated_metrics, batch, uncalibrated)

    def _collect(self, metrics: ClickMetrics, batch: Batch, probability: Tensor) -> None:
        metrics.update(batch.user[batch.history_index], batch.label, probability)

    def on_validation_epoch_start(self) -> None:
        if distributed.several() and self.trainer.state.fn == TrainerFn.FITTING:
            # A validation brings the rows it reads up to date. Processes read other rows; replicas stay equal to the
            # bit where all have all rows brought up to date at the same step.
            for optimizer in self.trainer.optimizers:
                assert isinstance(optimizer, DeferredAdam)
                optimizer.flush()
        self.val_metrics.reset()  # here, not at the end: calibration reads the rows of the last validation

    def on_validation_epoch_end(self) -> None:
        sharded.finish(self.network)
        try:
            values = {f"val/{name}": value for name, value in self.val_metrics.compute().items()}
        except NotFiniteError as error:
            if self.trainer.state.fn != TrainerFn.FITTING:
                raise
            raise diverged(f"{error.found} in the validation", self) from error
        self.scores |= values
        for name, value in values.items():
            self.log(name, value, prog_bar=name == "val/auc")

    def on_test_epoch_end(self) -> None:
        sharded.finish(self.network)
        # Not reset: the run reads the rows for its predictions file.
        values = {f"test/{name}": value for name, value in self.test_metrics.compute().items()}
        if self.calibration is not None:
            before = self.uncalibrated_metrics.compute()
            values |= {f"test/{name}_uncalibrated": before[name] for name in ("ece", "logloss")}
        self.scores |= values
        self.log_dict(values)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        config = self.optimizer_config
        optimizer = DeferredAdam(
            self.parameters(),
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            form="tensorflow" if self.quirks.tensorflow_adam else "torch",
            exchange=Exchange() if distributed.several() else None,
        )
        for table in self.network.embeddings:
            optimizer.watch(table)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=config.lr_decay)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"vocabulary_hash": self.vocabulary_hash, "model": self.name, "settings": self.settings}
        if self.calibration is not None:
            checkpoint["calibration"] = self.calibration.state()
        sharded.gather(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "loops" in checkpoint and self.trainer.state.fn == TrainerFn.FITTING:
            check_progress(checkpoint, self.optimizer_config.lr_decay)
        sharded.scatter(checkpoint, self)
