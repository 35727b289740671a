"""Settings of the data that are impossible together, or that would do nothing: refused before anything is read."""

from __future__ import annotations

from dataclasses import fields

from deepinterest.config import (
    AmazonConfig,
    DataConfig,
    Distribution,
    Engine,
    EventFileConfig,
    LastEventConfig,
    MovieLensConfig,
    ProtocolConfig,
    TimestampUnit,
)
from deepinterest.data import columns
from deepinterest.errors import UserError, nearest, some

RESERVED = ("user", "item", "timestamp", "label")  # what columns are called once they are read


def check(config: DataConfig) -> None:
    """Raise UserError for the first setting of the data that is impossible beside the others, or does nothing."""
    _check_zone(config.timezone)
    if isinstance(config, EventFileConfig):
        _check_roles(config)
        columns.separator(config.separator)
        _check_event_file(config)
    elif config.buckets != _default(config, "buckets"):
        raise _unused(f"data.buckets={config.buckets}", f"with data={config.name}, which has no quantities")
    if isinstance(config, AmazonConfig) and config.category is None:
        for key in ("year", "five_core", "folder"):
            if getattr(config, key) != _default(config, key):
                raise _unused(f"data.{key}={getattr(config, key)}", "without data.category: files are named by path")
        if config.metadata is None and config.item_category != _default(config, "item_category"):
            raise _unused(f"data.item_category={config.item_category.name}", "without data.metadata")
    if isinstance(config, MovieLensConfig) and config.path is not None and config.folder is not None:
        raise _unused(f"data.folder={config.folder}", "beside data.path")


def check_protocol(config: ProtocolConfig, auxiliary: Distribution | None = None) -> None:
    """Raise UserError for the first setting of the protocol that would do nothing.

    Args:
        auxiliary: how a network's auxiliary negatives are drawn, which share the window of the target's.
    """
    if isinstance(config, LastEventConfig) and config.targets_per_user != _default(config, "targets_per_user"):
        raise _unused("protocol.targets_per_user", "with protocol=last_event: protocol.train_targets says how many")
    negatives = config.negatives
    matched = Distribution.time_matched in (negatives.distribution, auxiliary)
    if negatives.time_window != _default(negatives, "time_window") and not matched:
        raise _unused(
            f"protocol.negatives.time_window={negatives.time_window}",
            "without protocol.negatives.distribution=time_matched",
        )


def _default(config: object, key: str) -> object:
    (entry,) = (entry for entry in fields(config) if entry.name == key)  # type: ignore[arg-type]
    return entry.default_factory() if callable(entry.default_factory) else entry.default


def _unused(setting: str, why: str) -> UserError:
    return UserError(f"{setting} does nothing {why}. Leave it out.")


def _check_event_file(config: EventFileConfig) -> None:
    if config.category_missing is not None and config.columns.category is None:
        raise _unused(f"data.category_missing={config.category_missing}", "without data.columns.category")
    if config.timestamp_format is not None and config.timestamp_unit is not TimestampUnit.auto:
        raise _unused(
            f"data.timestamp_unit={config.timestamp_unit.name}",
            "beside data.timestamp_format: the one is of numbers, the other of text",
        )
    if config.ray_address is not None and config.engine is not Engine.ray:
        raise _unused(f"data.ray_address={config.ray_address}", "without data.engine=ray")


def _check_roles(config: EventFileConfig) -> None:
    named = config.columns
    taken: dict[str, str] = {}
    reserved = (*RESERVED, *(["category"] if named.category is not None else []))
    features = [(role, name) for role in columns.FEATURE_ROLES for name in getattr(named, role)]
    roles = [*columns.keys(config).items(), *features]
    for role, name in roles:
        if name in taken:
            raise UserError(
                f"data.columns.{role} names {name!r}, which data.columns.{taken[name]} names already: a column has "
                "one part to play, so leave it out of one of them."
            )
        feature = role in columns.FEATURE_ROLES
        if (feature and (name in reserved or name.startswith("__"))) or (name[:1] == "^" and name[-1:] == "$"):
            raise UserError(
                f"data.columns.{role} names {name!r}, a name that means something else here: rename the column."
            )
        taken[name] = role
    for name in named.numeric:
        if name not in columns.features(config):
            raise UserError(
                f"data.columns.numeric names {name!r}, and the features are {some(columns.features(config))}: add it "
                "to user_features, item_features or context_features."
            )


def _check_zone(name: str) -> None:
    if name == "UTC":
        return
    from zoneinfo import ZoneInfo, available_timezones  # they read the machine's tables

    try:
        ZoneInfo(name)
    except (OSError, KeyError, ValueError):
        raise UserError(
            f"data.timezone={name} is no time zone: write it as in Europe/Berlin or UTC"
            f"{nearest(name, sorted(available_timezones()))}."
        ) from None
