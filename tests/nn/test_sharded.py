"""Tables split over processes: what two or three gloo processes compute, beside what one computes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import deepinterest
from deepinterest import experiment
from deepinterest.config import DIENConfig, DNNConfig, EvaluationConfig, ModelConfig, OptimizerConfig
from deepinterest.data.batch import Batch
from deepinterest.errors import UserError
from deepinterest.kernels import cpu as _cpu  # noqa: F401 - once, before the processes part
from deepinterest.models import NETWORKS, Network, build
from deepinterest.nn import sharded
from deepinterest.nn.embedding import FeatureEmbedding, Features
from deepinterest.settings import restored
from deepinterest.training.losses import total_loss
from deepinterest.training.module import ClickModel
from deepinterest.training.optimizers import DeferredAdam

# Of uneven sizes; of three processes one has no row of the last table.
ITEMS, CATEGORIES, USERS, HOURS, PLACES = 31, 7, 11, 24, 2
STEPS = 20
ROOT = Path(__file__).parents[2]
ITEMS_TABLE = "network.items.tables.0.weight"
RUN = (
    "data.users=151", "trainer.batch_size=64", "trainer.eval_batch_size=48",
    "trainer.max_epochs=2", "trainer.validations_per_epoch=2", "trainer.patience=null",
    "trainer.checkpoint_minutes=null", "model.use_user=true",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def features(split: bool) -> Features:
    generator = torch.Generator().manual_seed(3)
    categories = torch.randint(CATEGORIES, (ITEMS,), generator=generator)
    users = torch.arange(USERS).unsqueeze(1)
    items = torch.stack([torch.arange(ITEMS), categories], dim=1)
    return Features(items, [ITEMS, CATEGORIES], users, [USERS], [HOURS, PLACES], sharded=split)


def network(config: ModelConfig, split: bool, seed: int = 1) -> Network:
    torch.manual_seed(seed)
    return build(features(split), config)


def batch(seed: int, groups: int = 4, longest: int = 6) -> Batch:
    """Random histories, some empty, with two candidates each."""
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest + 1, (groups,), generator=g)
    N, B = int(lengths.sum()), 2 * groups
    return Batch(
        history=torch.randint(ITEMS, (N,), generator=g),
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        user=torch.randint(USERS, (groups,), generator=g),
        candidates=torch.randint(ITEMS, (B,), generator=g),
        history_index=torch.arange(groups).repeat_interleave(2),
        label=torch.tensor([1.0, 0.0]).repeat(groups),
        auxiliary_negatives=torch.randint(ITEMS, (N, 2), generator=g),
        context=torch.stack([torch.randint(HOURS, (B,), generator=g), torch.randint(PLACES, (B,), generator=g)], dim=1),
    )


def loss_of(model: Network, rows: Batch) -> Tensor:
    return total_loss(model(rows), rows.label, model.quirks, model.epsilon, 1.0)[0]


def dense_gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.to_dense()


def mean_gradients(model: nn.Module) -> None:
    """What DistributedDataParallel does, for dense copies of all gradients but those of split tables."""
    split = {table.weight for _, table in sharded.shards(model)}
    parameters = [parameter for parameter in model.parameters() if parameter not in split]
    grads = torch.cat([dense_gradient(parameter).flatten() for parameter in parameters] or [torch.zeros(0)])
    dist.all_reduce(grads)
    for parameter, grad in zip(parameters, grads.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter) / dist.get_world_size()


def adam(model: Network) -> DeferredAdam:
    optimizer = DeferredAdam(model.parameters(), lr=0.01)
    for table in model.embeddings:
        optimizer.watch(table)
    return optimizer


def whole(table: sharded.Shard, part: Tensor) -> Tensor | None:
    """All rows of a split table, in process 0."""
    assert table.exchange is not None
    rows = table.exchange.gather(part.detach(), table.size)
    return None if rows.is_meta else rows


# --------------------------------------------------------------------------------------------- what each process does


def every_network(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Scores and gradients of each network beside those of the same network with whole tables."""
    found = {}
    for kind in NETWORKS:
        config = kind(embedding_dim=4, use_user=True)
        model = network(config, True)
        random = torch.rand(1)
        plain = network(config, False)
        assert torch.equal(torch.rand(1), random)  # what is drawn later is the same, too
        sharded.split(model)
        rows = batch(10 + rank)
        loss, expected = loss_of(model, rows), loss_of(plain, rows)
        loss.backward()
        expected.backward()
        mean_gradients(plain)
        pairs = [
            (table.weight, plain.get_parameter(f"{name}.weight"))
            for name, table in sharded.shards(model)
            if len(table.weight)
        ]
        found[config.name] = {
            "begin": all(torch.equal(own, all_rows[rank::world]) for own, all_rows in pairs),
            "loss": (loss.item(), expected.item()),
            "largest": max(float(all_rows.grad.abs().max()) for _, all_rows in pairs),
            "off": max(
                float((dense_gradient(own) - all_rows.grad[rank::world]).abs().max()) for own, all_rows in pairs
            ),
        }
    return found


def twenty_steps(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Training with split tables and DeferredAdam, beside whole tables and torch's dense Adam."""
    found = {}
    for config in (DNNConfig(embedding_dim=4, use_user=True), DIENConfig(embedding_dim=4)):
        model, plain = network(config, True), network(config, False)
        sharded.split(model)
        optimizer, dense = adam(model), torch.optim.Adam(plain.parameters(), lr=0.01)
        rows: dict[str, int] = {name: len(table.weight) for name, table in sharded.shards(model)}
        for step in range(STEPS):
            loss_of(model, batch(100 * step + rank)).backward()
            loss_of(plain, batch(100 * step + rank)).backward()
            mean_gradients(model)
            mean_gradients(plain)
            optimizer.step()
            dense.step()
            optimizer.zero_grad()
            dense.zero_grad()
        optimizer.flush()
        found[config.name] = {
            "rows": rows,
            "off": {
                name: float((table.weight - plain.get_parameter(f"{name}.weight")[rank::world]).abs().max())
                for name, table in sharded.shards(model)
                if len(table.weight)
            },
            "moved": float((plain.items.tables[0].weight - network(config, False).items.tables[0].weight).abs().max()),
            "state": [
                len(value)
                for name, table in sharded.shards(model)
                for value in optimizer.state[table.weight].values()
                if value.dim()
            ],
        }
    return found


def odd_requests(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Processes that ask for nothing, and for the rows of one process alone; what travels."""
    catalogue, sizes = features(True).catalogue, [ITEMS, CATEGORIES]
    torch.manual_seed(1)
    items = FeatureEmbedding(catalogue, sizes, 4, True)
    torch.manual_seed(1)
    plain = FeatureEmbedding(catalogue, sizes, 4)
    sharded.split(items)
    exchange = items.tables[0].exchange
    cases = {
        "nothing from the last": torch.zeros(0, dtype=torch.int64) if rank == world - 1 else torch.arange(ITEMS),
        "nothing from any": torch.zeros(0, dtype=torch.int64),
        "all of the first's": torch.arange(0, ITEMS, world),
        "one row many times": torch.full((5, 3), 7),
    }
    found = {}
    for name, rows in cases.items():
        before = exchange.sent
        (vectors,), (expected,) = items(rows), plain(rows)
        vectors.square().sum().backward()
        expected.square().sum().backward()
        mean_gradients(plain)
        grads = [
            (dense_gradient(own.weight), whole.weight.grad[rank::world])
            for own, whole in zip(items.tables, plain.tables, strict=True)
        ]
        found[name] = {
            "equal": torch.equal(vectors, expected),
            "off": max(float((a - b).abs().max()) for a, b in grads if len(a)),
            "sent": exchange.sent - before,
        }
        items.zero_grad()
        plain.zero_grad()
    # Processes that have fewer batches go on answering; both modules' rows can be asked for in any of them.
    with torch.inference_mode():
        for _ in range(1 + 2 * rank):
            (vectors,) = items(torch.arange(ITEMS))
        sharded.finish(items)
    try:
        items(torch.tensor([ITEMS]))
    except IndexError as error:
        found["beyond"] = str(error)
    return found


def saved(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """A ClickModel that trains, is saved as Lightning does it, and goes on for some steps."""
    model = click_model(True)
    model.configure_model()
    optimizer = model.configure_optimizers()["optimizer"]
    train(model, optimizer, range(5), rank)
    checkpoint: dict[str, Any] = {"state_dict": model.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    model.on_save_checkpoint(checkpoint)
    if rank == 0:
        torch.save(checkpoint, folder / "saved.ckpt")
    dist.barrier()
    train(model, optimizer, range(5, 8), rank)
    return {
        "ignored": sorted(model._ddp_params_and_buffers_to_ignore),
        "tables": after(model, optimizer),
        "parameters": sharded.size(model),
        "dead": sharded.count(model.network.items.tables[0], torch.ones(len(model.network.items.tables[0].weight)) > 0),
        "scores": scores(model),
    }


def loaded(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Another number of processes loads what `saved` wrote, in both orders, and goes on with the same batches."""
    checkpoint = torch.load(folder / "saved.ckpt", weights_only=True, mmap=True)
    early = click_model(True, seed=2)
    early.load_state_dict(checkpoint["state_dict"])  # before there is a place for the rows
    early.configure_model()
    model = click_model(True, seed=3)
    model.configure_model()
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    found = {"early": scores(early), "late": scores(model)}
    optimizer = model.configure_optimizers()["optimizer"]
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    train(model, optimizer, range(5, 8), rank if rank < 2 else None)
    return {**found, "tables": after(model, optimizer)}


def whole_runs(rank: int, world: int, folder: Path) -> dict[str, Any]:
    """Runs as torchrun would start them, one after the other."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0",
    }  # fmt: skip
    found = {}
    began = sharded.Exchange.__init__
    for name, settings in json.loads((folder / f"jobs_{world}.json").read_text()):
        rows: list[int] = []

        def begin(self: sharded.Exchange, tables: list[sharded.Shard], rows: list[int] = rows) -> None:
            began(self, tables)
            rows.append(len(tables[0].weight))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharded.Exchange, "__init__", begin)
            found[name] = {**experiment.run(restored(settings), settings), "rows": rows}
    return found


def click_model(split: bool, seed: int = 1) -> ClickModel:
    model = network(DNNConfig(embedding_dim=4, use_user=True), split, seed)
    return ClickModel(model, OptimizerConfig(lr=0.01), EvaluationConfig())


def train(model: ClickModel, optimizer: DeferredAdam, steps: range, share: int | None) -> None:
    """Steps on the joined batches of two processes; a process without a share only answers the others."""
    model.train()
    for step in steps:
        optimizer.zero_grad()
        # The mean is over processes: of three, two have losses.
        weight = dist.get_world_size() / 2 if share is not None else 0.0
        (weight * loss_of(model.network, batch(100 * step + (share or 0)))).backward()
        mean_gradients(model.network)
        optimizer.step()


def after(model: ClickModel, optimizer: DeferredAdam) -> dict[str, Tensor | None]:
    optimizer.flush()
    return {name: whole(table, table.weight) for name, table in sharded.shards(model.network)}


@torch.no_grad()
def scores(model: ClickModel) -> Tensor:
    model.eval()
    return model(batch(1234, groups=9))


# -------------------------------------------------------------------------------------------------------- and the tests


def work(rank: int, world: int, port: int, folder: Path, tasks: list[Callable[..., Any]]) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    results = {task.__name__: task(rank, world, folder) for task in tasks}
    torch.save(results, folder / f"{world}_{rank}.pt")
    dist.destroy_process_group()


def processes(world: int, folder: Path, *tasks: Callable[..., Any]) -> list[dict[str, Any]]:
    """The results of each process, by the names of the tasks."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    mp.start_processes(work, (world, port, folder, list(tasks)), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{world}_{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return processes(2, folder, every_network, twenty_steps, odd_requests, saved)


@pytest.fixture(scope="module")
def three(folder: Path, two: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return processes(3, folder, odd_requests, loaded)


@pytest.fixture(scope="module")
def jobs(folder: Path, settings: Callable[..., Any]) -> Callable[..., list[dict[str, Any]]]:
    """The metrics of runs in several processes: names and overrides."""

    def run(world: int, **overrides: tuple[str, ...]) -> list[dict[str, Any]]:
        resolved = []
        for name, words in overrides.items():
            words = (*RUN, "trainer=ddp_cpu", f"trainer.devices={world}", *words, f"paths.cache={folder / 'cache'}")
            resolved.append((name, settings("dien", folder / name, *words)[1]))
        (folder / f"jobs_{world}.json").write_text(json.dumps(resolved))
        return [rank["whole_runs"] for rank in processes(world, folder, whole_runs)]

    return run


@pytest.mark.parametrize("name", [kind().name for kind in NETWORKS])
def test_scores_and_gradients_are_those_of_whole_tables(two: list[dict[str, Any]], name: str) -> None:
    for rank in two:
        found = rank["every_network"][name]
        assert found["begin"]
        assert found["loss"][0] == found["loss"][1]
        assert found["off"] < 1e-6 * max(1, found["largest"])
        assert found["largest"] > 1e-4


@pytest.mark.parametrize("name", ["dnn", "dien"])
def test_twenty_steps_are_those_of_dense_adam(two: list[dict[str, Any]], name: str) -> None:
    for rank, other in (two, two[::-1]):
        found = rank["twenty_steps"][name]
        assert max(found["off"].values()) < 2e-5 < found["moved"] / 1000
        rows = found["rows"]
        assert abs(rows["items.tables.0"] - ITEMS / 2) < 1
        sums = {table: count + other["twenty_steps"][name]["rows"][table] for table, count in rows.items()}
        expected = {"items.tables.0": ITEMS, "items.tables.1": CATEGORIES, "users.tables.0": USERS}
        assert {table: count for table, count in sums.items() if table in expected}.items() <= expected.items()
        assert max(found["state"]) == rows["items.tables.0"]  # the optimizer keeps nothing of other rows


def test_nothing_asked_and_one_process_asked_for_all(two: list[dict[str, Any]], three: list[dict[str, Any]]) -> None:
    for result in (two, three):
        for rank in result:
            found = rank["odd_requests"]
            assert "31" in found.pop("beyond")
            assert all(case["equal"] for case in found.values())
            assert max(case["off"] for case in found.values()) < 1e-6
    header = 16 * (2 - 1)  # bytes of counts
    first, last = (rank["odd_requests"] for rank in two)
    assert first["nothing from any"]["sent"] == header
    # Row 7 of the items lies in process 1, of category c in c mod 2.
    category = int(features(True).catalogue[7, 1]) % 2
    ids, vectors = 4, 16
    asked_of = [category == 0, 1 + (category == 1)]
    for rank, found in enumerate((first, last)):
        asks, answers = asked_of[1 - rank], asked_of[rank]
        assert found["one row many times"]["sent"] == header + asks * (ids + vectors) + answers * vectors


def test_checkpoints_load_in_one_process_and_in_three(
    two: list[dict[str, Any]], three: list[dict[str, Any]], folder: Path
) -> None:
    checkpoint = torch.load(folder / "saved.ckpt", weights_only=True)
    model = click_model(False, seed=5)
    model.load_state_dict(checkpoint["state_dict"])
    expected = scores(model)
    for rank in three:
        assert torch.equal(rank["loaded"]["early"], expected)
        assert torch.equal(rank["loaded"]["late"], expected)
    # Training goes on alike, whichever the number of processes, one with whole tables among them.
    optimizer: Any = model.configure_optimizers()["optimizer"]
    optimizer.load_state_dict(checkpoint["optimizer_states"][0])
    model.train()
    for step in range(5, 8):
        optimizer.zero_grad()
        (sum(loss_of(model.network, batch(100 * step + share)) for share in range(2)) / 2).backward()
        optimizer.step()
    optimizer.flush()
    for tables in (two[0]["saved"]["tables"], three[0]["loaded"]["tables"]):
        for name, table in tables.items():
            torch.testing.assert_close(table, model.network.get_parameter(f"{name}.weight"), atol=1e-5, rtol=0)
    moved = model.network.items.tables[0].weight - checkpoint["state_dict"][ITEMS_TABLE]
    assert moved.abs().max() > 1e-3


def test_what_a_split_network_tells_of_itself(two: list[dict[str, Any]]) -> None:
    model = click_model(False)
    for rank in two:
        found = rank["saved"]
        assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert {
            f"network.{name}.weight" for name, part in model.network.named_modules() if isinstance(part, nn.Embedding)
        } < set(found["ignored"])
        assert tuple(found["dead"]) == (ITEMS - 1, ITEMS - 1)


def test_a_run_with_split_tables_is_that_with_whole_ones(jobs: Callable[..., Any], folder: Path) -> None:
    found = jobs(2, whole=(), split=("embedding=sharded",))
    items = torch.load(folder / "split" / "run" / "last.ckpt", weights_only=True)["state_dict"][ITEMS_TABLE]
    scores = [name for name in found[0]["whole"] if name.startswith(("val/", "test/"))]
    assert len(scores) > 6
    for number, rank in enumerate(found):
        assert rank["whole"]["rows"] == []
        assert rank["split"]["rows"] == [len(items[number::2])] * 2  # while training, and of the best checkpoint
        assert rank["split"]["parameters"] == rank["whole"]["parameters"]
        for name in scores:
            assert rank["split"][name] == pytest.approx(rank["whole"][name], abs=1e-5)


@pytest.mark.slow
def test_split_runs_go_on_and_are_tested_by_others(
    jobs: Callable[..., Any], settings: Callable[..., Any], folder: Path
) -> None:
    split, begun = "embedding=sharded", folder / "begun" / "run"
    found = jobs(
        2,
        full=(split,),
        begun=(split, "trainer.max_epochs=1"),
        resumed=(split, f"resume={begun}", f"paths.run={begun}"),
    )
    scores = [name for name in found[0]["full"] if name.startswith(("val/", "test/"))]
    for rank in found:
        assert [rank["resumed"][name] for name in scores] == [rank["full"][name] for name in scores]
        assert rank["begun"]["steps"] < rank["full"]["steps"]
    weights = [torch.load(folder / name / "run" / "last.ckpt", weights_only=True) for name in ("full", "begun")]
    for name, weight in weights[0]["state_dict"].items():
        assert torch.equal(weight, weights[1]["state_dict"][name])

    # One process, and three, test what two have trained; so does one that serves.
    test = ("task=test", f"checkpoint={begun / 'last.ckpt'}")
    (*_, three) = jobs(3, tested=(split, *test))
    one = experiment.run(*settings("dien", folder / "one", *RUN, *test, f"paths.cache={folder / 'cache'}"))
    for name in scores:
        assert one[name] == pytest.approx(three["tested"][name], abs=1e-6)
    served = deepinterest.load(begun / "last.ckpt")
    rows = pl.read_parquet(folder / "one" / "run" / "predictions.parquet")
    assert len(served.score([], rows["item"].unique().to_list())) == rows["item"].n_unique()


@pytest.mark.slow
def test_the_command(small: Callable[..., list[str]], tmp_path: Path) -> None:
    words = small("dnn", "trainer=ddp_cpu", "embedding=sharded", f"paths.cache={tmp_path / 'cache'}")
    command = [sys.executable, str(ROOT / "run.py"), *words]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert deepinterest.load(run / "best.ckpt").score([], [0, 1]).shape == (2,)
    command = [*command[:2], "task=test", f"checkpoint={run / 'best.ckpt'}", *words, "embedding=replicated"]
    command = [word for word in command if word != "embedding=sharded"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr


def test_whole_tables_count_as_before() -> None:
    table = nn.Embedding(5, 2)
    assert sharded.count(table, torch.tensor([True, False, True, True, False])) == (2, 4)
    assert sharded.size(table) == 10
    sharded.finish(table)
    sharded.split(table)


def test_a_table_in_parts_is_drawn_as_a_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "DRAWN", 64)
    for size, dim in ((5, 1), (100, 4), (61, 7), (1001, 3)):
        torch.manual_seed(4)
        plain = FeatureEmbedding(torch.zeros(1, 1, dtype=torch.int64), [size], dim)
        after = torch.get_rng_state()
        torch.manual_seed(4)
        split = FeatureEmbedding(torch.zeros(1, 1, dtype=torch.int64), [size], dim, True)
        assert torch.equal(torch.get_rng_state(), after)
        for rank in range(3):
            table = split.tables[0]
            table.place(SimpleNamespace(rank=rank, world=3), 0)
            assert torch.equal(table.weight, plain.tables[0].weight[rank::3])


def test_no_memory_before_there_is_a_place() -> None:
    model = network(DNNConfig(), True)
    assert all(table.weight.is_meta for _, table in sharded.shards(model))
    with pytest.raises(RuntimeError, match="call split"):
        model(batch(1))


def test_one_process_is_refused() -> None:
    with pytest.raises(UserError, match=r"embedding=sharded splits .* trainer\.devices=2"):
        click_model(True).configure_model()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trainer=ddp_cpu", "trainer.devices=1"), r"trainer\.devices=1 makes one"),
        (("trainer=cpu",), r"trainer\.devices=1 makes one"),
        (("trainer=ddp_cpu", "task=predict", "checkpoint=a", "output=b.csv"), r"task=predict works with one process"),
    ],
)
def test_settings_that_can_not_be(
    settings: Callable[..., Any], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        settings("dnn", tmp_path, "embedding=sharded", *words)
