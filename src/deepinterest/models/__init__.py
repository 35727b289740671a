"""The networks, by their configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from deepinterest import config as configs
from deepinterest import machine
from deepinterest.config import ModelConfig, Quirks
from deepinterest.launch import launched
from deepinterest.models.agru import AGRU
from deepinterest.models.aigru import AIGRU
from deepinterest.models.augru import AUGRU
from deepinterest.models.dien import DIEN
from deepinterest.models.din import DIN
from deepinterest.models.dnn import DNN
from deepinterest.models.gru_attention import GRUAttention
from deepinterest.models.network import AttentionNetwork, Network
from deepinterest.models.pnn import PNN
from deepinterest.models.prediction import Prediction
from deepinterest.models.wide_deep import WideDeep
from deepinterest.nn.embedding import Features

__all__ = [
    "AGRU",
    "AIGRU",
    "AUGRU",
    "DIEN",
    "DIN",
    "DNN",
    "NETWORKS",
    "PNN",
    "AttentionNetwork",
    "GRUAttention",
    "Network",
    "Prediction",
    "WideDeep",
    "build",
]

SMALLER = "make model.embedding_dim or the model's layers smaller, or the vocabularies, by data.min_item_count"
NETWORKS: dict[type[ModelConfig], Any] = {
    configs.DNNConfig: DNN,
    configs.WideDeepConfig: WideDeep,
    configs.PNNConfig: PNN,
    configs.DINConfig: DIN,
    configs.GRUAttentionConfig: GRUAttention,
    configs.AIGRUConfig: AIGRU,
    configs.AGRUConfig: AGRU,
    configs.AUGRUConfig: AUGRU,
    configs.DIENConfig: DIEN,
}


def build(features: Features, config: ModelConfig, quirks: Quirks | None = None) -> Network:
    """The network that belongs to the type of `config`; raises UserError where its weights exceed the memory."""
    machine.check_memory(4 * size(features, config, quirks), "The network's weights", SMALLER)
    return _network(features, config, quirks)


def size(features: Features, config: ModelConfig, quirks: Quirks | None = None) -> float:
    """How many weights the network has, in each machine: split tables have a part in each. Nothing is allocated.

    A lower bound where they are more than torch can count.
    """
    machines = 1
    if features.sharded and (mine := launched()):
        machines = mine.machines
    try:
        with torch.device("meta"):
            network = _network(replace(features, sharded=False), config, quirks)
    except RuntimeError as error:
        if "overflow" not in str(error).lower():
            raise
        return 2.0**63
    return sum(parameter.numel() for parameter in network.parameters()) / machines


def _network(features: Features, config: ModelConfig, quirks: Quirks | None) -> Network:
    network = NETWORKS.get(type(config))
    if network is None:
        names = ", ".join(known.name for known in NETWORKS)
        raise ValueError(f"no network belongs to {type(config).__name__} (name {config.name!r}): choose one of {names}")
    built: Network = network(features, config, quirks)
    return built
