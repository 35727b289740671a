"""The recurrences once more, one sequence and one step at a time, straight from the equations: for tests only."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinterest.config import AttentionUpdate, ResetGate
from deepinterest.nn.recurrent import GRU, AttentionGRU


def gru_states(cell: GRU | AttentionGRU, x: Tensor, attention: Tensor | None = None) -> Tensor:
    """The states of one sequence: (T, I), attention (T,) or none -> (T, H)."""
    h = x.new_zeros(cell.hidden)
    states = [h]
    for t in range(len(x)):
        xr, xu, xc = (x[t] @ cell.input + cell.bias).chunk(3)
        Ur, Uu = cell.gates.chunk(2, dim=1)
        r, u = torch.sigmoid(xr + h @ Ur), torch.sigmoid(xu + h @ Uu)
        inside = (r * h) @ cell.candidate if cell.reset_gate is ResetGate.before else r * (h @ cell.candidate)
        c = torch.tanh(xc + inside)
        if attention is None:
            h = u * h + (1 - u) * c
        elif isinstance(cell, AttentionGRU) and cell.update == "agru":
            h = (1 - attention[t]) * h + attention[t] * c
        elif isinstance(cell, AttentionGRU) and cell.update == AttentionUpdate.code:
            kept = (1 - attention[t]) * u
            h = kept * h + (1 - kept) * c
        else:
            written = attention[t] * (1 - u)
            h = (1 - written) * h + written * c
        states.append(h)
    return torch.stack(states)[1:]
