"""A checkpoint, and the settings it was trained with."""

from __future__ import annotations

import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from omegaconf import OmegaConf
from torch import Tensor

from deepinterest.config import SETTINGS_OF_A_MODEL, ExperimentConfig
from deepinterest.errors import UserError
from deepinterest.settings import restored
from deepinterest.training.calibration import Calibration

LOCAL_HEADER = "<4s5H3I2H"  # before each part of a zip: its sign, what the directory has too, and two lengths
PIECE = 1 << 20  # bytes that are read at once
_whole: set[tuple[str, int, int, int]] = set()  # files that this process has checked


@dataclass
class Checkpoint:
    path: Path
    weights: dict[str, Tensor]  # the state_dict of ClickModel
    vocabulary_hash: str | None  # None where the checkpoint doesn't say; so too the settings
    settings: dict[str, Any] | None  # the whole config as plain values
    calibration: Calibration | None

    def config(self) -> ExperimentConfig:
        """The settings, typed and checked; raises UserError where there are none, or they are of another version."""
        if self.settings is None:
            raise UserError(
                f"checkpoint={self.path} doesn't say with which settings it was trained, as one of an earlier version: "
                "train again."
            )
        try:
            return restored(self.settings)
        except UserError as error:
            raise UserError(
                f"checkpoint={self.path} was trained with another version of this program, whose settings don't fit: "
                f"{error}"
            ) from error


def read(path: str | Path) -> Checkpoint:
    """Read on the CPU; raises UserError for what is no checkpoint of this program, or not the one that was written."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint={path} is not a file.")
    try:
        refuse_damage(path)
    except (OSError, zipfile.BadZipFile, struct.error) as error:
        raise UserError(
            f"checkpoint={path} is no checkpoint, or is damaged or cut short ({error}); take another of its run, such "
            "as the other one of best.ckpt and last.ckpt"
        ) from error
    try:
        # Mapped: of the optimiser's state, twice the weights, nothing is read.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        calibration = state.get("calibration")
        return Checkpoint(
            path,
            state["state_dict"],
            state.get("vocabulary_hash"),
            state.get("settings"),
            None if calibration is None else Calibration.of_state(calibration),
        )
    except Exception as error:  # bytes that are no pickle raise nearly anything
        raise UserError(
            f"checkpoint={path} can't be read as a checkpoint of this program ({type(error).__name__})."
        ) from error


def refuse_damage(path: Path) -> None:
    """Compare a checkpoint's parts with the checksums in it, which torch doesn't where it maps the file.

    All of it is read, at several GB a second where it is in the system's cache; by a process once for each file.
    Raises BadZipFile, struct.error or OSError where it isn't whole.
    """
    state = path.stat()
    known = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
    if known in _whole:
        return
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
    _whole.add(known)


def as_trained(settings: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Plain settings with data, protocol, model and quirks as those of their checkpoint.

    What the command line names goes first: a whole group (`model=din`) or one setting of it (`model.hidden=64`). Named
    with `experiment`, and by a checkpoint that doesn't know its settings, all stay as they are.

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
    return {**settings, **{key: plain[key] for key in SETTINGS_OF_A_MODEL}}
