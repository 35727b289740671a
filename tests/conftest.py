"""What several test files share: the settings of a run that takes a second."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from deepinterest.config import ExperimentConfig, register, resolved, typed

CONF = Path(__file__).parents[1] / "conf"
SMALL = (
    "protocol=leave_last_out", "trainer=cpu",
    "trainer.max_epochs=1", "trainer.batch_size=256", "trainer.threads=1", "model.embedding_dim=4", "model.mlp=[8,4]",
    "logger=none",
)  # fmt: skip
SYNTHETIC = ("data=synthetic", "data.users=200", "data.events_per_user=12")
RECURRENT = ("model.attention=[8,4]", "model.hidden=8")
NETWORK = {
    "dnn": (),
    "wide_deep": (),
    "pnn": (),
    "din": ("model.attention=[8,4]",),
    **dict.fromkeys(("gru_attention", "aigru", "agru", "augru"), RECURRENT),
    "dien": (*RECURRENT, "model.aux_net=[8,4]"),
}

Settings = Callable[..., tuple[ExperimentConfig, dict[str, Any]]]


@pytest.fixture(scope="session")
def small() -> Callable[..., list[str]]:
    """Overrides of a small run: `small("din", *more)`."""

    def overrides(model: str, *more: str) -> list[str]:
        source = () if any(override.startswith("data=") for override in more) else SYNTHETIC
        return [*source, *SMALL, f"model={model}", *NETWORK[model], *more]

    return overrides


@pytest.fixture(scope="session")
def settings(small: Callable[..., list[str]]) -> Settings:
    """Checked and plain settings of a small run in `folder`: `settings("din", folder, *more)`."""

    def make(model: str, folder: Path, *more: str) -> tuple[ExperimentConfig, dict[str, Any]]:
        register()
        paths = (f"paths.run={folder / 'run'}", f"paths.output={folder}", f"paths.cache={folder / 'cache'}")
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", small(model, *paths, *more))
        return typed(config), resolved(config)

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums run in one order, whatever the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
