"""DeepCTR-Torch. Its Dice fails an assertion in DIEN and DIN, so the head has PReLU; no L2 on whole tables."""

from __future__ import annotations

from typing import Any

import torch
from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat
from deepctr_torch.models import DIEN, DIN
from shared import ATTENTION, EMBEDDING, HEAD, Batch, Sizes, Step, adam, main

HISTORY = ["item", "category"]


def make(model: str, sizes: Sizes, batches: list[Batch]) -> tuple[torch.nn.Module, list[Any], Step]:
    T = batches[0].item.shape[1]
    rows = {"user": sizes.users, "item": sizes.items, "category": sizes.categories}
    sparse = [SparseFeat(name, size, embedding_dim=EMBEDDING) for name, size in rows.items()]
    prefixes = ("hist_", "neg_hist_") if model == "dien" else ("hist_",)
    varied = [
        VarLenSparseFeat(
            SparseFeat(prefix + name, rows[name], embedding_dim=EMBEDDING, embedding_name=name),
            maxlen=T,
            length_name="seq_length",
        )
        for prefix in prefixes
        for name in HISTORY
    ]
    if model == "dien":
        network = DIEN(
            [*sparse, *varied],
            HISTORY,
            gru_type="AUGRU",
            use_negsampling=True,
            dnn_hidden_units=HEAD,
            dnn_activation="prelu",
            att_hidden_units=ATTENTION,
            att_activation="sigmoid",
            l2_reg_embedding=0,
        )
    else:
        network = DIN(
            [*sparse, *varied],
            HISTORY,
            dnn_hidden_units=HEAD,
            dnn_activation="prelu",
            att_hidden_size=ATTENTION,
            att_activation="sigmoid",
            att_weight_normalization=True,
            l2_reg_embedding=0,
        )
    network.compile(adam(network), "binary_crossentropy")
    network.train()

    def flat(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """All columns of a row side by side, as floats: what the library takes."""
        columns = {
            "user": batch.user,
            "item": batch.target_item,
            "category": batch.target_category,
            "hist_item": batch.item,
            "hist_category": batch.category,
            "neg_hist_item": batch.negative_item,
            "neg_hist_category": batch.negative_category,
            "seq_length": batch.length,
        }
        found = torch.zeros(len(batch.user), max(end for _, end in network.feature_index.values()))
        for name, (begin, end) in network.feature_index.items():
            found[:, begin:end] = columns[name].view(len(batch.user), -1)
        return found, batch.label

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        predicted = network(batch[0]).squeeze()
        network.optim.zero_grad()
        loss = network.loss_func(predicted, batch[1], reduction="sum")
        total = loss + network.get_regularization_loss() + network.aux_loss
        total.backward()
        network.optim.step()
        return total

    return network, [flat(batch) for batch in batches], step


if __name__ == "__main__":
    main(make)
