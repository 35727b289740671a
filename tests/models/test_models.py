from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from deepinterest.config import (
    AttentionUpdate,
    DIENConfig,
    DINConfig,
    DNNConfig,
    InputNorm,
    ModelConfig,
    ResetGate,
)
from deepinterest.data.batch import Batch
from deepinterest.models import DIEN, DIN, DNN, Network, build
from deepinterest.nn.embedding import Features

ITEMS, CATEGORIES, USERS = 30, 7, 9
CONFIGS: list[ModelConfig] = [
    DNNConfig(),
    DNNConfig(use_user=True, input_norm=InputNorm.frozen),
    DINConfig(),
    DIENConfig(),
    DIENConfig(use_user=True, reset_gate=ResetGate.after, attention_update=AttentionUpdate.paper, hidden=20),
]
every_network = pytest.mark.parametrize("config", CONFIGS, ids=["dnn", "dnn-user", "din", "dien", "dien-user-paper"])


def features() -> Features:
    generator = torch.Generator().manual_seed(3)
    categories = torch.randint(CATEGORIES, (ITEMS,), generator=generator)
    users = torch.arange(USERS).unsqueeze(1)
    return Features(torch.stack([torch.arange(ITEMS), categories], dim=1), [ITEMS, CATEGORIES], users, [USERS])


def network(config: ModelConfig, seed: int = 1) -> Network:
    torch.manual_seed(seed)
    return build(features(), config)


def random_batch(lengths: list[int], candidates: list[int], seed: int = 0, negatives: int = 2) -> Batch:
    """Histories of these lengths with so many candidates each."""
    g = torch.Generator().manual_seed(seed)
    N, B = sum(lengths), sum(candidates)
    return Batch(
        history=torch.randint(ITEMS, (N,), generator=g),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        user=torch.randint(USERS, (len(lengths),), generator=g),
        candidates=torch.randint(ITEMS, (B,), generator=g),
        history_index=torch.arange(len(lengths)).repeat_interleave(torch.tensor(candidates)),
        label=torch.randint(2, (B,), generator=g).float(),
        auxiliary_negatives=torch.randint(ITEMS, (N, negatives), generator=g),
    )


def mixed_batch() -> Batch:
    return random_batch([5, 0, 1, 9, 3], [2, 2, 1, 3, 2])


def reordered(batch: Batch, groups: list[int], pick: Callable[[Tensor], Tensor] = lambda rows: rows) -> Batch:
    """The chosen groups in the given order, each with its candidates picked or reordered by `pick`."""
    assert batch.auxiliary_negatives is not None
    events = [torch.arange(int(batch.offsets[g]), int(batch.offsets[g + 1])) for g in groups]
    rows = [pick((batch.history_index == g).nonzero().squeeze(1)) for g in groups]
    event, row = torch.cat(events), torch.cat(rows)
    return Batch(
        history=batch.history[event],
        offsets=torch.tensor([0, *[len(e) for e in events]]).cumsum(0),
        user=batch.user[groups],
        candidates=batch.candidates[row],
        history_index=torch.arange(len(groups)).repeat_interleave(torch.tensor([len(r) for r in rows])),
        label=batch.label[row],
        auxiliary_negatives=batch.auxiliary_negatives[event],
    )


def rows_of(batch: Batch, groups: list[int], pick: Callable[[Tensor], Tensor] = lambda rows: rows) -> Tensor:
    return torch.cat([pick((batch.history_index == g).nonzero().squeeze(1)) for g in groups])


def total_loss(model: Network, batch: Batch) -> Tensor:
    prediction = model(batch)
    loss = binary_cross_entropy_with_logits(prediction.logit, batch.label)
    return loss if prediction.auxiliary_loss is None else loss + prediction.auxiliary_loss


def steady(config: ModelConfig) -> Network:
    """A network in evaluation mode whose weights are large enough that differences show."""
    model = network(config)
    with torch.no_grad():
        for table in model.embeddings:
            table.weight.normal_()
    return model.eval()


def test_build_by_name() -> None:
    assert [type(network(c)) for c in (DNNConfig(), DINConfig(), DIENConfig())] == [DNN, DIN, DIEN]
    with pytest.raises(ValueError, match="choose dnn, din or dien"):
        build(features(), ModelConfig(name="wide"))


@pytest.mark.parametrize(("config", "dense"), [(DNNConfig(), 34902), (DINConfig(), 64327), (DIENConfig(), 94059)])
def test_parameter_counts_of_the_published_networks(config: ModelConfig, dense: int) -> None:
    config.use_user = True
    model = network(config)
    tables = {id(table.weight) for table in model.embeddings}
    assert len(tables) == 3
    assert sum(p.numel() for p in model.parameters() if id(p) not in tables) == dense


@every_network
@pytest.mark.parametrize("pick", [lambda rows: rows, lambda rows: rows.flip(0), lambda rows: rows[:1]])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3], [1], [2, 0]])
def test_a_score_depends_on_its_row_only(
    config: ModelConfig, groups: list[int], pick: Callable[[Tensor], Tensor]
) -> None:
    model, batch = steady(config), mixed_batch()
    whole = model(batch).logit
    part = model(reordered(batch, groups, pick)).logit
    torch.testing.assert_close(part, whole[rows_of(batch, groups, pick)], rtol=1e-6, atol=1e-6)


@every_network
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [1], [1, 1], [0, 1, 0], [2, 0, 1]])
def test_short_histories(config: ModelConfig, lengths: list[int]) -> None:
    model = network(config)
    for candidates in (1, 2):
        batch = random_batch(lengths, [candidates] * len(lengths))
        model.zero_grad()
        loss = total_loss(model, batch)
        loss.backward()
        assert loss.isfinite()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            gradient = parameter.grad.coalesce().values() if parameter.grad.is_sparse else parameter.grad
            assert gradient.isfinite().all(), name
        assert model.eval()(batch).logit.isfinite().all()
        model.train()


@every_network
def test_every_parameter_gets_a_gradient(config: ModelConfig) -> None:
    model = network(config)
    total_loss(model, random_batch([6, 2, 9, 4], [3, 3, 3, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.is_sparse == any(parameter is table.weight for table in model.embeddings)
        if name != "attention.rest.3.bias":  # the softmax cancels it
            assert parameter.grad.to_dense().abs().sum() > 0, name


@every_network
def test_overfits_32_rows(config: ModelConfig) -> None:
    model = network(config)
    batch = random_batch([3, 7, 1, 5, 2, 6, 4, 8, 3, 5, 2, 4, 6, 1, 7, 3], [2] * 16, negatives=1)
    batch.candidates = torch.arange(32) % (ITEMS - 1) + 1
    batch.label = torch.tensor([1.0, 0.0] * 16)
    tables = [table.weight for table in model.embeddings]
    dense = [p for p in model.parameters() if all(p is not table for table in tables)]
    optimizers = [torch.optim.Adam(dense, lr=0.01), torch.optim.SparseAdam(tables, lr=0.01)]
    for _ in range(150):
        for optimizer in optimizers:
            optimizer.zero_grad()
        total_loss(model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    logit = model.eval()(batch).logit
    assert logit[batch.label == 1].min() > logit[batch.label == 0].max()  # AUC 1


@every_network
def test_save_and_reload(config: ModelConfig) -> None:
    model, batch = network(config), mixed_batch()
    model(batch)  # moves the running statistics
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network(config, seed=2)
    other.load_state_dict(torch.load(file))
    assert torch.equal(model.eval()(batch).logit, other.eval()(batch).logit)


@every_network
def test_same_seed_same_output(config: ModelConfig) -> None:
    batch = mixed_batch()
    a, b, other = (network(config, seed=seed)(batch).logit for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


@every_network
def test_order_of_a_history_matters_to_dien_only(config: ModelConfig) -> None:
    model, batch = steady(config), random_batch([6], [3])
    straight = model(batch).logit
    batch.history = batch.history.flip(0)
    difference = (model(batch).logit - straight).abs().max()
    assert difference > 1e-4 if isinstance(config, DIENConfig) else difference < 1e-5


@every_network
def test_auxiliary_loss(config: ModelConfig) -> None:
    model, batch = network(config), mixed_batch()
    loss = model(batch).auxiliary_loss
    assert (loss is not None) == isinstance(config, DIENConfig)
    if loss is not None:
        assert loss.item() == pytest.approx(1.386, abs=0.5)  # near two coins
    batch.auxiliary_negatives = None
    assert model.eval()(batch).auxiliary_loss is None


@pytest.mark.parametrize("config", [DINConfig(), DIENConfig()], ids=["din", "dien"])
def test_attention_weights(config: ModelConfig) -> None:
    model, batch = steady(config), mixed_batch()
    assert isinstance(model, DIN | DIEN)
    weights, pairs = model.attention_weights(batch)
    lengths = batch.offsets.diff()[batch.history_index].tolist()
    for of_candidate, length in zip(weights.split(lengths), lengths, strict=True):
        assert of_candidate.sum().item() == pytest.approx(1.0 if length else 0.0, abs=1e-6)
    assert len(pairs.event) == sum(lengths)


def test_dien_evolves_each_candidate_on_its_own() -> None:
    model, batch = steady(DIENConfig()), random_batch([4], [2])
    assert isinstance(model, nn.Module)
    first, second = model(batch).logit.tolist()
    assert first != pytest.approx(second, abs=1e-5)


@every_network
def test_mixed_precision(config: ModelConfig) -> None:
    model, batch = network(config), mixed_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = total_loss(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(total_loss(network(config), batch).item(), rel=0.05)
    assert all(p.grad is not None and p.grad.to_dense().isfinite().all() for p in model.parameters())
