"""Wide & Deep as DIEN's authors compare with: the wide part is linear on embeddings, not on crossed ids."""

from __future__ import annotations

from typing import ClassVar

import torch

from deepinterest.config import Quirks, WideDeepConfig
from deepinterest.data.batch import Batch
from deepinterest.models.network import Network
from deepinterest.models.prediction import Prediction
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head, linear


class WideDeep(Network):
    """Deep: MLP with PReLU on [u, q, S]. Wide: one dense layer on [q, S, q*S]. Their logits are added."""

    epsilon: ClassVar[float] = 0.0

    def __init__(self, features: Features, config: WideDeepConfig | None = None, quirks: Quirks | None = None) -> None:
        config = config or WideDeepConfig()
        super().__init__(features, config, quirks)
        D = self.item_width
        self.head = Head(self.user_width + 2 * D, config.mlp, "prelu", self.quirks)
        self.wide = linear(3 * D, 2)

    def forward(self, batch: Batch) -> Prediction:
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        S = self.history_sum(history, batch)  # (B, D)
        deep = self.head(self.with_user(batch, q, S))  # (B,)
        wide = self.wide(torch.cat([q, S, q * S], dim=1))  # (B, 2)
        return Prediction(deep + wide[:, 0] - wide[:, 1])
