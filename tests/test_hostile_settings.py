"""Every setting takes every kind of nonsense: it is refused in a sentence that names it, or is a value to work with."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from deepinterest.command_line import checked, refuse_class_names
from deepinterest.config import SCHEMAS, ExperimentConfig
from deepinterest.errors import sentence
from deepinterest.kinds import choices_of, describe, expected_type
from deepinterest.settings import implied, register, resolved, typed

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def composed(*words: str) -> DictConfig:
    """Settings as `run.py` composes them."""
    words = tuple(implied(checked(list(words))))
    config = compose("config", ["paths.run=somewhere", *words])
    refuse_class_names(config, words)
    return config


def said(*words: str) -> str:
    """What the user is told of a command line that isn't possible."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any; it must have a sentence
        typed(composed(*words))
    told = sentence(caught.value)
    assert told, repr(caught.value)
    assert len(told) <= 600
    return told


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("task=Task.train", ["task=Task.train", "as in task=train"]),
        ("data.ties=Ties.file", ["data.ties=Ties.file", "as in data.ties=file"]),
        ("data=null", ["data=null", "one of its choices"]),
        ("protocol=null", ["protocol=null", "one of its choices"]),
        ("model=null", ["model=null", "one of its choices"]),
        ("trainer=null", ["trainer=null", "one of its choices"]),
        ("logger=null", ["logger=null", "one of its choices"]),
        ("data={a:1}", ["data={a:1}", "one of its choices"]),
        ("data=[synthetic,globo]", ["data=[synthetic,globo]", "one of its choices"]),
        ("data=${oc.env:HOME}", ["no choice of data: one of amazon"]),
        ("+experiment=reference", ["write experiment="]),
        ("experiment=3", ["experiment=3", "one of its choices"]),
        ("=3", ["'=3'", "key=value"]),
        ("~optimizer.lr", ["~optimizer.lr", "can't be removed"]),
        ("~data", ["~data", "can't be removed"]),
        ("-m --cfg job model=dnn,din", ["--cfg shows the settings of one run", "-m"]),
        ("optimizer=null", ["optimizer=None", "settings of its own"]),
        ("data.name=mine", ["data.name=mine", "which is completejourney"]),
        ("model.name=din", ["model.name=din", "which is dien"]),
        ("lr=0.1", ["there is no setting lr", "did you mean optimizer.lr?"]),
        ("+lr=0.1", ["there is no setting lr", "did you mean optimizer.lr?"]),
        ("batch_size=8", ["did you mean trainer.batch_size?"]),
        ("data.batch_size=8", ["did you mean trainer.batch_size?"]),
        ("events_per_usr=8 data=synthetic", ["did you mean data.events_per_user?"]),
        ("max_history=8", ["did you mean protocol.max_history?"]),
        ("model.seeds=8", ["did you mean seed or data.seed or sweep.seed?"]),
        ("trainer.strategy=foo", ["trainer.strategy=foo", "one of auto, ddp"]),
        ("trainer.strategy=fsdp", ["trainer.strategy=fsdp", "one of auto, ddp"]),
        ("trainer.precision=7", ["trainer.precision=7", "one of 32-true, 64-true"]),
        ("trainer.precision=32", ["trainer.precision=32", "did you mean 32-true?"]),
        ("trainer.accelerator=quantum", ["trainer.accelerator=quantum", "one of auto, cpu"]),
        ("trainer.devices=0", ["trainer.devices=0", "-1 for all"]),
        ("trainer.devices='0'", ["trainer.devices=0", "-1 for all"]),
        ("trainer.devices='0,0'", ["trainer.devices=0,0", "different"]),
        ("trainer.devices='-1,0'", ["trainer.devices=-1,0", "different"]),
        ("trainer.devices=''", ["trainer.devices=", "-1 for all"]),
        ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "Adam has two"]),
        ("optimizer.betas=[0,0]", ["optimizer.betas=[0.0, 0.0]", "the root of the second"]),
        ("optimizer.betas=[0.99,0.9]", ["optimizer.betas=[0.99, 0.9]", "the root of the second"]),
        ("optimizer.betas=[0.9,0.9,0.9]", ["optimizer.betas=[0.9, 0.9, 0.9]", "Adam has two"]),
        (f"protocol.max_history={2**63}", ["protocol.max_history", "at most 9223372036854775807"]),
        (f"data.seed={2**70}", ["data.seed", "at most 9223372036854775807"]),
        (f"trainer.batch_size={10**30}", ["trainer.batch_size", "at most"]),
        (f"seed={2**31}", ["seed=2147483648", "at most 2147483647"]),
    ],
)  # fmt: skip
def test_mistakes(word: str, words: list[str]) -> None:
    told = said(*word.split(" "))
    for part in words:
        assert part in told, told


@pytest.mark.parametrize("word", ["experiment=null", "debug=null", "sweep=null", "~experiment"])
def test_no_choice_where_none_is_needed(word: str) -> None:
    assert typed(composed(word)) == typed(composed())


def test_a_file_without_a_schema(tmp_path: Path) -> None:
    for text in ("name: mine\nhidden: 3\n", "defaults: [/schema/data/globo@_here_]"):
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / "mine.yaml").write_text(text)
        assert "model has no schema of its own" in said(f"hydra.searchpath=[file://{tmp_path}]", "model=mine")


# ---------------------------------------------------------------------------------------------- every setting, anything

NONSENSE = (
    *("", "null", "abc", "true", "-1", "0", "1.5", "1e308", "-1e308", "nan", "inf", "-inf", str(2**63), str(2**70)),
    *("a" * 5000, "9" * 4000, "'ключ 鍵 💥'", "'it is \"mine\"'", "'line\nbreak \x1b[31mred'", "/no/such/'place'"),
    *("[]", "[1,x]", "[[1]]", "[null]", "{}", "{a:1}", "{?: 1}", "'${'", "\\${seed}", "-0.0", "1_000", "1e3"),
    *("${oc.env:HOME}", "${nothing.there}", "${seed}", "${paths}", "Task.train"),
)  # fmt: skip


def leaves(schema: Any, path: str) -> Iterator[str]:
    for entry in dataclasses.fields(schema):
        value = getattr(schema(), entry.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(type(value), f"{path}{entry.name}.")
        yield f"{path}{entry.name}"


def every() -> list[tuple[str, tuple[str, ...]]]:
    """Each setting of each schema once, with the words that choose the schema."""
    found = {key: () for key in leaves(ExperimentConfig, "") if key not in SCHEMAS}
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            words = (f"{group}={name}",) if len(schemas) > 1 else ()
            new = (key for key in leaves(schema, f"{group}.") if key not in found)
            found |= dict.fromkeys(new, words)
    return list(found.items())


@pytest.mark.parametrize("thorough", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_setting_takes_any_nonsense(thorough: bool) -> None:
    """All of it for one setting of each type, and for the others, if not thorough, what is likeliest to get through."""
    parser, bases, tried = OverridesParser.create(), dict[tuple[str, ...], DictConfig](), set[str]()
    wrong = []
    for key, words in every():
        if words not in bases:
            path = ["data.path=x"] if words in (("data=events",), ("data=reference",)) else []
            bases[words] = compose("config", ["paths.run=somewhere", *words, *path])
            OmegaConf.resolve(bases[words])  # quicker
        where, _, last = key.rpartition(".")
        expected = expected_type(OmegaConf.select(bases[words], where) if where else bases[words], last)
        kind = "choices" if choices_of(expected) else re.sub(r"\w+Config", "settings", describe(expected))
        values = NONSENSE if thorough or kind not in tried else ("null", str(2**70), "[[1]]", "${paths}")
        tried.add(kind)
        for value in values:
            if problem := outcome(bases[words], key, value, parser):
                wrong.append(f"{key}={value[:40]}: {problem}")
    assert not wrong, f"{len(wrong)} of them\n" + "\n".join(wrong[:50])


def outcome(base: DictConfig, key: str, text: str, parser: OverridesParser) -> str | None:
    """What is wrong about how `key=text` is taken; None where it is refused well, or accepted and usable."""
    path, _, last = key.rpartition(".")
    parent = OmegaConf.select(base, path) if path else base
    before = copy.deepcopy(parent._get_node(last))
    try:
        try:
            value = parser.parse_override(f"{key}={text}").value()
            OmegaConf.update(base, key, value, merge=True)  # as Hydra does
            config = typed(base)
            resolved(base)
        finally:
            before._set_parent(parent)
            parent._content[last] = before
    except Exception as error:
        told = sentence(error)
        if told is None:
            return repr(error)[:200]
        # An expression of nothing is named itself, and what Hydra can't read is quoted.
        named = last in told or text.strip("${}") in told or isinstance(error, HydraException)
        return None if named and len(told) <= 600 else f"{len(told)} characters: {told[:200]}"
    for part in key.split("."):
        config = getattr(config, part)
    numbers = config if isinstance(config, list) else [config]
    usable = all(math.isfinite(each) and abs(each) < 2**63 for each in numbers if isinstance(each, int))
    return None if usable else f"accepted as {config!r}"
