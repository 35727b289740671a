"""The columns of an event file by what they hold."""

from __future__ import annotations

from deepinterest.config import EventFileConfig
from deepinterest.errors import UserError

FEATURE_ROLES = ("item_features", "user_features", "context_features")
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
