"""Every kernel against the oracle; those of the GPU are in test_gpu.py."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from deepinterest.config import KernelName, ResetGate
from deepinterest.kernels import recurrence, using

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
    loss = (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(2))).sum()
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
