from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepinterest.kernels import pairs as kernel
from deepinterest.nn import pair_mlp
from deepinterest.nn.pair_mlp import PairMLP


def both(mlp: PairMLP, pairs: int, block: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and all gradients, in blocks and a layer at a time."""
    pass
    torch.manual_seed(2)
    x, first = torch.randn(pairs, 3).requires_grad_(), torch.randn(3, 6).requires_grad_()
    own, shared = torch.randn(pairs, 6).requires_grad_(), torch.randn(4, 6).requires_grad_()
    index = torch.randint(4, (pairs,))
    leaves = [x, first, own, shared, *mlp.parameters()]
    blocks = mlp.of(x, first, (shared, index), (own, None))
    outputs = mlp(x @ first + own + shared[index])  # (R, outputs)
    plain = outputs[:, 0] - outputs[:, 1] if outputs.shape[1] == 2 else outputs[:, 0]
    weights = torch.randn(pairs)
    with torch.no_grad():  # nothing is kept for a backward pass
        torch.testing.assert_close(mlp.of(x, first, (shared, index), (own, None)), blocks)
    found = [[out, *torch.autograd.grad((out * weights).sum(), leaves)] for out in (blocks, plain)]
    return found[0], found[1]


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("hidden", [[6], [6, 5], [6, 5, 4]])
@pytest.mark.parametrize(("pairs", "block"), [(0, 4), (1, 4), (8, 4), (64, 1), (65, 1), (200, 1)])
def test_blocks_are_the_layers(
    hidden: list[int], outputs: int, pairs: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    for actual, expected in zip(*both(PairMLP(hidden, outputs), pairs, block, monkeypatch), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_mixed_precision_goes_a_layer_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("blocks are for full precision")

    monkeypatch.setattr(pair_mlp._Pairs, "apply", refuse)
    torch.manual_seed(1)
    mlp, x, first, share = PairMLP([6, 5], 2), torch.randn(7, 3), torch.randn(3, 6), torch.randn(7, 6)
    outputs = mlp(x @ first + share)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mlp.of(x, first, (share, None))
    torch.testing.assert_close(mixed.float(), outputs[:, 0] - outputs[:, 1], rtol=0.05, atol=0.05)
