"""The networks, by their configuration."""

from __future__ import annotations

from typing import Any

from deepinterest import config as configs
from deepinterest.config import ModelConfig, Quirks
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
    """The network that belongs to the type of `config`."""
    network = NETWORKS.get(type(config))
    if network is None:
        names = ", ".join(known.name for known in NETWORKS)
        raise ValueError(f"no network belongs to {type(config).__name__} (name {config.name!r}): choose one of {names}")
    return network(features, config, quirks)
