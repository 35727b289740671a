"""What a machine doesn't have is not asked for: memory, and files open at a time."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepinterest import experiment, machine, models
from deepinterest.config import DINConfig, SyntheticConfig
from deepinterest.data.sources import synthetic
from deepinterest.errors import UserError, sentence
from deepinterest.nn.embedding import Features


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.embedding_dim=1000000000",), r"weights and Adam's .* would take [\d,]+ GiB .* may have [\d.]+"),
        (("model.mlp=[1000000000,1000000000]",), r"weights and Adam's .* layers smaller"),
        (("model.hidden=1000000000000",), r"weights and Adam's"),
        (("task=tune", "model.embedding_dim=1000000000"), r"weights and Adam's"),
        (("model.aux_negatives.per_positive=1000000000",), r"batch of train with trainer\.batch_size=256 would take"),
        (("protocol.negatives.per_positive=1000000000",), r"[\d,]+ rows would take .*per_positive"),
    ],
)  # fmt: skip
def test_sizes_beyond_memory(
    settings: Callable[..., Any], cache: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    config, plain = settings("dien", tmp_path, f"paths.cache={cache}", *words)
    with pytest.raises(UserError, match=said):
        experiment.run(config, plain)


def test_batches_beyond_memory(
    settings: Callable[..., Any], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: 4 * 2**20)
    words = ("trainer.batch_size=1000000", "model.mlp=[200,80]", f"paths.cache={cache}")
    config, plain = settings("dnn", tmp_path, *words)
    with pytest.raises(UserError, match=r"trainer\.batch_size=1000000 would take 0\.0 GiB or more"):
        experiment.run(config, plain)


@pytest.mark.parametrize(
    "huge",
    [
        {"users": 10**12}, {"events_per_user": 10**12}, {"items_per_category": 10**12}, {"users": 2**62},
        {"rings": 10**6, "ring_length": 10**5},
    ],
)  # fmt: skip
def test_synthetic_events_beyond_memory(huge: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"These synthetic events would take [\d,]+ GiB"):
        synthetic.generate(SyntheticConfig(**huge))


def test_size_is_that_of_the_network_and_draws_nothing() -> None:
    catalogue = torch.zeros(9, 2, dtype=torch.int32)
    features = Features(catalogue, [9, 4], torch.zeros(5, 1, dtype=torch.int32), [5])
    torch.manual_seed(1)
    network = models.build(features, DINConfig(use_user=True))
    weights = sum(parameter.numel() for parameter in network.parameters())
    state = torch.get_rng_state()
    assert models.size(features, DINConfig(use_user=True)) == weights
    assert torch.equal(torch.get_rng_state(), state)


def test_memory_is_the_least_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = machine.memory()
    assert whole > 2**28
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP", (str(limit), str(tmp_path / "none")))
    for text, memory in (("max", None), (f"{2**28}\n", 2**28), (f"{2**62}", None)):
        limit.write_text(text)
        assert machine.memory() == memory or (memory is None and machine.memory() >= whole)
    limit.write_text(f"{2**28}")
    with pytest.raises(UserError, match=r"^This would take 3\.0 GiB or more, and this process may have 0\.2: smaller$"):
        machine.check_memory(3 * 2**30, "This", "smaller")


def test_what_runs_out_all_the_same() -> None:
    """Files and memory that the system refuses, whatever library asked and however it wrapped that."""
    with pytest.raises(MemoryError) as memory:
        np.empty(2**50)
    assert "There isn't enough memory (Unable to allocate" in str(sentence(memory.value))
    with pytest.raises(RuntimeError) as torchs:
        torch.empty(2**50)
    assert "trainer.batch_size" in str(sentence(torchs.value))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = OSError(errno.EMFILE, "Too many open files")
    wrapped = ImportError("libtorch.so")
    wrapped.__cause__ = files
    for error in (files, wrapped, RuntimeError("x: Too many open files (os error 24)")):
        assert f"may have {limit:,} (ulimit -n). Raise the limit" in str(sentence(error))
    assert sentence(RuntimeError("something else")) is None


def test_numbers_far_beyond_the_data_mean_all_of_them(
    settings: Callable[..., Any], cache: Path, tmp_path: Path
) -> None:
    most = 2**62
    words = (
        *(f"trainer.batch_size={10**13}", f"trainer.eval_batch_size={10**13}", f"protocol.max_history={most}"),
        *("trainer.checkpoint_minutes=1e308", f"trainer.validations_per_epoch={most}", f"trainer.patience={most}"),
        *(f"protocol.targets_per_user.test={most}", "evaluation.ece_bins=10000", f"debug.batches={most}"),
    )
    config, plain = settings("dnn", tmp_path, f"paths.cache={cache}", *words)
    metrics = experiment.run(config, plain)
    assert metrics["steps"] == 1
    assert 0 < metrics["test/auc"] < 1
