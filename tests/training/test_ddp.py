"""Two and three gloo processes beside one: what they send, the gradients they follow, and whole runs."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from deepinterest import experiment, launch
from deepinterest.config import Accelerator, DIENConfig, NegativesConfig, Quirks, Strategy, TrainerConfig
from deepinterest.data.batch import Batch
from deepinterest.data.loader import BatchLoader
from deepinterest.data.log import Log
from deepinterest.data.negatives import NegativeSampler
from deepinterest.data.samples import Samples
from deepinterest.errors import UserError
from deepinterest.models import NETWORKS, Network, build
from deepinterest.nn.dice import Dice
from deepinterest.nn.embedding import Features
from deepinterest.nn.mlp import BatchNorm
from deepinterest.nn.synced import synchronise
from deepinterest.report import run_folder
from deepinterest.settings import restored
from deepinterest.training import distributed, exchange, module
from deepinterest.training.exchange import Exchange
from deepinterest.training.losses import total_loss
from deepinterest.training.module import ClickModel
from deepinterest.training.optimizers import DeferredAdam

ROOT = Path(__file__).parents[2]
ITEMS, CATEGORIES, USERS, STEPS = 40, 6, 30, 200

pytestmark = pytest.mark.usefixtures("one_thread")


# -------------------------------------------------------------------------------------------- what is trained on by all


def rows_of(world: int, rank: int, batch_size: int, **options: Any) -> BatchLoader:
    """Groups of one to four rows, with histories of none to twelve events."""
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 14, USERS)
    lengths[::5] = 1
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    log = Log(rng.integers(1, ITEMS, offsets[-1]).astype(np.int32), np.arange(offsets[-1]), offsets, ITEMS)
    users = np.concatenate([np.arange(USERS), np.arange(USERS)[::3]])
    counts = rng.integers(1, 5, len(users))
    first = np.concatenate([[0], np.cumsum(counts)])
    label = np.zeros(first[-1], np.uint8)
    label[first[:-1]] = 1
    samples = Samples(
        users.astype(np.int32), offsets[users + 1] - 1, first, rng.integers(1, ITEMS, first[-1]).astype(np.int32),
        label, np.arange(len(users)),
    )  # fmt: skip
    sampler = NegativeSampler(log, np.ones(len(log), dtype=bool), NegativesConfig())
    settings: dict[str, Any] = {"max_history": 10, "seed": 1, "shuffle": True, "auxiliary": sampler, "redraw": sampler}
    return BatchLoader(log, samples, batch_size=batch_size, world=world, rank=rank, **{**settings, **options})


def features() -> Features:
    generator = torch.Generator().manual_seed(3)
    items = torch.stack([torch.arange(ITEMS), torch.randint(CATEGORIES, (ITEMS,), generator=generator)], dim=1)
    return Features(items, [ITEMS, CATEGORIES], torch.arange(USERS + 1).unsqueeze(1), [USERS + 1])


def network(config: Any) -> Network:
    torch.manual_seed(1)
    return build(features(), config)


def loss_of(model: Callable[[Batch], Any], rows: Batch, share: Tensor | None) -> Tensor:
    return total_loss(model(rows), rows.label, Quirks(), 1e-8, 1.0, share)[0]


def several(model: Network) -> DistributedDataParallel:
    """The network as a run has it in several processes."""
    names = distributed.apart(model, "")
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    synchronise(model)
    return DistributedDataParallel(model, broadcast_buffers=False)


def adam(model: Network, exchange: Exchange | None = None) -> DeferredAdam:
    optimizer = DeferredAdam(model.parameters(), lr=2e-3, exchange=exchange)
    for table in model.embeddings:
        optimizer.watch(table)
    return optimizer


def off(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# --------------------------------------------------------------------------------------------- what each process does


def sparse_means(rank: int, world: int) -> dict[str, Any]:
    """Sparse gradients by an exchange, and the same as dense ones by an all-reduce."""
    generator = torch.Generator().manual_seed(rank)
    tables = [torch.zeros(50, 3), torch.zeros(20, 1), torch.zeros(9, 2), torch.zeros(7, 4)]
    counts = [12, 0 if rank else 5, 4, 0]  # repeated rows; a table of the first process alone; one of nobody
    gradients: list[Tensor | None] = [
        torch.sparse_coo_tensor(
            torch.randint(len(table), (1, count), generator=generator),
            torch.randn(count, table.shape[1], generator=generator),
            table.shape,
            check_invariants=True,
        )
        for table, count in zip(tables, counts, strict=True)
    ]
    if rank == 1:
        gradients[2] = None
    told = Exchange()
    means = told.mean(tables, gradients)
    offs = []
    for table, gradient, mean in zip(tables, gradients, means, strict=True):
        dense = torch.zeros_like(table) if gradient is None else gradient.to_dense()
        dist.all_reduce(dense)
        offs.append(float((mean.to_dense() - dense / world).abs().max()))
    sizes = torch.tensor([[0 if g is None else g.coalesce()._nnz() * (4 + 4 * t.shape[1])]
                          for t, g in zip(tables, gradients, strict=True)]).sum(0)  # fmt: skip
    dist.all_reduce(sizes, dist.ReduceOp.MAX)
    return {"off": offs, "received": told.received, "expected": (world - 1) * (int(sizes) + 8 * len(tables))}


def norms(rank: int, world: int) -> dict[str, Any]:
    """Batch norm and Dice over processes of 2, 3, ... rows, and over all rows at once."""
    torch.manual_seed(0)
    begin = np.cumsum([0, *range(2, 2 + world)])
    x = torch.randn(int(begin[-1]), 5) * torch.tensor([1, 1e-2, 3, 1, 100]) + torch.tensor([0, 1, 50, -100, 7])
    weight = torch.randn(len(x), 5)
    found = {}
    for kind in (BatchNorm, Dice):
        alone, together = kind(5), kind(5)
        with torch.no_grad():
            for parameters in zip(alone.parameters(), together.parameters(), strict=True):
                parameters[0].uniform_(0.5, 2)
                parameters[1].copy_(parameters[0])
        synchronise(together)
        whole, own = x.clone().requires_grad_(), x[begin[rank] : begin[rank + 1]].clone().requires_grad_()
        for _ in range(2):
            expected, got = alone(whole), together(own)
            (expected * weight).sum().backward()
            (got * weight[begin[rank] : begin[rank + 1]]).sum().backward()
        assert whole.grad is not None and own.grad is not None
        scale = whole.grad.abs().amax(0)
        for parameter in together.parameters():
            dist.all_reduce(parameter.grad)
        found[kind.__name__] = {
            "output": float((got - expected.detach()[begin[rank] : begin[rank + 1]]).abs().max()),
            "input": float(((own.grad - whole.grad[begin[rank] : begin[rank + 1]]) / scale).abs().max()),
            "parameters": max(
                float((a.grad - b.grad).abs().max() / (1 + a.grad.abs().max()))
                for a, b in zip(alone.parameters(), together.parameters(), strict=True)
            ),
            "running": max(
                float(((getattr(together, name) - getattr(alone, name)) / getattr(alone, name)).abs().max())
                for name in ("running_mean", "running_var")
            ),
        }
    return found


def joined_gradients(rank: int, world: int) -> dict[str, Any]:
    """Gradients of each network on each process's share of a batch, beside one process's on the whole of it."""
    found = {}
    for kind in NETWORKS:
        config = kind(embedding_dim=4, use_user=True)
        result: dict[str, Any] = {"off": 0.0, "unweighed": 0.0, "largest": 0.0, "uneven": False}
        alone, together = network(config), network(config)
        parallel = several(together)
        sizes = []
        for whole, own, _ in zip(rows_of(1, 0, 24 * world), rows_of(world, rank, 24), range(3), strict=False):
            loss_of(alone, whole, None).backward()
            gradients = {}
            for share in (own.share, torch.ones(2)):
                parallel.zero_grad()
                loss_of(parallel, own, share).backward()
                gradients[share is own.share] = mean_gradients(together)
            expected = {n: p.grad.to_dense() for n, p in alone.named_parameters() if p.grad is not None}
            assert set(expected) == set(gradients[True])
            result["off"] = max(result["off"], off(expected, gradients[True]))
            result["unweighed"] = max(result["unweighed"], off(expected, gradients[False]))
            result["largest"] = max(float(g.abs().max()) for g in expected.values())
            sizes.append((len(own), len(whole)))
            alone.zero_grad()
        result["uneven"] = any(world * mine != all_ for mine, all_ in sizes)
        found[config.name] = result
    return found


def mean_gradients(model: Network) -> dict[str, Tensor]:
    """As the optimizer sees them: tables' gradients after their exchange."""
    tables = [table.weight for table in model.embeddings]
    means = dict(zip(tables, Exchange().mean(tables, [table.grad for table in tables]), strict=True))
    return {
        name: means[parameter].to_dense() if parameter in means else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter in means or parameter.grad is not None
    }


def two_hundred_steps(rank: int, world: int) -> dict[str, Any]:
    """Training of DIEN in several processes, and in one with the joined batches; the processes read other rows too."""
    config = DIENConfig(embedding_dim=4, hidden=8, mlp=[16, 8], attention=[8, 4], aux_net=[8, 4])
    model, alone = network(config), network(config)
    parallel, exchange = several(model), Exchange()
    optimizer, single = adam(model, exchange), adam(alone)
    mine, whole = rows_of(world, rank, 32 // world), rows_of(1, 0, 32)
    losses: dict[str, list[float]] = {"several": [], "one": []}
    step = 0
    while step < STEPS:
        for own, rows in zip(mine, whole, strict=True):
            loss = loss_of(parallel, own, own.share)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            dist.all_reduce(loss.detach())
            losses["several"].append(loss.item() / world)
            expected = loss_of(alone, rows, None)
            single.zero_grad()
            expected.backward()
            single.step()
            losses["one"].append(expected.item())
            step += 1
    optimizer.flush()
    single.flush()
    tables = torch.cat([table.weight.detach().flatten() for table in model.embeddings])
    others = [torch.empty_like(tables) for _ in range(world)]
    dist.all_gather(others, tables)
    return {
        **losses,
        "replicas": all(torch.equal(other, tables) for other in others),
        "weights": off(dict(alone.named_parameters()), dict(model.named_parameters())),
        "running": off(dict(alone.named_buffers()), dict(model.named_buffers())),
    }


TASKS = (sparse_means, norms, joined_gradients, two_hundred_steps)


def work(rank: int, world: int, port: int, folder: Path, jobs: list[tuple[str, dict[str, Any]]]) -> None:
    """One of several processes: the tasks, and then whole runs as torchrun would start them."""
    torch.set_num_threads(1)
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": "0",
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world),
    }  # fmt: skip
    dist.init_process_group("gloo")
    results = {task.__name__: task(rank, world) for task in TASKS}
    for name, settings in jobs:
        with pytest.MonkeyPatch.context() as patch:
            results[name] = followed(settings, patch)
    torch.save(results, folder / f"{world}_{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def followed(settings: dict[str, Any], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run's metrics, the losses of its steps, and its tables at the end of training."""
    seen: dict[str, Any] = {"losses": []}
    patch.setattr(module, "LOG_EVERY", 1)
    patch.setattr(run_folder, "figures", lambda *_: {})  # in each process: they take longer than the run
    logged, ended = ClickModel.log_dict, ClickModel.on_train_end

    def log_dict(self: ClickModel, values: dict[str, Any], **options: Any) -> None:
        if "train/loss" in values:
            loss = values["train/loss"].detach().clone()
            if options["sync_dist"]:
                dist.all_reduce(loss)
                loss /= dist.get_world_size()
            seen["losses"].append(float(loss))
        logged(self, values, **options)

    def on_train_end(self: ClickModel) -> None:
        ended(self)
        seen["tables"] = {name: table.weight.detach().clone() for name, table in tables_of(self).items()}

    patch.setattr(ClickModel, "log_dict", log_dict)
    patch.setattr(ClickModel, "on_train_end", on_train_end)
    return {"metrics": experiment.run(restored(settings), settings), **seen}


def tables_of(model: ClickModel) -> dict[str, nn.Embedding]:
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Embedding)}


def processes(world: int, folder: Path, jobs: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each process found."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    mp.start_processes(work, (world, port, folder, jobs), nprocs=world, start_method="forkserver")
    return [torch.load(folder / f"{world}_{rank}.pt", weights_only=True) for rank in range(world)]


# -------------------------------------------------------------------------------------------------------- and the tests


@pytest.fixture(scope="module")
def runs(
    settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """A run in one process and in two with half the batch, its test in two, a stop after an epoch and a resume."""
    folder = tmp_path_factory.mktemp("ddp")
    common = (
        "data.users=152", "trainer.max_epochs=2", "trainer.validations_per_epoch=2", "trainer.patience=null",
        "trainer.checkpoint_minutes=null", "calibration=platt", "logger=csv", f"paths.cache={folder / 'cache'}",
    )  # fmt: skip

    def plain(name: str, *more: str) -> tuple[str, dict[str, Any]]:
        _, resolved = settings("dien", folder, *common, *more, f"paths.run={folder / name}")
        return name, resolved

    two = ("trainer=ddp_cpu", "trainer.batch_size=32")
    _, alone = plain("one", "trainer.batch_size=64")
    with pytest.MonkeyPatch.context() as patch:
        one = followed(alone, patch)
    begun = plain("begun", *two, "trainer.max_epochs=1")
    resumed = plain("begun", *two, f"resume={folder / 'begun'}")
    jobs = [
        plain("two", *two),
        plain("tested", "trainer=ddp_cpu", "task=test", f"checkpoint={folder / 'one' / 'best.ckpt'}"),
        begun,
        ("resumed", resumed[1]),
    ]
    return one, processes(2, folder, jobs), folder


@pytest.fixture(scope="module", params=[2, pytest.param(3, marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes, or of three, found in the tasks."""
    if request.param == 2:
        return list(request.getfixturevalue("runs")[1])  # those processes start once
    return processes(request.param, tmp_path_factory.mktemp("tasks"), [])


def test_an_exchange_is_a_dense_mean_at_the_price_of_the_rows(found: list[dict[str, Any]]) -> None:
    for process in found:
        assert max(process["sparse_means"]["off"]) < 1e-6
        assert process["sparse_means"]["received"] == process["sparse_means"]["expected"] > 0


def test_norms_are_of_all_rows(found: list[dict[str, Any]]) -> None:
    for process in found:
        for kind in ("BatchNorm", "Dice"):
            assert max(process["norms"][kind].values()) < 2e-5, (kind, process["norms"][kind])


@pytest.mark.parametrize("name", [kind().name for kind in NETWORKS])
def test_gradients_are_those_of_the_joined_batch(found: list[dict[str, Any]], name: str) -> None:
    for process in found:
        result = process["joined_gradients"][name]
        assert result["uneven"]
        assert result["off"] < 2e-5 * max(1, result["largest"])
        assert result["unweighed"] > 100 * result["off"]  # the plain mean of the processes' losses is another


def test_training_follows_that_of_one_process(found: list[dict[str, Any]]) -> None:
    for process in found:
        result = process["two_hundred_steps"]
        several, one = np.array(result["several"]), np.array(result["one"])
        print("loss off by", np.abs(several - one).max(), "weights by", result["weights"])
        assert len(one) >= STEPS and one[-20:].mean() < one[:20].mean()
        assert np.abs(several - one).max() < 1e-4
        assert result["replicas"]


def test_on_a_gpu_processes_are_summed_one_after_the_other() -> None:
    rows = [torch.tensor([4, 1, 3]), torch.tensor([3, 0]), torch.tensor([], dtype=torch.int64)]
    values = [torch.randn(len(part), 2) for part in rows]
    for coalesce in (True, False):
        result = exchange.merged(torch.Size([6, 2]), rows, values, coalesce)
        assert result.is_coalesced() == coalesce
        expected = torch.zeros(6, 2).index_add_(0, torch.cat(rows), torch.cat(values))
        torch.testing.assert_close(result.to_dense(), expected)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_shares_together_are_the_batches_of_one_process(world: int) -> None:
    """Rows, histories and all that is drawn; no row twice and none left out."""
    whole, parts = rows_of(1, 0, 4 * world), [rows_of(world, rank, 4) for rank in range(world)]

    def groups(batch: Batch) -> list[tuple[Any, ...]]:
        assert batch.auxiliary_negatives is not None
        found = []
        for g in range(len(batch.user)):
            own, events = batch.history_index == g, slice(int(batch.offsets[g]), int(batch.offsets[g + 1]))
            drawn = batch.auxiliary_negatives[events].flatten().tolist()
            found.append((int(batch.user[g]), batch.history[events].tolist(), batch.candidates[own].tolist(), drawn))
        return sorted(found)

    for _ in range(2):  # epochs
        for batch, *shares in zip(whole, *parts, strict=True):
            assert batch.share is None
            assert groups(batch) == sorted(sum((groups(share) for share in shares), []))
            assert all(len(share) for share in shares)
            assert sum(share.share[0] for share in shares) == pytest.approx(world)
            pairs = [int((share.offsets.diff() - 1).clamp(min=0).sum()) for share in shares]
            assert [float(share.share[1]) for share in shares] == pytest.approx(
                [world * n / max(1, sum(pairs)) for n in pairs]
            )


def test_draws_depend_on_seed_epoch_and_row_alone() -> None:
    one, other = rows_of(1, 0, 8), rows_of(1, 0, 50)

    def drawn(loader: BatchLoader) -> dict[Any, Any]:
        return {
            (int(batch.user[g]), int(batch.offsets[g + 1] - batch.offsets[g])): batch.auxiliary_negatives[
                batch.offsets[g] : batch.offsets[g + 1]
            ].flatten().tolist()
            for batch in loader
            for g in range(len(batch.user))
            if batch.auxiliary_negatives is not None
        }  # fmt: skip

    first, again, second = drawn(one), drawn(other), drawn(one)
    assert set(first) == set(second) and first != second
    users = [user for user, _ in first if user % 3]  # those with one group
    assert len(users) > 5
    for key, value in first.items():
        if key[0] in users:
            assert again[key] == value
    assert drawn(rows_of(1, 0, 8, seed=2)) != first


def test_training_needs_a_history_for_each_process() -> None:
    with pytest.raises(UserError, match=r"40 histories for 41 processes.*devices=1"):
        rows_of(41, 0, 4)
    assert len(rows_of(40, 0, 4)) == 1


def test_going_on_needs_the_same_batches() -> None:
    state = rows_of(2, 0, 4).state_dict()
    same = rows_of(1, 0, 8)
    same.load_state_dict(state)
    with pytest.raises(UserError, match=r"saved with 14 batches.*here are 20.*as many processes"):
        rows_of(1, 0, 4).load_state_dict(state)


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_layer_has_a_gradient_though_no_history_has_an_event(kind: Callable[..., Any]) -> None:
    """Without one a process would wait for it for ever."""
    model = network(kind(embedding_dim=4, use_user=True))
    (batch,) = rows_of(1, 0, 1000)
    new, rows = torch.zeros(0, dtype=torch.int64), len(batch)
    batch = replace(batch, history=new, offsets=torch.zeros_like(batch.offsets), auxiliary_negatives=new[:, None])
    loss_of(model, batch, torch.ones(2)).backward()
    tables = {table.weight for table in model.embeddings}
    assert rows > 10 and len(tables) == 3
    assert [name for name, p in model.named_parameters() if p not in tables and p.grad is None] == []


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_process_without_evaluation_rows(kind: Callable[..., Any]) -> None:
    model = network(kind(embedding_dim=4, use_user=True)).eval()
    loader = rows_of(41, 40, 4, shuffle=False, redraw=None)
    (batch,) = loader
    assert len(batch) == 0 and batch.share is None
    assert model(batch).logit.shape == (0,)


# ----------------------------------------------------------------------------------------------------------- whole runs


def test_a_run_in_two_processes_follows_that_in_one(runs: Any) -> None:
    one, two, folder = runs
    several, alone = (np.array(process["losses"]) for process in (two[0]["two"], one))
    print(len(alone), "steps; loss off by", np.abs(several - alone).max())
    assert len(alone) == len(several) > 20
    assert np.abs(several - alone).max() < 1e-4
    tables = [process["two"]["tables"] for process in two]
    assert all(torch.equal(table, tables[1][name]) for name, table in tables[0].items())  # though each validates others
    for name in ("val/auc", "val/logloss", "test/auc", "test/gauc", "test/logloss"):
        assert two[0]["two"]["metrics"][name] == pytest.approx(one["metrics"][name], abs=2e-3)
        assert two[0]["two"]["metrics"][name] == two[1]["two"]["metrics"][name]
    assert (folder / "two" / "predictions.parquet").is_file()


def test_scores_are_exact_over_the_rows_of_all_processes(runs: Any) -> None:
    one, two, folder = runs
    scores = [name for name in one["metrics"] if name.startswith(("val/", "test/"))]
    assert {"test/auc", "test/gauc", "test/logloss", "test/ece", "test/logloss_uncalibrated"} <= set(scores)
    for process in two:
        for name in scores:
            assert process["tested"]["metrics"][name] == pytest.approx(one["metrics"][name], abs=1e-6), name
    alone, several = (pl.read_parquet(folder / name / "predictions.parquet") for name in ("one", "tested"))
    rows = [column for column in alone.columns if column != "probability"]
    assert alone.select(rows).equals(several.select(rows))
    assert np.abs(alone["probability"].to_numpy() - several["probability"].to_numpy()).max() < 1e-6
    assert len(alone) % 4  # groups of two rows, and one of the processes has a group more


def test_going_on_in_two_processes_is_a_run_never_interrupted(runs: Any) -> None:
    _, two, _ = runs
    for process in two:
        whole, begun, resumed = (process[name] for name in ("two", "begun", "resumed"))
        assert [*begun["losses"], *resumed["losses"]] == whole["losses"]
        assert all(torch.equal(table, resumed["tables"][name]) for name, table in whole["tables"].items())
        scores = {name: value for name, value in whole["metrics"].items() if name.startswith(("val/", "test/"))}
        assert scores.items() <= resumed["metrics"].items()


def test_calibration_is_learned_from_the_rows_of_both(runs: Any) -> None:
    one, _, folder = runs
    found = [torch.load(folder / name / "best.ckpt", weights_only=True)["calibration"] for name in ("one", "two")]
    assert found[0]["name"] == found[1]["name"] == "platt"
    torch.testing.assert_close(found[1]["parameters"], found[0]["parameters"], atol=1e-2, rtol=1e-2)
    assert one["metrics"]["test/logloss"] != one["metrics"]["test/logloss_uncalibrated"]


# ---------------------------------------------------------------------------------------------- how processes are begun


@pytest.fixture
def outside(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "DEEPINTEREST_")):
            monkeypatch.delenv(name)
    return monkeypatch


TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "5", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_JOB_ID": "31", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "6", "SLURM_NNODES": "2", "SLURM_PROCID": "3",
    "SLURM_LOCALID": "0", "SLURM_NODEID": "1", "SLURM_NTASKS_PER_NODE": "3", "SLURM_JOB_NAME": "train",
}  # fmt: skip


def test_a_launcher_says_how_many_processes_there_are(outside: pytest.MonkeyPatch) -> None:
    ours = distributed.arrangement(TrainerConfig(Accelerator.cpu, devices=2, strategy=Strategy.ddp))
    assert (ours["devices"], ours["num_nodes"]) == (2, 1) and launch.rank() == 0
    assert type(ours["plugins"][0]).__name__ == "LightningEnvironment"
    assert distributed.arrangement(TrainerConfig(Accelerator.cpu))["plugins"] == []
    for variables, place, kind in (
        (TORCHRUN, launch.Launched("torchrun", 5, 2, 4), "TorchElasticEnvironment"),
        (SLURM, launch.Launched("slurm", 3, 2, 3), "SLURMEnvironment"),
    ):
        with outside.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            assert launch.launched() == place and launch.rank() == place.rank
            found = distributed.arrangement(TrainerConfig(slurm=place.by == "slurm"))
            assert (found["devices"], found["num_nodes"]) == (place.here, 2)
            assert type(found["plugins"][0]).__name__ == kind
            assert type(found["strategy"]).__name__ == "DDPStrategy"
            with pytest.raises(UserError, match=rf"{place.by} has started \d of it"):
                launch.joined(["-m", "seed=1,2"])


def test_slurm_tasks_share_a_folder(outside: pytest.MonkeyPatch) -> None:
    for name, value in SLURM.items():
        outside.setenv(name, value)
    outside.delenv(launch.START, raising=False)
    assert launch.joined(["seed=1"]) == ["seed=1", "hydra.job.name=run_process_3"]
    assert os.environ.pop(launch.START) == "slurm_31_0"
    outside.setenv("SLURM_JOB_NAME", "interactive")
    assert launch.launched() is None
    outside.setenv("SLURM_NTASKS", "1")  # a job of one task starts its own processes
    assert type(distributed.arrangement(TrainerConfig(devices=2))["plugins"][0]).__name__ == "LightningEnvironment"


def test_what_needs_slurm_or_one_process(
    outside: pytest.MonkeyPatch, settings: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"none of several SLURM tasks: start it by srun"):
        distributed.arrangement(TrainerConfig(slurm=True))
    for override, word in (
        ("quirks.batch_dice=true", "quirks.batch_dice needs one process, here are 2"),
        ("quirks.padded_sum=true", "quirks.padded_sum=false"),
        ("quirks.padded_auxiliary=true", "which rows share a batch"),
        ("trainer.precision=16-mixed", "Take bf16-mixed"),
        ("trainer.compile=true", "trainer.compile=true needs one process, here are 2"),
    ):
        config, resolved = settings("dien", tmp_path, "trainer=ddp_cpu", override)
        distributed.check(config, 1)
        with pytest.raises(UserError, match=re.escape(word)):
            experiment.run(config, resolved)


def command(folder: Path, words: list[str], before: list[str], **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "TORCHELASTIC_"))}
    return subprocess.Popen(
        [*before, str(ROOT / "run.py"), *words], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**kept, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def finished(folder: Path, outputs: list[str], codes: list[int]) -> dict[str, float]:
    """The metrics of the one run folder, made by the first process; the other keeps a log beside its own."""
    assert codes == [0] * len(codes), outputs
    (run,) = (folder / "outputs" / "runs").iterdir()
    assert sum(output.count("run folder:") for output in outputs) == 1
    assert (run / ".hydra" / "config.yaml").is_file() and (run / "run_process_1.log").is_file()
    return dict(json.loads((run / "metrics.json").read_text()))


@pytest.mark.slow
def test_torchrun(small: Callable[..., list[str]], tmp_path: Path) -> None:
    # Three processes: torchrun's word counts, not the two of ddp_cpu.
    words = small("dien", "trainer=ddp_cpu", f"paths.cache={tmp_path / 'cache'}")
    process = command(tmp_path, words, [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3"])
    output, _ = process.communicate(timeout=300)
    metrics = finished(tmp_path, [output], [process.returncode])
    assert metrics["steps"] == 5  # of 3 * 256 rows each
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}_synthetic_dien_s1", run.name)


@pytest.mark.slow
def test_two_tasks_of_slurm(small: Callable[..., list[str]], tmp_path: Path) -> None:
    words = small(
        "dien", "trainer=slurm", "trainer.accelerator=cpu", f"paths.cache={tmp_path / 'cache'}", "trainer.kernel=torch"
    )
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = str(place.getsockname()[1])
    tasks = [
        command(
            tmp_path, words, [sys.executable],
            **{**SLURM, "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
               "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task), "SLURM_NODELIST": "localhost",
               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for task in range(2)
    ]  # fmt: skip
    outputs = [task.communicate(timeout=300)[0] for task in tasks]
    metrics = finished(tmp_path, outputs, [task.returncode for task in tasks])
    assert metrics["steps"] > 1
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert run.name == "slurm_31_0_synthetic_dien_s1"
