"""`DeferredAdam` against `torch.optim.Adam` on dense gradients."""

import copy
import io
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from deepinterest.config import DNNConfig, EvaluationConfig, OptimizerConfig
from deepinterest.data.batch import Batch
from deepinterest.models import DNN, Prediction
from deepinterest.nn.embedding import Features
from deepinterest.training import missed_steps, optimizers
from deepinterest.training.module import ClickModel
from deepinterest.training.optimizers import DeferredAdam

ROWS, DIM = 40, 4
TOLERANCE = 5e-6


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(nn.Module):
    """Two tables, the first read twice, and a linear layer."""

    def __init__(self, sparse: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.items = nn.Embedding(ROWS, DIM, sparse=sparse, dtype=dtype)
        self.users = nn.Embedding(ROWS, DIM, sparse=sparse, dtype=dtype)
        self.out = nn.Linear(3 * DIM, 1, dtype=dtype)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, 3) identifiers to (n,) scores."""
        parts = [self.items(ids[:, 0]), self.items(input=ids[:, 1]), self.users(ids[:, 2])]
        return self.out(torch.cat(parts, dim=1)).squeeze(1)


class TensorFlowAdam(torch.optim.Optimizer):
    """Adam as TensorFlow 1's documentation writes it, line by line."""

    def __init__(self, parameters: list[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.t = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.t += 1
        for group in self.param_groups:
            lr_t = group["lr"] * (1 - 0.999**self.t) ** 0.5 / (1 - 0.9**self.t)
            for parameter in group["params"]:
                state = self.state[parameter]
                m = state["m"] = 0.9 * state.get("m", 0) + 0.1 * parameter.grad
                v = state["v"] = 0.999 * state.get("v", 0) + 0.001 * parameter.grad**2
                parameter -= lr_t * m / (v**0.5 + 1e-8)


Form = Literal["torch", "tensorflow"]
DENSE = {"torch": torch.optim.Adam, "tensorflow": TensorFlowAdam}
both_forms = pytest.mark.parametrize("form", ["torch", "tensorflow"])


def deferred(net: Net, lr: float = 1e-2) -> DeferredAdam:
    optimizer = DeferredAdam(net.parameters(), lr=lr)
    optimizer.watch(net.items)
    optimizer.watch(net.users)
    return optimizer


def zipf_ids(steps: int, size: int = 6, seed: int = 0) -> list[Tensor]:
    """A batch of identifiers (size, 3) for each step; the rare rows stay away for long."""
    weights = 1 / torch.arange(1, ROWS + 1, dtype=torch.float64) ** 1.5
    generator = torch.Generator().manual_seed(seed)
    draws = torch.multinomial(weights, steps * size * 3, replacement=True, generator=generator)
    return list(draws.reshape(steps, size, 3))


def train(net: Net, optimizer: torch.optim.Optimizer, batches: list[Tensor], scheduler: Any = None) -> None:
    for ids in batches:
        optimizer.zero_grad()
        target = torch.sin(ids.sum(dim=1).to(net.out.weight.dtype))
        (net(ids) - target).square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min((t + 1) / 50, 1.0) * 0.999**t)


def deviation(a: nn.Module, b: nn.Module) -> float:
    return max(
        (x.double() - y.double()).abs().max().item() for x, y in zip(a.parameters(), b.parameters(), strict=True)
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_equals_dense_adam_under_a_schedule(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(optimizers, "_compiled", lambda table: False)
    batches = zipf_ids(2000)
    ours, dense = Net(sparse=True), Net(sparse=False)
    a, b = deferred(ours), torch.optim.Adam(dense.parameters(), lr=1e-2)
    train(ours, a, batches, schedule(a))
    train(dense, b, batches, schedule(b))
    a.flush()
    print("schedule", deviation(ours, dense))
    assert deviation(ours, dense) < TOLERANCE


@both_forms
@pytest.mark.parametrize("sparse", [True, False])
def test_both_forms_of_eps(form: Form, sparse: bool) -> None:
    batches = zipf_ids(200)
    ours, dense = Net(sparse), Net(sparse=False, dtype=torch.float64)
    optimizer = DeferredAdam(ours.parameters(), lr=1e-2, form=form)
    for table in (ours.items, ours.users) if sparse else ():
        optimizer.watch(table)
    train(ours, optimizer, batches)
    train(dense, DENSE[form](list(dense.parameters()), lr=1e-2), batches)
    optimizer.flush()
    assert deviation(ours, dense) < TOLERANCE
    assert optimizer.param_groups[0]["eps"] == 1e-8


def test_the_forms_differ_where_gradients_are_tiny() -> None:
    moved = []
    for form in ("torch", "tensorflow"):
        torch.manual_seed(0)
        moved.append(table_run(1e-8, [0, 1, 2], 10, 1e-2, form)[0](torch.arange(8)))
    assert (moved[0] - moved[1]).abs().max() > 100 * TOLERANCE


def test_sparse_adam_is_another_algorithm() -> None:
    batches = zipf_ids(100)
    other, dense = Net(sparse=True), Net(sparse=False)
    tables = [other.items.weight, other.users.weight]
    lazy, rest = torch.optim.SparseAdam(tables, lr=1e-2), torch.optim.Adam(other.out.parameters(), lr=1e-2)
    for ids in batches:
        lazy.zero_grad()
        rest.zero_grad()
        (other(ids) - torch.sin(ids.sum(dim=1).float())).square().mean().backward()
        lazy.step()
        rest.step()
    train(dense, torch.optim.Adam(dense.parameters(), lr=1e-2), batches)
    assert deviation(other, dense) > 100 * TOLERANCE


def table_run(
    scale: float, touched: list[int], steps: int, lr: float, form: Form = "torch"
) -> tuple[nn.Embedding, Tensor, DeferredAdam]:
    """Drive a table, with gradients of the given scale in the `touched` steps, by both; dense Adam in float64."""
    table = nn.Embedding(8, DIM, sparse=True)
    dense = nn.Parameter(table.weight.detach().double())
    ours, adam = DeferredAdam(table.parameters(), lr=lr, form=form), DENSE[form]([dense], lr=lr)
    ours.watch(table)
    generator = torch.Generator().manual_seed(3)
    for step in range(steps):
        dense.grad = torch.zeros_like(dense)
        table.zero_grad()
        if step in touched:
            ids = torch.randint(0, 7, (5,), generator=generator)
            direction = torch.randn(5, DIM, generator=generator) * scale
            (table(ids) * direction).sum().backward()
            dense.grad.index_add_(0, ids, direction.double())
        ours.step()
        adam.step()
    return table, dense.detach(), ours


@both_forms
@pytest.mark.parametrize("first", [0, 60, 300])
def test_rows_left_alone_for_long(first: int, form: Form) -> None:
    table, dense, _ = table_run(1.0, [first, first + 1, first + 4], first + 2000, 1e-2, form)
    read = table(torch.arange(8)).double()
    print("long", first, (read - dense).abs().max().item())
    assert (read - dense).abs().max() < TOLERANCE
    assert torch.equal(table.weight[7].double(), dense[7])


@both_forms
@pytest.mark.parametrize("scale", [1e-10, 1e-9, 1e-8, 1e-7, 1e-6])
def test_tiny_gradients(scale: float, form: Form) -> None:
    for touched in ([0], [2, 5, 9, 60, 61], [0, 127, 128, 150]):
        table, dense, _ = table_run(scale, touched, 220, 1e-2, form)
        read = table(torch.arange(8)).double()
        print("tiny", scale, touched, (read - dense).abs().max().item())
        assert (read - dense).abs().max() < TOLERANCE


@pytest.mark.parametrize("inference", [False, True])
def test_reading_in_evaluation_is_current(inference: bool) -> None:
    batches = zipf_ids(80)
    ours, dense = Net(sparse=True), Net(sparse=False)
    optimizer = deferred(ours)
    train(ours, optimizer, batches)
    train(dense, torch.optim.Adam(dense.parameters(), lr=1e-2), batches)
    assert deviation(ours, dense) > 100 * TOLERANCE  # some rows are behind
    ids = torch.arange(ROWS)[:, None].expand(-1, 3)
    ours.eval()
    with torch.inference_mode(inference), torch.no_grad():
        assert (ours(ids) - dense(ids)).abs().max() < 4 * TOLERANCE
    assert deviation(ours, dense) < TOLERANCE
    train(ours, optimizer, batches[:2])  # and training goes on


def test_saved_weights_are_current_and_loaded_weights_stay() -> None:
    batches = zipf_ids(80)
    ours, dense = Net(sparse=True), Net(sparse=False)
    optimizer = deferred(ours)
    train(ours, optimizer, batches[:40])
    early = copy.deepcopy(ours.state_dict())
    train(ours, optimizer, batches[40:])
    train(dense, torch.optim.Adam(dense.parameters(), lr=1e-2), batches)
    saved = ours.state_dict()
    for name, value in dense.state_dict().items():
        assert (saved[name] - value).abs().max() < TOLERANCE
    train(ours, optimizer, batches[:5])
    ours.load_state_dict(early)
    ours(torch.arange(ROWS)[:, None].expand(-1, 3))
    assert all(torch.equal(value, early[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize("stop", [50, 200])
def test_resuming_is_exact(stop: int) -> None:
    """Saved where rows are behind, loaded by others: to the bit what a run is that was never saved."""
    batches = zipf_ids(stop + 100)
    whole = Net(sparse=True)
    a = deferred(whole)
    train(whole, a, batches, schedule(a))

    first = Net(sparse=True)
    b = deferred(first)
    clock = schedule(b)
    train(first, b, batches[:stop], clock)
    assert any((b.state[table.weight]["last_step"] < stop).any() for table in (first.items, first.users))
    buffer = io.BytesIO()
    torch.save((first.state_dict(), b.state_dict(), clock.state_dict()), buffer)
    train(first, b, batches[stop:], clock)  # saving changes nothing either

    buffer.seek(0)
    net_state, state, clock_state = torch.load(buffer)
    second = Net(sparse=True)
    c = deferred(second)
    new_clock = schedule(c)
    second.load_state_dict(net_state)
    c.load_state_dict(state)
    assert c.state[second.items.weight]["last_step"].dtype == torch.int64
    new_clock.load_state_dict(clock_state)
    train(second, c, batches[stop:], new_clock)
    for net, optimizer in ((first, b), (second, c)):
        assert deviation(whole, net) == 0
        for x, y in zip(whole.parameters(), net.parameters(), strict=True):
            assert all(torch.equal(a.state[x][name], optimizer.state[y][name]) for name in a.state[x])
        assert optimizer._missed[0].base == a._missed[0].base


def test_rules_are_begun_anew_before_they_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(missed_steps, "MOST_RULES", 64)
    batches = zipf_ids(500)
    ours, dense = Net(sparse=True), Net(sparse=False)
    optimizer = deferred(ours)
    train(ours, optimizer, batches)
    train(dense, torch.optim.Adam(dense.parameters(), lr=1e-2), batches)
    assert optimizer._missed[0].base > 400
    optimizer.flush()
    assert deviation(ours, dense) < TOLERANCE


@pytest.mark.parametrize("row", [-1, ROWS])
def test_row_that_the_table_does_not_have(row: int) -> None:
    net = Net(sparse=True)
    optimizer = deferred(net)
    train(net, optimizer, zipf_ids(5))
    with pytest.raises(IndexError):
        net(torch.tensor([[0, 0, row]]))


def test_closure_gives_gradients_and_loss() -> None:
    net = Net(sparse=True)
    optimizer = deferred(net)
    before = net.items.weight[0].clone()

    def closure() -> Tensor:
        loss = net(torch.zeros(2, 3, dtype=torch.long)).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert loss.requires_grad
    assert not torch.equal(before, net.items.weight[0])


def test_sums_run_per_group_and_release_ends_the_watch() -> None:
    batches = zipf_ids(60)
    ours, dense = Net(sparse=True), Net(sparse=False)

    def groups(net: Net) -> list[dict[str, Any]]:
        return [
            {"params": [net.items.weight], "lr": 3e-2, "betas": (0.8, 0.99)},
            {"params": [net.users.weight, *net.out.parameters()]},
        ]

    a = DeferredAdam(groups(ours), lr=1e-2)
    a.watch(ours.items)
    a.watch(ours.users)
    train(ours, a, batches)
    train(dense, torch.optim.Adam(groups(dense), lr=1e-2), batches)
    a.release()
    assert deviation(ours, dense) < TOLERANCE
    assert not ours.items._forward_pre_hooks


def test_misuse_is_refused() -> None:
    net = Net(sparse=True)
    optimizer = DeferredAdam(net.parameters(), lr=1e-2)
    optimizer.watch(net.items)
    net(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    with pytest.raises(ValueError, match="not watched"):
        optimizer.step()
    with pytest.raises(ValueError, match="sparse=True"):
        optimizer.watch(nn.Embedding(2, 2))
    with pytest.raises(ValueError, match="not among"):
        optimizer.watch(nn.Embedding(2, 2, sparse=True))
    with pytest.raises(ValueError, match="beta1"):
        DeferredAdam(net.parameters(), lr=1e-2, betas=(0.99, 0.9)).watch(net.items)


def test_a_scaler_of_the_loss_changes_nothing() -> None:
    """It must divide the tables' gradients as well, and leave out the step whose gradients overflow."""
    batches = zipf_ids(30)
    plain, scaled = Net(sparse=True), Net(sparse=True)
    a, b = deferred(plain), deferred(scaled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    train(plain, a, batches)
    for number, ids in enumerate([*batches[:10], batches[3], *batches[10:]]):
        b.zero_grad()
        target = torch.sin(ids.sum(dim=1).to(scaled.out.weight.dtype))
        loss = (scaled(ids) - target).square().mean()
        if number == 10:
            loss = loss * torch.inf
        scaler.scale(loss).backward()
        scaler.step(b)
        if number != 10:
            scaler.update()
        else:
            scaler.update(2.0**10)
    a.flush()
    b.flush()
    assert deviation(plain, scaled) < TOLERANCE


class Positioned(DNN):
    """An own network with a plain embedding, as of positions."""

    def __init__(self, features: Features, config: DNNConfig) -> None:
        super().__init__(features, config)
        self.positions = nn.Embedding(3, self.item_width)
        self.unused = nn.Embedding(3, 2)

    def forward(self, batch: Batch) -> Prediction:
        place = torch.zeros(len(batch), dtype=torch.int64)
        return Prediction(super().forward(batch).logit + self.positions(place).sum(1))


def test_a_plain_embedding_trains_as_any_layer() -> None:
    catalogue = torch.arange(4).unsqueeze(1)
    network = Positioned(Features(catalogue, [4], torch.zeros(2, 1, dtype=torch.int64), [1]), DNNConfig())
    assert [table.weight.shape[0] for table in network.embeddings] == [4]
    model = ClickModel(network, OptimizerConfig(lr=0.1), EvaluationConfig())
    optimizer: Any = model.configure_optimizers()["optimizer"]
    rows = torch.arange(2)
    batch = Batch(rows + 1, torch.tensor([0, 1, 2]), rows, rows + 2, rows, torch.tensor([1.0, 0.0]))
    before = network.positions.weight.detach().clone()
    (network(batch).logit * torch.tensor([3.0, -1.0])).sum().backward()
    optimizer.step()
    # The first step of Adam moves a weight by the learning rate.
    torch.testing.assert_close(before[0] - network.positions.weight[0], torch.full((network.item_width,), 0.1))
    assert torch.equal(before[1:], network.positions.weight[1:])
