"""How much memory training takes at least: refused before it is asked for where there isn't as much."""

from __future__ import annotations

import numpy as np

from deepinterest import models
from deepinterest.config import ExperimentConfig, RecurrentConfig
from deepinterest.data.store import Store
from deepinterest.machine import check_memory
from deepinterest.nn.embedding import Features

NUMBER = 4  # bytes


def check(config: ExperimentConfig, store: Store, features: Features) -> None:
    """Raise a UserError where weights with Adam's two moments, or the largest batches, exceed the memory."""
    weights = models.size(features, config.model, config.quirks)
    check_memory(3 * NUMBER * weights, "The network's weights and Adam's two moments of each", models.SMALLER)
    for name, split, rows, kept in (
        ("batch_size", "train", config.trainer.batch_size, 2),  # what a layer gives, and its gradient
        ("eval_batch_size", "test", config.trainer.eval_batch_size, 1),
    ):
        size = NUMBER * _numbers(config, store, split, rows, kept)
        what = f"A batch of {split} with trainer.{name}={rows}"
        lower = f"trainer.{name}, protocol.max_history, model.aux_negatives.per_positive or the model's widths"
        check_memory(size, what, f"set {lower} lower")


def _numbers(config: ExperimentConfig, store: Store, split: str, batch_size: int, kept: int) -> float:
    """A lower bound of the numbers that a batch has at once: embeddings of its events, and what its layers give."""
    samples, model = store.samples[split], config.model
    lengths = samples.history_end - store.log.user_offsets[samples.user]
    lengths = np.minimum(lengths, config.protocol.max_history)
    candidates = np.diff(samples.candidate_offsets)
    share = min(1.0, batch_size / samples.rows)
    events, pairs = share * lengths.sum(), share * (lengths * candidates).sum()
    negatives = getattr(model, "aux_negatives", None)
    drawn = negatives.per_positive if negatives is not None and split == "train" else 0
    width = len(store.sizes) * model.embedding_dim
    of_pair = sum(getattr(model, "attention", [])) + (model.hidden if isinstance(model, RecurrentConfig) else 0)
    widest = sum(model.mlp) if kept > 1 else max(model.mlp)
    return float(events * (1 + drawn) * width + kept * share * samples.rows * widest + (kept - 1) * pairs * of_pair)
