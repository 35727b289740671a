"""The recurrence in numba for CPUs: eight sequences in step, so that each weight read serves eight rows.

Sequences are taken longest first, in blocks of eight that advance together to the end of the longest; those that still
run are a block's first rows. Rows are filled up to whole vectors (P floats): what is computed there goes nowhere. What
the way back needs is computed where it is kept, in the order of the walk, so that memory is read as it was written.
Blocks are dealt to as many threads as torch uses.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from deepinterest.config import ResetGate
from deepinterest.kernels.compiled import compiled, share, workers
from deepinterest.kernels.functions import sigmoid, tanh
from deepinterest.kernels.recurrence import Gradients, Sequences
from deepinterest.kernels.tiles import FLOAT, VECTOR, copy, product

ROWS = 8  # sequences of a block
TOGETHER = 64  # rows of steps from which the weights' gradients are summed
_ONE, _ZERO = np.float32(1), np.float32(0)


def forward(of: Sequences, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See `Kernel`."""
    walk = _Walk(of)
    states = of.x.new_empty(of.steps, len(of.candidate))
    after = of.reset is ResetGate.after
    steps = int(walk.starts[-1]) if keep else walk.workers
    kept = of.x.new_empty(steps * _slots(after) * ROWS * walk.padded)
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
    flat = _flat(grad, *matrices, *kept, z, base, slope)
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
    """What each step keeps: r, u, c, h, and h Uc where r multiplies that."""
    return 5 if after else 4


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
        self.starts = np.append(0, np.cumsum(lengths[order][::ROWS]))  # steps of the blocks before each
        self.workers = workers(len(self.starts) - 1)
        source = np.empty(0, np.int64) if of.source is None else of.source.numpy()
        lines = [np.empty(0, np.float32)] * 2 if of.base is None or of.slope is None else _flat(of.base, of.slope)
        # A tuple's length is part of its type: P is a constant to the compiler.
        self.arguments = ((0,) * vectors, H, source, *lines, offsets, order, self.starts)


# ------------------------------------------------------------------------------------------------------------ the walks


@compiled
def _block(block, offsets, order, begin, length):
    """The sequences of a block: where they begin and how long they are. Returns the longest length."""
    for i in range(ROWS):
        length[i] = 0
        if block * ROWS + i < len(order):
            s = order[block * ROWS + i]
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
    worker, workers, vectors, hidden, source, base, slope, offsets, order, starts,
    after, keep, x, reset_gate, update_gate, candidate, states, kept,
):  # fmt: skip
    P = len(vectors) * VECTOR
    H, R, slots = hidden, ROWS * P, 5 if after else 4
    begin, length = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    h, reset = np.zeros(R, np.float32), np.zeros(R, np.float32)
    of_h, of_reset, of_x, of_states = h.ctypes.data, reset.ctypes.data, x.ctypes.data, states.ctypes.data
    ur, uu, uc = reset_gate.ctypes.data, update_gate.ctypes.data, candidate.ctypes.data
    for block in range(worker, len(starts) - 1, workers):
        longest = _block(block, offsets, order, begin, length)
        h[:] = 0
        for t in range(longest):
            running, rows = _running(length, t)
            place = (starts[block] + t if keep else worker) * slots * R
            r, u, c = kept[place : place + R], kept[place + R : place + 2 * R], kept[place + 2 * R : place + 3 * R]
            of_r, of_u, of_c = r.ctypes.data, u.ctypes.data, c.ctypes.data
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
                inner = kept[place + 4 * R : place + 5 * R]
                product(of_h, P, 1, uc, P, inner.ctypes.data, P, rows, H, P, 0)
                for j in range(size):
                    c[j] += r[j] * inner[j]
            else:
                for j in range(size):
                    reset[j] = r[j] * h[j]
                product(of_reset, P, 1, uc, P, of_c, P, rows, H, P, 1)
            tanh(c[:size])
            if keep:
                kept[place + 3 * R : place + 4 * R] = h
            if len(base):
                for i in range(running):
                    b, s = base[begin[i] + t], slope[begin[i] + t]
                    of_u_row, of_c_row, of_row = u[i * P : (i + 1) * P], c[i * P : (i + 1) * P], h[i * P : (i + 1) * P]
                    for j in range(P):
                        of_row[j] = of_c_row[j] + (b + s * of_u_row[j]) * (of_row[j] - of_c_row[j])
            else:
                for j in range(size):
                    h[j] = c[j] + u[j] * (h[j] - c[j])
            for i in range(running):
                copy(of_h + FLOAT * i * P, of_states + FLOAT * (begin[i] + t) * H, H, H)


@compiled
def _backward(
    worker, workers, vectors, hidden, source, base, slope, offsets, order, starts,
    after, grad, reset_t, update_t, candidate_t, kept, dz, d_base, d_slope, sums,
):  # fmt: skip
    P = len(vectors) * VECTOR
    H, R, slots = hidden, ROWS * P, 5 if after else 4
    begin, length = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    # Of the rows since the weights' gradients were last added to: those of this step are the last.
    room = (TOGETHER + ROWS) * P
    zr, zu, zc = np.zeros(room, np.float32), np.zeros(room, np.float32), np.zeros(room, np.float32)
    left, inside, product_ = np.zeros(room, np.float32), np.zeros(room, np.float32), np.zeros(room, np.float32)
    dh, more, own = np.zeros(R, np.float32), np.zeros(R, np.float32), np.zeros(P, np.float32)
    of_dh, of_more, of_own = dh.ctypes.data, more.ctypes.data, own.ctypes.data
    of_grad, of_dz = grad.ctypes.data, dz.ctypes.data
    ur, uu, uc = reset_t.ctypes.data, update_t.ctypes.data, candidate_t.ctypes.data
    waiting = 0
    for block in range(worker, len(starts) - 1, workers):
        longest = _block(block, offsets, order, begin, length)
        before = 0
        for t in range(longest - 1, -1, -1):
            running, rows = _running(length, t)
            dh[before * P : running * P] = 0  # of sequences that begin, seen from their ends
            before = running
            size = running * P
            place = (starts[block] + t) * slots * R
            r, u, c = kept[place : place + R], kept[place + R : place + 2 * R], kept[place + 2 * R : place + 3 * R]
            h = kept[place + 3 * R : place + 4 * R]
            now = slice(waiting * P, (waiting + ROWS) * P)
            zr_, zu_, zc_, inside_, last = zr[now], zu[now], zc[now], inside[now], product_[now]
            left[now] = h
            for i in range(running):
                m = begin[i] + t
                copy(of_grad + FLOAT * m * H, of_own, H, P)
                b, s = (base[m], slope[m]) if len(base) else (_ZERO, _ONE)
                of_base, of_slope = _ZERO, _ZERO
                row = slice(i * P, (i + 1) * P)
                u_row, c_row, h_row, zc_row, zu_row, dh_row = u[row], c[row], h[row], zc_[row], zu_[row], dh[row]
                for j in range(P):
                    gate, n, d = u_row[j], c_row[j], dh_row[j] + own[j]
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
                inner = kept[place + 4 * R : place + 5 * R]
                for j in range(size):
                    zr_[j] = zc_[j] * inner[j] * r[j] * (_ONE - r[j])
                    last[j] = zc_[j] * r[j]
                product(last.ctypes.data, P, 1, uc, P, of_dh, P, rows, H, P, 1)
            else:  # Uc multiplies r*h
                product(zc_.ctypes.data, P, 1, uc, P, of_more, P, rows, H, P, 0)
                for j in range(size):
                    d = more[j]
                    zr_[j] = d * h[j] * r[j] * (_ONE - r[j])
                    dh[j] += d * r[j]
                    inside_[j] = r[j] * h[j]
            if t > 0:
                product(zr_.ctypes.data, P, 1, ur, P, of_dh, P, rows, H, P, 1)
                product(zu_.ctypes.data, P, 1, uu, P, of_dh, P, rows, H, P, 1)
            for i in range(running):
                row, place = FLOAT * i * P, of_dz + FLOAT * (begin[i] + t) * 3 * H
                copy(zr_.ctypes.data + row, place, H, H)
                copy(zu_.ctypes.data + row, place + FLOAT * H, H, H)
                copy(zc_.ctypes.data + row, place + FLOAT * 2 * H, H, H)
            waiting += running
            if waiting > TOGETHER:
                _sum_up(after, left, inside, zr, zu, zc, product_, sums[worker], waiting, H, P)
                waiting = 0
    _sum_up(after, left, inside, zr, zu, zc, product_, sums[worker], waiting, H, P)


@compiled
def _sum_up(after, left, inside, zr, zu, zc, product_, sums, waiting, H, P):
    """Add to the gradients of Ur, Uu and Uc, one after the other in sums, what the rows that wait give."""
    of_left, to, size = left.ctypes.data, sums.ctypes.data, FLOAT * H * P
    product(of_left, 1, P, zr.ctypes.data, P, to, P, H, waiting, P, 1)
    product(of_left, 1, P, zu.ctypes.data, P, to + size, P, H, waiting, P, 1)
    if after:
        product(of_left, 1, P, product_.ctypes.data, P, to + 2 * size, P, H, waiting, P, 1)
    else:
        product(inside.ctypes.data, 1, P, zc.ctypes.data, P, to + 2 * size, P, H, waiting, P, 1)
