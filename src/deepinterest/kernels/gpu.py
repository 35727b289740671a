# ruff: noqa: N803 - capitals are constants to the compiler
"""The recurrence in Triton for GPUs: one program walks a block of sequences from the first step to the last.

Sequences are taken longest first, so that those of a block are about as long; rows that have ended are masked. The
state never leaves the registers, the weights stay in shared memory where they fit, and what a step reads is asked for
one step ahead. Every result is written by one program, and sums have one order: two runs are equal to the last bit.

Widths are padded to P, a power of two. Weights are zero in the padding, so the state stays zero there.

TRITON_INTERPRET=1, set before triton is imported, runs all of this on the CPU, slowly: for tests.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from deepinterest.config import ResetGate
from deepinterest.errors import UserError
from deepinterest.kernels.choice import GPU_HIDDEN
from deepinterest.kernels.recurrence import Gradients, Sequences

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_INTERPRETED = tl.constexpr(INTERPRETED)


def forward(of: Sequences, keep: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """See `Kernel`. Raises UserError for what this kernel can't take: another precision or device, too wide a state."""
    _check(of)
    states = of.x.new_empty(of.steps, len(of.candidate))
    r, u, c = (torch.empty_like(states) if keep else states for _ in range(3))
    inner = torch.empty_like(states) if keep and of.reset is ResetGate.after else states  # h Uc, where r multiplies it
    order = of.offsets.diff().argsort(descending=True, stable=True)  # (S,)
    _launch(_forward, of, order, of.x.contiguous(), states, r, u, c, inner, KEEP=keep)
    return states, (order, r, u, c, inner) if keep else ()


def backward(of: Sequences, states: Tensor, kept: tuple[Tensor, ...], grad: Tensor) -> Gradients:
    """See `Kernel`."""
    order, r, u, c, inner = kept
    M, H = states.shape
    after, line = of.reset is ResetGate.after, of.base is not None
    z, h, beside = states.new_empty(M, 3 * H), torch.empty_like(states), torch.empty_like(states)
    base, slope = (states.new_empty(M if line else 0) for _ in range(2))
    _launch(_backward, of, order, grad.contiguous(), states, r, u, c, inner, z, h, beside, base, slope)
    # `beside` is r*h, or with the reset after the product, where Uc multiplies h, the gradient of that product.
    return Gradients(
        z=z,
        base=base if line else None,
        slope=slope if line else None,
        gates=h.t() @ z[:, : 2 * H],
        candidate=h.t() @ beside if after else beside.t() @ z[:, 2 * H :],
    )


# ------------------------------------------------------------------------------------------------------------ launching


@dataclass(frozen=True)
class Blocking:
    """How the work is cut. It changes results by rounding only."""

    products: str  # ieee: float32; bf16: factors rounded to bfloat16, sums in float32; tf32x3: three TF32 products
    rows: int  # sequences of a program
    warps: int  # of 32 threads, that share a program
    held: bool  # whether the weights stay in shared memory, or come from the cache at each step


def blocking(hidden: int, sequences: int, bf16: bool, processors: int, shared: int) -> Blocking:
    """The cut for so many sequences, multiprocessors, and bytes of shared memory a program may have.

    Registers decide: with one size more, the compiler spills to memory. tests/kernels/test_gpu.py watches that.
    """
    P = padded(hidden)
    if bf16:
        return Blocking("bf16", 16, {16: 2, 32: 4}.get(P, 8), P < 128 or shared >= 110_592)  # tensor cores take 16 rows
    rows = 16
    while rows > 4 and sequences < rows * processors:  # few sequences: rather more programs
        rows //= 2
    return Blocking("ieee", rows, {16: 2, 32: 4, 64: 4}.get(P, 8), P < 128)


def padded(hidden: int) -> int:
    """P: at least 16, which is what products take, and a power of two, which is what ranges take."""
    return max(16, triton.next_power_of_2(hidden))


def constants(of: Sequences, cut: Blocking) -> dict[str, Any]:
    """What both kernels are compiled for."""
    H = len(of.candidate)
    return {
        "SOURCE": of.source is not None,
        "LINE": of.base is not None,
        "AFTER": of.reset is ResetGate.after,
        "PRODUCTS": cut.products,
        "HELD": cut.held,
        "H": H,
        "P": padded(H),
        "R": cut.rows,
    }


def options(cut: Blocking) -> dict[str, Any]:
    """How both kernels are compiled. With more stages the compiler would hold several copies of the weights."""
    return {"num_warps": cut.warps, "num_stages": 1, "enable_fp_fusion": True}


@cache
def _device(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and bytes of shared memory that a program may have."""
    if device.type == "cpu":
        return 1, 0
    found = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return found["multiprocessor_count"], found["max_shared_mem"]


def _check(of: Sequences) -> None:
    x, H = of.x, len(of.candidate)
    advice = "take trainer.kernel=auto"
    if x.dtype is not torch.float32:
        raise UserError(f"trainer.kernel=gpu computes in float32, not {str(x.dtype).removeprefix('torch.')}: {advice}")
    if x.device.type != ("cpu" if INTERPRETED else "cuda"):
        raise UserError(f"trainer.kernel=gpu can't compute on the {x.device.type}: {advice}")
    if H > GPU_HIDDEN:
        raise UserError(f"trainer.kernel=gpu takes model.hidden up to {GPU_HIDDEN}, not {H}: {advice}")


def _launch(kernel: Any, of: Sequences, order: Tensor, *arrays: Tensor, **more: bool) -> None:
    if not of.steps:
        return
    cut = blocking(len(of.candidate), len(order), of.bf16, *_device(of.x.device))
    # A pointer is needed where there is nothing to read too.
    base, slope = (of.x if line is None else line.contiguous() for line in (of.base, of.slope))
    source = order if of.source is None else of.source.contiguous()
    weights = _weights_of(of, kernel is _backward, torch.bfloat16 if cut.products == "bf16" else torch.float32)
    with torch.cuda.device_of(of.x):
        kernel[(triton.cdiv(len(order), cut.rows),)](
            len(order), of.offsets.contiguous(), order, source, base, slope, weights, *arrays,
            **constants(of, cut), **more, **options(cut),
        )  # fmt: skip


def _weights_of(of: Sequences, transposed: bool, dtype: torch.dtype) -> Tensor:
    """Ur, Uu and Uc, or each transposed, filled up with zeros: (3, P, P)."""
    H = len(of.candidate)
    P = padded(H)
    weights = of.gates.new_zeros(3, P, P, dtype=dtype)
    to = weights.transpose(1, 2) if transposed else weights
    to[:2, :H, :H] = of.gates.reshape(H, 2, H).transpose(0, 1)
    to[2, :H, :H] = of.candidate
    return weights


# -------------------------------------------------------------------------------------------------------------- kernels

# Capitals are constants to the compiler: each combination is compiled when it is first used. Places are int64.


@triton.jit
def _sigmoid(x):
    return 1 / (1 + tl.exp(-x))


@triton.jit
def _tanh(x):
    return 1 - 2 / (1 + tl.exp(2 * x))


@triton.jit
def _weights(matrix, first, K: tl.constexpr, P: tl.constexpr):
    """K rows from row `first` of a matrix (P, P)."""
    return tl.load(matrix + (first + tl.arange(0, K))[:, None] * P + tl.arange(0, P)[None, :])


@triton.jit
def _halves(a, R: tl.constexpr, K: tl.constexpr):
    """(R, 2K) -> left and right (R, K)."""
    return tl.split(tl.permute(tl.reshape(a, (R, 2, K)), (0, 2, 1)))


@triton.jit
def _dot(a, b, sums, PRODUCTS: tl.constexpr):
    if PRODUCTS == "bf16" and _INTERPRETED:  # its own product would multiply the bits of bfloat16 as whole numbers
        sums = tl.dot(a.to(tl.bfloat16).to(tl.float32), b.to(tl.float32), sums)
    elif PRODUCTS == "bf16":
        sums = tl.dot(a.to(tl.bfloat16), b, sums)
    else:
        sums = tl.dot(a, b, sums, input_precision=PRODUCTS)
    return sums


@triton.jit
def _matmul(
    a, matrix, held, sums,
    PRODUCTS: tl.constexpr, HELD: tl.constexpr, R: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """sums + a @ matrix: (R, P). Where it isn't held, the matrix is read a quarter at a time."""
    if HELD:
        sums = _dot(a, held, sums, PRODUCTS)
    else:
        L: tl.constexpr = P // 4
        left, right = _halves(a, R, 2 * L)
        first, second = _halves(left, R, L)
        third, fourth = _halves(right, R, L)
        sums = _dot(first, _weights(matrix, 0, L, P), sums, PRODUCTS)
        sums = _dot(second, _weights(matrix, L, L, P), sums, PRODUCTS)
        sums = _dot(third, _weights(matrix, 2 * L, L, P), sums, PRODUCTS)
        sums = _dot(fourth, _weights(matrix, 3 * L, L, P), sums, PRODUCTS)
    return sums


@triton.jit
def _block(S, offsets, order, R: tl.constexpr):
    """Where this program's sequences begin and how long they are: (R,), (R,)."""
    row = tl.program_id(0) * R + tl.arange(0, R)
    s = tl.load(order + row, mask=row < S, other=0)
    begin = tl.load(offsets + s)
    end = tl.load(offsets + s + 1)
    return begin, tl.where(row < S, end - begin, 0)


@triton.jit
def _rows(array, at, live, STRIDE: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    """Rows (R, P) `at` of an array, zero where not live."""
    j = tl.arange(0, P)[None, :]
    return tl.load(array + at[:, None] * STRIDE + j, mask=live[:, None] & (j < H), other=0)


@triton.jit
def _write(array, at, live, values, STRIDE: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    j = tl.arange(0, P)[None, :]
    tl.store(array + at[:, None] * STRIDE + j, values, mask=live[:, None] & (j < H))


@triton.jit
def _line(base, slope, m, live, LINE: tl.constexpr):
    """base and slope of steps m: (R,), (R,)."""
    b = tl.zeros_like(m).to(tl.float32)
    s = b + 1
    if LINE:
        b = tl.load(base + m, mask=live, other=0)
        s = tl.load(slope + m, mask=live, other=0)
    return b, s


@triton.jit
def _place(source, m, live, SOURCE: tl.constexpr):
    """The rows of x that steps m read: (R,)."""
    return tl.load(source + m, mask=live, other=0) if SOURCE else m


@triton.jit(do_not_specialize=["S"])
def _forward(
    S, offsets, order, source, base, slope, weights, x, states, kept_r, kept_u, kept_c, kept_inner,
    SOURCE: tl.constexpr, LINE: tl.constexpr, AFTER: tl.constexpr, KEEP: tl.constexpr,
    PRODUCTS: tl.constexpr, HELD: tl.constexpr, H: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    begin, length = _block(S, offsets, order, R)
    Ur = weights
    Uu = weights + P * P
    Uc = weights + 2 * P * P
    held_r = _weights(Ur, 0, P, P) if HELD else Ur
    held_u = _weights(Uu, 0, P, P) if HELD else Uu
    held_c = _weights(Uc, 0, P, P) if HELD else Uc
    h = tl.zeros((R, P), tl.float32)

    m = begin
    live = length > 0
    at = _place(source, m, live, SOURCE)
    xr = _rows(x, at, live, 3 * H, H, P)
    xu = _rows(x + H, at, live, 3 * H, H, P)
    xc = _rows(x + 2 * H, at, live, 3 * H, H, P)
    b, s = _line(base, slope, m, live, LINE)
    at = _place(source, m + 1, length > 1, SOURCE)
    for t in range(tl.max(length, axis=0)):
        # What the next step reads, and where the one after it will.
        more = t + 1 < length
        next_xr = _rows(x, at, more, 3 * H, H, P)
        next_xu = _rows(x + H, at, more, 3 * H, H, P)
        next_xc = _rows(x + 2 * H, at, more, 3 * H, H, P)
        next_b, next_s = _line(base, slope, m + 1, more, LINE)
        at = _place(source, m + 2, t + 2 < length, SOURCE)

        # Without 0*r and 0*c, the compiler would keep h, as products take it, in registers through all three products:
        # more than there are.
        r = _sigmoid(_matmul(h, Ur, held_r, xr, PRODUCTS, HELD, R, P))
        if AFTER:
            inner = _matmul(h + 0 * r, Uc, held_c, tl.zeros((R, P), tl.float32), PRODUCTS, HELD, R, P)
            c = _tanh(xc + r * inner)
        else:
            c = _tanh(_matmul(r * h, Uc, held_c, xc, PRODUCTS, HELD, R, P))
        u = _sigmoid(_matmul(h + 0 * c, Uu, held_u, xu, PRODUCTS, HELD, R, P))
        k = b[:, None] + s[:, None] * u
        h = c + k * (h - c)
        _write(states, m, live, h, H, H, P)
        if KEEP:
            _write(kept_r, m, live, r, H, H, P)
            _write(kept_u, m, live, u, H, H, P)
            _write(kept_c, m, live, c, H, H, P)
            if AFTER:
                _write(kept_inner, m, live, inner, H, H, P)

        m += 1
        live = more
        xr = next_xr
        xu = next_xu
        xc = next_xc
        b = next_b
        s = next_s


@triton.jit
def _kept(
    grad, states, kept_r, kept_u, kept_c, kept_inner, m, live, first,
    AFTER: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """What the way back reads of steps m: the states' gradient, the state before, r, u, c and h Uc."""
    g = _rows(grad, m, live, H, H, P)
    h = _rows(states, m - 1, live & (first < m), H, H, P)
    r = _rows(kept_r, m, live, H, H, P)
    u = _rows(kept_u, m, live, H, H, P)
    c = _rows(kept_c, m, live, H, H, P)
    inner = _rows(kept_inner, m, live, H, H, P) if AFTER else h
    return g, h, r, u, c, inner


@triton.jit(do_not_specialize=["S"])
def _backward(
    S, offsets, order, source, base, slope, weights, grad, states, kept_r, kept_u, kept_c, kept_inner,
    to_z, to_h, to_beside, to_base, to_slope,
    SOURCE: tl.constexpr, LINE: tl.constexpr, AFTER: tl.constexpr,
    PRODUCTS: tl.constexpr, HELD: tl.constexpr, H: tl.constexpr, P: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    begin, length = _block(S, offsets, order, R)
    Ur = weights
    Uu = weights + P * P
    Uc = weights + 2 * P * P
    held_r = _weights(Ur, 0, P, P) if HELD else Ur
    held_u = _weights(Uu, 0, P, P) if HELD else Uu
    held_c = _weights(Uc, 0, P, P) if HELD else Uc
    dh = tl.zeros((R, P), tl.float32)

    # A sequence that hasn't begun, seen from its end, reads zeros: its rows stay zero.
    longest = tl.max(length, axis=0)
    m = begin + longest - 1
    live = longest <= length
    g, h, r, u, c, inner = _kept(grad, states, kept_r, kept_u, kept_c, kept_inner, m, live, begin, AFTER, H, P)
    b, s = _line(base, slope, m, live, LINE)
    for step in range(longest):
        t = longest - 1 - step
        more = (begin < m) & (t <= length)
        next_g, next_h, next_r, next_u, next_c, next_inner = _kept(
            grad, states, kept_r, kept_u, kept_c, kept_inner, m - 1, more, begin, AFTER, H, P
        )
        next_b, next_s = _line(base, slope, m - 1, more, LINE)

        d = dh + g
        k = b[:, None] + s[:, None] * u
        dk = d * (h - c)
        zc = d * (1 - k) * (1 - c * c)
        zu = dk * s[:, None] * u * (1 - u)
        dh = d * k
        if AFTER:
            beside = zc * r
            zr = zc * inner * r * (1 - r)
            dh = _matmul(beside, Uc, held_c, dh, PRODUCTS, HELD, R, P)
        else:
            beside = r * h
            reset = _matmul(zc, Uc, held_c, tl.zeros((R, P), tl.float32), PRODUCTS, HELD, R, P)  # gradient of r*h
            zr = reset * h * r * (1 - r)
            dh += reset * r
        dh = _matmul(zr, Ur, held_r, dh, PRODUCTS, HELD, R, P)
        dh = _matmul(zu, Uu, held_u, dh, PRODUCTS, HELD, R, P)
        _write(to_z, m, live, zr, 3 * H, H, P)
        _write(to_z + H, m, live, zu, 3 * H, H, P)
        _write(to_z + 2 * H, m, live, zc, 3 * H, H, P)
        _write(to_h, m, live, h, H, H, P)
        _write(to_beside, m, live, beside, H, H, P)
        if LINE:
            tl.store(to_base + m, tl.sum(dk, axis=1), mask=live)
            tl.store(to_slope + m, tl.sum(dk * u, axis=1), mask=live)

        m -= 1
        live = more
        g = next_g
        h = next_h
        r = next_r
        u = next_u
        c = next_c
        inner = next_inner
        b = next_b
        s = next_s
