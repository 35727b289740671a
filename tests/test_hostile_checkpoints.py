"""Checkpoints that are well-formed and wrong, or that want something: each ends in a sentence, and within seconds."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deepinterest import config as configs
from deepinterest import experiment, load, models
from deepinterest.config import HOST, of_host
from deepinterest.errors import UserError
from deepinterest.reference.weights import export_weights
from deepinterest.resuming import continued, start_of
from deepinterest.serving import checkpoint
from deepinterest.settings import restored
from deepinterest.training import naming
from deepinterest.training.calibration import Calibration

SECONDS = 10  # for a sentence; the machine may be busy
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def good(trained: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(trained / "best.ckpt", weights_only=True)
    return state


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A folder with the run's vocabulary, for another checkpoint."""
    shutil.copytree(trained / "vocabulary", tmp_path / "run" / "vocabulary")
    return tmp_path / "run"


def copied(value: Any) -> Any:
    """A copy whose dicts and lists may be changed; tensors are shared."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list) else value


def bomb(value: Any = "x") -> Any:
    """A list of 10^40 values, in a few bytes."""
    for _ in range(40):
        value = [value] * 10
    return value


def within() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def weight(state: dict[str, Any], number: int = -1) -> str:
    return [name for name in state["state_dict"] if name.endswith("weight")][number]


def nan_in(state: dict[str, Any]) -> None:
    name = weight(state)
    state["state_dict"][name] = state["state_dict"][name].clone()
    state["state_dict"][name].view(-1)[1] = float("nan")


WRONG: dict[str, tuple[Change, str]] = {
    "no data": (lambda s: s["settings"].pop("data"), r"its settings say nothing of data\.name"),
    "no protocol": (lambda s: s["settings"].pop("protocol"), r"its settings say nothing of protocol\.name"),
    "data is a text": (lambda s: s["settings"].update(data="x"), r"its settings say nothing of data\.name"),
    "settings are a list": (lambda s: s.update(settings=[1]), "it holds list as settings"),
    "no weights": (lambda s: s.pop("state_dict"), "it holds nothing as state_dict"),
    "weights are a list": (lambda s: s.update(state_dict=[1, 2]), "it holds list as state_dict"),
    "junk for a weight": (lambda s: s["state_dict"].update({weight(s): "x"}), "holds str as the weight network"),
    "complex": (lambda s: s["state_dict"].update({weight(s): torch.zeros(2, dtype=torch.complex64)}), "complex64"),
    "a weight too few": (lambda s: s["state_dict"].pop(weight(s)), "is missing in the file, and by the settings it is"),
    "another shape": (lambda s: s["state_dict"].update({weight(s): torch.zeros(3)}), "is 3 in the file, and by"),
    "10^12 numbers of 4 bytes": (
        lambda s: s["state_dict"].update({weight(s): torch.zeros(1).expand(10**12)}), "claims 4,0.* bytes of weights"
    ),
    "a layer of 10^9": (lambda s: s["settings"]["model"].update(mlp=[10**9, 4]), "1000000000|as much memory|GiB"),
    "10^9 layers": (lambda s: s["settings"]["model"].update(mlp=[4] * 100_000), "holds more than 20,000 values"),
    "an alias bomb": (lambda s: s["settings"].update(debug=bomb()), "holds more than 20,000 values or 30 levels"),
    "a list within itself": (lambda s: s["settings"].update(debug=within()), "holds more than 20,000 values or 30"),
    "a dict as a number": (lambda s: s["settings"]["optimizer"]["betas"].__setitem__(0, {"a": 1}), "don't fit"),
    "a tensor as a setting": (lambda s: s["settings"].update(seed=torch.zeros(2)), "holds Tensor as seed"),
    "a number as a name": (lambda s: s["settings"].update({3: 4}), "has '3' as a name"),
    "not a number": (nan_in, r"1 of the [\d,]+ numbers of network\.head\.\S+ aren't finite"),
    "infinite": (
        lambda s: s["state_dict"].update({weight(s, 0): torch.full_like(s["state_dict"][weight(s, 0)], -np.inf)}),
        r"numbers of network\.items\.tables\.0\.weight aren't finite",
    ),
    "an expression": (
        lambda s: s["settings"]["logger"].update(project="${oc.env:HOME}"), r"logger\.project=\$\{oc\.env:HOME\}: an ex"
    ),
    "an expression within a list": (
        lambda s: s["settings"]["logger"].update(tags=["a", "b${now:%Y}"]), r"logger\.tags\[1\]=b\$\{now"
    ),
    "an expression as a name": (lambda s: s["settings"].update({"${a}": 1}), r"the setting \$\{a\}: an expression"),
    "an unknown model": (
        lambda s: s["settings"]["model"].update(name="mine"), "of the model 'mine', which is not known here: import"
    ),
    "a calibration that falls": (
        lambda s: s.update(calibration={"name": "isotonic", "parameters": torch.tensor([[0.2, 0.1], [0.5, 0.6]])}),
        "calibration isotonic has wrong numbers",
    ),
    "a temperature of 0": (
        lambda s: s.update(calibration={"name": "temperature", "parameters": torch.zeros(1, 1)}), "has wrong numbers"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_checkpoint(
    good: dict[str, Any], folder: Path, change: Change, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/the/secret")
    state = copied(good)
    change(state)
    torch.save(state, folder / "best.ckpt")
    begin = time.monotonic()
    with pytest.raises(UserError, match=message) as said:
        load(folder)
    assert time.monotonic() - begin < SECONDS
    assert "secret" not in str(said.value)


JUNK: list[Any] = [
    None, True, -1, 0, 2**40 + 1, 10**40, 0.5, float("nan"), float("inf"), "", "x", "../../etc", "${oc.env:HOME}",
    "???", [], {}, [1, 2], {"name": "x"}, b"x", (1, 2), torch.zeros(3), torch.full((2, 2), np.nan), "\x1b[31m<b>",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands below `value`."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, below in inner for place in places(below, (*path, key)))]


def test_anything_anywhere(good: dict[str, Any], folder: Path) -> None:
    """A checkpoint with junk in one place is told by a sentence, or gives scores between 0 and 1."""
    rng = random.Random(13)
    parts = {name: good[name] for name in ("state_dict", "settings", "calibration", "vocabulary_hash", "model")}
    spots = [place for place in places(parts) if place]
    told = 0
    for _ in range(int(os.environ.get("MUTATIONS", "60"))):
        *path, last = rng.choice(spots)
        junk, state = rng.choice(JUNK), copied(good)
        target = state
        for key in path:
            target = target[key]
        target[last] = junk
        torch.save(state, folder / "best.ckpt")
        begin = time.monotonic()
        try:
            scores = load(folder).score([1, 2], [3, 4])
            assert ((scores >= 0) & (scores <= 1)).all(), (path, last, junk)
        except UserError:
            told += 1
        except Exception as error:
            raise AssertionError(f"{junk!r} at {[*path, last]} ends in {type(error).__name__}: {error}") from error
        assert time.monotonic() - begin < SECONDS, (path, last, junk)
    assert told > 20


class Runs:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_file_that_wants_to_run_something(good: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({**good, "extra": Runs()}, folder / "best.ckpt")
    for read in (load, lambda path: export_weights(path / "best.ckpt", path / "out.npz")):
        with pytest.raises(UserError, match=r"it wants to run (posix|nt)\.system, which no checkpoint does"):
            read(folder)
    assert not (folder / "hacked").exists()


# ------------------------------------------------------------------------------------------------ what is taken from it


def test_run_folder(trained: Path, good: dict[str, Any], folder: Path) -> None:
    scores = load(trained).score([1, 2], [3])
    np.testing.assert_array_equal(load(str(trained / "best.ckpt")).score([1, 2], [3]), scores)
    with pytest.raises(UserError, match=r"is a folder without a best\.ckpt"):
        load(folder)


def test_model_that_is_registered_later(good: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OwnConfig(configs.DNNConfig):
        pass

    state = copied(good)
    state["settings"]["model"]["name"] = "own"
    torch.save(state, folder / "best.ckpt")
    with pytest.raises(UserError, match="'own', which is not known here"):
        load(folder)
    monkeypatch.setitem(configs.SCHEMAS["model"], "own", OwnConfig)
    monkeypatch.setitem(models.NETWORKS, OwnConfig, models.DNN)
    assert load(folder).config.model.name == "own"


def test_nothing_of_the_host(good: dict[str, Any], folder: Path) -> None:
    """Paths, logger and what suits a machine are never a file's."""
    state = copied(good)
    state["settings"]["paths"] = {"run": "/etc/run", "output": "/etc/output", "cache": "/etc/cache"}
    state["settings"]["logger"].update(name="wandb", project="theirs")
    state["settings"]["trainer"]["threads"] = 77
    torch.save(state, folder / "best.ckpt")
    read = checkpoint.read(folder)
    assert "/etc" not in str(read.settings) and "theirs" not in str(read.settings)
    config = read.config()
    assert (config.paths.run, config.paths.cache, config.logger.project) == (str(folder), None, "deepinterest")
    assert config.trainer.threads is None
    assert of_host("paths") and of_host("logger.tags") and not of_host("trainer") and not of_host("data.path")


def test_scores_that_are_no_numbers(good: dict[str, Any], folder: Path, settings: Any, trained: Path) -> None:
    """Finite weights whose products aren't: told by load's scores, by predict and by the test."""
    state = copied(good)
    for name, tensor in state["state_dict"].items():
        if tensor.is_floating_point() and "tables" not in name:
            state["state_dict"][name] = torch.full_like(tensor, 3e38)
    state.pop("calibration")
    torch.save(state, folder / "best.ckpt")
    with pytest.raises(UserError, match=r"2 of 2 scores are no numbers"):
        load(folder).score([1, 2], [3, 4])
    cache = f"paths.cache={trained.parent / 'cache'}"
    pl.DataFrame({"item": [3, 4], "history": [[1], [2]]}).write_parquet(folder / "new.parquet")
    tasks = {
        "test": (), "probe": (), "explain": (),
        "predict": ("data=events", f"data.path={folder / 'new.parquet'}", f"output={folder / 'out.parquet'}"),
    }  # fmt: skip
    for task, more in tasks.items():
        words = (f"task={task}", f"checkpoint={folder / 'best.ckpt'}", cache, *more)
        with pytest.raises(UserError, match="scores are no numbers"):
            experiment.run(*settings("dnn", folder.parent / task, *words))
    assert not (folder / "out.parquet").exists()


def test_calibration_of_a_state() -> None:
    rising = {"name": "isotonic", "parameters": torch.tensor([[0.1, 0.2], [0.5, 0.6]])}
    assert Calibration.of_state(rising).state()["name"] == "isotonic"


# ---------------------------------------------------------------------------------------------------------- vocabulary


def rewritten(folder: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Another items.parquet, with the digest that it has."""
    path, manifest = folder / "vocabulary" / "items.parquet", folder / "vocabulary" / "vocabulary.json"
    change(pl.read_parquet(path)).write_parquet(path)
    from deepinterest.serving.vocabulary import _digest

    content = json.loads(manifest.read_text())
    content["files"]["items.parquet"] = _digest(path)
    manifest.write_text(json.dumps(content))


def cell(value: Any, kind: Any = pl.Int64, column: str = "id_0") -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.with_columns(
        pl.when(pl.int_range(pl.len()) == 3)
        .then(pl.lit(value, dtype=kind))
        .otherwise(pl.col(column).cast(kind))
        .alias(column)
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell(2**40 + 1), r"holds 1099511627777 as id_0: ids are whole numbers from 0 to"),
        (cell(-1), r"holds -1 as id_0"),
        (cell(10**6), r"holds 1000000 as id_0"),
        (cell(None), r"holds None as id_0"),
        (cell(1.5, pl.Float64), r"holds Float64 as id_0"),
        (cell("x", pl.String), r"holds String as id_0"),
        (cell(None, column="raw"), r"has no raw value in row 4"),
        (lambda frame: frame.drop("id_1"), r"aren't those of 1 features"),
        (lambda frame: frame.drop("raw"), r"can't be read"),
    ],
)  # fmt: skip
def test_ids_out_of_range(
    good: dict[str, Any], folder: Path, change: Callable[[pl.DataFrame], pl.DataFrame], message: str
) -> None:
    torch.save(good, folder / "best.ckpt")
    rewritten(folder, change)
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [([10**12, 3], "aren't those"), ([0, 3], "aren't those"), ([10**6, 10**6], "another model"), ("x", "aren't")],
)  # fmt: skip
def test_sizes_of_a_vocabulary(good: dict[str, Any], folder: Path, sizes: Any, message: str) -> None:
    torch.save(good, folder / "best.ckpt")
    path = folder / "vocabulary" / "vocabulary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sizes": {"items": sizes, "users": [1]}}))
    with pytest.raises(UserError, match=message):
        load(folder)


def test_nested_manifest(good: dict[str, Any], folder: Path) -> None:
    torch.save(good, folder / "best.ckpt")
    for text in ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' + "[" * 900 + "]" * 900 + "}", "[]"):
        (folder / "vocabulary" / "vocabulary.json").write_text(text)
        with pytest.raises(UserError, match=r"vocabulary\.json"):
            load(folder)


# -------------------------------------------------------------------------------------------------------------- resume


@pytest.fixture
def half(settings: Any, tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Goes on with a run that was stopped after a step, its last.ckpt changed."""
    monkeypatch.setattr(experiment, "_calibrate", lambda *_: None)
    cache = f"paths.cache={trained.parent / 'cache'}"
    for name in ("best.ckpt", "last.ckpt"):
        (tmp_path / "run").mkdir(exist_ok=True)
        shutil.copy(trained / name, tmp_path / "run" / name)

    def go(change: Change, *more: str) -> None:
        last = tmp_path / "run" / "last.ckpt"
        state = torch.load(last, weights_only=True)
        change(state)
        torch.save(state, last)
        words = (f"resume={tmp_path / 'run'}", *more)
        config, plain = settings("dnn", tmp_path, cache, *words)
        start = start_of(config)
        assert start is not None
        plain = continued(plain, list(words), start)
        experiment.run(restored(plain), plain)

    return go


def optimizer(state: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = state["optimizer_states"][0]
    return part


def table(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the optimizer keeps of the first embedding table."""
    part: dict[str, torch.Tensor] = optimizer(state)["state"][0]
    return part


FOREIGN: dict[str, tuple[Change, str]] = {
    "another program's": (lambda s: s.pop("callbacks"), "can't be gone on from"),
    "without an optimizer": (lambda s: s.pop("optimizer_states"), "can't be gone on from"),
    "no number in a moment": (lambda s: table(s)["exp_avg"].fill_(np.nan), "exp_avg of parameter 0 isn't finite"),
    "a moment of another shape": (lambda s: table(s).update(exp_avg=torch.zeros(3, 4)), r"exp_avg of param.* is \(3"),
    "a step in the future": (lambda s: table(s)["last_step"].fill_(10**6), "last_step of parameter 0 reaches from"),
    "a step before all": (lambda s: table(s)["last_step"].fill_(-5), "last_step of parameter 0 reaches from -5"),
    "no rules": (lambda s: optimizer(s)["missed"][0].update(rules=torch.zeros(1, 1)), "rules of missed steps"),
    "another optimizer": (lambda s: optimizer(s)["param_groups"][0].update(weight_decay=1.0), "weight_decay is 1.0"),
    "a learning rate of nan": (lambda s: optimizer(s)["param_groups"][0].update(lr=np.nan), "the learning rate is nan"),
    "progress below zero": (lambda s: s["loops"]["fit_loop"]["epoch_progress"].update(current=-3), "progress is -3"),
    "progress bomb": (lambda s: s["loops"].update(a=bomb(1)), "it holds more than 10,000 values"),
    "a place beyond the data": (
        lambda s: s["loops"]["fit_loop"]["state_dict"]["combined_loader"][0].update(position=10**6), "place in the data"
    ),
    "a schedule with a method": (lambda s: s["lr_schedulers"][0].update(step=1), "schedule holds"),
    "an id with a path": (lambda s: s["callbacks"]["Checkpoints"].update(logger="../../x"), "run's id is '../../x'"),
    "another model's": (lambda s: s["settings"]["model"].update(mlp=[16, 4]), "are of two runs: they differ in model"),
    "another seed's": (lambda s: s["settings"].update(seed=9), "are of two runs: they differ in seed"),
    "another vocabulary's": (lambda s: s.update(vocabulary_hash="0123"), "another vocabulary"),
    "weights that are no numbers": (nan_in, "aren't finite"),
    "an expression": (lambda s: s["settings"]["paths"].update(output="${oc.env:HOME}"), r"paths\.output=\$\{oc\.env"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_last_checkpoint(half: Callable[..., None], change: Change, message: str) -> None:
    with pytest.raises(UserError, match=message):
        half(change)


def test_cut_short(half: Callable[..., None], tmp_path: Path) -> None:
    last = tmp_path / "run" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-3000])
    with pytest.raises(UserError, match="is damaged or cut short"):
        continued({}, [], last)


def test_host_settings_of_a_resumed_run(settings: Any, trained: Path, tmp_path: Path) -> None:
    """They are the command line's; all else is the checkpoint's."""
    words = (f"resume={trained}", "logger=csv", "logger.tags=[mine]", "trainer.threads=3", "trainer.max_epochs=5")
    _, plain = settings("din", tmp_path, *words)
    plain["logger"]["project"] = "mine"
    found = continued(plain, list(words), trained / "last.ckpt")
    assert (found["logger"]["name"], found["logger"]["project"], found["logger"]["tags"]) == ("csv", "mine", ["mine"])
    assert found["paths"] == {**plain["paths"], "run": str(trained)}
    assert (found["trainer"]["threads"], found["trainer"]["max_epochs"]) == (3, 5)
    assert found["model"]["name"] == "dnn"
    assert all("." in key or key in found for key in HOST)


def test_how_to_go_on_names_the_host_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["model=din", "logger=csv", "paths.cache=/my cache", "trainer.threads=1", "trainer.max_epochs=3"]
    monkeypatch.setattr(naming, "_command", lambda start: (given, None))
    assert naming.going_on(Path("/a b")) == (
        "python run.py 'resume=/a b' logger=csv 'paths.cache=/my cache' trainer.threads=1"
    )


def test_overrides_of_the_run_before_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "very secret")
    (tmp_path / ".hydra").mkdir()
    file = tmp_path / ".hydra" / "hydra.yaml"
    file.write_text("hydra: {mode: RUN, overrides: {task: ['optimizer.lr=${oc.env:SECRET}']}}")
    words, sweep = naming._command(tmp_path / "last.ckpt")
    assert (words, sweep) == (["optimizer.lr=${oc.env:SECRET}"], None)
    for text in ("hydra: {mode: RUN}", "a: &a [*a]", "[", "hydra: {mode: RUN, overrides: {task: [1]}}"):
        file.write_text(text)
        with pytest.raises(UserError, match=r"hydra\.yaml"):
            naming._command(tmp_path / "last.ckpt")
