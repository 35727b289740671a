"""InteractionData: vocabulary building, negative sampling and batches, as Lightning's DataModule."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L

from deepinterest.config import DataConfig, NegativesConfig, ProtocolConfig, Refresh
from deepinterest.data.loader import BatchLoader
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.store import Store, load, prepare


class InteractionData(L.LightningDataModule):
    """Args:
    auxiliary: how negatives of history steps are drawn in training; None where the model needs none.
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
    ) -> None:
        super().__init__()
        self.data, self.protocol, self.auxiliary = data, protocol, auxiliary
        self.batch_size, self.eval_batch_size, self.seed, self.cache = batch_size, eval_batch_size, seed, cache
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
        if self._training is None:  # one loader for the run: it counts its epochs
            log, seen, negatives = self.store.log, self.store.seen, self.protocol.negatives
            redraw = NegativeSampler(log, seen, negatives) if negatives.refresh is Refresh.epoch else None
            auxiliary = NegativeSampler(log, seen, self.auxiliary) if self.auxiliary else None
            self._training = self._loader("train", self.batch_size, shuffle=True, redraw=redraw, auxiliary=auxiliary)
        return self._training

    def val_dataloader(self) -> BatchLoader:
        return self._loader("validation", self.eval_batch_size)

    def test_dataloader(self) -> BatchLoader:
        return self._loader("test", self.eval_batch_size)

    def _loader(
        self,
        split: str,
        batch_size: int,
        shuffle: bool = False,
        redraw: NegativeSampler | None = None,
        auxiliary: NegativeSampler | None = None,
    ) -> BatchLoader:
        trainer = self.trainer
        return BatchLoader(
            self.store.log,
            self.store.samples[split],
            batch_size=batch_size,
            max_history=self.protocol.max_history,
            seed=self.seed,
            shuffle=shuffle,
            redraw=redraw,
            auxiliary=auxiliary,
            rank=trainer.global_rank if trainer else 0,
            world=trainer.world_size if trainer else 1,
        )
