"""What the networks share: embeddings of items and, if wanted, of users."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deepinterest.config import ModelConfig
from deepinterest.data.batch import Batch
from deepinterest.models.prediction import Prediction
from deepinterest.nn.embedding import FeatureEmbedding, Features


class Network(nn.Module):
    """A network scores the candidates of a batch: `forward(batch) -> Prediction`."""

    def __init__(self, features: Features, config: ModelConfig) -> None:
        super().__init__()
        self.items = FeatureEmbedding(features.catalogue, features.sizes, config.embedding_dim)
        self.users = (
            FeatureEmbedding(features.user_catalogue, features.user_sizes, config.embedding_dim)
            if config.use_user
            else None
        )
        self.item_width = self.items.width  # D
        self.user_width = 0 if self.users is None else self.users.width

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """All embedding tables; their gradients are sparse."""
        return [module for module in self.modules() if isinstance(module, nn.Embedding)]

    def with_user(self, batch: Batch, *parts: Tensor) -> Tensor:
        """The head's input: the user's embedding first, if there is one, then the parts, each (B, .)."""
        if self.users is None:
            return torch.cat(parts, dim=1)
        (user,) = self.users(batch.user)  # (G, user_width)
        return torch.cat([user.index_select(0, batch.history_index), *parts], dim=1)

    def forward(self, batch: Batch) -> Prediction:
        raise NotImplementedError
