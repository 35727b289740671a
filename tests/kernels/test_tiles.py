from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deepinterest.kernels import add_rows, blocks, dense, tiles, using
from deepinterest.kernels.functions import sigmoid, tanh, through_sigmoid

FLOAT, AROUND = tiles.FLOAT, 40
HERE = Path(__file__)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def surrounded(rows: int, columns: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix of such rows, and the array it is part of, with floats around it and between its rows."""
    whole = np.random.default_rng(rows + columns).normal(size=AROUND * 2 + rows * stride).astype(np.float32)
    inside = whole[AROUND : AROUND + rows * stride].reshape(rows, stride)[:, :columns]
    return inside, whole


@pytest.mark.parametrize("columns", [1, 7, 16, 17, 36, 48, 50, 65, 100])
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 8, 13, 36])
@pytest.mark.parametrize("steps", [0, 1, 36])
@pytest.mark.parametrize("add", [0, 1])
def test_product_and_nothing_around_it(rows: int, steps: int, columns: int, add: int) -> None:
    (a, _), (b, _) = surrounded(rows, steps, steps + 3), surrounded(steps, columns, columns + 5)
    c, whole = surrounded(rows, columns, columns + 2)
    expected = a.astype(np.float64) @ b + add * c.astype(np.float64)
    untouched = np.ones(len(whole), dtype=bool)
    untouched[AROUND : len(whole) - AROUND].reshape(rows, columns + 2)[:, :columns] = False
    before = whole[untouched].copy()
    tiles.product(
        a.ctypes.data, steps + 3, 1, b.ctypes.data, columns + 5, c.ctypes.data, columns + 2, rows, steps, columns, add
    )
    np.testing.assert_allclose(c, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole[untouched], before)


def test_product_of_a_transpose_and_of_one_row_again_and_again() -> None:
    a, b = np.random.default_rng(1).normal(size=(30, 21)).astype(np.float32), np.ones((30, 9), np.float32)
    c = np.empty((21, 9), np.float32)
    tiles.product(a.ctypes.data, 1, 21, b.ctypes.data, 9, c.ctypes.data, 9, 21, 30, 9, 0)
    np.testing.assert_allclose(c, a.T @ b, rtol=1e-5, atol=1e-5)
    tiles.product(a.ctypes.data, 0, 1, b.ctypes.data, 9, c.ctypes.data, 9, 21, 21, 9, 0)
    np.testing.assert_allclose(c, np.tile(a[0] @ b[:21], (21, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 50])
def test_rows(size: int) -> None:
    one, other = np.arange(1, 81, dtype=np.float32), np.full(80, 2, np.float32)
    to = np.full(80, 5, np.float32)
    at = one.ctypes.data, other.ctypes.data, to.ctypes.data
    tiles.add(at[0], at[2], size)
    np.testing.assert_array_equal(to[:size], 5 + one[:size])
    tiles.multiply(at[1], at[2], size)
    np.testing.assert_array_equal(to[:size], 10 + 2 * one[:size])
    tiles.add_product(at[0], at[1], at[2], size)
    np.testing.assert_array_equal(to[:size], 10 + 4 * one[:size])
    assert (to[size:] == 5).all()
    tiles.copy(at[0], at[2], size, size + 20)
    np.testing.assert_array_equal(to[:size], one[:size])
    assert (to[size : size + 20] == 0).all()
    assert (to[size + 20 :] == 5).all()
    tiles.prefetch(at[0], size)  # changes nothing
    tiles.prefetch(0, size)  # and needs nothing
    np.testing.assert_array_equal(one, np.arange(1, 81))


def test_functions() -> None:
    x = torch.cat([torch.linspace(-30, 30, 2000), torch.tensor([-1e30, -200, -89, 0, 89, 200, 1e30, torch.nan])])
    for ours, theirs in ((sigmoid, torch.sigmoid), (tanh, torch.tanh)):
        found = x.clone()
        ours(found.numpy())
        torch.testing.assert_close(found, theirs(x.double()).float(), rtol=1e-6, atol=1e-7, equal_nan=True)
    gradient, values = torch.rand(50), torch.rand(50)
    expected = gradient * values * (1 - values)
    through_sigmoid(gradient.numpy(), values.numpy())
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("rows", [0, 1, 5, 64, 65, 300])
@pytest.mark.parametrize("bias", [True, False])
def test_dense_is_torch_s(rows: int, bias: bool, threads: int) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, 37).requires_grad_(), torch.randn(37, 20).requires_grad_()
    b = torch.randn(20).requires_grad_() if bias else None
    leaves: list[Tensor] = [x, weight] if b is None else [x, weight, b]
    grad = torch.randn(rows, 20)
    found = []
    for kernel in ("cpu", "torch"):
        with using(kernel):
            result = dense(x, weight, b)
        found.append([result, *torch.autograd.grad(result, leaves, grad)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_dense_takes_parts_and_transposes() -> None:
    torch.manual_seed(1)
    x, weight = torch.randn(40, 90), torch.randn(20, 50)
    for left in (x[:, 3:53], x[::2, :50], torch.randn(50, 40).t(), torch.randn(1, 50).expand(6, 50)):
        torch.testing.assert_close(blocks.product(left, weight.t(), None), left @ weight.t(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(blocks.inner(left, left), left.t() @ left, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("width", [1, 18, 40])
def test_add_rows(width: int) -> None:
    torch.manual_seed(width)
    to, values, index = torch.randn(7, width), torch.randn(50, width + 3)[:, :width], torch.randint(7, (50,))
    expected = to.index_add(0, index, values)
    found = add_rows(to, values, index)
    assert found is to
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for wrong in (-1, 7):
        with pytest.raises(IndexError, match=f"{wrong}.*the rows 0 to 6"):
            add_rows(to, values[:2], torch.tensor([3, wrong]))


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 6), torch.randn(6)
    with pytest.raises(ValueError, match=r"x \(3, 4\) doesn't fit weight \(5, 6\)"):
        dense(x, weight)
    with pytest.raises(ValueError, match=r"doesn't fit weight \(4, 6\) and bias \(5,\)"):
        dense(x, torch.randn(4, 6), bias[:5])
    with pytest.raises(ValueError, match="not as many rows"):
        blocks.inner(x, weight)
    with pytest.raises(ValueError, match="don't fit 2 rows"):
        add_rows(x, weight, torch.tensor([0, 1]))


def test_other_precisions_are_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("these products are for full precision")

    monkeypatch.setattr(blocks, "product", refuse)
    x, weight = torch.randn(3, 4), torch.randn(4, 5)
    assert dense(x.double(), weight.double()).dtype is torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert dense(x, weight).dtype is torch.bfloat16
    with pytest.raises(AssertionError, match="full precision"):
        dense(x, weight)


NARROW = {  # a CPU with vectors of 8 floats
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt",
}
intel = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names a CPU of the x86-64 kind")


def on_narrow_cpu(*tests: str) -> None:
    code = "from deepinterest.kernels import tiles; assert tiles.VECTOR == 8; import pytest; exit(pytest.main())"
    words = [sys.executable, "-c", code, "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(words, env={**os.environ, **NARROW}, capture_output=True, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@intel
def test_vectors_of_8_floats() -> None:
    on_narrow_cpu(f"{HERE}::test_product_and_nothing_around_it", f"{HERE}::test_rows")


@intel
@pytest.mark.slow
def test_kernels_with_vectors_of_8_floats() -> None:
    on_narrow_cpu(str(HERE.with_name("test_recurrence.py")), str(HERE.parents[1] / "nn" / "test_pair_mlp.py"))
