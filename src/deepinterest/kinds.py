"""The type that a setting has, and what that is in a user's words."""

from __future__ import annotations

from dataclasses import is_dataclass
from enum import Enum
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import Container, ListConfig


def expected_type(parent: Container | None, key: Any) -> Any:
    """The type that a schema wants at `key`; None where there is no schema."""
    if isinstance(parent, ListConfig):
        return parent._metadata.element_type
    if parent is None or not is_dataclass(parent._metadata.object_type):
        return None
    return types_of(parent._metadata.object_type).get(str(key))


def types_of(schema: Any) -> dict[str, Any]:
    """The type of each setting of a schema."""
    return get_type_hints(schema)


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a setting's type."""
    if kind is Any:
        return True
    if (origin := get_origin(kind)) in (list, dict):
        entries = value if origin is list or not isinstance(value, dict) else value.values()
        return isinstance(value, origin) and all(fits(entry, get_args(kind)[-1]) for entry in entries)
    if parts := get_args(kind):
        return any(fits(value, part) for part in parts)
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def choices_of(kind: Any) -> list[str]:
    """The values of a type that has few, as a user writes them; of a list's type those of an entry."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return list(kind.__members__)
    if kind in (bool, type(None)):
        return ["true", "false"] if kind is bool else ["null"]
    of_parts = [choices_of(part) for part in get_args(kind)]
    return [choice for choices in of_parts for choice in choices] if all(of_parts) else []


def describe(kind: Any) -> str:
    """A type in a user's words."""
    if getattr(kind, "__origin__", None) is list:
        return f"a list, each {describe(get_args(kind)[0])}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(kind.__members__)}"
    if is_dataclass(kind):
        return "settings of its own, not a value"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if parts := get_args(kind):
        return " or ".join(describe(part) for part in parts)
    return words.get(kind, getattr(kind, "__name__", str(kind)))
