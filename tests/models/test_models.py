from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from deepinterest.config import (
    SCHEMAS,
    AGRUConfig,
    AIGRUConfig,
    AttentionUpdate,
    AUGRUConfig,
    DIENConfig,
    DINConfig,
    DNNConfig,
    GRUAttentionConfig,
    ModelConfig,
    PNNConfig,
    Quirks,
    RecurrentConfig,
    ResetGate,
    WideDeepConfig,
)
from deepinterest.data.batch import Batch
from deepinterest.errors import UserError
from deepinterest.models import DIEN, NETWORKS, AttentionNetwork, Network, build
from deepinterest.nn.embedding import Features
from deepinterest.nn.recurrent import AttentionGRU, Update

ITEMS, CATEGORIES, USERS = 30, 7, 9
REGISTERED: dict[str, ModelConfig] = {name: schema() for name, schema in SCHEMAS["model"].items()}
PUBLISHED: list[ModelConfig] = [
    DNNConfig(), WideDeepConfig(), PNNConfig(), DINConfig(),
    GRUAttentionConfig(), AIGRUConfig(), AGRUConfig(), AUGRUConfig(), DIENConfig(),
]  # fmt: skip
VARIANTS: dict[str, ModelConfig] = {
    "dnn-user": DNNConfig(use_user=True),
    "dien-user-paper": DIENConfig(
        use_user=True, reset_gate=ResetGate.after, attention_update=AttentionUpdate.paper, hidden=20
    ),
    "gru_attention-narrow": GRUAttentionConfig(reset_gate=ResetGate.after, hidden=20),
    "aigru-narrow": AIGRUConfig(hidden=20),
}
CONFIGS = REGISTERED | VARIANTS
ALL_QUIRKS = Quirks(**{quirk.name: True for quirk in fields(Quirks)})

published_networks = pytest.mark.parametrize("config", PUBLISHED, ids=lambda config: config.name)
every_network = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
both_modes = pytest.mark.parametrize("quirks", [Quirks(), ALL_QUIRKS], ids=["default", "reference"])

pytestmark = pytest.mark.usefixtures("one_thread")  # the tolerances below are those of rounding


def features() -> Features:
    generator = torch.Generator().manual_seed(3)
    categories = torch.randint(CATEGORIES, (ITEMS,), generator=generator)
    users = torch.arange(USERS).unsqueeze(1)
    return Features(torch.stack([torch.arange(ITEMS), categories], dim=1), [ITEMS, CATEGORIES], users, [USERS])


def network(config: ModelConfig, quirks: Quirks | None = None, seed: int = 1) -> Network:
    torch.manual_seed(seed)
    return build(features(), config, quirks)


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


def steady(config: ModelConfig, quirks: Quirks | None = None) -> Network:
    """A network in evaluation mode whose weights are large enough that differences show."""
    model = network(config, quirks)
    with torch.no_grad():
        for table in model.embeddings:
            table.weight.normal_()
    return model.eval()


def test_every_registered_network_can_be_chosen() -> None:
    assert set(NETWORKS) == set(SCHEMAS["model"].values())
    assert [config.name for config in REGISTERED.values()] == list(REGISTERED)


@every_network
def test_build_by_type_of_config(config: ModelConfig) -> None:
    model = network(config)
    assert type(model) is NETWORKS[type(config)]
    assert type(model).__name__.lower() == config.name.replace("_", "")
    assert model.epsilon == (0.0 if config.name == "wide_deep" else 1e-8)


def test_build_refuses_an_unknown_config() -> None:
    class MyConfig(DNNConfig):
        pass

    names = ", ".join(REGISTERED)
    for config in (ModelConfig(name="wide"), MyConfig()):
        with pytest.raises(ValueError, match=f"{type(config).__name__}.*'{config.name}'.*one of {names}$"):
            build(features(), config)


COUNTS = {
    "dnn": (34_902, 16_462_494),
    "wide_deep": (35_120, 16_462_712),
    "pnn": (42_174, 16_469_766),
    "din": (64_327, 16_491_919),
    "gru_attention": (81_463, 16_509_055),
    "aigru": (81_463, 16_509_055),
    "agru": (81_463, 16_509_055),
    "augru": (81_463, 16_509_055),
    "dien": (94_059, 16_521_651),
}


@published_networks
def test_parameter_counts_of_the_published_networks_on_books(config: ModelConfig) -> None:
    """Those of docs/published_code.md; nothing is allocated."""
    with torch.device("meta"):
        items, users = torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
        books = Features(items, [367_983, 1_601], users, [543_060])
        model = build(books, config, Quirks(user_embedding=True, frozen_norm=True))
    tables = sum(table.weight.numel() for table in model.embeddings)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert (total - tables, total) == COUNTS[config.name]


@published_networks
def test_with_all_quirks_no_statistics_are_kept(config: ModelConfig) -> None:
    def statistics(quirks: Quirks) -> int:
        return sum("running" in name for name in network(config, quirks).state_dict())

    dice = not isinstance(config, DNNConfig | WideDeepConfig | PNNConfig)
    assert statistics(ALL_QUIRKS) == 0
    assert statistics(Quirks()) == (6 if dice else 2)  # mean and variance of the norm and of each Dice
    assert statistics(Quirks(frozen_norm=True)) == (4 if dice else 0)


@pytest.mark.parametrize(
    ("config", "update"),
    [
        (AGRUConfig(), "agru"),
        (AUGRUConfig(), AttentionUpdate.code),
        (AUGRUConfig(attention_update=AttentionUpdate.paper), AttentionUpdate.paper),
        (DIENConfig(), AttentionUpdate.code),
        (DIENConfig(attention_update=AttentionUpdate.paper), AttentionUpdate.paper),
    ],
)
@pytest.mark.parametrize("reset", list(ResetGate))
def test_evolution_is_the_cell_of_the_config(config: RecurrentConfig, update: Update, reset: ResetGate) -> None:
    config.reset_gate = reset
    evolution = network(config).get_submodule("evolution")
    assert isinstance(evolution, AttentionGRU)
    assert (evolution.update, evolution.reset_gate) == (update, reset)


def test_user_embedding_is_a_setting_or_a_quirk() -> None:
    assert network(DNNConfig()).users is None
    assert network(DNNConfig(use_user=True)).users is not None
    assert network(DNNConfig(), Quirks(user_embedding=True)).users is not None
    assert network(DNNConfig(use_user=True), Quirks(user_embedding=True)).user_width == 18


def with_features() -> Features:
    """Two features of users beside the user itself, and two of context."""
    plain = features()
    ids = torch.arange(USERS)
    users = torch.stack([ids, ids % 3, ids % 4], dim=1)
    return replace(plain, user_catalogue=users, user_sizes=[USERS, 3, 4], context_sizes=[5, 6])


def with_context(batch: Batch) -> Batch:
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(size, (len(batch),), generator=generator) for size in (5, 6)]
    return replace(batch, context=torch.stack(ids, dim=1))


def featured(config: ModelConfig, quirks: Quirks | None = None) -> Network:
    torch.manual_seed(1)
    return build(with_features(), config, quirks)


@every_network
def test_features_of_users_and_context_widen_the_head(config: ModelConfig) -> None:
    plain, wide = network(config), featured(config)
    added = 2 * 18 + 2 * 18
    assert wide.user_width == plain.user_width + added
    tables = sorted(table.num_embeddings for table in wide.embeddings)
    assert tables == sorted([ITEMS, CATEGORIES, *([USERS] if config.use_user else []), 3, 4, 5, 6])
    first = {name: value for name, value in plain.state_dict().items() if name.startswith("items.")}
    assert all(torch.equal(value, wide.state_dict()[name]) for name, value in first.items())
    wide.train()
    total_loss(wide, with_context(random_batch([6, 2, 9, 4], [3, 3, 3, 3]))).backward()
    for name, parameter in wide.named_parameters():
        if name.startswith(("users.", "context.")):
            assert parameter.grad is not None and parameter.grad.is_sparse and parameter.grad.to_dense().abs().sum() > 0


@every_network
def test_each_feature_moves_the_scores_it_belongs_to(config: ModelConfig) -> None:
    model, batch = featured(config).eval(), with_context(mixed_batch())
    assert batch.context is not None
    with torch.no_grad():
        for table in model.embeddings:
            table.weight.normal_()
    before = model(batch).logit
    for feature in (0, 1):
        context = batch.context.clone()
        context[3, feature] = (context[3, feature] + 1) % 5
        moved = (model(replace(batch, context=context)).logit - before).abs() > 1e-7
        assert moved.nonzero().ravel().tolist() == [3]  # of this row alone
    assert model.users is not None
    columns = model.users.catalogue.shape[1]
    assert columns == (3 if config.use_user else 2)
    for feature in range(columns):
        with torch.no_grad():
            model.users.catalogue[batch.user[0], feature] += 1
            model.users.catalogue[batch.user[0], feature] %= 3
        moved = (model(batch).logit - before).abs() > 1e-7
        same = batch.user[batch.history_index] == batch.user[0]
        assert torch.equal(moved, same)
        before = model(batch).logit


def test_context_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"reads context features, and the batch has none"):
        featured(DNNConfig())(mixed_batch())


def test_the_unknown_user_of_the_published_code_keeps_its_features() -> None:
    plain = with_features()
    changed = plain.without_unknown_user()
    assert changed.user_catalogue[:, 0].tolist() == [0, *range(USERS - 1)]
    assert torch.equal(changed.user_catalogue[:, 1:], plain.user_catalogue[:, 1:])
    assert (changed.user_sizes, changed.context_sizes) == ([USERS - 1, 3, 4], [5, 6])
    assert plain.user_catalogue[:, 0].tolist() == list(range(USERS))  # a copy was changed


@both_modes
def test_with_features_reference_mode_has_both(quirks: Quirks) -> None:
    model = featured(DIENConfig(), quirks)
    assert model.user_width == 18 * (5 if quirks.user_embedding else 4)
    assert model(with_context(mixed_batch())).logit.isfinite().all()


@every_network
@pytest.mark.parametrize("pick", [lambda rows: rows, lambda rows: rows.flip(0), lambda rows: rows[:1]])
@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3], [3], [1], [2, 0]])
def test_a_score_depends_on_its_row_only(
    config: ModelConfig, groups: list[int], pick: Callable[[Tensor], Tensor]
) -> None:
    model, batch = steady(config), mixed_batch()
    part, rows = reordered(batch, groups, pick), rows_of(batch, groups, pick)
    torch.testing.assert_close(model(part).logit.sigmoid(), model(batch).logit[rows].sigmoid(), rtol=0, atol=1e-6)
    model.double()  # a matrix product rounds otherwise for another number of rows: nothing else may differ
    torch.testing.assert_close(model(part).logit, model(batch).logit[rows], rtol=0, atol=1e-13)


@every_network
@both_modes
@pytest.mark.parametrize("lengths", [[0], [0, 0, 0], [1], [1, 1], [0, 1, 0], [2, 0, 1]])
def test_short_histories(config: ModelConfig, quirks: Quirks, lengths: list[int]) -> None:
    model = network(config, quirks)
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
        logit = model.eval()(batch).logit
        assert logit.shape == (len(batch),)
        assert logit.isfinite().all()
        model.train()


@every_network
@both_modes
def test_every_parameter_gets_a_gradient(config: ModelConfig, quirks: Quirks) -> None:
    model = network(config, quirks)
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
@both_modes
def test_save_and_reload(config: ModelConfig, quirks: Quirks) -> None:
    model, batch = network(config, quirks), mixed_batch()
    model(batch)  # moves the running statistics
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network(config, quirks, seed=2)
    other.load_state_dict(torch.load(file))
    assert torch.equal(model.eval()(batch).logit, other.eval()(batch).logit)


@every_network
def test_same_seed_same_output(config: ModelConfig) -> None:
    batch = mixed_batch()
    a, b, other = (network(config, seed=seed)(batch).logit for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


@published_networks
def test_order_of_a_history_matters_to_recurrent_networks_only(config: ModelConfig) -> None:
    model, batch = steady(config), random_batch([6], [3])
    straight = model(batch).logit
    batch.history = batch.history.flip(0)
    difference = (model(batch).logit - straight).abs().max()
    assert difference > 1e-4 if isinstance(config, RecurrentConfig) else difference < 1e-5


@every_network
def test_auxiliary_loss(config: ModelConfig) -> None:
    model, batch = network(config), mixed_batch()
    loss = model(batch).auxiliary_loss
    assert (loss is not None) == hasattr(config, "aux_weight")
    if loss is not None:
        assert loss.item() == pytest.approx(1.386, abs=0.5)  # near two coins
    batch.auxiliary_negatives = None
    assert model.eval()(batch).auxiliary_loss is None


@every_network
def test_attention_weights(config: ModelConfig) -> None:
    model, batch = steady(config), mixed_batch()
    assert isinstance(model, AttentionNetwork) == hasattr(config, "attention")
    if not isinstance(model, AttentionNetwork):
        assert not hasattr(model, "attention_weights")
        return
    used: list[Tensor] = []
    model.attention.register_forward_hook(lambda _, __, output: used.append(output))
    model(batch)
    weights, pairs = model.attention_weights(batch)
    assert torch.equal(weights, used[0])  # those the score was made with
    lengths = batch.offsets.diff()[batch.history_index].tolist()
    for of_candidate, length in zip(weights.split(lengths), lengths, strict=True):
        assert of_candidate.sum().item() == pytest.approx(1.0 if length else 0.0, abs=1e-6)
    assert len(pairs.event) == sum(lengths)


@pytest.mark.parametrize("config", [AIGRUConfig(), AGRUConfig(), AUGRUConfig(), DIENConfig()], ids=lambda c: c.name)
def test_interest_evolves_for_each_candidate_on_its_own(config: ModelConfig) -> None:
    model, batch = steady(config), random_batch([4], [2])
    final: list[Tensor] = []
    evolution = model.get_submodule("evolution")
    evolution.register_forward_hook(
        lambda _, __, output: final.append(output[1] if isinstance(output, tuple) else output)
    )
    model(batch)
    assert final[0].shape == (2, 36)
    assert (final[0][0] - final[0][1]).abs().max() > 1e-4


def test_second_gru_of_gru_attention_runs_once_a_history() -> None:
    model, batch = steady(GRUAttentionConfig()), random_batch([4, 2], [3, 3])
    events: list[int] = []
    model.get_submodule("evolution").register_forward_hook(lambda _, inputs, __: events.append(len(inputs[0])))
    model(batch)
    assert events == [6]


def test_aigru_reads_the_states_times_their_attention() -> None:
    model, batch = steady(AIGRUConfig()), random_batch([3], [1])
    seen: list[Tensor] = []
    model.get_submodule("evolution").register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    model(batch)
    assert isinstance(model, AttentionNetwork)
    (history,) = model.items(batch.history)
    weights, _ = model.attention_weights(batch)
    torch.testing.assert_close(seen[0], weights.unsqueeze(1) * model.interests(history, batch.offsets))


def test_augru_is_dien_without_the_auxiliary_loss() -> None:
    dien, augru, batch = steady(DIENConfig()), steady(AUGRUConfig()), mixed_batch()
    shared = {name: value for name, value in dien.state_dict().items() if not name.startswith("auxiliary.")}
    augru.load_state_dict(shared)
    assert torch.equal(dien(batch).logit, augru(batch).logit)
    agru = steady(AGRUConfig())
    agru.load_state_dict(shared)
    assert (dien(batch).logit - agru(batch).logit).abs().max() > 1e-5


def test_wide_part_is_added_to_the_deep_logit() -> None:
    model, dnn, batch = steady(WideDeepConfig()), steady(DNNConfig()), mixed_batch()
    dnn.load_state_dict({name: value for name, value in model.state_dict().items() if not name.startswith("wide.")})
    history, q = model.items(batch.history, batch.candidates)
    S = torch.stack([history[int(a) : int(b)].sum(0) for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)])
    S = S[batch.history_index]
    z = model.get_submodule("wide")(torch.cat([q, S, q * S], dim=1))
    assert z.abs().max() > 0.1
    torch.testing.assert_close(model(batch).logit, dnn(batch).logit + z[:, 0] - z[:, 1])


@published_networks
def test_a_longer_row_changes_the_other_scores_with_quirks_only(config: ModelConfig) -> None:
    long = random_batch([4, 2, 9], [2, 2, 2])
    short = reordered(long, [0, 1])

    def change(quirks: Quirks) -> float:
        model = steady(config, quirks)
        return (model(long).logit[:4] - model(short).logit).abs().max().item()

    dice = not isinstance(config, DNNConfig | WideDeepConfig | PNNConfig)
    assert change(Quirks()) < 1e-5
    assert change(ALL_QUIRKS) > 1e-3
    assert change(Quirks(padded_sum=True)) > 1e-3
    assert (change(Quirks(batch_dice=True)) > 1e-3) == dice
    others = {"padded_sum": False, "batch_dice": False}
    assert change(Quirks(**{quirk.name: others.get(quirk.name, True) for quirk in fields(Quirks)})) < 1e-5


def test_padded_sum_by_hand() -> None:
    model, batch = steady(DNNConfig(), Quirks(padded_sum=True)), random_batch([2, 0, 3], [1, 2, 1])
    batch.history = torch.tensor([4, 5, 6, 7, 8])
    history, unknown = model.items(batch.history, torch.tensor([0]))
    of_history = [history[:2].sum(0) + unknown[0], 3 * unknown[0], history[2:].sum(0)]
    expected = torch.stack([of_history[g] for g in (0, 1, 1, 2)])
    S = model.history_sum(history.detach(), batch)
    torch.testing.assert_close(S, expected)

    S.sum().backward()  # the padding trains the unknown item: 1 + 3 + 3 + 0 times
    gradient = model.embeddings[0].weight.grad
    assert gradient is not None
    expected_gradient = torch.zeros(ITEMS, 18)
    expected_gradient[0] = 7
    assert torch.equal(gradient.to_dense(), expected_gradient)


def test_quirks_of_the_auxiliary_loss() -> None:
    """mixed_batch has 14 steps in 5 histories of at most 9 events: 40 steps with padding."""
    batch = mixed_batch()

    def loss(quirks: Quirks) -> float:
        model = network(DIENConfig(), quirks)
        assert isinstance(model, DIEN)
        with torch.no_grad():
            model.auxiliary.rest[-1].bias.copy_(torch.tensor([-40.0, 0]))
        return model(batch).auxiliary_loss.item()

    assert loss(Quirks()) == pytest.approx(40, abs=2)
    assert loss(Quirks(padded_auxiliary=True)) == pytest.approx(loss(Quirks()) * 14 / 40)
    assert loss(Quirks(epsilon=True)) == pytest.approx(18.42, abs=0.01)


@every_network
@both_modes
def test_mixed_precision(config: ModelConfig, quirks: Quirks) -> None:
    model, batch = network(config, quirks), mixed_batch()
    with torch.autocast("cpu", torch.bfloat16):
        loss = total_loss(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(total_loss(network(config, quirks), batch).item(), rel=0.05)
    assert all(p.grad is not None and p.grad.to_dense().isfinite().all() for p in model.parameters())
