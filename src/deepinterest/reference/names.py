"""The published variables and the parameters that hold them: one description, used in three directions.

A published variable is a few parameters, or some columns of them, one below the other (`Part`). `views` gives these as
views into tensors of the network's shapes: concatenated they are the variable, written to they take it, and on
gradients they are its gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepinterest import models
from deepinterest.config import SCHEMAS, ModelConfig, Quirks
from deepinterest.errors import UserError, nearest
from deepinterest.models.network import Network
from deepinterest.nn.embedding import Features

PUBLISHED = {
    "DNN": "dnn",
    "Wide": "wide_deep",
    "PNN": "pnn",
    "DIN": "din",
    "DIN-V2-gru-gru-att": "gru_attention",
    "DIN-V2-gru-att-gru": "aigru",
    "DIN-V2-gru-qa-attGru": "agru",
    "DIN-V2-gru-vec-attGru": "augru",
    "DIEN": "dien",
}
ALL_QUIRKS = Quirks(**dict.fromkeys(Quirks.__dataclass_fields__, True))  # the published code, whole


@dataclass(frozen=True)
class Part:
    """Columns `first` to `last`, in thirds of them all, of a parameter; `transposed` where it is (out, in)."""

    parameter: str
    transposed: bool = False
    first: int = 0
    last: int = 3

    def of(self, tensor: Tensor) -> Tensor:
        """This part of `tensor`, as a view of the published shape."""
        third = tensor.shape[-1] // 3
        columns = tensor if self.last - self.first == 3 else tensor[..., self.first * third : self.last * third]
        return columns.t() if self.transposed else columns


Variables = dict[str, list[Part]]


def ours(model: str) -> str:
    """Our name of a model, given ours or the published one; raises UserError for any other."""
    lower = {name.lower(): own for published, own in PUBLISHED.items() for name in (published, own)}
    if model.lower() not in lower:
        raise UserError(
            f"there is no model {model}: one of {', '.join(PUBLISHED)}, or {', '.join(PUBLISHED.values())}"
            f"{nearest(model, [*PUBLISHED, *PUBLISHED.values()])}"
        )
    return lower[model.lower()]


def of_file(path: Path) -> str:
    """Our name of the model that a file is named after; raises UserError where it is named otherwise."""
    try:
        return ours(path.stem if path.suffix in (".npz", ".index") else path.name)
    except UserError as error:
        raise UserError(f"{path} isn't named after a model: say which it holds, --model dien.") from error


def _dense(name: str, layer: str) -> Variables:
    return {
        f"{name}/kernel": [Part(f"{layer}.weight", transposed=True)],
        f"{name}/bias": [Part(f"{layer}.bias")],
    }


def _norm(name: str, layer: str) -> Variables:
    return {f"{name}/gamma": [Part(f"{layer}.weight")], f"{name}/beta": [Part(f"{layer}.bias")]}


def _gru(name: str, cell: str) -> Variables:
    """The published kernels act on [x; h]; gates are the first two thirds of our columns, the candidate the last."""
    return {
        f"{name}/gates/kernel": [Part(f"{cell}.input", last=2), Part(f"{cell}.gates")],
        f"{name}/gates/bias": [Part(f"{cell}.bias", last=2)],
        f"{name}/candidate/kernel": [Part(f"{cell}.input", first=2), Part(f"{cell}.candidate")],
        f"{name}/candidate/bias": [Part(f"{cell}.bias", first=2)],
    }


def _head(activations: tuple[str, str], weight: str) -> Variables:
    return {
        **_norm("bn1", "head.layers.0"),
        **_dense("f1", "head.layers.1"),
        activations[0]: [Part(f"head.layers.2.{weight}")],
        **_dense("f2", "head.layers.3"),
        activations[1]: [Part(f"head.layers.4.{weight}")],
        **_dense("f3", "head.output"),
    }


def _attention(suffix: str) -> Variables:
    layers = ("attention.first", "attention.rest.1", "attention.rest.3")
    return {
        name: parts for i, layer in enumerate(layers) for name, parts in _dense(f"f{i + 1}_{suffix}", layer).items()
    }


def variables(model: str) -> Variables:
    """Every trainable variable of the published graph of `model` (our name), and the parameters it is made of."""
    result: Variables = {
        "uid_embedding_var": [Part("users.tables.0.weight")],
        "mid_embedding_var": [Part("items.tables.0.weight")],
        "cat_embedding_var": [Part("items.tables.1.weight")],
    }
    if model in ("dnn", "pnn"):
        return result | _head(("prelu1/prelu_prelu1", "prelu2/prelu_prelu2"), "weight")
    if model == "wide_deep":
        return result | _head(("p1/prelu_p1", "p2/prelu_p2"), "weight") | _dense("f_fm", "wide")
    result |= _head(("dice_1/alphadice_1", "dice_2/alphadice_2"), "alpha")
    if model == "din":
        return result | _attention("attnull")
    plain_second = model in ("gru_attention", "aigru")  # the others' cells have no scope of their own
    result |= _gru("gru1/gru_cell", "extraction") | _gru("gru2/gru_cell" if plain_second else "gru2", "evolution")
    result |= _dense("f11_1", "attention.project.0") | {"prelu_": [Part("attention.project.1.weight")]}
    result |= _attention("att1_1")
    if model == "dien":
        result |= _norm("bn1gru", "auxiliary.norm") | _dense("f1gru", "auxiliary.first")
        result |= _dense("f2gru", "auxiliary.rest.1") | _dense("f3gru", "auxiliary.rest.3")
    return result


def views(parts: list[Part], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """The parts of a variable, top to bottom, as views into `tensors` by parameter name."""
    return [part.of(tensors[part.parameter]) for part in parts]


def exported(model: str, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The published variables of `model` (our name) out of parameters, or gradients, of the network's shapes."""
    return {name: torch.cat(views(parts, tensors)).cpu().numpy() for name, parts in variables(model).items()}


@torch.no_grad()
def load(network: Network, model: str, arrays: Mapping[str, np.ndarray], where: str) -> None:
    """Write the published variables into `network`; raises UserError for a missing, unknown or misshapen one.

    Args:
        where: the file they came from, for the sentences.
    """
    known = variables(model)
    if missing := [name for name in known if name not in arrays]:
        raise UserError(f"{where} has no {missing[0]}, which {model} needs ({len(missing)} of {len(known)} missing).")
    if unknown := [name for name in arrays if name not in known]:
        raise UserError(
            f"{where} has a variable {unknown[0]}, which {model} has not{nearest(unknown[0], known)} "
            "Name the file's own model by --model."
        )
    tensors = dict(network.named_parameters())
    for name, parts in known.items():
        places = views(parts, tensors)
        expected = (sum(len(place) for place in places), *places[0].shape[1:])
        array = arrays[name]
        if array.shape != expected:
            raise UserError(f"{name} in {where} has the shape {array.shape}; {model} expects {expected} here.")
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{name} in {where} holds something other than finite floating-point numbers.")
        rows = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).split([len(place) for place in places])
        for place, values in zip(places, rows, strict=True):
            place.copy_(values)


def _shape(arrays: Mapping[str, np.ndarray], name: str, model: str, where: str) -> tuple[int, ...]:
    if name not in arrays:
        raise UserError(f"{where} has no {name}, which {model} needs.")
    shape = arrays[name].shape
    if 0 in shape or not shape:
        raise UserError(f"{name} in {where} has the shape {shape}: it holds no weights.")
    return shape


def widths(model: str, arrays: Mapping[str, np.ndarray], where: str) -> ModelConfig:
    """The configuration whose widths are those of the published variables."""

    def width(name: str) -> int:
        return _shape(arrays, name, model, where)[-1]

    def layers(*names: str) -> list[int]:
        return [width(f"{name}/bias") for name in names]

    settings: dict[str, Any] = {"embedding_dim": width("mid_embedding_var"), "mlp": layers("f1", "f2")}
    if model == "din":
        settings["attention"] = layers("f1_attnull", "f2_attnull")
    elif "evolution.bias" in {part.parameter for parts in variables(model).values() for part in parts}:
        settings["attention"] = layers("f1_att1_1", "f2_att1_1")
        settings["hidden"] = width("gru1/gru_cell/candidate/bias")
    if model == "dien":
        settings["aux_net"] = layers("f1gru", "f2gru")
    schema: Callable[..., ModelConfig] = SCHEMAS["model"][model]
    return schema(**settings)


def network(
    model: str, arrays: Mapping[str, np.ndarray], where: str, catalogue: Tensor | None = None
) -> tuple[Network, ModelConfig]:
    """The network of the published variables, all quirks on, and its configuration.

    Args:
        catalogue: (I, 2) item and category of each row; without one the network can hold weights but not score.
    """
    config = widths(model, arrays, where)
    tables = ("mid_embedding_var", "cat_embedding_var", "uid_embedding_var")
    items, categories, users = (_shape(arrays, name, model, where)[0] for name in tables)
    features = Features(
        catalogue=torch.zeros(1, 2, dtype=torch.int64) if catalogue is None else catalogue,
        sizes=[items, categories],
        user_catalogue=torch.arange(users)[:, None],
        user_sizes=[users],
    )
    result = models.build(features, config, ALL_QUIRKS)
    load(result, model, arrays, where)
    return result, config
