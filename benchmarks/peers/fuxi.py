"""FuxiCTR. Its DIEN has no auxiliary net; the clipping of all gradients, which it always does, is left out."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from typing import Any

import torch
from fuxictr.features import FeatureMap
from model_zoo.LongCTR.DIEN.DIEN import DIEN
from model_zoo.LongCTR.DIN.DIN import DIN
from shared import ATTENTION, EMBEDDING, HEAD, LEARNING_RATE, Batch, Sizes, Step, main


def make(model: str, sizes: Sizes, batches: list[Batch]) -> tuple[torch.nn.Module, list[Any], Step]:
    features = FeatureMap("benchmark", tempfile.gettempdir())
    categorical = {"type": "categorical", "embedding_dim": EMBEDDING}
    features.features = OrderedDict(
        user={**categorical, "source": "user", "vocab_size": sizes.users},
        item={**categorical, "source": "item", "vocab_size": sizes.items, "padding_idx": 0},
        category={**categorical, "source": "item", "vocab_size": sizes.categories, "padding_idx": 0},
    )
    features.labels, features.default_emb_dim = ["label"], EMBEDDING
    common = {
        "embedding_dim": EMBEDDING,
        "learning_rate": LEARNING_RATE,
        "dnn_hidden_units": HEAD,
        "dnn_activations": "Dice",
        "attention_hidden_units": ATTENTION,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "metrics": ["AUC"],
        "verbose": 0,
        "model_root": tempfile.gettempdir(),
    }
    if model == "dien":
        network = DIEN(
            features, attention_type="din_attention", attention_activation="sigmoid", enable_sum_pooling=True, **common
        )
    else:
        network = DIN(features, attention_hidden_activations="sigmoid", din_use_softmax=True, **common)
    network.train()

    def step(batch: Any) -> torch.Tensor:
        network.optimizer.zero_grad()
        loss = network.compute_loss(network.forward(batch), network.get_labels(batch))
        loss.backward()
        network.optimizer.step()
        return loss

    return network, [_inputs(batch) for batch in batches], step


def _inputs(batch: Batch) -> Any:
    """A row's events and, last, its target: what the library's own loader makes."""
    item = torch.cat([batch.item, batch.target_item.unsqueeze(1)], dim=1).flatten()
    category = torch.cat([batch.category, batch.target_category.unsqueeze(1)], dim=1).flatten()
    return {"user": batch.user, "label": batch.label}, {"item": item, "category": category}, batch.item > 0


if __name__ == "__main__":
    main(make)
