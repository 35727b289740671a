"""The words of a command line that Hydra would misread, before it reads them. Nothing here imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import Container, DictConfig, OmegaConf

from deepinterest.config import SCHEMAS
from deepinterest.errors import UserError
from deepinterest.kinds import choices_of, expected_type

OPTIONAL = ("experiment", "debug", "sweep")  # groups that need no choice, and may have several


def checked(arguments: list[str]) -> list[str]:
    """The command line without `experiment=null` and its like, which choose nothing.

    Raises UserError where a group is given anything but one of its files.
    """
    parser = OverridesParser.create()
    return [word for word in arguments if not _chooses_nothing(word, parser)]


def _chooses_nothing(word: str, parser: OverridesParser) -> bool:
    try:
        override = parser.parse_override(word)
    except HydraException:  # an option, or a mistake that Hydra tells
        return False
    group = override.key_or_group
    if override.is_delete() and group not in OPTIONAL and not group.startswith("hydra"):
        raise UserError(f"{word} is not possible: a setting can't be removed. Give it another value, {group}=…")
    if not group:
        raise UserError(f"the argument '{word}' names no setting: write key=value")
    if group not in (*SCHEMAS, *OPTIONAL) or override.is_sweep_override() or override.is_delete():
        return False
    value = override.value()
    if group in OPTIONAL and value is None:
        return True
    if group in OPTIONAL and isinstance(value, list):
        return False
    if not isinstance(value, str) or override.is_add():
        raise UserError(
            f"{word} is not possible: write {group}= and the name of one of its choices (--help lists them)"
        )
    return False


def refuse_class_names(config: DictConfig, words: Iterable[str]) -> None:
    """Raise UserError for a choice written as in Python, such as task=Task.train, which OmegaConf takes for `train`."""
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        path, _, last = key.rpartition(".")
        parent = OmegaConf.select(config, path) if path else config
        choices = choices_of(expected_type(parent, last)) if isinstance(parent, Container) else []
        if choices and (wrong := re.search(r"\b[A-Za-z]+\.(\w[\w-]*)", value)):
            raise UserError(f"{word} is not possible: leave the class's name out, as in {key}={wrong[1]}")
