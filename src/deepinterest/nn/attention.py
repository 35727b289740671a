"""How much each event of a history matters to a candidate: DIN's activation unit, with DIEN's softmax."""

from __future__ import annotations

from torch import Tensor, nn

from deepinterest.kernels import dense
from deepinterest.nn.mlp import linear
from deepinterest.nn.pair_mlp import PairMLP
from deepinterest.nn.ragged import Pairs, segment_softmax


class TargetAttention(nn.Module):
    """Softmax over a candidate's events of an MLP on [q, f, q-f, q*f], with query q and event f (both D).

    The first layer acts on q and f apart, except for their product: with weights [Wq, Wf, Wd, Wp],

        [q, f, q-f, q*f] W = q (Wq+Wd) + f (Wf-Wd) + (q*f) Wp

    so the first two terms are computed once per candidate and once per event, not once per pair.
    `project` first maps the query into the events' space: dense and PReLU (DIEN).
    """

    def __init__(self, query_dim: int, event_dim: int, hidden: list[int], project: bool = False) -> None:
        super().__init__()
        if not project and query_dim != event_dim:
            raise ValueError("query and event widths differ: attention needs project=True")
        self.project = nn.Sequential(linear(query_dim, event_dim), nn.PReLU(event_dim, init=0.1)) if project else None
        self.first = linear(4 * event_dim, hidden[0])
        self.rest = PairMLP(hidden, 1)

    def scores(self, query: Tensor, events: Tensor, pairs: Pairs) -> Tensor:
        """Before the softmax: query (B, Q), events (N, E) -> (M,)."""
        q = query if self.project is None else self.project(query)  # (B, E)
        Wq, Wf, Wd, Wp = self.first.weight.t().chunk(4)  # (E, A) each
        of_query = dense(q, Wq + Wd, self.first.bias)  # (B, A)
        of_event = dense(events, Wf - Wd)  # (N, A)
        event = None if pairs.alone else pairs.event
        product = (events, event), (q, pairs.candidate)  # (M, E)
        return self.rest.of([product], Wp, [(of_query, pairs.candidate), (of_event, event)])  # (M,)

    def forward(self, query: Tensor, events: Tensor, pairs: Pairs) -> Tensor:
        """Weights that sum to one over each candidate's events: query (B, Q), events (N, E) -> (M,)."""
        return segment_softmax(self.scores(query, events, pairs), pairs.offsets)  # (M,)
