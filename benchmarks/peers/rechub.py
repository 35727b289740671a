"""Torch-RecHub. Its DIEN has a GRU for each feature, and dot products in place of the attention and auxiliary nets."""

from __future__ import annotations

from typing import Any

import torch
from shared import ATTENTION, EMBEDDING, HEAD, Batch, Sizes, Step, adam, main
from torch_rechub.basic.features import SequenceFeature, SparseFeature
from torch_rechub.models.ranking.dien import DIEN
from torch_rechub.models.ranking.din import DIN


def make(model: str, sizes: Sizes, batches: list[Batch]) -> tuple[torch.nn.Module, list[Any], Step]:
    rows = {"target_item": sizes.items, "target_category": sizes.categories}
    user = [SparseFeature("user", sizes.users, EMBEDDING)]
    target = [SparseFeature(name, size, EMBEDDING, padding_idx=0) for name, size in rows.items()]

    def sequences(prefix: str) -> list[SequenceFeature]:
        return [
            SequenceFeature(prefix + name[7:], size, EMBEDDING, pooling="concat", shared_with=name, padding_idx=0)
            for name, size in rows.items()
        ]

    if model == "dien":
        network = DIEN(user, sequences(""), sequences("negative_"), target, {"dims": HEAD}, alpha=1.0)
    else:
        widths = {"dims": ATTENTION, "activation": "sigmoid", "use_softmax": True}
        network = DIN(user, sequences(""), target, {"dims": HEAD}, widths)
    network.train()
    optimizer, criterion = adam(network), torch.nn.BCELoss()

    def step(batch: tuple[dict[str, torch.Tensor], torch.Tensor]) -> torch.Tensor:
        inputs, label = batch
        optimizer.zero_grad()
        predicted, *auxiliary = network(inputs) if model == "dien" else (network(inputs),)
        loss = criterion(predicted, label) + sum(auxiliary)
        loss.backward()
        optimizer.step()
        return loss

    return network, [(dict(vars(batch)), batch.label) for batch in batches], step


if __name__ == "__main__":
    main(make)
