"""What the networks share: embeddings of items and, if wanted, of users, and the sum of a history."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from deepinterest.config import ModelConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.embedding import FeatureEmbedding, Features
from deepinterest.nn.ragged import Pairs, segment_sum
from deepinterest.nn.recurrent import GRU


class Network(nn.Module):
    """A network scores the candidates of a batch: `forward(batch) -> Prediction`.

    `quirks` are all off by default. Those that change a network act here and in the blocks of `nn/`: no network's
    `forward` knows of them.
    """

    epsilon: ClassVar[float] = 1e-8  # what the published code adds to this network's probabilities (quirks.epsilon)

    def __init__(self, features: Features, config: ModelConfig, quirks: Quirks | None = None) -> None:
        super().__init__()
        self.quirks = quirks or Quirks()
        self.items = FeatureEmbedding(features.catalogue, features.sizes, config.embedding_dim)
        self.users = (
            FeatureEmbedding(features.user_catalogue, features.user_sizes, config.embedding_dim)
            if config.use_user or self.quirks.user_embedding
            else None
        )
        self.item_width = self.items.width  # D
        self.user_width = 0 if self.users is None else self.users.width

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """All embedding tables; their gradients are sparse."""
        return [module for module in self.modules() if isinstance(module, nn.Embedding)]

    def history_sum(self, history: Tensor, batch: Batch) -> Tensor:
        """Sum of each candidate's history: events (N, D) -> (B, D).

        With quirks.padded_sum all histories are as long as the batch's longest, filled up with the unknown item.
        """
        S = segment_sum(history, batch.offsets)  # (G, D)
        if self.quirks.padded_sum:
            lengths = batch.offsets.diff()  # (G,)
            (unknown,) = self.items(batch.history.new_zeros(1))  # (1, D)
            S = S + (lengths.max() - lengths).unsqueeze(1) * unknown
        return S.index_select(0, batch.history_index)

    def with_user(self, batch: Batch, *parts: Tensor) -> Tensor:
        """The head's input: the user's embedding first, if there is one, then the parts, each (B, .)."""
        if self.users is None:
            return torch.cat(parts, dim=1)
        (user,) = self.users(batch.user)  # (G, user_width)
        return torch.cat([user.index_select(0, batch.history_index), *parts], dim=1)

    def forward(self, batch: Batch) -> Prediction:
        raise NotImplementedError


class AttentionNetwork(Network):
    """A network that weighs the events of a history for each candidate."""

    attention: TargetAttention

    def interests(self, history: Tensor, offsets: Tensor) -> Tensor:
        """What attention reads in place of each event: (N, D), offsets (G+1,) -> (N, .)."""
        raise NotImplementedError

    def attention_weights(self, batch: Batch) -> tuple[Tensor, Pairs]:
        """How much each event matters to each candidate: weights (M,) and the pairs they belong to."""
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        pairs = Pairs.of(batch.offsets, batch.history_index)
        return self.attention(q, self.interests(history, batch.offsets), pairs), pairs


class InterestNetwork(AttentionNetwork):
    """A network whose attention reads the states of a GRU over the history: the interest states."""

    extraction: GRU

    def interests(self, history: Tensor, offsets: Tensor) -> Tensor:
        """The extraction's states: (N, D), offsets (G+1,) -> (N, H)."""
        h, _ = self.extraction(history, offsets)
        return h
