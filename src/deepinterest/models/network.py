"""What the networks share: embeddings of items, of users and of context, and the sum of a history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deepinterest.config import ModelConfig, Quirks
from deepinterest.data.batch import Batch
from deepinterest.errors import UserError
from deepinterest.models.prediction import Prediction
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.embedding import ContextEmbedding, FeatureEmbedding, Features
from deepinterest.nn.ragged import Pairs, segment_sum
from deepinterest.nn.recurrent import GRU, AttentionGRU


class Network(nn.Module):
    """A network scores the candidates of a batch: `forward(batch) -> Prediction`.

    `quirks` are all off by default. Those that change a network act here and in the blocks of `nn/`: no network's
    `forward` knows of them.
    """

    epsilon: ClassVar[float] = 1e-8  # what the published code adds to this network's probabilities (quirks.epsilon)

    def __init__(self, features: Features, config: ModelConfig, quirks: Quirks | None = None) -> None:
        super().__init__()
        self.quirks = quirks or Quirks()
        dim, sharded = config.embedding_dim, features.sharded
        self.items = FeatureEmbedding(features.catalogue, features.sizes, dim, sharded)
        catalogue, sizes = features.of_users(config.use_user or self.quirks.user_embedding)
        self.users = FeatureEmbedding(catalogue, sizes, dim, sharded) if sizes else None
        contexts = features.context_sizes
        self.context = ContextEmbedding(contexts, dim, sharded) if contexts else None
        self.item_width = self.items.width  # D
        self.user_width = sum(part.width for part in (self.users, self.context) if part is not None)  # of `with_user`

    @property
    def embeddings(self) -> list[nn.Embedding]:
        """The embedding tables with sparse gradients; a plain `nn.Embedding` trains as any other layer does."""
        return [module for module in self.modules() if isinstance(module, nn.Embedding) and module.sparse]

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
        """The head's input: embeddings of the user and of the context, where there are, then the parts, each (B, .).

        Raises UserError where the network reads context and the batch has none.
        """
        first = []
        if self.users is not None:
            (user,) = self.users(batch.user)  # (G, .)
            first.append(user.index_select(0, batch.history_index))
        if self.context is not None:
            if batch.context is None:
                raise UserError(
                    "This network reads context features, and the batch has none: give Batch.context (B, C)."
                )
            first.append(self.context(batch.context))
        return torch.cat([*first, *parts], dim=1)

    def check(self, batch: Batch) -> None:
        """Raise a UserError for a batch that can't be read; those of the loader are taken as they are."""
        if not batch.checked:
            users = None if self.users is None else len(self.users.catalogue)
            contexts = None if self.context is None else self.context.sizes
            batch.check(len(self.items.catalogue), users, contexts)

    def __call__(self, batch: Batch) -> Prediction:
        """`forward` of a batch that is checked."""
        self.check(batch)
        prediction: Prediction = super().__call__(batch)
        return prediction

    def forward(self, batch: Batch) -> Prediction:
        raise NotImplementedError


@dataclass
class Evolution:
    """A history read for each candidate, step by step."""

    pairs: Pairs
    weights: Tensor  # (M,) attention
    states: Tensor | None  # (M, H) after each event; None where nothing is recurrent
    without_target: Tensor | None  # (M, H) the same if all events had equal attention


class AttentionNetwork(Network):
    """A network that weighs the events of a history for each candidate."""

    attention: TargetAttention

    def interests(self, history: Tensor, offsets: Tensor) -> Tensor:
        """What attention reads in place of each event: (N, D), offsets (G+1,) -> (N, .)."""
        raise NotImplementedError

    def attention_weights(self, batch: Batch) -> tuple[Tensor, Pairs]:
        """How much each event matters to each candidate: weights (M,) and the pairs they belong to."""
        self.check(batch)
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        pairs = Pairs.of(batch.offsets, batch.history_index)
        return self.attention(q, self.interests(history, batch.offsets), pairs), pairs

    def evolve(self, batch: Batch) -> Evolution:
        """How each history is read for each candidate, step by step; what `forward` sees the end of."""
        self.check(batch)
        history, q = self.items(batch.history, batch.candidates)  # (N, D), (B, D)
        pairs = Pairs.of(batch.offsets, batch.history_index)
        interests = self.interests(history, batch.offsets)  # (N, .)
        a = self.attention(q, interests, pairs)  # (M,)
        lengths = pairs.offsets.diff().index_select(0, pairs.candidate)  # (M,)
        equal = lengths.to(a.dtype).reciprocal()  # (M,)
        return Evolution(pairs, a, self.states(interests, a, pairs), self.states(interests, equal, pairs))

    def states(self, interests: Tensor, attention: Tensor, pairs: Pairs) -> Tensor | None:
        """The state after each event for each candidate, (M, H); None where the network only sums the events up."""
        return None


class InterestNetwork(AttentionNetwork):
    """A network whose attention reads the states of a GRU over the history: the interest states."""

    extraction: GRU
    evolution: GRU | AttentionGRU  # a GRU reads each state times its attention

    def interests(self, history: Tensor, offsets: Tensor) -> Tensor:
        """The extraction's states: (N, D), offsets (G+1,) -> (N, H)."""
        h, _ = self.extraction(history, offsets)
        return h

    def states(self, interests: Tensor, attention: Tensor, pairs: Pairs) -> Tensor | None:
        """The evolution's states (M, H)."""
        if isinstance(self.evolution, AttentionGRU):
            return self.evolution.states(interests, attention, pairs)
        states, _ = self.evolution(attention.unsqueeze(1) * pairs.of_events(interests), pairs.offsets)
        return states
