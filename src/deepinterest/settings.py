"""From a command line to checked settings: what Hydra is told, what goes without saying, and what is refused.

Nothing here imports torch, so that a wrong setting fails at once. The settings themselves: `config.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepinterest import completion, folders
from deepinterest.config import SCHEMAS, ExperimentConfig
from deepinterest.errors import UserError, meant, sentence, short
from deepinterest.plain import EXPRESSION, leaves
from deepinterest.ranges import check


def register() -> None:
    """Hand the schemas to Hydra, under `schema/`; the files in `conf/` start from them."""
    store = ConfigStore.instance()
    # It hands out copies, so it needs none itself; Hydra makes one, of all schemas, for every group that --help lists.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    store.store(group="schema", name="experiment", node=ExperimentConfig)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    OmegaConf.register_new_resolver("choices", choices, replace=True)
    completion.install()
    OmegaConf.register_new_resolver("run_folder", folders.of_command, replace=True)


def choices(group: str) -> str:
    """The choices of a config group; `--help` shows them. conf/sweep/wandb.yaml is no choice: see `implied`."""
    hydra = GlobalHydra.instance().hydra
    names = hydra.config_loader.get_group_options(group) if hydra else []
    return ", ".join(name for name in names if (group, name) != ("sweep", "wandb"))


def typed(config: DictConfig) -> ExperimentConfig:
    """The composed settings as checked dataclasses, interpolations resolved."""
    _check_keys(config, "")
    missing = sorted(OmegaConf.missing_keys(config))
    if "data.path" in missing:
        what = "folder or tar of the published layout" if config.data.name == "reference" else "event file"
        raise UserError(f"data.path is missing: name the {what}, data.path=...")
    if missing:
        raise UserError(f"{missing[0]} is missing: give it a value, {missing[0]}=...")
    experiment = OmegaConf.to_object(config)
    if not isinstance(experiment, ExperimentConfig):
        raise UserError("the settings are not an experiment: start them from /schema/experiment@_here_")
    _check_schemas(experiment)
    check(experiment)
    return experiment


def implied(arguments: list[str]) -> list[str]:
    """The command line with what goes without saying.

    The rows that task=predict reads are data=events; `sweep` means -m; a resumed sweep or run writes where it was.
    Raises UserError for sweep=wandb, which is a file for another command, and for --cfg beside -m.
    """
    arguments = [_listed(word) for word in arguments]
    sweeps = [word for word in arguments if word.startswith(("sweep=", "sweep."))]
    if any("wandb" in re.split(r"\W+", word) for word in sweeps if word.startswith("sweep=")):
        raise UserError(
            "sweep=wandb is no choice of this command: `wandb sweep conf/sweep/wandb.yaml` makes that sweep, and "
            "`wandb agent`, with the name it prints, runs it (docs/wandb.md)"
        )
    if sweeps and not {"-m", "--multirun", "--cfg", "-c", "--help", "-h", "--info", "-i"} & set(arguments):
        arguments = ["-m", *arguments]
    shown, many = {"--cfg", "-c", "--info", "-i"} & set(arguments), {"-m", "--multirun"} & set(arguments)
    if shown and many:
        raise UserError(
            f"{shown.pop()} shows the settings of one run and can't be given with {many.pop()}: leave one of them out"
        )
    for word in [word for word in sweeps if word.startswith("sweep.resume=")]:  # beside it: Hydra wants them in a row
        arguments.insert(arguments.index(word), f"hydra.sweep.dir={word.partition('=')[2]}")
    runs = [word.partition("=")[2] for word in arguments if word.startswith("resume=")]
    if runs and "-m" not in arguments and "--multirun" not in arguments and Path(runs[-1].strip("'\"")).is_dir():
        arguments.append(f"hydra.run.dir={runs[-1]}")
    if "task=predict" in arguments and not any(word.startswith(("data=", "experiment=")) for word in arguments):
        place = arguments.index("task=predict") + 1  # beside it: Hydra wants all settings in a row
        return [*arguments[:place], "data=events", *arguments[place:]]
    return arguments


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Plain settings that an earlier version kept, with what it did before later settings gave a choice."""
    result, protocol, data = dict(settings), settings.get("protocol"), settings.get("data")
    if isinstance(protocol, dict):
        result["protocol"] = {"ties": "strict" if protocol.get("name") == "labelled" else "order", **protocol}
    if isinstance(data, dict) and data.get("name") == "events":
        result["data"] = {"repeats": "keep", **data}
    return result


def _listed(word: str) -> str:
    """`data.behaviours=pv` as `data.behaviours=[pv]`: one value where a setting is a list."""
    key, equals, value = word.partition("=")
    plain = re.fullmatch(r"[\w.:/-]+", value) and value != "null"
    return f"{key}=[{value}]" if equals and plain and key.lstrip("+") in _lists() else word


@cache
def _lists() -> set[str]:
    """The settings that are lists, whatever is chosen in each group."""
    chosen = [(f"{group}.", schema) for group, schemas in SCHEMAS.items() for schema in schemas.values()]
    return {key for prefix, schema in [("", ExperimentConfig), *chosen] for key in _lists_of(schema, prefix)}


def _lists_of(schema: type, prefix: str) -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        if any(get_origin(part) is list for part in (kind, *get_args(kind))):
            yield f"{prefix}{name}"
        elif is_dataclass(kind) and isinstance(kind, type):
            yield from _lists_of(kind, f"{prefix}{name}.")


def restored(settings: dict[str, Any]) -> ExperimentConfig:
    """Checked dataclasses of what `resolved` gave: the settings that a checkpoint keeps. Raises UserError."""
    base = OmegaConf.structured(ExperimentConfig)
    try:
        for group, schemas in SCHEMAS.items():
            name = settings[group]["name"] if len(schemas) > 1 else group
            OmegaConf.update(base, group, OmegaConf.structured(schemas[name]))
        merged = OmegaConf.merge(base, settings)
        assert isinstance(merged, DictConfig)
        return typed(merged)
    except KeyError as error:
        raise UserError(f"{error} is missing or unknown") from error
    except (TypeError, ValueError, OverflowError, OmegaConfBaseException) as error:
        raise UserError(sentence(error) or f"a setting is of the wrong kind ({error})") from error


def resolved(config: DictConfig) -> dict[str, Any]:
    """The composed settings as plain values: what a logger and a checkpoint keep."""
    values = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(values, dict)
    plain = {str(key): value for key, value in values.items() if key != "sweep"}
    for name, value in leaves(plain, "the command line"):
        if EXPRESSION in str(value):  # a checkpoint with it would be refused
            raise UserError(f"{name}={value} holds {EXPRESSION}, which is kept for expressions: use another name")
    return plain


def _check_schemas(config: ExperimentConfig) -> None:
    """Refuse a group's own file that starts from no schema, or from another group's, and a name that isn't its own."""
    for group, schemas in SCHEMAS.items():
        chosen = getattr(config, group)
        names = [name for name, schema in schemas.items() if schema is type(chosen)]
        if not names:
            raise UserError(
                f"{group} has no schema of its own: its file in conf/{group} must start with `defaults: "
                f"[/schema/{group}/NAME@_here_, _self_]`, where NAME is one of {', '.join(schemas)} (docs/models.md)"
            )
        if len(schemas) > 1 and chosen.name not in names:
            raise UserError(
                f"{group}.name={short(chosen.name)} is not possible: it names the schema, which is {names[0]}; choose "
                f"another by {group}=..."
            )


def _check_keys(config: DictConfig, path: str) -> None:
    """Refuse keys no schema knows: `+key=value` gets past Hydra's own check."""
    schema = OmegaConf.get_type(config)
    known = [entry.name for entry in fields(schema)] if schema is not None and is_dataclass(schema) else None
    for key in map(str, config):
        if known is not None and key not in known:
            guess = meant(f"{path}{key}", known, config._get_root())
            raise UserError(f"there is no setting {path}{short(key)}: known are {', '.join(known)}{guess}")
        node = None if OmegaConf.is_missing(config, key) else config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none() and not node._is_interpolation():
            _check_keys(node, f"{path}{key}.")
