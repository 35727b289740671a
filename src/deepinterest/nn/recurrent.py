"""The recurrences of DIEN over ragged sequences: GRU, AGRU and AUGRU (equations 2-5 and 9-12); see `kernels/`."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from deepinterest.config import AttentionUpdate, ResetGate
from deepinterest.kernels import dense, recurrence
from deepinterest.nn.ragged import Pairs, last_rows

Update = AttentionUpdate | Literal["agru"]


def keep_line(attention: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """(base, slope) of the keep factor k = base + slope*u for attention a: (M,) -> (M,), (M,)."""
    if update == "agru":
        return 1 - attention, torch.zeros_like(attention)
    if update == AttentionUpdate.code:
        return torch.zeros_like(attention), 1 - attention
    return 1 - attention, attention


class _Cell(nn.Module):
    """The weights of one recurrence, initialised as the published code's: gate biases 1, Glorot on [x; h] matrices."""

    def __init__(self, input: int, hidden: int, reset_gate: ResetGate) -> None:
        super().__init__()
        self.hidden = hidden
        self.reset_gate = reset_gate
        self.input = nn.Parameter(torch.empty(input, 3 * hidden))  # (I, 3H) to reset, update, candidate
        self.bias = nn.Parameter(torch.empty(3 * hidden))  # (3H,)
        self.gates = nn.Parameter(torch.empty(hidden, 2 * hidden))  # (H, 2H) [Ur, Uu]
        self.candidate = nn.Parameter(torch.empty(hidden, hidden))  # (H, H) Uc
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        H, rows = self.hidden, len(self.input) + self.hidden
        gate_limit, candidate_limit = math.sqrt(6 / (rows + 2 * H)), math.sqrt(6 / (rows + H))
        self.input[:, : 2 * H].uniform_(-gate_limit, gate_limit)
        self.input[:, 2 * H :].uniform_(-candidate_limit, candidate_limit)
        self.gates.uniform_(-gate_limit, gate_limit)
        self.candidate.uniform_(-candidate_limit, candidate_limit)
        self.bias[: 2 * H].fill_(1.0)
        self.bias[2 * H :].zero_()

    def project(self, x: Tensor) -> Tensor:
        """The inputs' share of all three: (N, I) -> (N, 3H)."""
        return dense(x, self.input, self.bias)

    def run(
        self,
        x: Tensor,
        offsets: Tensor,
        source: Tensor | None = None,
        base: Tensor | None = None,
        slope: Tensor | None = None,
    ) -> Tensor:
        """All states of `kernels.recurrence`: (N, 3H) -> (M, H), in the weights' own precision."""
        dtype, device = self.gates.dtype, x.device.type
        bf16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.bfloat16
        base, slope = (line if line is None else line.to(dtype) for line in (base, slope))
        with torch.autocast(device, enabled=False):
            return recurrence(
                x.to(dtype),
                offsets,
                self.gates,
                self.candidate,
                source=source,
                base=base,
                slope=slope,
                reset=self.reset_gate,
                bf16=bf16,
            )


class GRU(_Cell):
    """The interest extractor (equations 2-5)."""

    def __init__(self, input: int, hidden: int, reset_gate: ResetGate = ResetGate.before) -> None:
        super().__init__(input, hidden, reset_gate)

    def forward(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Events (N, I) of histories offsets (S+1,) -> states (N, H) in the events' order, final states (S, H)."""
        states = self.run(self.project(x), offsets)  # (N, H)
        return states, last_rows(states, offsets)  # (N, H), (S, H)


class AttentionGRU(_Cell):
    """The interest evolution of each candidate: AGRU (equation 10) or AUGRU (equations 11-12)."""

    def __init__(
        self,
        input: int,
        hidden: int,
        update: Update = AttentionUpdate.code,
        reset_gate: ResetGate = ResetGate.before,
    ) -> None:
        super().__init__(input, hidden, reset_gate)
        self.update = update

    def forward(self, x: Tensor, attention: Tensor, pairs: Pairs) -> Tensor:
        """Events (N, I), attention (M,) of their pairs with candidates -> final states (B, H), zero without events."""
        return last_rows(self.states(x, attention, pairs), pairs.offsets)  # (B, H)

    def states(self, x: Tensor, attention: Tensor, pairs: Pairs) -> Tensor:
        """The state after each event, for each candidate: (M, H)."""
        base, slope = keep_line(attention, self.update)  # (M,), (M,)
        return self.run(self.project(x), pairs.offsets, None if pairs.alone else pairs.event, base, slope)
