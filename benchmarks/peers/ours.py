"""This project, on the same ready batches: histories without their filling, as its own loader gives them."""

from __future__ import annotations

from typing import Any

import torch
from shared import Batch, Sizes, Step, main

from deepinterest.benchmark.training import Settings, step_of
from deepinterest.benchmark.workload import click_model
from deepinterest.data import batch as product
from deepinterest.nn.embedding import Features
from deepinterest.training.memory import keep_freed_memory


def make(model: str, sizes: Sizes, batches: list[Batch]) -> tuple[torch.nn.Module, list[Any], Step]:
    keep_freed_memory()
    catalogue = torch.zeros(sizes.items, 2, dtype=torch.int64)
    catalogue[:, 0] = torch.arange(sizes.items)
    for batch in batches:
        for item, category in (
            (batch.target_item, batch.target_category),
            (batch.item, batch.category),
            (batch.negative_item, batch.negative_category),
        ):
            catalogue[item.flatten(), 1] = category.flatten()
    features = Features(
        catalogue, [sizes.items, sizes.categories], torch.arange(sizes.users).unsqueeze(1), [sizes.users]
    )
    network = click_model(features, model)
    return network, [_inputs(batch, model == "dien") for batch in batches], step_of(Settings(model), network)


def _inputs(batch: Batch, auxiliary: bool) -> product.Batch:
    real = batch.item > 0  # (B, T)
    return product.Batch(
        history=batch.item[real],
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), batch.length.cumsum(0)]),
        user=batch.user,
        candidates=batch.target_item,
        history_index=torch.arange(len(batch.user)),
        label=batch.label,
        auxiliary_negatives=batch.negative_item[real].unsqueeze(1) if auxiliary else None,
    )


if __name__ == "__main__":
    main(make)
