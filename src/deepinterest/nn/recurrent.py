"""The recurrences of DIEN over ragged sequences: GRU, AGRU and AUGRU (equations 2-5 and 9-12).

All of them are one recurrence. With reset gate r, update gate u and candidate c, each of (H,):

    r = sigmoid(xr + h Ur)    u = sigmoid(xu + h Uu)
    c = tanh(xc + (r*h) Uc)   [ResetGate.before]   or   tanh(xc + r*(h Uc))   [ResetGate.after]
    h' = k*h + (1-k)*c        k = base + slope*u: how much of the old state is kept

    GRU            k = u                 base 0      slope 1
    AGRU           k = 1-a               base 1-a    slope 0
    AUGRU, code    k = (1-a) u           base 0      slope 1-a
    AUGRU, paper   k = 1 - a (1-u)       base 1-a    slope a

u is the gate that keeps, as in the published code and in torch.nn.GRU; the paper's u is 1-u.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepinterest.config import AttentionUpdate, ResetGate
from deepinterest.nn.ragged import Pairs, TimeMajor

Update = AttentionUpdate | Literal["agru"]


def keep_line(attention: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """(base, slope) of the keep factor k = base + slope*u for attention a: (M,) -> (M, 1), (M, 1)."""
    a = attention.unsqueeze(1)  # (M, 1)
    if update == "agru":
        return 1 - a, torch.zeros_like(a)
    if update == AttentionUpdate.code:
        return torch.zeros_like(a), 1 - a
    return 1 - a, a


class Recurrence(torch.autograd.Function):
    """All states of the recurrence, in packed (time-major) order.

    x (N, 3H) holds the inputs' share [xr, xu, xc], gates is [Ur, Uu] (H, 2H), candidate is Uc (H, H); base and slope
    are (N, 1), or None for the plain GRU. Returns the states (N, H). The loops hold only what needs the step before.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        slope: Tensor | None,
        gates: Tensor,
        candidate: Tensor,
        walk: TimeMajor,
        reset: ResetGate,
    ) -> Tensor:
        H = len(candidate)
        ru, c = x.new_empty(len(x), 2 * H), x.new_empty(len(x), H)  # overwritten below: never views of x
        ru.copy_(x[:, : 2 * H])  # (N, 2H)
        c.copy_(x[:, 2 * H :])  # (N, H)
        resettable = torch.empty_like(c)  # (N, H) what the reset gate multiplies: h, or h Uc
        keep = ru[:, H:] if base is None else torch.empty_like(c)  # (N, H)
        states = torch.empty_like(c)  # (N, H)
        h = x.new_zeros(walk.active[0] if walk.active else 0, H)
        start = 0
        for active in walk.active:
            now = slice(start, start + active)
            h = h[:active]
            ru[now].addmm_(h, gates).sigmoid_()
            r = ru[now, :H]
            if reset is ResetGate.before:
                c[now].addmm_(r * h, candidate).tanh_()
            else:
                torch.mm(h, candidate, out=resettable[now])
                c[now].addcmul_(r, resettable[now]).tanh_()
            if base is not None and slope is not None:
                torch.addcmul(base[now], slope[now], ru[now, H:], out=keep[now])
            h = torch.lerp(c[now], h, keep[now], out=states[now])  # k*h + (1-k)*c
            start += active
        ctx.save_for_backward(slope, gates, candidate, ru, c, resettable, keep, states)
        ctx.walk, ctx.reset = walk, reset
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        slope, gates, candidate, ru, c, resettable, keep, states = ctx.saved_tensors
        before = ctx.reset is ResetGate.before
        H = len(candidate)
        r, u = ru[:, :H], ru[:, H:]  # (N, H), (N, H)
        h = ctx.walk.before(states)  # (N, H)

        # Slopes of each step that are known before the loop, with dh the gradient of the step's new state:
        # dzc = dh*to_c, dzu = dh*to_u, and dzr = (gradient of what r multiplied)*to_r. z: before the activation.
        to_k = h - c  # (N, H) dk = dh*to_k
        to_c = (1 - keep) * (1 - c * c)  # (N, H)
        to_u = to_k * u * (1 - u)  # (N, H)
        if slope is not None:
            to_u *= slope
        to_r = (h if before else resettable) * r * (1 - r)  # (N, H)

        dh = grads[0].clone()  # (N, H) grows by what later steps send back
        dx = dh.new_empty(len(dh), 3 * H)  # (N, 3H)
        dz, dzc = dx[:, : 2 * H], dx[:, 2 * H :]  # (N, 2H) of both gates, (N, H) of the candidate
        gates_t, candidate_t = gates.t().contiguous(), candidate.t().contiguous()
        end = len(dh)
        for t in range(len(ctx.walk.active) - 1, -1, -1):
            active = ctx.walk.active[t]
            now = slice(end - active, end)
            d = dh[now]
            torch.mul(d, to_c[now], out=dzc[now])
            torch.mul(d, to_u[now], out=dz[now, H:])
            end -= active
            if before:
                reset_state = dzc[now] @ candidate_t  # gradient of r*h
                torch.mul(reset_state, to_r[now], out=dz[now, :H])
                back = reset_state.mul_(r[now])
            else:
                torch.mul(dzc[now], to_r[now], out=dz[now, :H])
                back = (dzc[now] * r[now]) @ candidate_t
            if t > 0:
                back.addcmul_(d, keep[now]).addmm_(dz[now], gates_t)
                previous = end - ctx.walk.active[t - 1]
                dh[previous : previous + active] += back

        d_gates = h.t() @ dz  # (H, 2H)
        d_candidate = (r * h).t() @ dzc if before else h.t() @ (r * dzc)  # (H, H)
        d_base = d_slope = None
        if slope is not None:
            dk = dh * to_k  # (N, H)
            d_base, d_slope = dk.sum(1, keepdim=True), (dk * u).sum(1, keepdim=True)  # (N, 1), (N, 1)
        return dx, d_base, d_slope, d_gates, d_candidate, None, None


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
        return torch.addmm(self.bias, x, self.input)

    def run(self, x: Tensor, base: Tensor | None, slope: Tensor | None, walk: TimeMajor) -> Tensor:
        """The packed states: (N, 3H) -> (N, H), in the weights' own precision."""
        dtype = self.gates.dtype
        base, slope = (None if line is None else line.to(dtype) for line in (base, slope))
        with torch.autocast(x.device.type, enabled=False):
            return Recurrence.apply(x.to(dtype), base, slope, self.gates, self.candidate, walk, self.reset_gate)


class GRU(_Cell):
    """The interest extractor (equations 2-5)."""

    def __init__(self, input: int, hidden: int, reset_gate: ResetGate = ResetGate.before) -> None:
        super().__init__(input, hidden, reset_gate)

    def forward(self, x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Events (N, I) of histories offsets (S+1,) -> states (N, H) in the events' order, final states (S, H)."""
        walk = TimeMajor.of(offsets, len(x))
        states = self.run(self.project(x.index_select(0, walk.index)), None, None, walk)  # (N, H) packed
        return states.index_select(0, walk.position), walk.final(states)  # (N, H), (S, H)


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
        walk = TimeMajor.of(pairs.offsets, len(attention))
        inputs = self.project(x).index_select(0, pairs.event.index_select(0, walk.index))  # (M, 3H) packed
        base, slope = keep_line(attention.index_select(0, walk.index), self.update)  # (M, 1), (M, 1)
        return walk.final(self.run(inputs, base, slope, walk))  # (B, H)
