from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepinterest.config import AttentionUpdate, ResetGate
from deepinterest.kernels import using
from deepinterest.nn.ragged import Pairs, segment_softmax
from deepinterest.nn.recurrent import GRU, AttentionGRU, Update

RESETS = list(ResetGate)
UPDATES: list[Update] = ["agru", *AttentionUpdate]
LENGTHS = [[3, 0, 1, 7, 1, 4], [0, 0], [0], [1], [1, 1, 0], [6, 6, 2]]


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def vector_cell(cell: GRU | AttentionGRU) -> GRU | AttentionGRU:
    """The weights of docs/published_code.md, input 3 and hidden 2, in float64."""
    k = torch.arange(20, dtype=torch.float64)
    gates = (0.1 * (k % 7 - 3)).view(5, 4)
    candidate = (0.2 * (k[:10] % 5 - 2)).view(5, 2)
    cell.double()
    with torch.no_grad():
        cell.input.copy_(torch.cat([gates[:3], candidate[:3]], dim=1))
        cell.gates.copy_(gates[3:])
        cell.candidate.copy_(candidate[3:])
    return cell


def one_step(cell: GRU | AttentionGRU, attention: float = 0.0) -> Tensor:
    """The state after one step from h = (0.1, -0.2), which Recurrence reaches as its second step."""
    x, h = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64), torch.tensor([0.1, -0.2], dtype=torch.float64)
    r, u, c = (x @ cell.input + cell.bias + torch.cat([h @ cell.gates, torch.zeros(2)])).chunk(3)
    r, u = r.sigmoid(), u.sigmoid()
    before = cell.reset_gate is ResetGate.before
    c = torch.tanh(c + ((r * h) @ cell.candidate if before else r * (h @ cell.candidate)))
    if isinstance(cell, GRU):
        k = u
    elif cell.update == "agru":
        k = torch.full_like(u, 1 - attention)
    else:
        k = (1 - attention) * u if cell.update is AttentionUpdate.code else 1 - attention * (1 - u)
    return k * h + (1 - k) * c


VECTORS: list[tuple[Update | None, ResetGate, tuple[float, float]]] = [
    (None, ResetGate.before, (0.01517078, -0.24948336)),
    (None, ResetGate.after, (0.01506376, -0.24948336)),
    ("agru", ResetGate.before, (0.02818056, -0.26744225)),
    (AttentionUpdate.code, ResetGate.before, (-0.0311999, -0.30208061)),
    (AttentionUpdate.paper, ResetGate.before, (0.07455123, -0.21484501)),
]


@pytest.mark.parametrize(("update", "reset", "expected"), VECTORS)
def test_cells_by_hand(update: Update | None, reset: ResetGate, expected: tuple[float, float]) -> None:
    """The numbers start from a given state, cells from 0: a first step whose candidate is that state leads there."""
    cell = vector_cell(GRU(3, 2, reset) if update is None else AttentionGRU(3, 2, update, reset))
    target = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(one_step(cell, 0.3), target, rtol=1e-6, atol=1e-8)

    # A first input that writes h: update gate fully open for the GRU, attention 1 otherwise.
    h = torch.tensor([0.1, -0.2], dtype=torch.float64)
    share = torch.cat([torch.zeros(2, dtype=torch.float64), torch.full((2,), -60.0, dtype=torch.float64), h.atanh()])
    x = torch.tensor([0.5, -1.0, 0.25], dtype=torch.float64)
    inputs = torch.stack([share, cell.project(x.unsqueeze(0))[0]])
    cell.project = lambda _: inputs  # type: ignore[method-assign]
    rows, offsets = torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 2])
    if isinstance(cell, GRU):
        final = cell(rows, offsets)[1]
    else:
        attention = torch.tensor([1.0, 0.3], dtype=torch.float64)
        final = cell(rows, attention, Pairs.of(offsets, torch.tensor([0])))
    torch.testing.assert_close(final[0], target, rtol=1e-6, atol=1e-8)


def gradients(loss: Tensor, of: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of, allow_unused=True, materialize_grads=True))


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_gru_is_the_oracle(reset: ResetGate, lengths: list[int]) -> None:
    torch.manual_seed(1)
    cell, offsets = GRU(4, 5, reset), offsets_of(lengths)
    x = torch.randn(sum(lengths), 4, requires_grad=True)
    states, final = cell(x, offsets)
    with using("oracle"):
        expected, _ = cell(x, offsets)
    sequences = expected.split(lengths)
    expected_final = torch.stack([s[-1] if len(s) else torch.zeros(5) for s in sequences])
    assert_near(states, expected)
    assert_near(final, expected_final)

    v, w = torch.randn_like(states), torch.randn_like(final)
    parameters = [x, *cell.parameters()]
    actual = gradients((states * v).sum() + (final * w).sum(), parameters)
    wanted = gradients((expected * v).sum() + (expected_final * w).sum() + 0 * x.sum(), parameters)
    for a, b in zip(actual, wanted, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_attention_gru_is_the_oracle(reset: ResetGate, update: Update, lengths: list[int]) -> None:
    torch.manual_seed(1)
    cell, offsets = AttentionGRU(4, 5, update, reset), offsets_of(lengths)
    pairs = Pairs.of(offsets, torch.arange(len(lengths)).repeat_interleave(2))
    x = torch.randn(sum(lengths), 4, requires_grad=True)
    attention = segment_softmax(torch.randn(2 * sum(lengths)), pairs.offsets).requires_grad_()
    final = cell(x, attention, pairs)
    with using("oracle"):
        expected = cell(x, attention, pairs)
    assert_near(final, expected)

    w = torch.randn_like(final)
    parameters = [x, attention, *cell.parameters()]
    actual = gradients((final * w).sum(), parameters)
    wanted = gradients((expected * w).sum() + 0 * x.sum(), parameters)
    for a, b in zip(actual, wanted, strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("update", [None, *UPDATES])
def test_gradcheck(reset: ResetGate, update: Update | None) -> None:
    torch.manual_seed(1)
    offsets = torch.tensor([0, 2, 2, 5, 6])
    x = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    if update is None:
        gru = GRU(2, 3, reset).double()
        assert torch.autograd.gradcheck(lambda x, *_: gru(x, offsets), (x, *gru.parameters()))
        return
    cell = AttentionGRU(2, 3, update, reset).double()
    pairs = Pairs.of(offsets, torch.tensor([0, 1, 2, 2, 3]))
    a = torch.rand(len(pairs.event), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, a, *_: cell(x, a, pairs), (x, a, *cell.parameters()))


def test_reset_after_is_torchs_gru() -> None:
    torch.manual_seed(1)
    cell, reference = GRU(4, 5, ResetGate.after), torch.nn.GRU(4, 5, batch_first=True)
    with torch.no_grad():
        reference.weight_ih_l0.copy_(cell.input.t())
        reference.weight_hh_l0.copy_(torch.cat([cell.gates, cell.candidate], dim=1).t())
        reference.bias_ih_l0.copy_(cell.bias)
        reference.bias_hh_l0.zero_()
    x = torch.randn(3, 7, 4)
    states, final = cell(x.flatten(0, 1), offsets_of([7, 7, 7]))
    expected, last = reference(x)
    assert_near(states.view(3, 7, 5), expected)
    assert_near(final, last[0])


def test_initial_weights() -> None:
    cell = GRU(36, 36)
    assert cell.bias.tolist() == [1.0] * 72 + [0.0] * 36
    for weights, limit in [
        (cell.input[:, :72], 0.204124), (cell.gates, 0.204124),
        (cell.input[:, 72:], 0.235702), (cell.candidate, 0.235702),
    ]:  # fmt: skip
        assert 0.98 * limit < weights.abs().max().item() <= limit + 1e-6


def test_autocast_keeps_the_states_precise() -> None:
    cell = GRU(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        states, _ = cell(torch.randn(5, 3), torch.tensor([0, 2, 5]))
    assert states.dtype == torch.float32
    states.sum().backward()
