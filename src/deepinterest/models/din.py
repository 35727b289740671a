"""Deep Interest Network (Zhou et al., KDD 2018): the history as this candidate sees it."""

from __future__ import annotations

from torch import Tensor

from deepinterest.config import DINConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import AttentionNetwork
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head
from deepinterest.nn.ragged import Pairs, segment_sum


class DIN(AttentionNetwork):
    """MLP with Dice on [u, q, S, q*S, A], A the attention-weighted sum of the history (equation 3)."""

    def __init__(self, features: Features, config: DINConfig | None = None, quirks: Quirks | None = None) -> None:
        config = config or DINConfig()
        super().__init__(features, config, quirks)
        D = self.item_width
        self.attention = TargetAttention(D, D, config.attention)
        self.head = Head(self.user_width + 4 * D, config.mlp, "dice", self.quirks)

    def forward(self, batch: Batch) -> Prediction:
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        S = self.history_sum(history, batch)  # (B, D)

        pairs = Pairs.of(batch.offsets, batch.history_index)
        a = self.attention(q, history, pairs)  # (M,)
        A = segment_sum(a.unsqueeze(1) * pairs.of_events(history), pairs.offsets)  # (B, D)
        return Prediction(self.head(self.with_user(batch, q, S, q * S, A)))

    def interests(self, history: Tensor, offsets: Tensor) -> Tensor:
        """Attention reads the events themselves."""
        return history
