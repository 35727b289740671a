"""Attention based GRU (DIEN paper, section 4.3, AGRU): attention takes the update gate's place."""

from __future__ import annotations

from deepinterest.config import AGRUConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import InterestNetwork
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head
from deepinterest.nn.ragged import Pairs
from deepinterest.nn.recurrent import GRU, AttentionGRU


class AGRU(InterestNetwork):
    """MLP with Dice on [u, q, S, q*S, f], f the final state of the AGRU (equation 10)."""

    def __init__(self, features: Features, config: AGRUConfig | None = None, quirks: Quirks | None = None) -> None:
        config = config or AGRUConfig()
        super().__init__(features, config, quirks)
        D, H = self.item_width, config.hidden
        self.extraction = GRU(D, H, config.reset_gate)
        self.attention = TargetAttention(D, H, config.attention, project=True)
        self.evolution = AttentionGRU(H, H, "agru", config.reset_gate)
        self.head = Head(self.user_width + 3 * D + H, config.mlp, "dice", self.quirks)

    def forward(self, batch: Batch) -> Prediction:
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        S = self.history_sum(history, batch)  # (B, D)

        h, _ = self.extraction(history, batch.offsets)  # (N, H) once for each history
        pairs = Pairs.of(batch.offsets, batch.history_index)
        a = self.attention(q, h, pairs)  # (M,)
        f = self.evolution(h, a, pairs)  # (B, H) once for each candidate
        return Prediction(self.head(self.with_user(batch, q, S, q * S, f)))
