"""Deep Interest Evolution Network (Zhou et al., AAAI 2019): interests extracted, then evolved for each candidate."""

from __future__ import annotations

from deepinterest.config import DIENConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import InterestNetwork
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.auxiliary import AuxiliaryLoss
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head
from deepinterest.nn.ragged import Pairs
from deepinterest.nn.recurrent import GRU, AttentionGRU


class DIEN(InterestNetwork):
    """MLP with Dice on [u, q, S, q*S, f], f the final state of the interest evolution."""

    def __init__(self, features: Features, config: DIENConfig | None = None, quirks: Quirks | None = None) -> None:
        config = config or DIENConfig()
        super().__init__(features, config, quirks)
        D, H = self.item_width, config.hidden
        self.extraction = GRU(D, H, config.reset_gate)
        self.auxiliary = AuxiliaryLoss(H, D, config.aux_net, self.quirks)
        self.attention = TargetAttention(D, H, config.attention, project=True)
        self.evolution = AttentionGRU(H, H, config.attention_update, config.reset_gate)
        self.head = Head(self.user_width + 3 * D + H, config.mlp, "dice", self.quirks)

    def forward(self, batch: Batch) -> Prediction:
        rows = [batch.history, batch.candidates]
        if batch.auxiliary_negatives is not None:
            rows.append(batch.auxiliary_negatives)
        history, q, *negatives = self.items(*rows)  # (N, D), (B, D), (N, K, D)
        S = self.history_sum(history, batch)  # (B, D)

        h, _ = self.extraction(history, batch.offsets)  # (N, H) once for each history
        auxiliary_loss = self.auxiliary(h, history, negatives[0], batch.offsets) if negatives else None

        pairs = Pairs.of(batch.offsets, batch.history_index)
        a = self.attention(q, h, pairs)  # (M,)
        f = self.evolution(h, a, pairs)  # (B, H) once for each candidate
        return Prediction(self.head(self.with_user(batch, q, S, q * S, f)), auxiliary_loss)
