"""Every kernel against the oracle; those of the GPU are in test_gpu.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deepinterest.config import KernelName, ResetGate
from deepinterest.kernels import chosen, recurrence, using

LENGTHS = [[3, 0, 1, 7, 1, 4], [0, 0], [0], [], [1], [1, 1, 0], [6, 6, 2, 6, 6, 6, 1, 9], list(range(23))]


def arguments(lengths: list[int], hidden: int, attention: bool, shared: bool, seed: int = 1) -> dict[str, Tensor]:
    """Inputs of `recurrence`, all differentiable; with `shared` two sequences read each run of inputs."""
    random = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    N, source = sum(lengths), None
    if shared:
        source = torch.cat([torch.arange(a, b).repeat(2) for a, b in pairwise(offsets.tolist())] or [offsets[:0]])
        offsets = torch.tensor([0, *(length for length in lengths for _ in range(2))]).cumsum(0)
    M = int(offsets[-1])

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*shape, generator=random)).requires_grad_()

    found = {"x": draw(N, 3 * hidden), "offsets": offsets}
    # Larger weights make the recurrence chaotic: rounding grows at each step.
    found |= {name: draw(hidden, n * hidden, scale=hidden**-0.5) for name, n in (("gates", 2), ("candidate", 1))}
    if source is not None:
        found["source"] = source
    if attention:
        found |= {name: torch.rand(M, generator=random).requires_grad_() for name in ("base", "slope")}
    return found


def outputs(kernel: KernelName, inputs: dict[str, Tensor], reset: ResetGate) -> dict[str, Tensor]:
    """States and all gradients."""
    with using(kernel):
        states = recurrence(**inputs, reset=reset)
    leaves = {name: value for name, value in inputs.items() if value.requires_grad}
    loss = (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(2)).to(states)).sum()
    loss = loss + sum(0 * leaf.sum() for leaf in leaves.values())
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    return {"states": states.detach(), **dict(zip(leaves, gradients, strict=True))}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within 1e-5 of the largest value of each tensor."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        scale = max(1e-3, float(value.abs().max()) if value.numel() else 0)
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=1e-5 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("reset", list(ResetGate))
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kernel", [KernelName.torch, KernelName.cpu])
def test_kernels_are_the_oracle(kernel: KernelName, lengths: list[int], reset: ResetGate) -> None:
    for attention in (False, True):
        for shared in (False, True):
            for hidden in (1, 5, 16, 36):
                inputs = arguments(lengths, hidden, attention, shared)
                assert_equal(outputs(kernel, inputs, reset), outputs(KernelName.oracle, inputs, reset))


@pytest.mark.parametrize("reset", list(ResetGate))
@settings(deadline=None, max_examples=30, derandomize=True)
@given(lengths=st.lists(st.integers(0, 12), max_size=14), seed=st.integers(0, 10), shared=st.booleans())
def test_kernels_agree_on_any_lengths(reset: ResetGate, lengths: list[int], seed: int, shared: bool) -> None:
    inputs = arguments(lengths, 7, True, shared, seed)
    assert_equal(outputs(KernelName.cpu, inputs, reset), outputs(KernelName.torch, inputs, reset))


@pytest.mark.parametrize("hidden", [17, 64])
def test_wide_states(hidden: int) -> None:
    inputs = arguments([40, 3, 0, 9, 21], hidden, True, False)
    for reset in ResetGate:
        assert_equal(outputs(KernelName.cpu, inputs, reset), outputs(KernelName.torch, inputs, reset))


def test_threads_change_nothing() -> None:
    inputs, before = arguments(list(range(23)), 5, True, True), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(outputs(KernelName.cpu, inputs, ResetGate.before))
    finally:
        torch.set_num_threads(before)
    # Only the steps are the kernel's; the sums over them are torch's, whose order depends on its threads.
    for more in found[1:]:
        for name in ("states", "base", "slope"):
            assert torch.equal(more[name], found[0][name])
        assert_equal(more, found[0])


@pytest.mark.parametrize("kernel", [KernelName.torch, KernelName.cpu])
def test_nan_stays_in_its_sequence(kernel: KernelName) -> None:
    inputs = arguments([3, 4, 2, 5, 1], 5, False, False)
    with torch.no_grad():
        inputs["x"][4, 7] = torch.nan  # of the second sequence, at its second step
    found = outputs(kernel, inputs, ResetGate.before)
    wrong = found["states"].isnan().any(1)
    assert wrong.tolist() == [False] * 4 + [True] * 3 + [False] * 8
    assert found["x"].isnan().any(1).tolist() == [False] * 3 + [True] * 4 + [False] * 8


@pytest.mark.parametrize("kernel", [KernelName.torch, KernelName.cpu])
def test_extreme_inputs_saturate(kernel: KernelName) -> None:
    inputs = arguments([4, 4], 5, False, False)
    with torch.no_grad():
        inputs["x"] *= 1e30
    found = outputs(kernel, inputs, ResetGate.before)
    assert all(value.isfinite().all() for value in found.values())
    assert found["states"].abs().max() <= 1


def test_the_fastest_that_fits_is_chosen() -> None:
    assert chosen(torch.zeros(1), 36) is KernelName.cpu
    assert chosen(torch.zeros(1, dtype=torch.float64), 36) is KernelName.torch
    with using("oracle"):
        assert chosen(torch.zeros(1), 36) is KernelName.oracle
        with using(KernelName.torch):
            assert chosen(torch.zeros(1), 36) is KernelName.torch
        assert chosen(torch.zeros(1), 36) is KernelName.oracle
    assert chosen(torch.zeros(1), 36) is KernelName.cpu


def test_nothing_is_kept_without_gradients() -> None:
    inputs = arguments([3, 0, 5], 5, True, True)
    expected = outputs(KernelName.cpu, inputs, ResetGate.after)["states"]
    with torch.no_grad(), using(KernelName.cpu):
        assert torch.equal(recurrence(**inputs, reset=ResetGate.after), expected)
