"""PNN as DIEN's authors compare with: the base model with one product added (not the product layer of Qu et al.)."""

from __future__ import annotations

from deepinterest.config import PNNConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import Network
from deepinterest.models.prediction import Prediction
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head


class PNN(Network):
    """MLP with PReLU on [u, q, S, q*S]."""

    def __init__(self, features: Features, config: PNNConfig | None = None, quirks: Quirks | None = None) -> None:
        config = config or PNNConfig()
        super().__init__(features, config, quirks)
        self.head = Head(self.user_width + 3 * self.item_width, config.mlp, "prelu", self.quirks)

    def forward(self, batch: Batch) -> Prediction:
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        S = self.history_sum(history, batch)  # (B, D)
        return Prediction(self.head(self.with_user(batch, q, S, q * S)))
