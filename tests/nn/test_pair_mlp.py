from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepinterest.kernels import using
from deepinterest.nn import pair_mlp
from deepinterest.nn.pair_mlp import PairMLP, Part, Rows


def sample(rows: int, pairs: int, width: int) -> Rows:
    """A matrix, and for each pair one of its rows."""
    return torch.randn(rows, width).requires_grad_(), torch.randint(rows, (pairs,))


def both(mlp: PairMLP, parts: list[Part], shares: list[Rows], inputs: int, width: int) -> list[list[Tensor]]:
    """Outputs and all gradients, by the kernel and a layer at a time."""
    first = torch.randn(inputs, width).requires_grad_()
    matrices = [rows[0] for part in parts for rows in part if rows is not None] + [matrix for matrix, _ in shares]
    leaves = [first, *matrices, *mlp.parameters()]
    weights = None
    found = []
    for kernel in ("cpu", "torch"):
        with using(kernel):
            outputs = mlp.of(parts, first, shares)
            with torch.no_grad():  # nothing is kept for a backward pass
                torch.testing.assert_close(mlp.of(parts, first, shares), outputs)
        weights = torch.randn_like(outputs) if weights is None else weights
        found.append([outputs, *torch.autograd.grad((outputs * weights).sum(), leaves, materialize_grads=True)])
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("hidden", [[6], [6, 5], [40, 17, 4]])
@pytest.mark.parametrize("pairs", [0, 1, 8, 64, 65, 200])
def test_the_kernel_is_the_layers(hidden: list[int], outputs: int, pairs: int, threads: int) -> None:
    torch.manual_seed(1)
    mlp = PairMLP(hidden, outputs)
    own = torch.randn(pairs, hidden[0]).requires_grad_()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = both(mlp, [(sample(9, pairs, 3), None)], [sample(4, pairs, hidden[0]), (own, None)], 3, hidden[0])
    finally:
        torch.set_num_threads(before)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(70, 130), (0, 5), (5, 0)])
def test_parts_follow_one_another_and_may_be_products(sizes: tuple[int, int]) -> None:
    torch.manual_seed(2)
    one, other = sizes
    parts: list[Part] = [
        ((torch.randn(one, 20).requires_grad_(), None), sample(7, one, 20)),
        (sample(3, other, 20), sample(7, other, 20)),
        ((torch.randn(20, 3).t().requires_grad_(), torch.randint(3, (other,))), None),  # not in one piece
    ]
    found = both(PairMLP([33, 8], 1), parts, [sample(6, one + 2 * other, 33)], 20, 33)
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_layers_are_what_calling_it_does() -> None:
    torch.manual_seed(3)
    mlp, x, first, share = PairMLP([6, 5], 2), torch.randn(7, 3), torch.randn(3, 6), torch.randn(7, 6)
    outputs = mlp(x @ first + share)
    torch.testing.assert_close(mlp.of([((x, None), None)], first, [(share, None)]), outputs[:, 0] - outputs[:, 1])


@pytest.mark.parametrize("what", ["mixed precision", "double precision", "the torch kernel"])
def test_all_else_goes_a_layer_at_a_time(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Tensor:
        raise AssertionError("the kernel is for full precision")

    monkeypatch.setattr(pair_mlp._Pairs, "apply", refuse)
    torch.manual_seed(1)
    mlp, x, first, share = PairMLP([6, 5], 2), torch.randn(7, 3), torch.randn(3, 6), torch.randn(7, 6)
    outputs = mlp(x @ first + share)
    if what == "double precision":
        mlp, x, first, share = mlp.double(), x.double(), first.double(), share.double()
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=what == "mixed precision"),
        using("torch" if what == "the torch kernel" else "auto"),
    ):
        found = mlp.of([((x, None), None)], first, [(share, None)])
    torch.testing.assert_close(found.float(), outputs[:, 0] - outputs[:, 1], rtol=0.05, atol=0.05)


def test_what_does_not_fit_is_refused() -> None:
    mlp, x, first, share = PairMLP([6, 5], 1), torch.randn(7, 3), torch.randn(3, 6), torch.randn(4, 6)
    for rows in ([0, 4], [-1, 3]):
        index = torch.tensor(rows).repeat(4)[:7]
        with pytest.raises(IndexError, match=f"from {rows[0]} to {rows[1]}; there are the rows 0 to 3"):
            mlp.of([((x, None), None)], first, [(share, index)])
    with pytest.raises(ValueError, match="7 rows of width 6 are needed"):
        mlp.of([((x, None), None)], first, [(share, None)])
    with pytest.raises(ValueError, match="7 rows of width 3 are needed"):
        mlp.of([((torch.randn(7, 2), None), None)], first, [(torch.randn(7, 6), None)])
    with pytest.raises(ValueError, match="no share"):
        mlp.of([((x, None), None)], first, [])
