"""DIEN's auxiliary loss: each interest state must tell the next event from one that did not happen (equations 6-7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from deepinterest.config import Quirks
from deepinterest.kernels import dense
from deepinterest.nn.mlp import FrozenNorm, linear
from deepinterest.nn.pair_mlp import PairMLP
from deepinterest.nn.ragged import next_steps

EPSILON = 1e-8  # what the published code adds to its probabilities


class AuxiliaryLoss(nn.Module):
    """Mean over real positions of -log p(h_t, e_{t+1}) - mean over k of log(1 - p(h_t, n_{t+1,k})).

    p is the first column of the softmax of an MLP on [h, e], as in the published code (the paper has an inner product).
    In the first layer the state's share is computed once for the positive and all negatives.
    Quirks: `padded_auxiliary` averages over padded positions too, `epsilon` adds 1e-8 to p.
    """

    def __init__(self, state: int, item: int, hidden: list[int], quirks: Quirks | None = None) -> None:
        super().__init__()
        self.state = state
        self.quirks = quirks or Quirks()
        self.norm = FrozenNorm(state + item)
        self.first = linear(state + item, hidden[0])
        self.rest = PairMLP(hidden, 2)

    def forward(self, states: Tensor, history: Tensor, negatives: Tensor, offsets: Tensor) -> Tensor:
        """States (N, H), their events (N, D), negatives (N, K, D) of each event, offsets (G+1,) -> scalar.

        Zero when no history has two events.
        """
        current, following = next_steps(offsets)  # (P,), (P,)
        positive, negative = self.logits(states, history, negatives, current, following)  # (P,), (P, K)
        losses = (self._missed(positive) + self._false_alarm(negative).mean(1)).sum()
        if self.quirks.padded_auxiliary:
            longest = offsets.diff().max()
            return losses / ((len(offsets) - 1) * (longest - 1)).clamp(min=1)
        return losses / max(len(current), 1)

    def _missed(self, logit: Tensor) -> Tensor:
        """-log p of any shape."""
        return -(torch.sigmoid(logit.float()) + EPSILON).log() if self.quirks.epsilon else softplus(-logit)

    def _false_alarm(self, logit: Tensor) -> Tensor:
        """-log(1-p) of any shape; with the published epsilon infinite where p rounds to one."""
        return -(1 - (torch.sigmoid(logit.float()) + EPSILON)).log() if self.quirks.epsilon else softplus(logit)

    def logits(
        self, states: Tensor, history: Tensor, negatives: Tensor, current: Tensor, following: Tensor
    ) -> tuple[Tensor, Tensor]:
        """log p/(1-p) of state current[p] with event following[p], and with its negatives: (P,), (P, K)."""
        K = negatives.shape[1]
        weight = self.first.weight * self.norm.scale()  # (A, H+D) the norm folded into the layer
        bias = self.first.bias + self.first.weight @ self.norm.bias  # (A,)
        of_state = dense(states, weight[:, : self.state].t(), bias)  # (N, A)
        drawn = (following.unsqueeze(1) * K + torch.arange(K, device=following.device)).flatten()  # (PK,)
        parts = [((history, following), None), ((negatives.flatten(0, 1), drawn), None)]
        state = torch.cat([current, current.repeat_interleave(K)])  # (P(1+K),)
        found = self.rest.of(parts, weight[:, self.state :].t(), [(of_state, state)])  # (P(1+K),)
        return found[: len(current)], found[len(current) :].view(-1, K)
