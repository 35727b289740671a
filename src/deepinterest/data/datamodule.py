"""InteractionData: vocabulary building, negative sampling and batches, as Lightning's DataModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L

from deepinterest.config import DataConfig, LabelledConfig, NegativesConfig, ProtocolConfig, Quirks, Refresh
from deepinterest.data.loader import BatchLoader
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.samples import Samples
from deepinterest.data.store import Store, load, prepare


class InteractionData(L.LightningDataModule):
    """Args:
    auxiliary: how negatives of history steps are drawn in training; None where the model needs none.
    quirks: of the published code; those of order, histories' length and the choice of validation rows act here.
    """

    def __init__(
        self,
        data: DataConfig,
        protocol: ProtocolConfig,
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        auxiliary: NegativesConfig | None = None,
        cache: str | None = None,
        prefetch: bool = False,
        quirks: Quirks | None = None,
    ) -> None:
        super().__init__()
        self.data, self.protocol, self.auxiliary, self.quirks = data, protocol, auxiliary, quirks or Quirks()
        self.batch_size, self.eval_batch_size, self.seed, self.cache = batch_size, eval_batch_size, seed, cache
        self.prefetch = prefetch  # batches of training
        self._store: Store | None = None
        self._training: BatchLoader | None = None

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = load(prepare(self.data, self.protocol, self.cache))
        return self._store

    def prepare_data(self, stage: Callable[[str], object] = lambda name: None) -> None:
        """Prepare the data set if it isn't in the cache; `stage` hears each step as it begins."""
        prepare(self.data, self.protocol, self.cache, stage)

    def train_dataloader(self) -> BatchLoader:
        # One loader for the run, as it counts its epochs; but a process learns its share only when training begins.
        if self._training is None or (self._training.rank, self._training.world) != self._share():
            log, seen, negatives = self.store.log, self.store.seen, self.protocol.negatives
            samples = self.store.samples["train"]
            if self.quirks.best_of_test:  # nobody is held out
                samples = samples.merged(self.store.samples["validation"])
            redrawn = negatives.refresh is Refresh.epoch and not isinstance(self.protocol, LabelledConfig)
            self._training = self._loader(
                samples,
                self.batch_size,
                self.protocol.max_history,
                shuffle=not self.quirks.length_sorted,
                prefetch=self.prefetch,
                redraw=NegativeSampler(log, seen, negatives) if redrawn else None,
                auxiliary=NegativeSampler(log, seen, self.auxiliary) if self.auxiliary else None,
            )
        return self._training

    def val_dataloader(self) -> BatchLoader:
        return self._evaluation("test" if self.quirks.best_of_test else "validation")

    def test_dataloader(self) -> BatchLoader:
        return self._evaluation("test")

    def _evaluation(self, split: str) -> BatchLoader:
        most = None if self.quirks.truncate_training_only else self.protocol.max_history
        return self._loader(self.store.samples[split], self.eval_batch_size, most)

    def _loader(self, samples: Samples, batch_size: int, max_history: int | None, **options: Any) -> BatchLoader:
        rank, world = self._share()
        return BatchLoader(
            self.store.log,
            samples,
            batch_size=batch_size,
            max_history=max_history,
            seed=self.seed,
            length_sorted=self.quirks.length_sorted,
            rank=rank,
            world=world,
            **options,
        )

    def _share(self) -> tuple[int, int]:
        """Which process this is, of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
