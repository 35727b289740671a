"""The Triton kernel: against the oracle, on a GPU or else in Triton's interpreter; and compiled for GPUs without one.

The interpreter must be chosen before triton is imported, so these tests then run in a process of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib import NumpyVersion
from test_recurrence import LENGTHS, arguments, assert_equal, outputs
from torch import Tensor

from deepinterest.config import KernelName, ResetGate
from deepinterest.errors import UserError
from deepinterest.kernels import recurrence, using
from deepinterest.kernels.choice import GPU_HIDDEN
from deepinterest.kernels.recurrence import Sequences

triton = pytest.importorskip("triton", reason="triton, which comes with torch's CUDA builds, is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
runs = pytest.mark.skipif(
    DEVICE == "cpu" and not INTERPRETED, reason="no GPU: runs within test_all_of_this_in_the_interpreter"
)
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

# Architecture -> bytes of shared memory that a program may have (CUDA programming guide, compute capabilities).
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024}
SPILLED = 1024  # bytes a thread: more, and the blocks are too large for the registers


@pytest.mark.skipif(DEVICE == "cuda" or INTERPRETED, reason="these tests run in this process")
@pytest.mark.skipif(
    int(triton.__version__.split(".")[1]) < 7 and NumpyVersion(np.__version__) >= "2.4.0",
    reason="triton before 3.7 interprets no loop of variable length under numpy 2.4",
)
def test_all_of_this_in_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    found = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=500
    )
    assert found.returncode == 0, found.stdout + found.stderr


def on_device(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to(DEVICE).requires_grad_(value.requires_grad) for name, value in inputs.items()}


def on_cpu(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cpu() for name, value in found.items()}


def assert_oracle(inputs: dict[str, Tensor], reset: ResetGate) -> None:
    found = outputs(KernelName.gpu, on_device(inputs), reset)
    assert_equal(on_cpu(found), outputs(KernelName.oracle, inputs, reset))


@runs
@pytest.mark.parametrize("reset", list(ResetGate))
@pytest.mark.parametrize("lengths", LENGTHS)
def test_any_lengths(lengths: list[int], reset: ResetGate) -> None:
    for attention in (False, True):
        assert_oracle(arguments(lengths, 5, attention, attention == (reset is ResetGate.before)), reset)


@runs
@pytest.mark.parametrize("reset", list(ResetGate))
@pytest.mark.parametrize("hidden", [1, 16, 36, 48, 64, GPU_HIDDEN])
def test_any_width(hidden: int, reset: ResetGate) -> None:
    assert_oracle(arguments([9, 0, 6, 1, 3, *range(5), *range(5)], hidden, attention=True, shared=True), reset)
    assert_oracle(arguments([2, 5, 0], hidden, attention=False, shared=False), reset)


@runs
@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_shape(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=40))
    hidden, seed = data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99))
    attention, shared = data.draw(st.booleans()), data.draw(st.booleans())
    assert_oracle(arguments(lengths, hidden, attention, shared, seed), data.draw(st.sampled_from(ResetGate)))


@runs
def test_a_long_sequence() -> None:
    assert_oracle(arguments([80, 2], 16, attention=True, shared=False), ResetGate.before)


@runs
def test_two_runs_are_equal() -> None:
    inputs = on_device(arguments(list(range(23)), 36, attention=True, shared=False))
    first, second = (outputs(KernelName.gpu, inputs, ResetGate.before) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@runs
def test_inputs_need_not_be_contiguous() -> None:
    inputs = arguments([3, 5, 2], 7, attention=True, shared=False)
    strided = {name: value.detach().t().contiguous().t().requires_grad_() if value.dim() == 2 else value
               for name, value in on_device(inputs).items()}  # fmt: skip
    found = outputs(KernelName.gpu, strided, ResetGate.before)
    assert_equal(on_cpu(found), outputs(KernelName.oracle, inputs, ResetGate.before))


@runs
def test_nan_stays_nan() -> None:
    inputs = {name: value.detach() for name, value in arguments([4, 4], 5, attention=False, shared=False).items()}
    inputs["x"][1, 3] = float("nan")
    with using(KernelName.gpu):
        states = recurrence(**on_device(inputs)).cpu()
    assert states[:1].isfinite().all() and states[4:].isfinite().all()
    assert states[2:4].isnan().all()


@runs
@pytest.mark.parametrize("reset", list(ResetGate))
@pytest.mark.parametrize("hidden", [16, 36, 128])
def test_bf16_rounds_factors_only(hidden: int, reset: ResetGate) -> None:
    from deepinterest.kernels import gpu

    inputs = on_device(arguments([9, 0, 12, 1], hidden, attention=True, shared=False))
    of = Sequences(
        inputs["x"],
        None,
        inputs["base"],
        inputs["slope"],
        inputs["offsets"],
        inputs["gates"],
        inputs["candidate"],
        reset,
    )
    grad = torch.randn(of.steps, hidden, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = []
    with torch.no_grad():
        for bf16 in (False, True):
            of.bf16 = bf16
            states, kept = gpu.forward(of, True)
            found.append([states, *vars(gpu.backward(of, states, kept, grad)).values()])
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype is torch.float32
        assert 0 < (exact - rounded).abs().max() < 0.03 * exact.abs().max()  # bfloat16 has 8 bits: 0.004 a factor


@runs
def test_what_it_refuses() -> None:
    inputs = on_device(arguments([2], GPU_HIDDEN + 1, attention=False, shared=False))
    with pytest.raises(UserError, match=r"model.hidden up to 128, not 129: take trainer.kernel=auto"):
        outputs(KernelName.gpu, inputs, ResetGate.before)
    with pytest.raises(UserError, match="computes in float32, not float64"):
        outputs(KernelName.gpu, {name: value.double() for name, value in inputs.items()}, ResetGate.before)


@compiles
def test_it_refuses_the_cpu() -> None:
    with pytest.raises(UserError, match=r"can't compute on the cpu: take trainer.kernel=auto"):
        outputs(KernelName.gpu, arguments([2], 5, attention=False, shared=False), ResetGate.before)


# ------------------------------------------------------------------------------------------------------------ compiling


def compiled(kernel: Any, of: Sequences, cut: Any, architecture: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from deepinterest.kernels import gpu

    constants = gpu.constants(of, cut) | ({"KEEP": True} if "KEEP" in kernel.arg_names else {})
    types = dict.fromkeys(constants, "constexpr") | dict.fromkeys(("offsets", "order", "source"), "*i64")
    types |= {"S": "i32", "weights": "*bf16" if cut.products == "bf16" else "*fp32"}
    signature = {name: types.get(name, "*fp32") for name in kernel.arg_names}
    aligned = {(n,): [["tt.divisibility", 16]] for n, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=gpu.options(cut))


@compiles
@pytest.mark.parametrize(
    ("hidden", "bf16", "architecture"),
    [(16, False, 80), (20, True, 80), (36, False, 80), (36, True, 90), (64, False, 90), (128, False, 90)]
    + [(128, True, architecture) for architecture in SHARED],
)
def test_it_compiles_and_fits(hidden: int, bf16: bool, architecture: int, tmp_path: Path) -> None:
    from deepinterest.kernels import gpu

    reset = ResetGate.after if architecture == 80 else ResetGate.before
    line = None if hidden == 20 else torch.empty(0)
    source = None if hidden == 16 else torch.empty(0, dtype=torch.int64)
    weights = torch.empty(hidden, 0)  # only the width is looked at
    of = Sequences(torch.empty(0), source, line, line, torch.empty(0), weights, weights, reset)
    for sequences in (128, 8192) if hidden == 64 else (8192,):
        cut = gpu.blocking(hidden, sequences, bf16, 108, SHARED[architecture])
        for kernel in (gpu._forward, gpu._backward):
            found = compiled(kernel, of, cut, architecture)
            assert found.metadata.shared <= SHARED[architecture]
            binary = tmp_path / "cubin"
            binary.write_bytes(found.asm["cubin"])
            command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert int(usage.split("STACK:")[1].split()[0]) <= SPILLED, (cut, kernel, usage)


@compiles
def test_few_sequences_are_spread() -> None:
    from deepinterest.kernels import gpu

    few, many = (gpu.blocking(36, sequences, False, 132, SHARED[90]) for sequences in (128, 8192))
    assert few.rows < many.rows
