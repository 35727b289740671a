"""GRU with attentional input (DIEN paper, section 4.3, AIGRU): what matters little enters the second GRU small."""

from __future__ import annotations

from deepinterest.config import AIGRUConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import InterestNetwork
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head
from deepinterest.nn.ragged import Pairs
from deepinterest.nn.recurrent import GRU


class AIGRU(InterestNetwork):
    """MLP with Dice on [u, q, S, q*S, f], f the final state of a GRU that reads a_t h_t (equation 9)."""

    def __init__(self, features: Features, config: AIGRUConfig | None = None, quirks: Quirks | None = None) -> None:
        config = config or AIGRUConfig()
        super().__init__(features, config, quirks)
        D, H = self.item_width, config.hidden
        self.extraction = GRU(D, H, config.reset_gate)
        self.attention = TargetAttention(D, H, config.attention, project=True)
        self.evolution = GRU(H, H, config.reset_gate)
        self.head = Head(self.user_width + 3 * D + H, config.mlp, "dice", self.quirks)

    def forward(self, batch: Batch) -> Prediction:
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        S = self.history_sum(history, batch)  # (B, D)

        h, _ = self.extraction(history, batch.offsets)  # (N, H) once for each history
        pairs = Pairs.of(batch.offsets, batch.history_index)
        a = self.attention(q, h, pairs)  # (M,)
        weighted = a.unsqueeze(1) * pairs.of_events(h)  # (M, H)
        _, f = self.evolution(weighted, pairs.offsets)  # (B, H) once for each candidate
        return Prediction(self.head(self.with_user(batch, q, S, q * S, f)))
