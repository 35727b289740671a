"""Where events come from: one module per source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deepinterest.config import DataConfig
from deepinterest.data import checks
from deepinterest.data.events import Events
from deepinterest.data.sources import (
    amazon,
    completejourney,
    event_file,
    globo,
    movielens,
    reference,
    synthetic,
    taobao,
)
from deepinterest.errors import UserError

# By data.name: what reads the events, and what tells one state of the source from another.
SOURCES: dict[str, tuple[Callable[[Any], Events], Callable[[Any], dict[str, Any]]]] = {
    "amazon": (amazon.load, amazon.fingerprint),
    "completejourney": (completejourney.load, lambda config: completejourney.fingerprint()),
    "events": (event_file.load, event_file.fingerprint),
    "globo": (globo.load, globo.fingerprint),
    "movielens": (movielens.load, movielens.fingerprint),
    "reference": (reference.load, reference.fingerprint),
    "synthetic": (synthetic.generate, lambda config: synthetic.fingerprint()),
    "taobao": (taobao.load, taobao.fingerprint),
}


def load(config: DataConfig) -> Events:
    """The events that `config` names; raises UserError where the source or its settings are wrong."""
    return _source(config)[0](config)


def fingerprint(config: DataConfig) -> dict[str, Any]:
    """What tells one state of the source from another, apart from the settings themselves; ready for JSON."""
    return _source(config)[1](config)


def _source(config: DataConfig) -> tuple[Callable[[Any], Events], Callable[[Any], dict[str, Any]]]:
    if config.name not in SOURCES:
        *others, last = sorted(SOURCES)
        raise UserError(f"data.name is {config.name!r}: choose {', '.join(others)} or {last}.")
    checks.check(config)
    return SOURCES[config.name]
