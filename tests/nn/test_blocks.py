"""Blocks of the networks; the numbers worked out by hand are those of docs/published_code.md."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from deepinterest.config import Quirks
from deepinterest.nn.attention import TargetAttention
from deepinterest.nn.auxiliary import AuxiliaryLoss
from deepinterest.nn.dice import BatchDice, Dice
from deepinterest.nn.embedding import FeatureEmbedding
from deepinterest.nn.mlp import BatchNorm, FrozenNorm, Head
from deepinterest.nn.ragged import Pairs


@pytest.mark.parametrize("dice", [Dice(2).train(), BatchDice(2).train(), BatchDice(2).eval()])
def test_dice_by_hand(dice: Dice | BatchDice) -> None:
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.0, 0.25]))
    y = dice(torch.tensor([[1.0, -2], [3, 0], [-1, 4]]))
    expected = torch.tensor([[0.5, -0.88337712], [2.31869244, 0], [-0.22710252, 3.37564553]])
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)


def test_batch_dice_of_one_row() -> None:
    dice, x = BatchDice(3), torch.randn(1, 3)
    torch.testing.assert_close(dice(x), x / 2)  # p = 1/2, alpha 0


def test_batch_dice_gradient_goes_through_the_statistics() -> None:
    dice, x = BatchDice(2).double(), torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    torch.nn.init.normal_(dice.alpha)
    assert torch.autograd.gradcheck(lambda x, _: dice(x), (x, dice.alpha))
    (other,) = torch.autograd.grad(dice(x)[0].sum(), x)
    assert other[1:].abs().min() > 0  # the first row's output moves with every row


def test_dice_running_statistics() -> None:
    dice, x = Dice(3), torch.randn(50, 3) * 2 + 1
    dice(x)
    torch.testing.assert_close(dice.running_mean, 0.1 * x.mean(0))
    torch.testing.assert_close(dice.running_var, 0.9 + 0.1 * x.var(0))
    p = torch.sigmoid((x - dice.running_mean) / (dice.running_var + 1e-8).sqrt())
    torch.testing.assert_close(dice.eval()(x), p * x)


@pytest.mark.parametrize("block", [Dice(3), BatchNorm(3)])
def test_one_row_uses_running_statistics(block: torch.nn.Module) -> None:
    block.train()(torch.randn(20, 3))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    x = torch.randn(1, 3)
    trained = block(x)
    torch.testing.assert_close(trained, block.eval()(x))
    assert all(torch.equal(before[name], value) for name, value in block.state_dict().items())


def test_frozen_norm_by_hand() -> None:
    assert FrozenNorm(1)(torch.ones(1, 1)).item() == pytest.approx(0.99950037, abs=1e-7)


def test_head_is_the_softmax_of_two() -> None:
    head, x = Head(4, [5, 3], "prelu", Quirks(frozen_norm=True)), torch.randn(6, 4)
    assert [type(layer).__name__ for layer in head.layers] == ["FrozenNorm", "Linear", "PReLU", "Linear", "PReLU"]
    expected = head.output(head.layers(x)).softmax(1)[:, 0]
    torch.testing.assert_close(torch.sigmoid(head(x)), expected)


@pytest.mark.parametrize(
    ("quirks", "norm", "dice"),
    [
        (None, "BatchNorm", "Dice"),
        (Quirks(frozen_norm=True), "FrozenNorm", "Dice"),
        (Quirks(batch_dice=True), "BatchNorm", "BatchDice"),
    ],
)
def test_quirks_of_the_head(quirks: Quirks | None, norm: str, dice: str) -> None:
    layers = Head(4, [5, 3], "dice", quirks).layers
    assert [type(layer).__name__ for layer in layers] == [norm, "Linear", dice, "Linear", dice]


@pytest.mark.parametrize("project", [False, True])
def test_attention_against_a_loop(project: bool) -> None:
    torch.manual_seed(1)
    offsets, history_index = torch.tensor([0, 3, 3, 4]), torch.tensor([0, 0, 1, 2])
    Q = 5 if project else 4
    attention = TargetAttention(Q, 4, [8, 6], project)
    torch.nn.init.normal_(attention.first.bias)
    query, events = torch.randn(4, Q), torch.randn(4, 4)
    pairs = Pairs.of(offsets, history_index)
    weights = attention(query, events, pairs)

    expected = []
    for b, g in enumerate(history_index.tolist()):
        q = query[b] if attention.project is None else attention.project(query[b : b + 1])[0]
        features = [torch.cat([q, f, q - f, q * f]) for f in events[offsets[g] : offsets[g + 1]]]
        scores = [attention.rest(attention.first(z)) for z in features]
        expected += torch.cat(scores).softmax(0).tolist() if scores else []
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_attention_needs_projection_for_unequal_widths() -> None:
    with pytest.raises(ValueError, match="project=True"):
        TargetAttention(3, 4, [8], project=False)


def auxiliary_loss_of(click: torch.Tensor, other: torch.Tensor, quirks: Quirks) -> float:
    """The loss of two histories, 3 and 2 events long, whose three steps have these logits."""
    loss = AuxiliaryLoss(1, 1, [2], quirks)
    loss.logits = lambda *_: (click, other.unsqueeze(1))  # type: ignore[method-assign]
    return loss(torch.zeros(5, 1), torch.zeros(5, 1), torch.zeros(5, 1, 1), torch.tensor([0, 3, 5])).item()


@pytest.mark.parametrize("epsilon", [False, True])
def test_auxiliary_loss_by_hand(epsilon: bool) -> None:
    """Divided by the four steps that two histories of three positions have; by default by the three real ones."""
    click, other = torch.tensor([0.6, 0.7, 0.8]).logit(), torch.tensor([0.4, 0.2, 0.3]).logit()
    padded = auxiliary_loss_of(click, other, Quirks(padded_auxiliary=True, epsilon=epsilon))
    assert padded == pytest.approx(0.54532206, abs=1e-6)
    assert auxiliary_loss_of(click, other, Quirks(epsilon=epsilon)) == pytest.approx(0.54532206 * 4 / 3, abs=1e-6)


def test_auxiliary_loss_with_epsilon_is_bounded_for_positives_only() -> None:
    far, even = torch.full((3,), -40.0), torch.zeros(3)
    coin = math.log(2)
    assert auxiliary_loss_of(far, even, Quirks()) == pytest.approx(40 + coin)
    assert auxiliary_loss_of(far, even, Quirks(epsilon=True)) == pytest.approx(-math.log(1e-8) + coin)
    assert auxiliary_loss_of(even, -far, Quirks()) == pytest.approx(40 + coin)
    assert auxiliary_loss_of(even, -far, Quirks(epsilon=True)) == math.inf


@pytest.mark.parametrize("count", [1, 3])
def test_auxiliary_loss_against_a_loop(count: int) -> None:
    torch.manual_seed(1)
    offsets = [0, 3, 3, 4, 8]
    loss = AuxiliaryLoss(3, 4, [7, 5])
    for parameter in (loss.norm.weight, loss.norm.bias, loss.first.bias):
        torch.nn.init.normal_(parameter)
    states, history, negatives = torch.randn(8, 3), torch.randn(8, 4), torch.randn(8, count, 4)

    def p(h: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        return loss.rest(loss.first(loss.norm(torch.cat([h, e])))).softmax(0)[0]

    terms = []
    for start, end in pairwise(offsets):
        for t in range(start, end - 1):
            missed = torch.stack([-(1 - p(states[t], n)).log() for n in negatives[t + 1]])
            terms.append(-p(states[t], history[t + 1]).log() + missed.mean())
    torch.testing.assert_close(loss(states, history, negatives, torch.tensor(offsets)), torch.stack(terms).mean())


@pytest.mark.parametrize("quirks", [Quirks(), Quirks(padded_auxiliary=True), Quirks(epsilon=True)])
@pytest.mark.parametrize("offsets", [[0, 1, 1, 2], [0, 0]])
def test_auxiliary_loss_without_positions_is_a_connected_zero(quirks: Quirks, offsets: list[int]) -> None:
    loss, N = AuxiliaryLoss(3, 4, [7, 5], quirks), offsets[-1]
    states = torch.randn(N, 3, requires_grad=True)
    value = loss(states, torch.randn(N, 4), torch.randn(N, 1, 4), torch.tensor(offsets))
    value.backward()
    assert value.item() == 0
    assert states.grad is not None
    assert torch.equal(states.grad, torch.zeros(N, 3))


def test_embedding_looks_up_features_side_by_side() -> None:
    catalogue = torch.tensor([[0, 0], [1, 2], [2, 1], [3, 2]])
    embedding = FeatureEmbedding(catalogue, [4, 3], 5)
    calls: list[int] = []
    for table in embedding.tables:
        table.register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    a, b, c = embedding(torch.tensor([3, 1, 3]), torch.tensor([[1], [0]]), torch.tensor([], dtype=torch.int64))
    assert (a.shape, b.shape, c.shape) == ((3, 10), (2, 1, 10), (0, 10))
    assert calls == [3, 3]  # each distinct row once, one lookup per table
    items, categories = (table.weight for table in embedding.tables)
    torch.testing.assert_close(a, torch.cat([items[[3, 1, 3]], categories[[2, 2, 2]]], dim=1))
    torch.testing.assert_close(b[:, 0], torch.cat([items[[1, 0]], categories[[2, 0]]], dim=1))
    assert "catalogue" not in embedding.state_dict()
    a.sum().backward()
    assert all(table.weight.grad.is_sparse for table in embedding.tables)
