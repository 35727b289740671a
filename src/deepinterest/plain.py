"""What comes from a file is plain text: settings and results as YAML, JSON and checkpoints hold them.

Nothing in a file is evaluated: neither `${oc.env:NAME}` and its like, nor a YAML tag. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from deepinterest.errors import UserError

EXPRESSION = "${"  # how Hydra's interpolations begin
MOST, DEEPEST = 20_000, 30  # values in a file of settings, and levels of them
LARGEST = 1 << 20  # bytes of such a file
FLOAT = re.compile(
    r"[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?|\.\d[\d_]*([eE][-+]?\d+)?|\d[\d_]*[eE][-+]?\d+|\.(inf|Inf|INF))$"
    r"|\.(nan|NaN|NAN)$"
)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Reads numbers as settings are read: 1e-3 is one, and a date is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float", ":merge"))]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


def read_yaml(path: Path) -> Any:
    """The values of a run folder's YAML; raises UserError for a file that is missing, too large or something else."""
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, too many for the settings of a run.")
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a run folder needs it.") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read as YAML: {line(error)}.") from error
    for _ in leaves(values, str(path)):
        pass
    return values


def read_json(path: Path, most: int | None = None) -> dict[str, Any]:
    """The names and values of a run folder's JSON, at most so many; raises UserError as `read_yaml` does."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; a run folder needs it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read as JSON: {line(error)}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold a JSON object of names and values.")
    for _ in leaves(values, str(path), most or MOST):
        pass
    return values


def leaves(values: Any, where: str, most: int = MOST) -> Iterator[tuple[str, Any]]:
    """Each text, number, truth value and null below `values`, by its dotted name.

    Raises UserError, which begins with `where`, for anything else, and for more than settings ever are: YAML's aliases
    and a pickle's references make any number of values of a few bytes, or a list within itself.
    """
    left: list[tuple[str, Any, int]] = [("", values, 0)]
    count = 0
    while left:
        name, value, depth = left.pop()
        count += 1
        if count + len(left) > most or depth > DEEPEST:
            raise UserError(f"{where} holds more than {most:,} values or {DEEPEST} levels: it is no file of a run.")
        if type(value) is dict:
            for key in value:
                if type(key) is not str:
                    raise UserError(f"{where} has {str(key)[:40]!r} as a name in {name or 'it'}: names are text.")
            left += [(f"{name}.{key}" if name else key, inner, depth + 1) for key, inner in value.items()]
        elif type(value) is list:
            left += [(f"{name}[{index}]", inner, depth + 1) for index, inner in enumerate(value)]
        elif value is None or type(value) in (str, int, float, bool):
            yield name, value
        else:
            raise UserError(
                f"{where} holds {type(value).__name__} as {name or 'its content'}: a run keeps texts and numbers."
            )


def refuse_expressions(values: Any, where: str) -> None:
    """Raise a UserError for the first name or text below `values` that Hydra would evaluate."""
    for name, value in leaves(values, where):
        if EXPRESSION in name or (type(value) is str and EXPRESSION in value):
            told = name if EXPRESSION in name else f"{name}={value[:200]}"
            raise UserError(
                f"{where} has the setting {told}: an expression, and what comes from a file is read as plain text. "
                "Write the value itself."
            )


def line(error: BaseException) -> str:
    """An error's text without line breaks and full stop."""
    return " ".join(str(error).split()).rstrip(".")
