"""DIEN's auxiliary loss: each interest state must tell the next event from one that did not happen (equations 6-7)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from deepinterest.nn.mlp import FrozenNorm, linear
from deepinterest.nn.ragged import next_steps


class AuxiliaryLoss(nn.Module):
    """Mean over real positions of -log p(h_t, e_{t+1}) - mean over k of log(1 - p(h_t, n_{t+1,k})).

    p is the first column of the softmax of an MLP on [h, e], as in the published code (the paper has an inner product).
    In the first layer the state's share is computed once for the positive and all negatives.
    """

    def __init__(self, state: int, item: int, hidden: list[int]) -> None:
        super().__init__()
        self.state = state
        self.norm = FrozenNorm(state + item)
        self.first = linear(state + item, hidden[0])
        layers: list[nn.Module] = [nn.Sigmoid()]
        for inputs, outputs in pairwise(hidden):
            layers += [linear(inputs, outputs), nn.Sigmoid()]
        self.rest = nn.Sequential(*layers, linear(hidden[-1], 2))

    def forward(self, states: Tensor, history: Tensor, negatives: Tensor, offsets: Tensor) -> Tensor:
        """States (N, H), their events (N, D), negatives (N, K, D) of each event, offsets (G+1,) -> scalar.

        Zero when no history has two events.
        """
        current, following = next_steps(offsets)  # (P,), (P,)
        items = torch.cat([history.unsqueeze(1), negatives], dim=1).index_select(0, following)  # (P, 1+K, D)
        logits = self.logits(states.index_select(0, current), items)  # (P, 1+K)
        positive, negative = logits[:, 0], logits[:, 1:]  # (P,), (P, K)
        losses = softplus(-positive) + softplus(negative).mean(1)  # (P,)
        return losses.sum() / max(len(losses), 1)

    def logits(self, states: Tensor, items: Tensor) -> Tensor:
        """log p/(1-p) of each state (P, H) with each of its items (P, 1+K, D): (P, 1+K)."""
        weight = self.first.weight * self.norm.scale()  # (A, H+D) the norm folded into the layer
        bias = self.first.bias + self.first.weight @ self.norm.bias  # (A,)
        of_state = torch.addmm(bias, states, weight[:, : self.state].t())  # (P, A)
        of_items = items @ weight[:, self.state :].t()  # (P, 1+K, A)
        pair = self.rest(of_state.unsqueeze(1) + of_items)  # (P, 1+K, 2)
        return pair[..., 0] - pair[..., 1]  # (P, 1+K)
