"""The recurrence one sequence and one step at a time, straight from the equations: for tests."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from deepinterest.config import ResetGate
from deepinterest.kernels.recurrence import Sequences


def states(of: Sequences) -> Tensor:
    """All states (M, H)."""
    Ur, Uu = of.gates.chunk(2, dim=1)
    x = of.x if of.source is None else of.x[of.source]  # (M, 3H)
    found = [x.new_zeros(0, len(of.candidate))]
    for begin, end in pairwise(of.offsets.tolist()):
        h = x.new_zeros(len(of.candidate))
        for m in range(begin, end):
            xr, xu, xc = x[m].chunk(3)
            r, u = torch.sigmoid(xr + h @ Ur), torch.sigmoid(xu + h @ Uu)
            c = torch.tanh(xc + ((r * h) @ of.candidate if of.reset is ResetGate.before else r * (h @ of.candidate)))
            k = u if of.base is None or of.slope is None else of.base[m] + of.slope[m] * u
            h = k * h + (1 - k) * c
            found.append(h.unsqueeze(0))
    return torch.cat(found)
