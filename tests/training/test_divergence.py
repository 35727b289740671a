"""A run that diverges ends in a sentence, and what it saved before stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import Settings
from deepinterest import experiment, machine
from deepinterest.config import Accelerator, TrainerConfig
from deepinterest.errors import UserError
from deepinterest.training.module import ClickModel
from deepinterest.training.trainer import check_device

RUN = ("trainer.batch_size=16", "trainer.max_steps=120", "trainer.max_epochs=50", "trainer.patience=null")


def test_a_learning_rate_far_too_high(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"at step \d+, .* smaller optimizer.lr than 1e\+30 \(task=tune finds one\)"):
        experiment.run(*settings("dnn", tmp_path, "optimizer.lr=1e30"))
    assert not list((tmp_path / "run").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("trainer.validate_every=10",), "scores are no numbers in the validation at step 20"),
        (("trainer.validate_every=12", "trainer.checkpoint_minutes=1e-9"), "Some weights are no numbers at step 16"),
        (("trainer.validate_every=60",), "The training loss is nan at step 50"),
    ],
)
def test_what_was_saved_before_stays(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], words: str
) -> None:
    """From step 16 on the loss is no number."""
    step, log = ClickModel.training_step, ClickModel.log_dict

    def spoiled(model: ClickModel, value: torch.Tensor) -> torch.Tensor:
        return value * (math.nan if model.global_step >= 15 else 1)

    def diverging(model: ClickModel, *arguments: Any) -> torch.Tensor:
        return spoiled(model, step(model, *arguments))

    def logged(model: ClickModel, values: dict[str, torch.Tensor], **rest: Any) -> None:
        log(model, {name: spoiled(model, torch.as_tensor(value)) for name, value in values.items()}, **rest)

    monkeypatch.setattr(ClickModel, "training_step", diverging)
    monkeypatch.setattr(ClickModel, "log_dict", logged)
    with pytest.raises(UserError, match=words):
        experiment.run(*settings("dnn", tmp_path, *RUN, *more))
    saved = sorted((tmp_path / "run").glob("*.ckpt"))
    assert [path.name for path in saved] == ([] if "step 50" in words else ["best.ckpt", "last.ckpt"])
    for path in saved:
        weights = torch.load(path, weights_only=True)["state_dict"].values()
        assert all(value.isfinite().all() for value in weights)


def test_threads_and_processes_beyond_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpus", lambda: 4)
    machine.check(TrainerConfig(threads=4, devices=4, accelerator=Accelerator.cpu))
    machine.check(TrainerConfig(devices=99, accelerator=Accelerator.gpu))  # none of the CPUs' business
    with pytest.raises(UserError, match=r"trainer\.threads=5 is out of range: this process may run on 4 CPUs"):
        machine.check(TrainerConfig(threads=5))
    for devices in (5, 99, -1, 0, "0,1"):
        with pytest.raises(UserError, match=rf"trainer\.devices={devices} is out of range: .* from 1 to 4 here"):
            machine.check(TrainerConfig(devices=devices, accelerator=Accelerator.cpu))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_processes_where_torch_finds_no_gpu() -> None:
    with pytest.raises(UserError, match=r"trainer\.devices=9999 is out of range"):
        check_device(TrainerConfig(devices=9999))


def test_gpus_beyond_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepinterest.training.trainer.device_of", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in (2, -1, "0,1", "auto"):
        check_device(TrainerConfig(devices=devices, accelerator=Accelerator.gpu))
    for devices in (3, "0,2"):
        with pytest.raises(UserError, match=rf"trainer\.devices={devices} is out of range: .* 2 GPUs"):
            check_device(TrainerConfig(devices=devices, accelerator=Accelerator.gpu))
