"""The recurrence in torch operations, on any device and in any precision: all sequences in step, longest first."""

from __future__ import annotations

import torch
from torch import Tensor

from deepinterest.config import ResetGate
from deepinterest.kernels.recurrence import Gradients, Sequences
from deepinterest.nn.ragged import TimeMajor

# Packed: in the order of a TimeMajor walk, where step t of all running sequences lies together.


def forward(of: Sequences, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See `Kernel`."""
    walk = TimeMajor.of(of.offsets, of.steps)
    x = of.x.index_select(0, walk.index if of.source is None else of.source.index_select(0, walk.index))  # packed
    H = len(of.candidate)
    ru, c = x.new_empty(len(x), 2 * H), x.new_empty(len(x), H)  # overwritten below: never views of x
    ru.copy_(x[:, : 2 * H])  # (M, 2H)
    c.copy_(x[:, 2 * H :])  # (M, H)
    resettable = torch.empty_like(c)  # (M, H) h Uc, where r multiplies that
    keeping = ru[:, H:]  # (M, H) k
    if of.base is not None and of.slope is not None:
        base, slope = (line.index_select(0, walk.index).unsqueeze(1) for line in (of.base, of.slope))
        keeping = torch.empty_like(c)
    states = torch.empty_like(c)  # (M, H)
    h = x.new_zeros(walk.active[0] if walk.active else 0, H)
    start = 0
    for active in walk.active:
        now = slice(start, start + active)
        h = h[:active]
        ru[now].addmm_(h, of.gates).sigmoid_()
        r = ru[now, :H]
        if of.reset is ResetGate.before:
            c[now].addmm_(r * h, of.candidate).tanh_()
        else:
            torch.mm(h, of.candidate, out=resettable[now])
            c[now].addcmul_(r, resettable[now]).tanh_()
        if of.base is not None:
            torch.addcmul(base[now], slope[now], ru[now, H:], out=keeping[now])
        h = torch.lerp(c[now], h, keeping[now], out=states[now])  # k*h + (1-k)*c
        start += active
    kept = (walk.index, walk.position, torch.tensor(walk.active), ru, c, resettable, keeping, walk.before(states))
    return states.index_select(0, walk.position), kept if keep else ()


def backward(of: Sequences, states: Tensor, kept: tuple[Tensor, ...], grad: Tensor) -> Gradients:
    """See `Kernel`."""
    index, position, counts, ru, c, resettable, keeping, h = kept
    before = of.reset is ResetGate.before
    H = len(of.candidate)
    r, u = ru[:, :H], ru[:, H:]  # (M, H), (M, H)

    # Slopes of each step that are known before the loop, with dh the gradient of the step's new state:
    # dzc = dh*to_c, dzu = dh*to_u, and dzr = (gradient of what r multiplied)*to_r. z: before the activation.
    to_k = h - c  # (M, H) dk = dh*to_k
    to_c = (1 - keeping) * (1 - c * c)  # (M, H)
    to_u = to_k * u * (1 - u)  # (M, H)
    if of.slope is not None:
        to_u *= of.slope.index_select(0, index).unsqueeze(1)
    to_r = (h if before else resettable) * r * (1 - r)  # (M, H)

    dh = grad.index_select(0, index)  # (M, H) packed; grows by what later steps send back
    dx = dh.new_empty(len(dh), 3 * H)  # (M, 3H)
    dz, dzc = dx[:, : 2 * H], dx[:, 2 * H :]  # (M, 2H) of both gates, (M, H) of the candidate
    gates_t, candidate_t = of.gates.t().contiguous(), of.candidate.t().contiguous()
    running = counts.tolist()
    end = len(dh)
    for t in range(len(running) - 1, -1, -1):
        active = running[t]
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
            back.addcmul_(d, keeping[now]).addmm_(dz[now], gates_t)
            previous = end - running[t - 1]
            dh[previous : previous + active] += back

    d_base = d_slope = None
    if of.slope is not None:
        dk = dh * to_k  # (M, H)
        d_base, d_slope = (of_k.sum(1).index_select(0, position) for of_k in (dk, dk * u))  # (M,), (M,)
    inside, product = (r * h, dzc) if before else (h, r * dzc)
    # Sums over all steps need no order: only z is put back.
    return Gradients(
        z=dx.index_select(0, position),
        base=d_base,
        slope=d_slope,
        gates=h.t() @ dz,
        candidate=inside.t() @ product,
    )
