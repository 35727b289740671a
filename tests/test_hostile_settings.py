"""Every setting takes every kind of nonsense: it is refused in a sentence that names it, or is a value to work with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from deepinterest.command_line import checked, refuse_class_names
from deepinterest.errors import sentence
from deepinterest.settings import implied, register, typed

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
