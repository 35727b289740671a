"""Published weights to a checkpoint of this program, and back."""

from __future__ import annotations

import importlib
import os
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from deepinterest.errors import UserError
from deepinterest.plain import read_yaml, refuse_expressions
from deepinterest.reference import names
from deepinterest.serving import checkpoint as checkpoints

# What a TensorFlow checkpoint holds besides the trainables.
NOT_TRAINED = {"Adam", "Adam_1", "beta1_power", "beta2_power", "global_step", "moving_mean", "moving_variance"}
# Settings that the published graph has one value of, and that weights don't show.
PUBLISHED_SETTINGS = {"reset_gate": "before", "attention_update": "code"}


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; raises UserError where it is none."""
    if not path.is_file():
        raise UserError(f"{path} is not a file.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} can't be read as a NumPy .npz file ({type(error).__name__}).") from error


def read(path: Path) -> dict[str, np.ndarray]:
    """Published variables by name: of an .npz file, a golden file, or a TensorFlow checkpoint named by its prefix."""
    prefix = str(path).removesuffix(".index")
    arrays = _read_tensorflow(prefix) if Path(f"{prefix}.index").is_file() else read_npz(path)
    if any(key.startswith("init/") for key in arrays):
        arrays = {key.removeprefix("init/"): array for key, array in arrays.items() if key.startswith("init/")}
    arrays = {key.removesuffix(":0"): array for key, array in arrays.items()}
    for name, array in arrays.items():
        still = {"moving_mean": 0, "moving_variance": 1}.get(name.rpartition("/")[2])
        if still is not None and (array != still).any():
            raise UserError(
                f"{name} in {path} isn't {still} throughout: this graph trained its batch norm, which the published "
                "one doesn't do, so its scores can't be reproduced."
            )
    return {name: array for name, array in arrays.items() if name.rpartition("/")[2] not in NOT_TRAINED}


def _read_tensorflow(prefix: str) -> dict[str, np.ndarray]:
    try:
        tensorflow = importlib.import_module("tensorflow")
    except ImportError as error:
        raise UserError(
            f"{prefix} is a TensorFlow checkpoint, and TensorFlow isn't installed here: pip install tensorflow, or "
            "save its variables by name with numpy.savez elsewhere."
        ) from error
    try:
        reader = tensorflow.train.load_checkpoint(prefix)
        # Adam's slots are two thirds of the file: read what is used and no more.
        wanted = [n for n in reader.get_variable_to_shape_map() if not n.endswith(("/Adam", "/Adam_1"))]
        return {name: np.asarray(reader.get_tensor(name)) for name in wanted}
    except Exception as error:  # TensorFlow's own kinds, which can't be named without it
        raise UserError(f"{prefix} can't be read as a TensorFlow checkpoint: {str(error).splitlines()[0]}") from error


def import_weights(source: Path, model: str, out: Path) -> None:
    """Write the checkpoint `out`, which `task=test` loads, from the published variables in `source`.

    Args:
        model: our name or the published one.
    Raises: UserError for a missing, unknown or misshapen variable, and for files that can't be read or written.
    """
    model = names.ours(model)
    network, _ = names.network(model, read(source), str(source))
    checkpoint = {
        "state_dict": {f"network.{name}": value for name, value in network.state_dict().items()},
        "vocabulary_hash": None,  # not known: the graph's ids are those of its own vocabulary files
        "model": model,
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
    }
    _write(out, lambda file: torch.save(checkpoint, file))


def export_weights(checkpoint: Path, out: Path, model: str | None = None) -> None:
    """Write the weights of a checkpoint of this program as an .npz file, by their published names.

    Args:
        model: our name or the published one; without it the checkpoint's, or that of the `config.yaml` beside it.
    Raises: UserError where the published graph has no place for a weight, and as `import_weights` does.
    """
    found = checkpoints.read(checkpoint)
    weights = {name.removeprefix("network."): weight for name, weight in found.weights.items()}
    settings = _settings(checkpoint)
    model = model or found.model or settings.get("name")
    if model is None:
        raise UserError(f"{checkpoint} doesn't say which model it holds: name it, --model dien.")
    model = names.ours(model)
    for name, published in PUBLISHED_SETTINGS.items():
        if settings.get(name, published) != published:
            raise UserError(
                f"{checkpoint} was trained with model.{name}={settings[name]}; the published graph computes "
                f"{published}, so these weights would score otherwise there."
            )
    _check_published(weights, model, checkpoint)
    arrays: dict[str, Any] = names.exported(model, weights)
    _write(out, lambda file: np.savez(file, **arrays))


def _settings(checkpoint: Path) -> dict[str, Any]:
    """The model's settings in the run folder that holds the checkpoint; empty where there are none."""
    path = checkpoint.parent / "config.yaml"
    if not path.is_file():
        return {}
    settings = read_yaml(path)
    refuse_expressions(settings, str(path))
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict):
        raise UserError(f"{path}, the settings of the checkpoint beside it, say nothing of the model.")
    return model


def _check_published(weights: dict[str, Tensor], model: str, checkpoint: Path) -> None:
    """Refuse weights that the published graph of `model` can't hold, or would read in another way."""
    needed = {part.parameter for parts in names.variables(model).values() for part in parts}
    for name in sorted(needed - weights.keys()):
        remedy = "train with quirks.user_embedding=true" if name.startswith("users.") else "name another --model"
        raise UserError(f"{checkpoint} has no {name}, which the published {model} needs: {remedy}.")
    for name in sorted(weights.keys() - needed):
        last = name.rpartition(".")[2]
        still = {"running_mean": 0, "running_var": 1}.get(last)
        if still is None and last != "num_batches_tracked":
            raise UserError(f"{checkpoint} has {name}, which the published {model} has no variable for.")
        if still is not None and (weights[name] != still).any():
            raise UserError(
                f"{checkpoint} holds running statistics, {name}, which the published graph has not: train with "
                "quirks.frozen_norm=true quirks.batch_dice=true."
            )


def _write(path: Path, save: Callable[[BinaryIO], None]) -> None:
    """Write a file beside its place, then rename it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            save(file)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise UserError(f"{path} can't be written: {error.strerror or error}.") from error
