"""A checkpoint, and the settings it was trained with. Nothing in the file is run, and all of it is checked."""

from __future__ import annotations

import os
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from omegaconf import OmegaConf
from torch import Tensor, nn

from deepinterest.config import HOST, SCHEMAS, SETTINGS_OF_A_MODEL, ExperimentConfig
from deepinterest.errors import UserError, nearest
from deepinterest.plain import refuse_expressions
from deepinterest.settings import completed, restored
from deepinterest.training.calibration import Calibration

LOCAL_HEADER = "<4s5H3I2H"  # before each part of a zip: its sign, what the directory has too, and two lengths
PIECE = 1 << 20  # bytes that are read at once
_whole: set[tuple[str, int, int, int]] = set()  # files that this process has checked


@dataclass
class Checkpoint:
    path: Path
    weights: dict[str, Tensor]  # the state_dict of ClickModel: finite numbers, each of them in the file
    vocabulary_hash: str | None  # None where the checkpoint doesn't say; so too the settings
    settings: dict[str, Any] | None  # the whole config as plain values, less those of `config.HOST`
    calibration: Calibration | None
    model: str | None = None  # its name

    def config(self) -> ExperimentConfig:
        """The settings, typed and checked; those of `config.HOST` have their defaults.

        Raises UserError where there are none, where they are of another version, and for a model unknown here.
        """
        if self.settings is None:
            raise UserError(
                f"checkpoint={self.path} doesn't say with which settings it was trained, as one of an earlier version: "
                "train again."
            )
        try:
            return restored({**self.settings, "paths": {"run": str(self.path.parent)}})
        except UserError as error:
            raise UserError(
                f"checkpoint={self.path} was trained with another version of this program, whose settings don't fit: "
                f"{error}"
            ) from error


def read(path: str | Path) -> Checkpoint:
    """Read on the CPU: a file, or a run's folder, whose best.ckpt is taken.

    Raises UserError for what is no checkpoint of this program, or not the one that was written, for weights that are no
    numbers, for settings that would be evaluated, and for a model that isn't known here.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "best.ckpt").is_file():
            raise UserError(f"checkpoint={path} is a folder without a best.ckpt: name a run's folder, or a checkpoint.")
        path = path / "best.ckpt"
    if not path.is_file():
        raise UserError(f"checkpoint={path} is not a file.")
    new = _new(path)
    try:
        if new:
            refuse_damage(path)
    except (OSError, zipfile.BadZipFile, struct.error, NotImplementedError) as error:
        raise UserError(
            f"checkpoint={path} is no checkpoint, or is damaged or cut short ({error}); take another of its run, such "
            "as the other one of best.ckpt and last.ckpt"
        ) from error
    found = _parts(path)
    _refuse_weights(found)
    if new:
        _refuse_numbers(path, found.weights)
        _whole.add(_known(path))
    _refuse_settings(found)
    return found


def _parts(path: Path) -> Checkpoint:
    """What the file holds, its types checked."""
    try:
        # Mapped: of the optimiser's state, twice the weights, nothing is read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # bytes that are no pickle raise nearly anything
        raise UserError(
            f"checkpoint={path} can't be read as a checkpoint of this program ({_reason(error)})."
        ) from error
    kinds: dict[str, Any] = {
        "state_dict": dict,
        "vocabulary_hash": str,
        "settings": dict,
        "calibration": dict,
        "model": str,
    }
    parts: dict[str, Any] = {name: state.get(name) for name in kinds} if isinstance(state, dict) else {}
    for name, kind in kinds.items():
        value = parts.get(name)
        if not isinstance(value, kind) and (value is not None or name == "state_dict"):
            what = "nothing" if value is None else type(value).__name__
            raise UserError(
                f"checkpoint={path} can't be read as a checkpoint of this program (it holds {what} as {name})."
            )
    try:
        calibration = parts["calibration"] and Calibration.of_state(parts["calibration"])
    except ValueError as error:
        raise UserError(f"checkpoint={path} can't be read as a checkpoint of this program ({error}).") from error
    return Checkpoint(
        path, parts["state_dict"], parts["vocabulary_hash"], parts["settings"], calibration, parts["model"]
    )


def _reason(error: Exception) -> str:
    """Why torch didn't read it; a pickle that asks for a function is told with its name."""
    wanted = re.search(r"GLOBAL (\w[\w.]*\w)", str(error))
    if wanted:
        return f"it wants to run {wanted[1]}, which no checkpoint does: don't load this file elsewhere either"
    return type(error).__name__


# -------------------------------------------------------------------------------------------------------------- refused


def _known(path: Path) -> tuple[str, int, int, int]:
    state = path.stat()
    return str(path), state.st_ino, state.st_size, state.st_mtime_ns


def _new(path: Path) -> bool:
    """Whether this process hasn't checked the file yet: all of it is read, at several GB a second from the cache."""
    return _known(path) not in _whole


def refuse_damage(path: Path) -> None:
    """Compare a checkpoint's parts with the checksums in it, which torch doesn't where it maps the file.

    Raises BadZipFile, struct.error or OSError where it isn't whole.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for part in archive.infolist():
            file.seek(part.header_offset)
            sign, *_, name, further = struct.unpack(LOCAL_HEADER, file.read(struct.calcsize(LOCAL_HEADER)))
            file.seek(name + further, os.SEEK_CUR)
            check, left = 0, part.file_size
            while left and (piece := file.read(min(left, PIECE))):
                check, left = isal_zlib.crc32(piece, check), left - len(piece)
            if sign != b"PK\3\4" or left or check != part.CRC:
                raise zipfile.BadZipFile(f"{part.filename} isn't what was written")


def _refuse_weights(found: Checkpoint) -> None:
    """Raise a UserError for weights that are none, or that claim more numbers than the file has bytes for."""
    total = 0
    for name, weight in found.weights.items():
        if not (isinstance(name, str) and isinstance(weight, Tensor) and weight.layout is torch.strided):
            raise UserError(f"checkpoint={found.path} holds {type(weight).__name__} as the weight {str(name)[:100]}.")
        if weight.device.type != "cpu" or weight.is_quantized or weight.is_complex():
            raise UserError(f"checkpoint={found.path} holds {weight.dtype} on {weight.device} as the weight {name}.")
        total += weight.numel() * weight.element_size()
    if total > found.path.stat().st_size:
        raise UserError(
            f"checkpoint={found.path} claims {total:,} bytes of weights and has {found.path.stat().st_size:,} in all."
        )


def _refuse_numbers(path: Path, weights: dict[str, Tensor]) -> None:
    """Raise a UserError for the first weight that isn't finite."""
    for name, weight in weights.items():
        if weight.is_floating_point() and weight.numel():
            low, high = torch.aminmax(
                weight if weight.element_size() > 1 else weight.float()
            )  # in one pass, and without a copy; nan if any is
            if not (torch.isfinite(low) and torch.isfinite(high)):
                wrong = int((~torch.isfinite(weight)).sum())
                raise UserError(
                    f"checkpoint={path}: {wrong:,} of the {weight.numel():,} numbers of {name} aren't finite, so every "
                    "score would be wrong: training has diverged. Take another checkpoint, or train with a lower "
                    "optimizer.lr."
                )


def _refuse_settings(found: Checkpoint) -> None:
    """Take out what only the user may say; raise a UserError for settings that aren't plain, whole, or known here."""
    settings = found.settings
    if settings is None:
        return
    refuse_expressions(settings, f"checkpoint={found.path}")
    for group in ("data", "protocol", "model"):
        name = settings[group].get("name") if isinstance(settings.get(group), dict) else None
        if not isinstance(name, str):
            raise UserError(
                f"checkpoint={found.path} was trained with another version of this program, or isn't of it: its "
                f"settings say nothing of {group}.name."
            )
        if name not in SCHEMAS[group] and group == "model":
            raise UserError(
                f"checkpoint={found.path} is of the model {name!r}, which is not known here: import the module that "
                f"registers it. Known are {', '.join(SCHEMAS[group])}{nearest(name, SCHEMAS[group])}"
            )
    found.settings = {
        group: {key: value for key, value in values.items() if f"{group}.{key}" not in HOST}
        if isinstance(values, dict)
        else values
        for group, values in completed(settings).items()
        if group not in HOST
    }


def refuse_misfit(found: Checkpoint, build: Callable[[], nn.Module], part: str = "", remedy: str = "") -> None:
    """Raise a UserError where the weights don't fit the module that `build` makes; no room is made for it.

    Args:
        part: what the names of the module's weights begin with in the checkpoint.
        remedy: what to do, a sentence.
    """
    with torch.device("meta"):
        expected = {part + name: weight.shape for name, weight in build().state_dict().items()}
    given = {name: weight.shape for name, weight in found.weights.items() if name.startswith(part)}
    for name in (*expected, *given):
        here, there = expected.get(name), given.get(name)
        if here != there:
            shapes = ["is missing" if shape is None else f"is {' x '.join(map(str, shape)) or 'one number'}"
                      for shape in (there, here)]  # fmt: skip
            raise UserError(
                f"checkpoint={found.path} holds another model than the settings describe: {name} {shapes[0]} in the "
                f"file, and by the settings it {shapes[1]}. {remedy}".rstrip()
            )


def as_trained(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Plain settings with data, protocol, model, quirks and seed as those of their checkpoint.

    What the command line names takes precedence: a whole group (`model=din`) or one setting of it (`model.hidden=64`).
    Named with `experiment`, and by a checkpoint that doesn't know its settings, all stay as they are.

    Args:
        settings: the composed config.
        overrides: the command line's, such as "model.hidden=64".
    """
    trained = read(settings["checkpoint"]).settings
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    if trained is None or "experiment" in keys:
        return settings
    composed, merged = OmegaConf.create(settings), OmegaConf.create(trained)
    if "reference" in keys:
        keys.append("quirks")
    for key in keys:
        if key.partition(".")[0] in SETTINGS_OF_A_MODEL:
            OmegaConf.update(merged, key, OmegaConf.select(composed, key), merge=False)
    plain = OmegaConf.to_container(merged)
    assert isinstance(plain, dict)
    taken = [*SETTINGS_OF_A_MODEL, *(() if "seed" in keys else ("seed",))]
    return {**settings, **{key: plain[key] for key in taken if key in plain}}
