"""Settings of the trainer that change how fast a run is, and not what it learns."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepinterest import experiment
from deepinterest.config import Accelerator, TrainerConfig
from deepinterest.data.batch import Batch
from deepinterest.errors import UserError
from deepinterest.training.trainer import prefetch

pytestmark = pytest.mark.usefixtures("one_thread")
Go = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def go(settings: Callable[..., Any], cache: Path) -> Go:
    def call(model: str, folder: Path, *more: str) -> dict[str, float]:
        config, plain = settings(model, folder, f"paths.cache={cache}", *more)
        return experiment.run(config, plain)

    return call


def test_bf16(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = set()
    step = experiment.ClickModel.training_step

    def watched(module: experiment.ClickModel, *arguments: Any) -> torch.Tensor:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return step(module, *arguments)

    monkeypatch.setattr(experiment.ClickModel, "training_step", watched)
    plain = go("dien", tmp_path / "plain")
    assert seen == {torch.float32}
    seen.clear()
    low = go("dien", tmp_path / "low", "trainer.precision=bf16-mixed")
    assert seen == {torch.bfloat16}
    assert low["val/logloss"] != plain["val/logloss"]
    assert low["val/logloss"] == pytest.approx(plain["val/logloss"], rel=0.02)
    state = torch.load(tmp_path / "low" / "run" / "best.ckpt", weights_only=True)["state_dict"]
    assert {value.dtype for value in state.values() if value.is_floating_point()} == {torch.float32}


def test_evaluation_keeps_no_graph_and_takes_large_batches(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def watched(name: str) -> None:
        step = getattr(experiment.ClickModel, name)

        def call(module: experiment.ClickModel, batch: Batch, index: int) -> None:
            assert not torch.is_grad_enabled()
            sizes.append((name, torch.is_inference_mode_enabled(), len(batch)))
            step(module, batch, index)

        monkeypatch.setattr(experiment.ClickModel, name, call)

    watched("validation_step")
    watched("test_step")
    go("dnn", tmp_path, "trainer.eval_batch_size=10000")
    # Within training tensors of an inference mode could get into the graph, so Lightning takes no_grad there.
    assert {(name, inference) for name, inference, _ in sizes} == {
        ("validation_step", False), ("validation_step", True), ("test_step", True),
    }  # fmt: skip
    assert all(rows > 256 for _, _, rows in sizes)  # more than trainer.batch_size


@pytest.mark.parametrize(("setting", "expected"), [(None, False), (True, True), (False, False)])
def test_prefetch_on_a_cpu_is_for_who_asks(setting: bool | None, expected: bool) -> None:
    assert prefetch(TrainerConfig(accelerator=Accelerator.cpu, prefetch=setting)) is expected


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.parametrize("model", ["dnn", "dien"])
def test_compiled_network_learns_the_same(go: Go, model: str, tmp_path: Path) -> None:
    plain, compiled = go(model, tmp_path / "plain"), go(model, tmp_path / "compiled", "trainer.compile=true")
    for name in ("val/auc", "test/auc", "test/logloss"):
        assert compiled[name] == pytest.approx(plain[name], rel=1e-3), name
    states = [
        torch.load(tmp_path / name / "run" / "best.ckpt", weights_only=True)["state_dict"]
        for name in ("plain", "compiled")
    ]
    assert states[0].keys() == states[1].keys()  # such a checkpoint is like any other


def test_compiling_that_fails_is_said(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    torch._dynamo.reset()
    with pytest.raises(
        UserError, match=r"trainer\.compile=true: torch could not compile .* take trainer\.compile=false"
    ):
        go("dnn", tmp_path, "trainer.compile=true")
    torch._dynamo.reset()
