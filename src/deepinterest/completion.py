"""What a shell offers when Tab is pressed: groups, settings, and the values of a setting that has a list of them."""

from __future__ import annotations

from typing import Any

from hydra.errors import HydraException
from hydra.plugins.completion_plugin import CompletionPlugin
from hydra.types import RunMode
from omegaconf import Container, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepinterest.kinds import choices_of, expected_type

INTERNAL = ("schema", "hydra/")  # groups that are no choice of a user's
hydras_own: Any = CompletionPlugin._query


def install() -> None:
    """Let the completion of every shell, all of which ask `CompletionPlugin`, offer what `offered` does."""
    CompletionPlugin._query = offered  # type: ignore[method-assign, assignment]


def offered(plugin: CompletionPlugin, config_name: str | None, line: str) -> list[str]:
    """The words that may stand at the end of a command line; none where the words before it are wrong."""
    *before, word = line.split(" ")
    key, given, begun = word.partition("=")
    try:
        if given and (values := _values(plugin, config_name, before, key.lstrip("+"))):
            return [f"{key}={value}" for value in values if value.startswith(begun)]
        found = hydras_own(plugin, config_name, line)
    except (HydraException, OmegaConfBaseException, ValueError):
        return []
    shown = [each for each in found if word.startswith("hydra/") or not each.startswith(INTERNAL)]
    # A group that has both choices and groups within it comes without its "=".
    return sorted({f"{each}=" if each in ("sweep", "hydra") else each for each in shown} - {"sweep=wandb", "hydra="})


def _values(plugin: CompletionPlugin, config_name: str | None, before: list[str], key: str) -> list[str]:
    """What the setting may be, where that is a list."""
    overrides = [word for word in before if "=" in word]
    config = plugin.config_loader.load_configuration(config_name, overrides, RunMode.MULTIRUN)
    path, _, last = key.rpartition(".")
    parent = OmegaConf.select(config, path) if path else config
    return choices_of(expected_type(parent, last)) if isinstance(parent, Container) else []
