"""The recurrence in numba for CPUs: four sequences in step, so that each weight read serves four rows.

Sequences are taken longest first, in blocks of four that advance together to the end of the longest. Workspace widths
are padded to whole vectors; what is computed in the padding meets zero weights and goes nowhere. What the way back
needs is kept in the order of the walk, so that memory is read as it was written. Blocks are dealt to as many threads as
torch uses, and the interpreter's lock is free meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepinterest.config import ResetGate
from deepinterest.kernels.compiled import compiled
from deepinterest.kernels.recurrence import Gradients, Sequences

ROWS = 4  # sequences of a block; also the unrolling of the products over k
VECTOR = 16  # floats of the widest vectors


def forward(of: Sequences, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See `Kernel`."""
    after = of.reset is ResetGate.after
    walk = _Walk(of)
    states = of.x.new_empty(of.steps, len(of.candidate))
    slots = 5 if after else 4  # each step keeps r, u, c, h, and h Uc where r multiplies that
    kept = of.x.new_empty(int(walk.starts[-1]) * slots * ROWS * _padded(len(of.candidate)) if keep else 0)
    weights = _tile(*of.gates.chunk(2, dim=1)), _tile(of.candidate)
    walk.share(_forward, *_flat(of.x), after, keep, *weights, *_flat(states, kept))
    return states, (kept,) if keep else ()


def backward(of: Sequences, states: Tensor, kept: tuple[Tensor, ...], grad: Tensor) -> Gradients:
    """See `Kernel`."""
    H, M = len(of.candidate), of.steps
    after = of.reset is ResetGate.after
    z, h, inside = states.new_empty(M, 3 * H), states.new_empty(M, H), states.new_empty(M, H)
    base, slope = (states.new_empty(0 if of.base is None else M) for _ in range(2))
    weights = [_tile(matrix.t()) for matrix in (*of.gates.chunk(2, dim=1), of.candidate)]
    _Walk(of).share(_backward, *_flat(grad), after, *weights, *_flat(*kept, z, h, inside, base, slope))
    # `inside` is r*h, or with the reset after the product, where Uc multiplies h, the gradient of that product.
    return Gradients(
        z=z,
        base=None if of.base is None else base,
        slope=None if of.base is None else slope,
        h=h,
        inside=h if after else inside,
        product=inside if after else z[:, 2 * H :],
    )


# ---------------------------------------------------------------------------------------------------------- preparation


def _width(hidden: int) -> int:
    """K, the width of the products' sums: whole blocks of k. Small ones share one compilation."""
    return max(VECTOR, -(-hidden // ROWS) * ROWS)


def _padded(hidden: int) -> int:
    return -(-_width(hidden) // VECTOR) * VECTOR


def _tile(*matrices: Tensor) -> np.ndarray:
    """(H, H) each -> (K, P) side by side, filled up with zeros, flat."""
    H = len(matrices[0])
    K, P = _width(H), _padded(H)
    tile = matrices[0].new_zeros(K, len(matrices), P)
    for number, matrix in enumerate(matrices):
        tile[:H, number, :H] = matrix.detach()
    return tile.view(-1).numpy()


def _flat(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().view(-1).numpy() for tensor in tensors]


class _Walk:
    """The blocks, and what every walk through them reads."""

    def __init__(self, of: Sequences) -> None:
        offsets = of.offsets.numpy()
        lengths = np.diff(offsets)
        order = np.argsort(-lengths, kind="stable")
        self.starts = np.append(0, np.cumsum(lengths[order][::ROWS]))  # steps of the blocks before each
        source = np.empty(0, np.int64) if of.source is None else of.source.numpy()
        lines = [np.empty(0, np.float32)] * 2 if of.base is None or of.slope is None else _flat(of.base, of.slope)
        H = len(of.candidate)
        # A tuple's length is part of its type: K and P are constants to the compiler.
        self.arguments = ((0,) * (_width(H) // ROWS), H, source, *lines, offsets, order, self.starts)

    def share(self, walk: Callable[..., None], *rest: Any) -> None:
        """Let each thread walk its share of the blocks."""
        workers = max(1, min(torch.get_num_threads(), len(self.starts) - 1))
        if workers == 1:
            walk(0, 1, *self.arguments, *rest)
            return
        list(_pool(workers).map(lambda worker: walk(worker, workers, *self.arguments, *rest), range(workers)))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="recurrence")


# ------------------------------------------------------------------------------------------------------------ the walks

# Arrays are flat. Widths: H real, K = H rounded up, P = K rounded up to whole vectors. Places in arrays of all steps
# are unsigned, because numba asks of a signed index each time whether it is negative.

_LOG2E, _ROUND, _BIAS, _SHIFT = np.float32(1.44269504), np.float32(0.5), np.float32(127), np.float32(1 << 23)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOW, _HIGH, _ONE, _TWO, _ZERO = np.float32(-87), np.float32(88), np.float32(1), np.float32(2), np.float32(0)
_TERMS = tuple(np.float32(1 / d) for d in (2, 6, 24, 120, 720, 5040))


@compiled
def _exp(x):
    """exp in operations that become vectors: 2^n times a Taylor polynomial on [-ln2/2, ln2/2], 1e-7 of the value."""
    x = _LOW if x < _LOW else x
    x = _HIGH if x > _HIGH else x
    n = np.floor(x * _LOG2E + _ROUND)
    x = x - n * _LN2_HIGH - n * _LN2_LOW
    y = _TERMS[4] + x * _TERMS[5]
    y = _TERMS[3] + x * y
    y = _TERMS[2] + x * y
    y = _TERMS[1] + x * y
    y = _TERMS[0] + x * y
    return (_ONE + x + x * x * y) * np.int32((n + _BIAS) * _SHIFT).view(np.float32)


@compiled
def _sigmoid(values, size):
    for j in range(size):
        values[j] = _ONE / (_ONE + _exp(-values[j]))


@compiled
def _tanh(values, size):
    for j in range(size):
        e = _exp(-_TWO * values[j])
        values[j] = (_ONE - e) / (_ONE + e)


@compiled
def _sizes(width):
    K = ROWS * len(width)
    return K, (K + VECTOR - 1) // VECTOR * VECTOR


@compiled
def _add_product(width, parts, sums, left, matrix):
    """sums (4, parts*P) += left (4, P)[:, :K] @ matrix (K, parts*P)."""
    K, P = _sizes(width)
    Q = parts * P
    for k in range(0, K, ROWS):
        a0, a1, a2, a3 = left[k], left[k + 1], left[k + 2], left[k + 3]
        b0, b1, b2, b3 = left[P + k], left[P + k + 1], left[P + k + 2], left[P + k + 3]
        c0, c1, c2, c3 = left[2 * P + k], left[2 * P + k + 1], left[2 * P + k + 2], left[2 * P + k + 3]
        d0, d1, d2, d3 = left[3 * P + k], left[3 * P + k + 1], left[3 * P + k + 2], left[3 * P + k + 3]
        for j in range(Q):
            w0, w1, w2, w3 = (
                matrix[k * Q + j],
                matrix[(k + 1) * Q + j],
                matrix[(k + 2) * Q + j],
                matrix[(k + 3) * Q + j],
            )
            sums[j] += a0 * w0 + a1 * w1 + a2 * w2 + a3 * w3
            sums[Q + j] += b0 * w0 + b1 * w1 + b2 * w2 + b3 * w3
            sums[2 * Q + j] += c0 * w0 + c1 * w1 + c2 * w2 + c3 * w3
            sums[3 * Q + j] += d0 * w0 + d1 * w1 + d2 * w2 + d3 * w3


@compiled
def _copy(width, hidden, to, i, values, at):
    """to[i:] = values[at:], of the real width; a constant one, where it can be, makes better code."""
    K, _ = _sizes(width)
    if hidden == K:
        for j in range(K):
            to[i + np.uint64(j)] = values[at + np.uint64(j)]
    else:
        for j in range(hidden):
            to[i + np.uint64(j)] = values[at + np.uint64(j)]


@compiled
def _block(block, offsets, order, begin, length):
    """The four sequences of a block: where they begin and how long they are. Returns the longest length."""
    for i in range(ROWS):
        length[i] = 0
        if block * ROWS + i < len(order):
            s = order[block * ROWS + i]
            begin[i], length[i] = offsets[s], offsets[s + 1] - offsets[s]
    return length[0]


@compiled
def _forward(
    worker, workers, width, hidden, source, base, slope, offsets, order, starts,
    x, after, keep, gates, candidate, states, kept,
):  # fmt: skip
    _, P = _sizes(width)
    begin, length = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    h, reset, inner = np.zeros(ROWS * P, np.float32), np.zeros(ROWS * P, np.float32), np.zeros(ROWS * P, np.float32)
    ru, c = np.zeros(ROWS * 2 * P, np.float32), np.zeros(ROWS * P, np.float32)
    H, R = np.uint64(hidden), np.uint64(ROWS * P)
    for block in range(worker, len(starts) - 1, workers):
        longest = _block(block, offsets, order, begin, length)
        h[:] = 0
        for t in range(longest):
            for i in range(ROWS):
                if t < length[i]:
                    m = begin[i] + t
                    at = np.uint64(source[m] if len(source) else m) * np.uint64(3) * H
                    _copy(width, hidden, ru, np.uint64(2 * i * P), x, at)
                    _copy(width, hidden, ru, np.uint64((2 * i + 1) * P), x, at + H)
                    _copy(width, hidden, c, np.uint64(i * P), x, at + H + H)
            _add_product(width, 2, ru, h, gates)
            _sigmoid(ru, ROWS * 2 * P)
            if after:
                inner[:] = 0
                _add_product(width, 1, inner, h, candidate)
                for i in range(ROWS):
                    for j in range(P):
                        c[i * P + j] += ru[2 * i * P + j] * inner[i * P + j]
            else:
                for i in range(ROWS):
                    for j in range(P):
                        reset[i * P + j] = ru[2 * i * P + j] * h[i * P + j]
                _add_product(width, 1, c, reset, candidate)
            _tanh(c, ROWS * P)
            if keep:
                at = np.uint64(starts[block] + t) * np.uint64(5 if after else 4) * R
                for j in range(ROWS * 2 * P):
                    kept[at + np.uint64(j)] = ru[j]
                for j in range(ROWS * P):
                    kept[at + R + R + np.uint64(j)] = c[j]
                    kept[at + R + R + R + np.uint64(j)] = h[j]
                if after:
                    for j in range(ROWS * P):
                        kept[at + R + R + R + R + np.uint64(j)] = inner[j]
            for i in range(ROWS):
                if t < length[i]:
                    m = begin[i] + t
                    b, s = (base[m], slope[m]) if len(base) else (_ZERO, _ONE)
                    for j in range(P):
                        k = b + s * ru[(2 * i + 1) * P + j]
                        h[i * P + j] = c[i * P + j] + k * (h[i * P + j] - c[i * P + j])
                    _copy(width, hidden, states, np.uint64(m) * H, h, np.uint64(i * P))


@compiled
def _backward(
    worker, workers, width, hidden, source, base, slope, offsets, order, starts,
    grad, after, reset_t, update_t, candidate_t, kept, dz, previous, inside, d_base, d_slope,
):  # fmt: skip
    _, P = _sizes(width)
    begin, length = np.zeros(ROWS, np.int64), np.zeros(ROWS, np.int64)
    zr, zu, zc = np.zeros(ROWS * P, np.float32), np.zeros(ROWS * P, np.float32), np.zeros(ROWS * P, np.float32)
    dh, more, of_states = np.zeros(ROWS * P, np.float32), np.zeros(ROWS * P, np.float32), np.zeros(P, np.float32)
    H, slots = np.uint64(hidden), 5 if after else 4
    for block in range(worker, len(starts) - 1, workers):
        longest = _block(block, offsets, order, begin, length)
        # A sequence that hasn't begun, seen from its end, has no gradient yet: its rows are zero.
        zr[:], zu[:], zc[:], dh[:], more[:] = 0, 0, 0, 0, 0
        for t in range(longest - 1, -1, -1):
            at = (starts[block] + t) * slots * ROWS * P
            ru, rest = kept[at : at + 2 * ROWS * P], kept[at + 2 * ROWS * P : at + slots * ROWS * P]
            c, h = rest[: ROWS * P], rest[ROWS * P : 2 * ROWS * P]
            for i in range(ROWS):
                if t < length[i]:
                    m = begin[i] + t
                    _copy(width, hidden, of_states, np.uint64(0), grad, np.uint64(m) * H)
                    b, s = (base[m], slope[m]) if len(base) else (_ZERO, _ONE)
                    of_base, of_slope = _ZERO, _ZERO
                    for j in range(P):
                        u, n, d = ru[(2 * i + 1) * P + j], c[i * P + j], dh[i * P + j] + of_states[j]
                        k = b + s * u
                        dk = d * (h[i * P + j] - n)
                        zc[i * P + j] = d * (_ONE - k) * (_ONE - n * n)
                        zu[i * P + j] = dk * s * u * (_ONE - u)
                        dh[i * P + j] = d * k
                        of_base += dk
                        of_slope += dk * u
                    if len(d_base):
                        d_base[m], d_slope[m] = of_base, of_slope
            if after:
                inner = rest[2 * ROWS * P :]
                for i in range(ROWS):
                    for j in range(P):
                        r, d = ru[2 * i * P + j], zc[i * P + j]
                        zr[i * P + j] = d * inner[i * P + j] * r * (_ONE - r)
                        more[i * P + j] = d * r
                _add_product(width, 1, dh, more, candidate_t)
            else:
                more[:] = 0
                _add_product(width, 1, more, zc, candidate_t)  # gradient of r*h
                for i in range(ROWS):
                    for j in range(P):
                        r, d = ru[2 * i * P + j], more[i * P + j]
                        zr[i * P + j] = d * h[i * P + j] * r * (_ONE - r)
                        dh[i * P + j] += d * r
                        more[i * P + j] = r * h[i * P + j]
            if t > 0:
                _add_product(width, 1, dh, zr, reset_t)
                _add_product(width, 1, dh, zu, update_t)
            for i in range(ROWS):
                if t < length[i]:
                    place = np.uint64(begin[i] + t) * H
                    _copy(width, hidden, dz, place + place + place, zr, np.uint64(i * P))
                    _copy(width, hidden, dz, place + place + place + H, zu, np.uint64(i * P))
                    _copy(width, hidden, dz, place + place + place + H + H, zc, np.uint64(i * P))
                    _copy(width, hidden, previous, place, h, np.uint64(i * P))
                    _copy(width, hidden, inside, place, more, np.uint64(i * P))
