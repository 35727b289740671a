"""The recurrence in numba for CPUs: eight sequences in step, so that each weight read serves eight rows.

Sequences are taken longest first, in blocks of eight that advance together to the end of the longest; those that still
run are a block's first rows. While a block is walked its rows are filled up to whole vectors (P floats); what is
computed there goes nowhere. Blocks are dealt to as many threads as torch uses.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepinterest.config import ResetGate
from deepinterest.kernels.compiled import compiled, share, workers
from deepinterest.kernels.functions import sigmoid, tanh
from deepinterest.kernels.recurrence import Gradients, Sequences
from deepinterest.kernels.tiles import FLOAT, VECTOR, copy, prefetch, product

ROWS = 8  # sequences of a block
FUNCTIONS = 100  # multiplications that take as long as a sigmoid or a tanh and what is around it
AHEAD = 3  # steps whose data are fetched before they are needed
TOGETHER = 64  # rows of steps from which the weights' gradients are summed
_ONE, _ZERO = np.float32(1), np.float32(0)


def forward(of: Sequences, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See `Kernel`."""
    H, M = len(of.candidate), of.steps
    after = of.reset is ResetGate.after
    walk = _Walk(of)
    states, kept = of.x.new_empty(M, H), of.x.new_empty(M if keep else 0, _slots(after) * H)
    matrices = _laid_out(*of.gates.chunk(2, dim=1), of.candidate)
    share(walk.workers, _forward, *walk.arguments, after, keep, *_flat(of.x, *matrices, states, kept))
    return states, (kept,) if keep else ()


def backward(of: Sequences, states: Tensor, kept: tuple[Tensor, ...], grad: Tensor) -> Gradients:
    """See `Kernel`."""
    H, M = len(of.candidate), of.steps
    after = of.reset is ResetGate.after
    walk = _Walk(of)
    z = states.new_empty(M, 3 * H)
    base, slope = (states.new_empty(0 if of.base is None else M) for _ in range(2))
    sums = states.new_zeros(walk.workers, 3, H, walk.padded)
    matrices = _laid_out(*(matrix.t() for matrix in (*of.gates.chunk(2, dim=1), of.candidate)))
    flat = _flat(grad, *matrices, states, *kept, z, base, slope)
    share(walk.workers, _backward, *walk.arguments, after, *flat, sums.view(walk.workers, -1).numpy())
    reset, update, candidate = sums.sum(0)[:, :, :H]
    return Gradients(
        z=z,
        base=None if of.base is None else base,
        slope=None if of.base is None else slope,
        gates=torch.cat([reset, update], dim=1),
        candidate=candidate,
    )


def _slots(after: bool) -> int:
    """What each step keeps: r, u, c, and h Uc where r multiplies that."""
    return 4 if after else 3


def _laid_out(*matrices: Tensor) -> list[Tensor]:
    """(H, H) each -> (H, P), filled up with zeros."""
    H = len(matrices[0])
    padded = matrices[0].new_zeros(len(matrices), H, -(-H // VECTOR) * VECTOR)
    for to, matrix in zip(padded, matrices, strict=True):
        to[:, :H] = matrix.detach()
    return list(padded)


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().view(-1).numpy() for tensor in tensors]


class _Walk:
    """The blocks, and what every walk through them reads."""

    def __init__(self, of: Sequences) -> None:
        H = len(of.candidate)
        offsets = of.offsets.numpy()
        lengths = np.diff(offsets)
        order = np.argsort(-lengths, kind="stable")
        vectors = -(-H // VECTOR)
        self.padded = vectors * VECTOR  # P
        self.workers = workers(-(-len(order) // ROWS), 3 * of.steps * H * (H + FUNCTIONS))
        source = np.empty(0, np.int64) if of.source is None else of.source.numpy()
        lines = [np.empty(0, np.float32)] * 2 if of.base is None or of.slope is None else _flat(of.base, of.slope)
        # A tuple's length is part of its type: P is a constant to the compiler.
        self.arguments = ((0,) * vectors, H, source, *lines, offsets, order)


# ------------------------------------------------------------------------------------------------------------ the walks


@compiled
def _block(first, offsets, order, begin, length):
    """The sequences of a block: where they begin and how long they are. Returns the longest length."""
    for i in range(ROWS):
        length[i] = 0
        if first + i < len(order):
            s = order[first + i]
            begin[i], length[i] = offsets[s], offsets[s + 1] - offsets[s]
    return length[0]


@compiled
def _running(length, t):
    """How many sequences of a block have a step t, and with how many rows to compute."""
    running = 0
    while running < ROWS and t < length[running]:
        running += 1
    return running, (ROWS if running > 4 else 4 if running > 1 else 1)


@compiled
def _forward(
    worker, workers, vectors, hidden, source, base, slope, offsets, order,
    after, keep, x, reset_gate, update_gate, candidate, states, kept,
):  # fmt: skip
    P = len(vectors) * VECTOR
    H, R, slots = hidden, ROWS * P, 4 if after else 3
    begin, length = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    h, r, u, c = np.zeros(R, np.float32), np.zeros(R, np.float32), np.zeros(R, np.float32), np.zeros(R, np.float32)
    more = np.zeros(R, np.float32)  # r*h, or h Uc where r multiplies that
    of_h, of_r, of_u, of_c, of_more = h.ctypes.data, r.ctypes.data, u.ctypes.data, c.ctypes.data, more.ctypes.data
    ur, uu, uc = reset_gate.ctypes.data, update_gate.ctypes.data, candidate.ctypes.data
    of_x, of_states, of_kept = x.ctypes.data, states.ctypes.data, kept.ctypes.data
    for first in range(worker * ROWS, len(order), workers * ROWS):
        longest = _block(first, offsets, order, begin, length)
        h[:] = 0
        for t in range(longest):
            running, rows = _running(length, t)
            for i in range(running):
                m = begin[i] + t
                now, row = of_x + FLOAT * (source[m] if len(source) else m) * 3 * H, FLOAT * i * P
                copy(now, of_r + row, H, P)
                copy(now + FLOAT * H, of_u + row, H, P)
                copy(now + FLOAT * 2 * H, of_c + row, H, P)
            size = rows * P
            product(of_h, P, 1, ur, P, of_r, P, rows, H, P, 1)
            product(of_h, P, 1, uu, P, of_u, P, rows, H, P, 1)
            sigmoid(r[:size])
            sigmoid(u[:size])
            if after:
                product(of_h, P, 1, uc, P, of_more, P, rows, H, P, 0)
                for j in range(size):
                    c[j] += r[j] * more[j]
            else:
                for j in range(size):
                    more[j] = r[j] * h[j]
                product(of_more, P, 1, uc, P, of_c, P, rows, H, P, 1)
            tanh(c[:size])
            if len(base):
                for i in range(running):
                    b, s = base[begin[i] + t], slope[begin[i] + t]
                    span = slice(i * P, (i + 1) * P)
                    u_row, c_row, h_row = u[span], c[span], h[span]
                    for j in range(P):
                        h_row[j] = c_row[j] + (b + s * u_row[j]) * (h_row[j] - c_row[j])
            else:
                for j in range(size):
                    h[j] = c[j] + u[j] * (h[j] - c[j])
            for i in range(running):
                m, row = begin[i] + t, FLOAT * i * P
                copy(of_h + row, of_states + FLOAT * m * H, H, H)
                if keep:
                    to = of_kept + FLOAT * m * slots * H
                    copy(of_r + row, to, H, H)
                    copy(of_u + row, to + FLOAT * H, H, H)
                    copy(of_c + row, to + FLOAT * 2 * H, H, H)
                    if after:
                        copy(of_more + row, to + FLOAT * 3 * H, H, H)


@compiled
def _backward(
    worker, workers, vectors, hidden, source, base, slope, offsets, order,
    after, grad, reset_t, update_t, candidate_t, states, kept, dz, d_base, d_slope, sums,
):  # fmt: skip
    P = len(vectors) * VECTOR
    H, R, slots = hidden, ROWS * P, 4 if after else 3
    begin, length = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    # Of the rows since the weights' gradients were last added to: those of this step are the last.
    room = (TOGETHER + ROWS) * P
    zr, zu, zc = np.zeros(room, np.float32), np.zeros(room, np.float32), np.zeros(room, np.float32)
    left, inside, beside = np.zeros(room, np.float32), np.zeros(room, np.float32), np.zeros(room, np.float32)
    r, u, c, inner = np.zeros(R, np.float32), np.zeros(R, np.float32), np.zeros(R, np.float32), np.zeros(R, np.float32)
    dh, more, own = np.zeros(R, np.float32), np.zeros(R, np.float32), np.zeros(R, np.float32)
    of_r, of_u, of_c, of_inner = r.ctypes.data, u.ctypes.data, c.ctypes.data, inner.ctypes.data
    of_dh, of_more, of_own = dh.ctypes.data, more.ctypes.data, own.ctypes.data
    of_grad, of_dz, of_states, of_kept = grad.ctypes.data, dz.ctypes.data, states.ctypes.data, kept.ctypes.data
    ur, uu, uc = reset_t.ctypes.data, update_t.ctypes.data, candidate_t.ctypes.data
    waiting = 0
    for first in range(worker * ROWS, len(order), workers * ROWS):
        longest = _block(first, offsets, order, begin, length)
        before = 0
        for t in range(longest - 1, -1, -1):
            running, rows = _running(length, t)
            dh[before * P : running * P] = 0  # of sequences that begin, seen from their ends
            before = running
            size = running * P
            now = slice(waiting * P, (waiting + ROWS) * P)
            zr_, zu_, zc_, h, inside_, beside_ = zr[now], zu[now], zc[now], left[now], inside[now], beside[now]
            of_zr, of_zu, of_zc, of_h = zr_.ctypes.data, zu_.ctypes.data, zc_.ctypes.data, h.ctypes.data
            for i in range(running):
                m, row = begin[i] + t, FLOAT * i * P
                place = of_kept + FLOAT * m * slots * H
                copy(place, of_r + row, H, P)
                copy(place + FLOAT * H, of_u + row, H, P)
                copy(place + FLOAT * 2 * H, of_c + row, H, P)
                if after:
                    copy(place + FLOAT * 3 * H, of_inner + row, H, P)
                copy(of_states + FLOAT * (m - 1) * H, of_h + row, H if t > 0 else 0, P)
                copy(of_grad + FLOAT * m * H, of_own + row, H, P)
                ahead = m - AHEAD
                prefetch(of_kept + FLOAT * ahead * slots * H, slots * H)
                prefetch(of_states + FLOAT * ahead * H, H)
                prefetch(of_grad + FLOAT * ahead * H, H)
            for i in range(running):
                m = begin[i] + t
                b, s = (base[m], slope[m]) if len(base) else (_ZERO, _ONE)
                of_base, of_slope = _ZERO, _ZERO
                span = slice(i * P, (i + 1) * P)
                u_row, c_row, h_row, zc_row, zu_row = u[span], c[span], h[span], zc_[span], zu_[span]
                dh_row, own_row = dh[span], own[span]
                for j in range(P):
                    gate, n, d = u_row[j], c_row[j], dh_row[j] + own_row[j]
                    k = b + s * gate
                    dk = d * (h_row[j] - n)
                    zc_row[j] = d * (_ONE - k) * (_ONE - n * n)
                    zu_row[j] = dk * s * gate * (_ONE - gate)
                    dh_row[j] = d * k
                    of_base += dk
                    of_slope += dk * gate
                if len(d_base):
                    d_base[m], d_slope[m] = of_base, of_slope
            if after:  # Uc multiplies h; then comes r
                for j in range(size):
                    zr_[j] = zc_[j] * inner[j] * r[j] * (_ONE - r[j])
                    beside_[j] = zc_[j] * r[j]
                product(beside_.ctypes.data, P, 1, uc, P, of_dh, P, rows, H, P, 1)
            else:  # Uc multiplies r*h
                product(of_zc, P, 1, uc, P, of_more, P, rows, H, P, 0)
                for j in range(size):
                    d = more[j]
                    zr_[j] = d * h[j] * r[j] * (_ONE - r[j])
                    dh[j] += d * r[j]
                    inside_[j] = r[j] * h[j]
            if t > 0:
                product(of_zr, P, 1, ur, P, of_dh, P, rows, H, P, 1)
                product(of_zu, P, 1, uu, P, of_dh, P, rows, H, P, 1)
            for i in range(running):
                row, to = FLOAT * i * P, of_dz + FLOAT * (begin[i] + t) * 3 * H
                copy(of_zr + row, to, H, H)
                copy(of_zu + row, to + FLOAT * H, H, H)
                copy(of_zc + row, to + FLOAT * 2 * H, H, H)
            waiting += running
            if waiting > TOGETHER:
                _sum_up(after, left, inside, zr, zu, zc, beside, sums[worker], waiting, H)
                waiting = 0
    _sum_up(after, left, inside, zr, zu, zc, beside, sums[worker], waiting, H)


@compiled
def _sum_up(after, left, inside, zr, zu, zc, beside, sums, waiting, hidden):
    """Add to the gradients of Ur, Uu and Uc, one after the other in sums, what the rows that wait give."""
    H, P = hidden, len(sums) // (3 * hidden)
    of_left, to, size = left.ctypes.data, sums.ctypes.data, FLOAT * H * P
    product(of_left, 1, P, zr.ctypes.data, P, to, P, H, waiting, P, 1)
    product(of_left, 1, P, zu.ctypes.data, P, to + size, P, H, waiting, P, 1)
    if after:
        product(of_left, 1, P, beside.ctypes.data, P, to + 2 * size, P, H, waiting, P, 1)
    else:
        product(inside.ctypes.data, 1, P, zc.ctypes.data, P, to + 2 * size, P, H, waiting, P, 1)
