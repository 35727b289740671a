"""RecBole. One list of widths serves all its MLPs. Importing it turns autograd's anomaly mode on, here it is off."""

from __future__ import annotations

from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import DIEN, DIN
from recbole.utils import FeatureType
from shared import EMBEDDING, HEAD, Batch, Sizes, Step, adam, main


class Data:
    """What the networks ask of a data set."""

    def __init__(self, sizes: Sizes, category: torch.Tensor) -> None:
        self.sizes = {"user_id": sizes.users, "item_id": sizes.items, "category": sizes.categories}
        self.field2type = dict.fromkeys(self.sizes, FeatureType.TOKEN)
        self.category = category

    def num(self, field: str) -> int:
        return self.sizes[field]

    def get_user_feature(self) -> Interaction:
        return Interaction({"user_id": torch.arange(self.sizes["user_id"])})

    def get_item_feature(self) -> Interaction:
        return Interaction({"item_id": torch.arange(self.sizes["item_id"]), "category": self.category})


def make(model: str, sizes: Sizes, batches: list[Batch]) -> tuple[torch.nn.Module, list[Any], Step]:
    torch.autograd.set_detect_anomaly(False)
    category = torch.zeros(sizes.items, dtype=torch.int64)
    for batch in batches:
        for item, its in (
            (batch.target_item, batch.target_category),
            (batch.item, batch.category),
            (batch.negative_item, batch.negative_category),
        ):
            category[item.flatten()] = its.flatten()
    config = {
        "USER_ID_FIELD": "user_id",
        "ITEM_ID_FIELD": "item_id",
        "LIST_SUFFIX": "_list",
        "ITEM_LIST_LENGTH_FIELD": "item_length",
        "NEG_PREFIX": "neg_",
        "MAX_ITEM_LIST_LENGTH": batches[0].item.shape[1],
        "LABEL_FIELD": "label",
        "embedding_size": EMBEDDING,
        "mlp_hidden_size": HEAD,
        "dropout_prob": 0.0,
        "pooling_mode": "mean",
        "gru_type": "AUGRU",
        "alpha": 1.0,
        "numerical_features": [],
        "device": torch.device("cpu"),
    }
    network = {"dien": DIEN, "din": DIN}[model](config, Data(sizes, category))
    network.train()
    optimizer = adam(network)

    def step(batch: Interaction) -> torch.Tensor:
        optimizer.zero_grad()
        loss = network.calculate_loss(batch)
        loss.backward()
        optimizer.step()
        return loss

    return network, [_inputs(batch) for batch in batches], step


def _inputs(batch: Batch) -> Interaction:
    return Interaction(
        {
            "user_id": batch.user,
            "item_id": batch.target_item,
            "item_id_list": batch.item,
            "neg_item_id_list": batch.negative_item,
            "item_length": batch.length,
            "label": batch.label,
        }
    )


if __name__ == "__main__":
    main(make)
