"""`python -m deepinterest.benchmark` and the comparison with peers, at sizes that take seconds."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepinterest import kernels
from deepinterest.benchmark import measure, parts, training, workload
from deepinterest.benchmark.__main__ import main
from deepinterest.benchmark.workload import Size
from deepinterest.errors import UserError
from deepinterest.nn.mlp import Head

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import compare_peers  # noqa: E402 - a script, not a part of the package

SMALL = Size(users=400, items=300, categories=20)
SIZE = ["--users", "400", "--items", "300", "--categories", "20"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The JSON of a command's last line; what came before is kept in `printed`."""

    def call(*arguments: str) -> dict[str, Any]:
        with kernels.for_kernels(1):  # which puts back what the command changes
            assert main([*arguments, *SIZE]) == 0
        torch.set_flush_denormal(False)
        *printed, last = capsys.readouterr().out.splitlines()
        return {**json.loads(last), "printed": "\n".join(printed)}

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Single pieces are timed for a moment only."""
    timed = measure.seconds_of

    def seconds_of(work: Callable[[], object], least: float = 0.2, device: str = "cpu") -> float:
        return timed(work, 0.01, device, rounds=3)

    monkeypatch.setattr("deepinterest.benchmark.measure.seconds_of", seconds_of)
    monkeypatch.setattr("deepinterest.benchmark.kernels.seconds_of", seconds_of)
    yield
    for cached in (parts.flops_per_second, parts.bytes_per_second, parts.scattered_bytes_per_second):
        cached.cache_clear()


def rates(value: dict[str, Any], name: str = "samples_per_s") -> None:
    assert 0 < value[f"{name}_min"] <= value[name] <= value[f"{name}_max"]


# ------------------------------------------------------------------------------------------------------------- workload


def test_history_lengths() -> None:
    drawn = workload.history_lengths(np.random.default_rng(0), 200_000, "realistic")
    assert np.median(drawn) == 14
    assert np.quantile(drawn, 0.95) == 100
    assert (drawn.min(), drawn.max()) == (1, 100)
    assert 24 < drawn.mean() < 25
    assert set(workload.history_lengths(np.random.default_rng(0), 9, "full")) == {100}
    assert set(workload.history_lengths(np.random.default_rng(0), 9, "50")) == {50}
    for wrong in ("0", "101", "long", "-3"):
        with pytest.raises(UserError, match=f"--lengths {wrong} .*realistic, full"):
            workload.history_lengths(np.random.default_rng(0), 9, wrong)


def test_items_follow_zipf() -> None:
    drawn = workload.items_by_popularity(np.random.default_rng(0), 1_000_000, 1000)
    counts = np.sort(np.bincount(drawn, minlength=1001)[1:])[::-1]
    assert drawn.min() >= 1
    expected = np.arange(1, 1001) ** -workload.ZIPF
    expected *= len(drawn) / expected.sum()
    np.testing.assert_allclose(counts[:50], expected[:50], rtol=0.05)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01  # one event tells nothing of the next
    assert np.bincount(drawn).argmax() != 1  # a name tells nothing of the popularity


def test_batches_of_the_product() -> None:
    made = workload.make(SMALL)
    seen = []
    for batch in made.loader(64):
        lengths = batch.offsets.diff()
        assert len(batch) == len(batch.user) == len(batch.user.unique())
        assert lengths.min() >= 1
        assert lengths.max() <= 100
        assert batch.auxiliary_negatives is not None
        assert batch.auxiliary_negatives.shape == (len(batch.history), 1)
        assert (batch.auxiliary_negatives[:, 0] != batch.history).all()
        seen.append(batch)
    assert torch.cat([batch.user for batch in seen]).sort().values.tolist() == list(range(1, 401))
    assert 0.4 < torch.cat([batch.label for batch in seen]).mean() < 0.6
    positive = made.samples.label == 1
    assert (made.samples.candidates == made.log.item[made.samples.history_end])[positive].all()
    assert made.features.catalogue[1:, 1].unique().tolist() == list(range(1, 21))


def test_candidates_share_a_history() -> None:
    batch = next(iter(workload.make(SMALL, candidates=4).loader(64)))
    assert len(batch) == 64
    assert len(batch.user) == 16
    assert batch.label.view(16, 4).tolist() == [[1, 0, 0, 0]] * 16


def test_tables_have_the_canonical_size() -> None:
    model = workload.make(SMALL).model("dien")
    assert [tuple(table.weight.shape) for table in model.network.embeddings] == [(301, 18), (21, 18), (401, 18)]
    assert model.optimizer_config.lr == 1e-3


# ------------------------------------------------------------------------------------------------------------- commands


@pytest.mark.parametrize(
    "more",
    [
        ("--model", "dien", "--kernel", "torch"),
        ("--model", "din", "--candidates", "2", "--lengths", "full", "--prefetch"),
        ("--model", "dnn", "--precision", "bf16", "--batch-size", "32"),
        ("--scoring", "--candidates", "10", "--lengths", "5"),
        ("--model", "dnn", "--through-lightning", "--logger", "csv"),
    ],
)
def test_training(run: Run, more: tuple[str, ...]) -> None:
    found = run("training", "--seconds", "0.2", *more)
    rates(found)
    assert f"samples_per_s={found['samples_per_s']:.0f}" in found["printed"]
    assert found["threads"] == 1
    assert found["prefetch"] == (True if "--prefetch" in more else None)
    assert found["scoring"] == ("--scoring" in more)
    assert found["through_lightning"] == ("--through-lightning" in more)


@pytest.mark.usefixtures("quick")
def test_parts(run: Run) -> None:
    found = run("training", "--seconds", "0.3", "--model", "dien", "--parts")["parts"]
    assert list(found) == [name for name in parts.NAMES if name != "Lightning"]
    for part in ("embedding", "GRU", "auxiliary net", "attention", "AUGRU", "MLP", "optimiser"):
        assert set(found[part]) == {"forward", "forward_floor", "backward", "backward_floor"}
        assert all(value > 0 for value in found[part].values())


def test_compile_is_handed_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(Head, "compile", lambda self, **options: compiled.append(options))
    assert run("training", "--model", "dnn", "--seconds", "0.05", "--compile")["compile"]
    assert compiled == [{"dynamic": True}]


def test_parts_add_up_and_change_nothing() -> None:
    """The stopwatch misses no time, and a watched step has the gradients of any other."""
    made = workload.make(SMALL)
    batch = next(iter(made.loader(64)))
    torch.manual_seed(0)
    model = made.model("dien")
    model.configure_optimizers()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        training.loss(model, batch).backward()
        return [weight.grad.to_dense() for weight in model.parameters() if weight.grad is not None]

    plain = gradients()
    watch = parts.Stopwatch("cpu")
    begin = watch._since
    with parts.watched(model, watch):
        watched = gradients()
    watch.switch("after", "forward")
    assert sum(watch.seconds.values()) == pytest.approx(watch._since - begin)
    assert {part for part, _ in watch.seconds} == {*parts.BLOCKS.values(), parts.REST, "optimiser"}
    assert len(watched) == len(plain) > 20
    for one, other in zip(watched, plain, strict=True):  # autograd adds up in another order
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    after = gradients()
    assert all(torch.equal(one, other) for one, other in zip(after, plain, strict=True))  # no hook was left


def test_lightning_is_one_of_the_parts(run: Run) -> None:
    found = run("training", "--model", "dnn", "--seconds", "0.1", "--through-lightning", "--logger", "none", "--parts")
    assert "forward" in found["parts"]["Lightning"]


def test_floor_of_a_product() -> None:
    """Backward costs two products; twice the rows cost about twice the time."""
    one = parts.Work(products=[(2048, 64, 64)])
    two = parts.Work(products=[(2048, 64, 64)] * 2)
    forward = parts.floor(one, "forward", "cpu")
    assert parts.floor(two, "forward", "cpu") == 2 * forward
    assert parts.floor(one, "backward", "cpu") > forward
    assert parts.floor(parts.Work(streamed=(1e9, 0)), "forward", "cpu") > 0.001  # no machine moves 1 TB/s on a thread


def test_evaluation(run: Run) -> None:
    found = run("evaluation", "--seconds", "0.1", "--scores", "20000", "--model", "dnn", "--batch-size", "64")
    assert 0.7 < found["auc"] < 0.8
    assert 0.7 < found["gauc"] < 0.8
    assert found["auc_seconds"] > 0 < found["gauc_seconds"]
    rates(found, "rows_per_s")


def test_loading(run: Run) -> None:
    found = run("loading", "--seconds", "0.05", "--batch-sizes", "16", "64")["results"]
    assert [(line["candidates"], line["auxiliary"], line["batch_size"]) for line in found] == [
        (candidates, auxiliary, size) for candidates in (1, 2) for auxiliary in (False, True) for size in (16, 64)
    ]
    for line in found:
        rates(line, "rows_per_s")


def test_optimizer(run: Run) -> None:
    found = run("optimizer", "--seconds", "0.05")["results"]
    assert [line["dense_maths"] for line in found] == [True] * 5 + [False]
    assert all(line["ms"] > 0 < line["cpu_ms"] for line in found)


@pytest.mark.usefixtures("quick")
def test_kernels(run: Run) -> None:
    found = run("kernels", "--hidden", "8", "--lengths", "3", "--batch-size", "4")["results"]
    assert {line["name"].split(":")[0] for line in found} == {"cpu", "torch"}
    blocks = {"GRU, reset before", "GRU, reset after", "AUGRU", "dense, 8 to 24", "attention", "auxiliary net"}
    for kernel in ("cpu", "torch"):
        assert blocks <= {line["name"].partition(": ")[2] for line in found if line["name"].startswith(kernel)}
    assert all(line["forward_ms"] > 0 < line["both_ms"] for line in found)


def test_threads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepinterest.benchmark.threads.WAITS", 5)
    found = run("threads", "--seconds", "0.05", "--rounds", "1", "--model", "dnn", "--batch-size", "16")
    assert [(line["threads"], line["busy"]) for line in found["results"]] == [
        (1, False),
        (2, False),
        (1, True),
        (2, True),
    ]
    for line in found["results"]:
        rates(line)
    one, two = (line["samples_per_s"] for line in found["results"][2:])
    assert found["kept"] == two / one
    assert found["wait_policy"] == "PASSIVE"
    assert f"have {found['kept']:.2f} of one thread's" in found["printed"]


@pytest.mark.usefixtures("quick")
def test_gpu_command_on_a_cpu(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "WARM_STEPS", 1)
    found = run("gpu", "--device", "cpu", "--seconds", "0.01", "--batch-sizes", "8", "--hidden", "8")
    settings = {(line["lengths"], line["precision"], line["kernel"]) for line in found["training"]}
    assert len(settings) == len(found["training"]) == 8
    assert {line["sequences"] for line in found["kernels"]} == {8}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("training", "--kernel", "cppu"), "--kernel cppu is not possible: one of auto, .*; did you mean cpu?"),
        (("training", "--kernel", "gpu"), "--kernel gpu does not run with --device cpu"),
        (("training", "--lengths", "0"), "--lengths 0 is not possible"),
        (("training", "--scoring", "--parts"), "--scoring goes with neither"),
        pytest.param(
            ("gpu",),
            "shows no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_options(arguments: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments, *SIZE]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(sentence, error)


@pytest.mark.parametrize("wrong", [("--seconds", "0"), ("--seconds", "nan"), ("--users", "0"), ("--batch-size", "-1")])
def test_out_of_range(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["training", *wrong])
    assert f"{wrong[1]} is not possible" in capsys.readouterr().err


def test_warm_up_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step a second of 10 rows: all slices have that rate, though the first steps took long."""
    now = [0.0]
    monkeypatch.setattr("deepinterest.benchmark.measure.time.perf_counter", lambda: now[0])
    clock = measure.Clock(seconds=10)
    stopped = False
    for number in range(200):
        now[0] += 50.0 if number < measure.WARM_STEPS else 1.0
        if stopped := clock.tick(10):
            break
    assert stopped
    found = clock.result()
    assert found.values == [10.0] * measure.SLICES
    assert found.plain("rows_per_s")["rows_per_s"] == 10.0


# ---------------------------------------------------------------------------------------------------------------- peers

FAKE = """
import sys
sys.path.insert(0, {folder!r})
import torch
from shared import main

def make(model, sizes, batches):
    assert (sizes.users, sizes.items, sizes.categories) == (401, 301, 21)
    for batch in batches:
        assert batch.item.shape == (32, 100)
        assert ((batch.item > 0).sum(1) == batch.length).all()
        assert (batch.item[:, 0] > 0).all()
        assert ((batch.negative_item > 0) == (batch.item > 0)).all()
        assert (batch.category[batch.item > 0] > 0).all()
    network = torch.nn.Linear(100, 1)
    def step(batch):
        return network(batch.item.float()).mean()
    return network, batches, step

main(make)
"""


def test_compare_with_a_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "fake.py"
    adapter.write_text(FAKE.format(folder=str(compare_peers.FOLDER)))
    fake = compare_peers.Contestant("fake 1.0", str(adapter), [], {"dien": "all of it"})
    settings = ["--batch-size", "32", "--batches", "3", "--rounds", "1", "--seconds", "0.1", "--no-loader"]
    assert compare_peers.main([*settings, *SIZE], [fake]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert list(found["rates"]) == ["fake 1.0", "deepinterest"]
    assert all(len(values) == 1 for values in found["rates"].values())
    assert found["ratios"]["deepinterest"] == 1
    assert found["facts"]["fake 1.0"]["parameters"] == 101
    assert found["facts"]["deepinterest"]["parameters"] > 18 * (401 + 301 + 21)
    assert "| all of it |" in printed


def test_ratio_is_the_median_of_rounds() -> None:
    rates = {"deepinterest": [10.0, 20.0, 90.0], "peer": [5.0, 4.0, 9.0]}
    assert compare_peers.ratios(rates) == {"deepinterest": 1, "peer": 5}


def test_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    peer = replace(compare_peers.PEERS[0], name="absent 1.0")
    settings = ["--folder", str(tmp_path / "peers"), "--batch-size", "32", "--batches", "1"]
    assert compare_peers.main([*settings, *SIZE], [peer]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: absent 1.0 could not be installed into ")
    assert "Is there a network?" in error
    assert not (tmp_path / "peers" / "absent-1.0" / "complete").exists()


def test_a_failing_peer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tmp_path / "broken.py"
    adapter.write_text("raise RuntimeError('out of order')")
    peer = compare_peers.Contestant("broken 2.0", str(adapter))
    assert compare_peers.main(["--batch-size", "32", "--batches", "1", *SIZE], [peer]) == 1
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: broken 2.0 ended with status 1: RuntimeError: out of order")


def test_too_few_users_for_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_peers.main(["--batch-size", "1000", *SIZE], []) == 1
    assert capsys.readouterr().err.startswith("error: --batch-size 1000: the log has 400 users.")
