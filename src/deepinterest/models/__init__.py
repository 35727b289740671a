"""The networks, by the name of their configuration."""

from __future__ import annotations

from deepinterest.config import DIENConfig, DINConfig, DNNConfig, ModelConfig
from deepinterest.models.dien import DIEN
from deepinterest.models.din import DIN
from deepinterest.models.dnn import DNN
from deepinterest.models.network import Network
from deepinterest.models.prediction import Prediction
from deepinterest.nn.embedding import Features

__all__ = ["DIEN", "DIN", "DNN", "Network", "Prediction", "build"]


def build(features: Features, config: ModelConfig) -> Network:
    """The network that `config.name` names."""
    if isinstance(config, DIENConfig):
        return DIEN(features, config)
    if isinstance(config, DINConfig):
        return DIN(features, config)
    if isinstance(config, DNNConfig):
        return DNN(features, config)
    raise ValueError(f"no network is named {config.name!r}: choose dnn, din or dien")
