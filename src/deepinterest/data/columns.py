"""The columns of an event file by what they hold, and settings of it that contradict each other."""

from __future__ import annotations

from deepinterest.config import DataConfig, Engine, EventFileConfig, TimestampUnit
from deepinterest.errors import UserError, nearest

FEATURE_ROLES = ("item_features", "user_features", "context_features")
RESERVED = ("user", "item", "timestamp", "label")  # what columns are called once they are read
SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t", ".data": "\t"}  # of text files, by extension
WORDS = {"comma": ",", "tab": "\t", "\\t": "\t", "semicolon": ";", "pipe": "|", "space": " "}


def keys(config: EventFileConfig) -> dict[str, str]:
    """The file's column of each role that has one, but features."""
    columns = config.columns
    roles = {
        "user": columns.user,
        "item": columns.item,
        "timestamp": columns.timestamp,
        "category": columns.category,
        "label": columns.label,
    }
    return {role: column for role, column in roles.items() if column is not None}


def features(config: EventFileConfig) -> dict[str, str]:
    """The role of each column that is a feature."""
    return {name: role for role in FEATURE_ROLES for name in getattr(config.columns, role)}


def separator(given: str | None) -> str | None:
    """The character that data.separator names; raises UserError for anything else."""
    sign = None if given is None else WORDS.get(given, given)
    if sign is not None and (len(sign) != 1 or not sign.isascii() or sign.isalnum() or sign in '"\r\n'):
        raise UserError(
            f"data.separator={given} is not possible: one character that is neither a letter, a digit nor a quote, or "
            "comma, tab, semicolon, pipe or space."
        )
    return sign


def check(config: DataConfig) -> None:
    """Raise UserError for the first setting of the data that is impossible beside the others, or does nothing."""
    _check_zone(config.timezone)
    if isinstance(config, EventFileConfig):
        _check_roles(config)
        separator(config.separator)
        _check_use(config)


def _check_roles(config: EventFileConfig) -> None:
    columns = config.columns
    taken: dict[str, str] = {}
    reserved = (*RESERVED, *(["category"] if columns.category is not None else []))
    roles = [*keys(config).items(), *((role, name) for role in FEATURE_ROLES for name in getattr(columns, role))]
    for role, name in roles:
        if name in taken:
            raise UserError(
                f"data.columns.{role} names {name!r}, which data.columns.{taken[name]} names already: a column has "
                "one part to play, so leave it out of one of them."
            )
        if role in FEATURE_ROLES and (name in reserved or name.startswith("__")):
            raise UserError(
                f"data.columns.{role} names {name!r}, a name that means something else here: rename the column."
            )
        taken[name] = role
    for name in columns.numeric:
        if name not in features(config):
            raise UserError(
                f"data.columns.numeric names {name!r}, and the features are {', '.join(features(config)) or 'none'}: "
                "add it to user_features, item_features or context_features."
            )


def _check_use(config: EventFileConfig) -> None:
    """Refuse what has nothing to act on."""
    if config.category_missing is not None and config.columns.category is None:
        raise UserError(
            f"data.category_missing={config.category_missing} does nothing without a category: name its column by "
            "data.columns.category, or leave it out."
        )
    if config.timestamp_format is not None and config.timestamp_unit is not TimestampUnit.auto:
        raise UserError(
            f"data.timestamp_unit={config.timestamp_unit.name} is of numbers and data.timestamp_format of text: leave "
            "one of them out."
        )
    if config.ray_address is not None and config.engine is not Engine.ray:
        raise UserError(f"data.ray_address={config.ray_address} does nothing without data.engine=ray: set both.")


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
