"""Two layer GRU Attention (DIEN paper, section 5.2): attention to the states of two GRUs, one upon the other."""

from __future__ import annotations

from torch import Tensor

from deepinterest.config import GRUAttentionConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.network import AttentionNetwork
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import Head
from deepinterest.nn.ragged import Pairs, segment_sum
from deepinterest.nn.recurrent import GRU


class GRUAttention(AttentionNetwork):
    """MLP with Dice on [u, q, S, q*S, A], A the attention-weighted sum of the second GRU's states."""

    def __init__(
        self, features: Features, config: GRUAttentionConfig | None = None, quirks: Quirks | None = None
    ) -> None:
        config = config or GRUAttentionConfig()
        super().__init__(features, config, quirks)
        D, H = self.item_width, config.hidden
        self.extraction = GRU(D, H, config.reset_gate)
        self.evolution = GRU(H, H, config.reset_gate)
        self.attention = TargetAttention(D, H, config.attention, project=True)
        self.head = Head(self.user_width + 3 * D + H, config.mlp, "dice", self.quirks)

    def forward(self, batch: Batch) -> Prediction:
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        S = self.history_sum(history, batch)  # (B, D)

        g = self.interests(history, batch.offsets)  # (N, H) once for each history
        pairs = Pairs.of(batch.offsets, batch.history_index)
        a = self.attention(q, g, pairs)  # (M,)
        A = segment_sum(a.unsqueeze(1) * pairs.of_events(g), pairs.offsets)  # (B, H)
        return Prediction(self.head(self.with_user(batch, q, S, q * S, A)))

    def interests(self, history: Tensor, offsets: Tensor) -> Tensor:
        """The second GRU's states: (N, D), offsets (G+1,) -> (N, H)."""
        h, _ = self.extraction(history, offsets)  # (N, H)
        g, _ = self.evolution(h, offsets)  # (N, H)
        return g

    def states(self, interests: Tensor, attention: Tensor, pairs: Pairs) -> Tensor:
        """The second GRU's states, the same for all candidates: (M, H)."""
        return pairs.of_events(interests)
