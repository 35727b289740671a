"""A trained model at work: `deepinterest.load` and task=predict give the scores of the run's own test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from deepinterest import experiment, folders, load
from deepinterest.config import HOST, SETTINGS_OF_A_MODEL
from deepinterest.data import store
from deepinterest.data.store import Store
from deepinterest.errors import UserError
from deepinterest.models.dien import DIEN
from deepinterest.serving import checkpoint, files, predict, vocabulary
from deepinterest.serving.files import Output
from deepinterest.serving.model import Model
from deepinterest.serving.predict import first_at_or_after
from deepinterest.serving.vocabulary import Lookup
from deepinterest.settings import implied, register, resolved, restored, typed

ROOT = Path(__file__).parents[1]


@dataclass
class Run:
    folder: Path
    metrics: dict[str, float]
    store: Store
    settings: dict[str, Any]

    @property
    def best(self) -> Path:
        return self.folder / "best.ckpt"

    def model(self) -> Model:
        return load(self.best)

    @property
    def predictions(self) -> np.ndarray:
        return pl.read_parquet(self.folder / "predictions.parquet")["probability"].to_numpy()

    def rows(self) -> pl.DataFrame:
        """The test rows with their users, items and times, as the source names them, and their histories."""
        samples, log = self.store.samples["test"], self.store.log
        counts = np.diff(samples.candidate_offsets)
        names = self.store.item_features()["item"]
        starts = log.user_offsets[samples.user]
        histories = [
            names.gather(log.item[a:b] - 1).to_list() for a, b in zip(starts, samples.history_end, strict=True)
        ]
        return pl.DataFrame(
            {
                "user": self.store.user_names().gather(np.repeat(samples.user, counts)),
                "item": names.gather(samples.candidates - 1),
                "timestamp": samples.row_time(log),
                "history": [history for history, n in zip(histories, counts, strict=True) for _ in range(n)],
            }
        )


@pytest.fixture(scope="module")
def train(settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    def call(model: str, *more: str) -> Run:
        folder = tmp_path_factory.mktemp(model)
        config, plain = settings(model, folder, *more)
        metrics = experiment.run(config, plain)
        (card,) = (folder / "cache").glob("*/card.json")
        return Run(folder / "run", metrics, store.load(card.parent), plain)

    return call


@pytest.fixture(scope="module")
def dien(train: Callable[..., Run]) -> Run:
    return train("dien", "calibration=platt")


@pytest.fixture(scope="module")
def impressions(train: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A network that reads users and context, of labelled impressions."""
    rng = np.random.default_rng(0)
    n = 3000
    frame = pl.DataFrame(
        {
            "user": [f"u{u}" for u in rng.integers(0, 60, n)],
            "item": [f"i{i}" for i in rng.integers(0, 40, n)],
            "timestamp": 1_700_000_000 + np.sort(rng.integers(0, 10_000_000, n)),
            "category": [f"c{c}" for c in rng.integers(0, 4, n)],
            "click": rng.integers(0, 2, n),
            "hour": rng.integers(0, 24, n),
            "price": rng.random(n).round(3),
            "age": rng.integers(1, 5, n),
        }
    )
    path = tmp_path_factory.mktemp("own") / "shown.csv"
    frame.write_csv(path)
    return train(
        "din", "protocol=labelled", "data=events", f"data.path={path}", "data.columns.label=click",
        "data.columns.category=category", "data.columns.context_features=[hour,price]", "data.columns.numeric=[price]",
        "data.columns.user_features=[age]", "model.use_user=true", "data.min_item_count=58",
    )  # fmt: skip


@pytest.fixture(scope="module")
def composed(settings: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Settings of task=predict; composing them takes longer than most of these runs, so each are composed once."""
    folder, names = tmp_path_factory.mktemp("settings"), ("checkpoint=c", "output=o.csv", "data=events", "data.path=d")
    return cache(lambda *more: settings("dnn", folder, "task=predict", *names, *more))


@pytest.fixture
def score(composed: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[dict[str, float], pl.DataFrame]]:
    """Scores a frame, or the file at a path, by task=predict: its counts and what it wrote."""

    def call(run: Run, rows: pl.DataFrame | Path, *more: str, output: str = "scores.parquet") -> Any:
        path = rows if isinstance(rows, Path) else tmp_path / "new.parquet"
        if isinstance(rows, pl.DataFrame):
            rows.write_parquet(path, row_group_size=100)
        out = tmp_path / output
        config, plain = deepcopy(composed(*more))
        config.checkpoint, config.data.path, config.output = str(run.best), str(path), str(out)
        config.paths.cache, config.paths.run = str(run.folder.parent / "cache"), str(tmp_path / "run")
        counts = experiment.run(config, plain)
        return counts, pl.read_csv(out) if out.suffix == ".csv" else pl.read_parquet(out)

    return call


# ---------------------------------------------------------------------------------------------------------------- load


def test_scores_are_the_tests(dien: Run, tmp_path: Path) -> None:
    """Of a copy of the run's folder alone: no cache is needed."""
    moved = shutil.copytree(dien.folder, tmp_path / "moved")
    rows = dien.rows()
    model = load(moved / "best.ckpt")
    groups = rows.group_by("user", "timestamp", maintain_order=True).agg(pl.col("item"), pl.col("history").first())
    answers = model.score_many(groups["history"].to_list(), groups["item"].to_list())
    np.testing.assert_allclose(np.concatenate(answers), dien.predictions, atol=1e-6, rtol=0)
    alone = model.score(groups["history"][7].to_list(), groups["item"][7].to_list())
    np.testing.assert_allclose(alone, answers[7], atol=1e-6, rtol=0)
    texts = model.score([str(i) for i in groups["history"][7]], np.array([str(i) for i in groups["item"][7]]))
    np.testing.assert_array_equal(texts, alone)


def test_scores_of_a_network_with_users_and_context(impressions: Run) -> None:
    rows = impressions.rows()
    source = pl.read_csv(impressions.settings["data"]["path"]).with_columns(pl.col("timestamp") * 1000)
    context = rows.join(source, on=("user", "item", "timestamp"), how="left", maintain_order="left")
    assert len(context) == len(rows)
    model = impressions.model()
    answers = model.score_many(
        rows["history"].to_list(), [[item] for item in rows["item"]], users=rows["user"],
        contexts={"hour": context["hour"], "price": context["price"]},
    )  # fmt: skip
    np.testing.assert_allclose(np.concatenate(answers), impressions.predictions, atol=1e-6, rtol=0)
    one = {"user": rows["user"][3], "context": {"hour": [5], "price": [0.5]}}
    history, item = rows["history"][3].to_list(), [rows["item"][3]]
    assert model.score(history, item, **one) != model.score(history, item, **{**one, "user": "nobody"})
    assert model.score(history, item, **one) != model.score(
        history, item, **{**one, "context": {"hour": [6], "price": [0.9]}}
    )
    with pytest.raises(UserError, match="context has no 'hour'"):
        model.score(history, item)
    with pytest.raises(UserError, match="'hour' has 2 values for 1 candidates"):
        model.score(history, item, context={"hour": [1, 2], "price": [0.1]})


def test_what_is_unknown(dien: Run, impressions: Run) -> None:
    model = dien.model()
    known = dien.store.item_features()["item"].to_list()
    assert model.knows([known[0], -1, 10**12]).tolist() == [True, False, False]
    first, second = model.score([known[1]], [-1, 10**9])
    assert first == second
    assert model.score([], known[:3]).shape == (3,)
    assert model.score(known[:3], []).shape == (0,)
    long = known[:3] * 100  # only the latest count
    np.testing.assert_array_equal(model.score(long, known[:4]), model.score(long[-model.max_history :], known[:4]))
    rare = ~impressions.model().knows([f"i{i}" for i in range(40)])
    assert 0 < rare.sum() < 40  # in the catalogue, but too rare to have been learned


@pytest.mark.parametrize(
    ("history", "candidates", "message"),
    [
        ("12", [1], r"history is '12': give a list"),
        ([1], 3, r"candidates is 3: give a list"),
        ([1, "a"], [1], r"history holds 1 and 'a', values of several types"),
        ([1], ["1", 2], r"candidates holds '1' and 2, values of several types"),
        ([1], {1, 2}, r"candidates is \{1, 2\}: give a list"),
        ([1, None], [1], r"history number 1 holds None"),
        ([[1]], [1], r"history is of type List"),
        ([1], [1.5], r"candidates holds 1\.5"),
    ],
)
def test_values_that_cannot_be_items(dien: Run, history: Any, candidates: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as said:
        dien.model().score(history, candidates)
    assert said.value.__cause__ is None and (said.value.__suppress_context__ or said.value.__context__ is None)
    with pytest.raises(UserError, match="1 histories, 2 lists of candidates"):
        dien.model().score_many([[1]], [[1], [2]])
    with pytest.raises(UserError, match="histories is 3: give a list with a list"):
        dien.model().score_many(3, [[1]])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="context is 3: give the values of each feature"):
        dien.model().score([1], [1], context=3)  # type: ignore[arg-type]


def test_import_is_light() -> None:
    code = (
        "import sys, deepinterest; assert 'torch' not in sys.modules; from deepinterest import load; "
        "assert 'torch' in sys.modules and 'lightning' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    import deepinterest

    with pytest.raises(AttributeError, match="no attribute 'save'"):
        _ = deepinterest.save  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------ the run folder


def changed(run: Run, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run's checkpoint with something changed, beside a copy of its vocabulary."""
    shutil.copytree(run.folder / "vocabulary", folder / "vocabulary")
    state = torch.load(run.best, weights_only=True)
    change(state)
    torch.save(state, folder / "best.ckpt")
    return folder / "best.ckpt"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update(vocabulary_hash="0123"), r"another vocabulary \(0123\) than the one beside it"),
        (lambda s: s.update(settings=None), "doesn't say with which settings"),
        (lambda s: s.pop("settings"), "doesn't say with which settings"),
        (
            lambda s: s["settings"]["model"].update(name="gru4rec"),
            "of the model 'gru4rec', which is not known here: import the module",
        ),
        (lambda s: s["settings"]["model"].update(layers=3), "another version of this program.*layers"),
        (lambda s: s["settings"]["model"].update(hidden="wide"), "another version of this program.*hidden=wide"),
        (lambda s: s["settings"].pop("data"), "another version of this program.*data"),
        (
            lambda s: s["settings"]["model"].update(hidden=9),
            "holds another model than the settings describe: network.*8 x 24 in the file",
        ),
        (lambda s: s.update(calibration={"name": "platt"}), "can't be read as a checkpoint"),
    ],
)
def test_checkpoint_that_does_not_fit(dien: Run, change: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(changed(dien, tmp_path, change))


def test_scores_that_depend_on_their_batch(dien: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(dien.best)
    assert not caplog.text
    load(changed(dien, tmp_path, lambda state: state["settings"]["quirks"].update(padded_sum=True)))
    assert "With quirks.padded_sum=true a score depends on the rows it is scored with" in caplog.text


@pytest.mark.parametrize("damage", ["folder", "manifest", "items", "cut"])
def test_damaged_vocabulary(dien: Run, damage: str, tmp_path: Path) -> None:
    path = changed(dien, tmp_path, lambda state: None)
    folder = tmp_path / "vocabulary"
    if damage == "folder":
        shutil.rmtree(folder)
    elif damage == "manifest":
        (folder / "vocabulary.json").write_text("{}")
    elif damage == "items":
        (folder / "items.parquet").unlink()
    else:
        frame = pl.read_parquet(folder / "items.parquet")
        frame.reverse().write_parquet(folder / "items.parquet")
    message = {"folder": "has no vocabulary/vocabulary.json", "cut": "isn't the file that the run wrote"}
    with pytest.raises(UserError, match=message.get(damage, "vocabulary can't be read")):
        load(path)


def test_vocabulary_is_written_as_a_whole(dien: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary.write(tmp_path, dien.store, True, [])
    before = (tmp_path / "vocabulary" / "vocabulary.json").read_bytes()
    assert len(vocabulary.read(tmp_path).user_catalogue) == 201
    monkeypatch.setattr(vocabulary, "_digest", lambda path: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        vocabulary.write(tmp_path, dien.store, False, [])
    assert (tmp_path / "vocabulary" / "vocabulary.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary"]


@pytest.mark.parametrize("known", [[3, 1, 7], ["b", "a", "07"], [], ["7"]])
def test_lookup(known: list[Any]) -> None:
    lookup = Lookup(pl.Series(known, dtype=pl.String if not known else None))
    for given in ([7, 3, 99, 1, 7], ["7", "b", "07", "a", None, "x"], []):
        row = {str(value): number for number, value in enumerate(known, 1)}
        expected = [row.get(str(value), 0) for value in given]
        series = pl.Series(given, dtype=pl.String if not given else None)
        assert lookup.rows(series).tolist() == expected


def test_settings_survive_a_checkpoint(dien: Run, impressions: Run) -> None:
    for run in (dien, impressions):
        state = checkpoint.read(run.best)
        assert state.settings is not None
        assert {key: state.settings[key] for key in SETTINGS_OF_A_MODEL} == {
            key: {name: v for name, v in run.settings[key].items() if f"{key}.{name}" not in HOST}
            if isinstance(run.settings[key], dict)
            else run.settings[key]
            for key in SETTINGS_OF_A_MODEL
        }
        assert state.config().model == restored(run.settings).model
        assert state.config().protocol == restored(run.settings).protocol
        assert state.config().model.embedding_dim == 4


# ---------------------------------------------------------------------------------------------------------- calibration


def test_calibrated_run(dien: Run, train: Callable[..., Run], settings: Callable[..., Any], tmp_path: Path) -> None:
    plain = train("dien")
    assert not any(name.endswith("uncalibrated") for name in plain.metrics)
    assert plain.model().calibration is None
    isotonic = train("dien", "calibration=isotonic")
    for run in (dien, isotonic):
        for name in ("ece", "logloss"):
            assert run.metrics[f"test/{name}_uncalibrated"] == pytest.approx(plain.metrics[f"test/{name}"], abs=1e-9)
        assert run.metrics["val/logloss"] == plain.metrics["val/logloss"]
        calibration = run.model().calibration
        assert calibration is not None
        np.testing.assert_array_equal(run.predictions, calibration(plain.predictions))
    assert dien.metrics["test/auc"] == pytest.approx(plain.metrics["test/auc"], abs=1e-7)
    assert dien.metrics["test/gauc"] == pytest.approx(plain.metrics["test/gauc"], abs=1e-7)
    assert dien.metrics["test/logloss"] != plain.metrics["test/logloss"]
    config, values = settings(
        "dien", tmp_path, "task=test", f"checkpoint={dien.best}", f"paths.cache={dien.folder.parent / 'cache'}"
    )
    tested = experiment.run(config, values)
    for name, value in dien.metrics.items():
        if name.startswith(("test/", "val/")):
            assert tested[name] == value, name


def test_calibration_that_cannot_be_written(dien: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.copy(dien.best, tmp_path / "best.ckpt")
    model = experiment._load(path, lambda: experiment._model(restored(dien.settings), dien.store, dien.settings))
    model.val_metrics.update(torch.zeros(4), torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def full(state: Any, beside: Path) -> None:
        beside.write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="The calibration could not be written"):
        experiment._calibrate(model, experiment.CalibrationName.platt, path, True)
    assert path.read_bytes() == dien.best.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == ["best.ckpt"]


def test_calibration_that_validation_cannot_tell(dien: Run, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    model = experiment._load(dien.best, lambda: experiment._model(restored(dien.settings), dien.store, dien.settings))
    model.calibration = None
    model.val_metrics.update(torch.zeros(4), torch.ones(4), torch.rand(4))
    experiment._calibrate(model, experiment.CalibrationName.platt, tmp_path / "none.ckpt", True)
    assert model.calibration is None and not list(tmp_path.iterdir())
    assert "calibration=platt is left out: the validation rows have only label 1." in caplog.text


# -------------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".tsv"])
def test_users_of_the_log(dien: Run, score: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(dien.rows()))
    rows = dien.rows().drop("history")[order].with_columns(request=pl.Series(order))
    path = tmp_path / f"new{kind}"
    rows.write_parquet(path) if kind == ".parquet" else rows.write_csv(path, separator="\t" if kind == ".tsv" else ",")
    counts, scores = score(dien, path, output="scores.csv" if kind == ".csv" else "scores.parquet")
    assert scores.columns == ["user", "item", "timestamp", "request", "probability"]
    assert scores["request"].cast(pl.Int64).to_list() == order.tolist()
    np.testing.assert_allclose(scores["probability"], dien.predictions[order], atol=1e-6, rtol=0)
    assert counts["rows"] == counts["scores"] == len(order)
    assert counts["unknown_items"] == counts["unknown_users"] == counts["empty_histories"] == 0


def test_quirks_of_a_row(train: Callable[..., Run], score: Callable[..., Any]) -> None:
    quirks = ("user_embedding", "first_user_for_unknown", "truncate_training_only", "epsilon", "frozen_norm")
    run = train("din", *(f"quirks.{name}=true" for name in quirks), "protocol.max_history=4")
    _, scores = score(run, run.rows().drop("history"))
    np.testing.assert_allclose(scores["probability"], run.predictions, atol=1e-6, rtol=0)
    assert run.model().max_history is None


def test_without_a_time_all_events_count(dien: Run, score: Callable[..., Any]) -> None:
    log, names = dien.store.log, dien.store.item_features()["item"]
    counts, scores = score(dien, pl.DataFrame({"user": [3, 3, 777], "item": [names[0], names[5], names[0]]}))
    history = names.gather(log.item[log.user_offsets[3] : log.user_offsets[4]] - 1).to_list()
    model = dien.model()
    expected = [*model.score(history, [names[0], names[5]]), *model.score([], [names[0]])]
    np.testing.assert_allclose(scores["probability"], expected, atol=1e-6, rtol=0)
    assert (counts["unknown_users"], counts["empty_histories"]) == (1, 1)


@pytest.mark.parametrize("text", [False, True])
def test_histories_of_their_own(dien: Run, score: Callable[..., Any], text: bool, tmp_path: Path) -> None:
    rows = dien.rows().select("item", "history")
    strange = pl.DataFrame({"item": [-5, rows["item"][0]], "history": [[-6, rows["item"][0]], []]}, schema=rows.schema)
    rows = pl.concat([rows, strange])
    if text:
        path = tmp_path / "new.csv"
        rows.with_columns(pl.col("history").cast(pl.List(pl.String)).list.join("|")).write_csv(path)
    counts, scores = score(dien, path if text else rows)
    assert scores.columns == ["item", "probability"]
    np.testing.assert_allclose(scores["probability"][:-2], dien.predictions, atol=1e-6, rtol=0)
    model = dien.model()
    expected = [*model.score([-6, rows["item"][0]], [-5]), *model.score([], [rows["item"][0]])]
    np.testing.assert_allclose(scores["probability"][-2:], expected, atol=1e-6, rtol=0)
    assert counts["unknown_items"] == counts["empty_histories"] == 1
    assert counts["unknown_history_items"] == (~model.knows(rows["history"].explode().drop_nulls())).sum() >= 1


def test_lists_of_candidates(dien: Run, score: Callable[..., Any]) -> None:
    rows = dien.rows()
    groups = (
        rows.group_by("user", "timestamp", maintain_order=True).agg("item").with_columns(n=pl.col("item").list.len())
    )
    empty = groups[:1].with_columns(item=pl.lit([], dtype=pl.List(pl.Int64)))
    counts, scores = score(dien, pl.concat([groups[:5], empty, groups[5:]]).drop("n"))
    assert scores["probability"].list.len().to_list() == [*groups["n"][:5], 0, *groups["n"][5:]]
    np.testing.assert_allclose(scores["probability"].explode().drop_nulls(), dien.predictions, atol=1e-6, rtol=0)
    assert counts["scores"] == len(rows) and counts["rows"] == len(groups) + 1


@pytest.mark.parametrize("own", [False, True])
def test_users_and_context(impressions: Run, score: Callable[..., Any], own: bool, tmp_path: Path) -> None:
    rows = impressions.rows()
    source = pl.read_csv(impressions.settings["data"]["path"]).with_columns(pl.col("timestamp") * 1000)
    rows = rows.join(
        source.select("user", "item", "timestamp", "hour", "price"),
        on=("user", "item", "timestamp"), how="left", maintain_order="left",
    )  # fmt: skip
    rows = rows.with_columns(pl.col("history").list.join("|")) if own else rows.drop("history")
    rows.write_csv(tmp_path / "new.csv")
    counts, scores = score(impressions, tmp_path / "new.csv")
    np.testing.assert_allclose(scores["probability"], impressions.predictions, atol=1e-6, rtol=0)
    rare = ~impressions.model().knows(rows["item"])
    assert counts["unknown_items"] == rare.sum() > 0
    with pytest.raises(UserError, match=r"has no column 'hour'.*the model reads it"):
        score(impressions, rows.drop("hour"))


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_piece_by_piece(dien: Run, score: Callable[..., Any], rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of any size, over several row groups, give the same scores; no more is held at a time."""
    held = []
    write = Output.write
    monkeypatch.setattr(Output, "write", lambda output, frame: held.append(frame.height) or write(output, frame))
    monkeypatch.setattr(predict, "ROWS", rows)
    new = dien.rows().drop("history")[:150]
    _, scores = score(dien, new)
    assert max(held) <= rows and len(held) >= len(new) / rows
    np.testing.assert_allclose(scores["probability"], dien.predictions[:150], atol=1e-6, rtol=0)


def test_a_history_is_encoded_once(dien: Run, score: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    groups = []
    forward = DIEN.forward
    monkeypatch.setattr(DIEN, "forward", lambda net, batch: groups.append(len(batch.user)) or forward(net, batch))
    rows = dien.rows()
    shuffled = rows.sample(fraction=1, shuffle=True, seed=1)
    for new in (shuffled.drop("history"), shuffled.drop("user", "timestamp")):
        groups.clear()
        score(dien, new)
        assert groups == [new.drop("item").n_unique()]
    groups.clear()
    score(dien, rows.drop("history"), "trainer.eval_batch_size=100")  # a batch may cut a group
    assert len(groups) == -(-len(rows) // 100)


def test_strictly_before() -> None:
    times = np.array([5, 5, 8, 1, 2, 2, 2, 9])
    start, end = np.array([0, 0, 0, 0, 3, 3, 3, 8, 3]), np.array([3, 3, 3, 3, 8, 8, 8, 8, 3])
    time = np.array([4, 5, 6, 9, 2, 3, 99, 7, 7])
    assert first_at_or_after(times, start, end, time).tolist() == [0, 0, 2, 3, 4, 7, 8, 8, 3]


FRAME = {"user": [1, 2, 3], "item": [4, 5, 6], "timestamp": [1_700_000_000] * 3}


@pytest.mark.parametrize(
    ("columns", "settings_", "message"),
    [
        ({"item": None}, (), r"has no column 'item', only user, timestamp: correct data\.columns\.item"),
        ({"user": None}, (), r"neither a column 'user' nor a column 'history'"),
        ({}, ("data.columns.timestamp=times",), r"no column 'times'.*correct data\.columns\.timestamp; did you mean"),
        ({"probability": [1, 1, 1]}, (), r"has a column 'probability'"),
        ({"item": [4, None, 6]}, (), r"column 'item' has no value in row 2"),
        ({"user": [4, 5, None]}, (), r"column 'user' has no value in row 3"),
        ({"timestamp": [1, None, 3]}, (), r"timestamp.* has no value in row 2"),
        ({"timestamp": ["2024-01-01", "2024-01-02", "soon"]}, (), r"'soon' in row 3, which is no time"),
        ({"item": [4.0, 5.5, 6.0]}, (), r"column 'item' holds 5\.5 in row 2"),
        ({"item": [[4], None, [5]]}, (), r"column 'item' has no value in row 2"),
        ({"item": [[4], [5, None], [5]]}, (), r"column 'item' holds a list with no value in row 2"),
        ({"history": [[4], [5, 6, None], []]}, (), r"column 'history' holds a list with no value in row 2"),
        ({"history": ["4", "5", "6"]}, (), r"column 'history' is of type String: give lists"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_scored(
    dien: Run, score: Callable[..., Any], columns: dict[str, Any], settings_: tuple[str, ...], message: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    frame = pl.DataFrame({name: values for name, values in {**FRAME, **columns}.items() if values is not None})
    monkeypatch.setattr(predict, "ROWS", 2)  # rows are counted in the file, not in a piece
    with pytest.raises(UserError, match=message):
        score(dien, frame, *settings_)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.parquet"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("new.json", "{}", "is no file of rows to score"),
        ("none.csv", None, "no such file"),
        ("new.parquet", "text", r"can't be read as \.parquet"),
        ("new.csv", "", "new.csv is empty"),
        ("new.csv", "user,item\n", "has no rows"),
        ("new.csv", "user,item\n1,2\n1,2,3\n", r"can't be read as \.csv.*line 3: 3 columns where 2 are expected"),
        ("new.csv", "user,item,item\n1,2,3\n", "has two columns 'item'"),
        ("new.csv", "user,item\n1,2\n1,\n", r"column 'item' has no value in row 2 \(line 3\)"),
        ("new.csv", 'user,item\n1,2\n1,"2\n', r"can't be read as \.csv \(line 3: a quote"),
        ("new.csv", "user,item\n1,2\n\n1,\xe9\n", r"can't be read as \.csv \(line 4: the byte 0xe9 is no UTF-8"),
        ("new.csv", "\xff\xfeu\0s\0", "text in UTF-16"),
        ("new.csv", "user;item\n1;2\n", "data.separator=semicolon"),
        ("new.csv", "1,2\n1,3\n", "data.header=false"),
        ("new.txt", "user,item\n1,2\n", "data.separator=comma"),
    ],
)
def test_files_that_cannot_be_scored(
    dien: Run, score: Callable[..., Any], name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        score(dien, tmp_path / name)
    assert not list(tmp_path.glob("*scores*"))


def test_options_of_text_files(dien: Run, score: Callable[..., Any], tmp_path: Path) -> None:
    rows = dien.rows().drop("history")
    _, plain = score(dien, rows)
    local = pl.from_epoch("timestamp", "ms").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    written = rows.with_columns(local.dt.strftime("%d/%m/%Y %H:%M:%S%.3f"))
    written.write_csv(tmp_path / "q[1].txt", separator=";", include_header=False)
    rows.head(3).write_csv(tmp_path / "q1.txt")
    names = "data.columns={user:column_1,item:column_2,timestamp:column_3}"
    options = ("data.separator=semicolon", "data.header=false", names, "data.timezone=Asia/Tokyo",
               "data.timestamp_format='%d/%m/%Y %H:%M:%S%.3f'")  # fmt: skip
    _, scores = score(dien, tmp_path / "q[1].txt", *options)
    assert scores["probability"].equals(plain["probability"])
    assert scores.columns == ["column_1", "column_2", "column_3", "probability"]
    other = [word.replace("Asia/Tokyo", "Europe/Berlin") for word in options]
    _, later = score(dien, tmp_path / "q[1].txt", *other)
    assert not later["probability"].equals(plain["probability"])


def test_numbers_of_text_files_stay_numbers(
    dien: Run, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "BLOCK", 64)  # a column's type is that of the whole file
    n = 40
    columns = {
        "user": range(n), "item": range(n), "label": [0, 1] * (n // 2), "price": ["1.50", *["2"] * (n - 1)],
        "code": [*map(str, range(1, n)), "007"], "large": [2**63 + k for k in range(n)], "empty": [""] * n,
        "gaps": ["", *map(str, range(1, n))],
    }  # fmt: skip
    pl.DataFrame(columns, strict=False).write_csv(tmp_path / "new.csv")
    _, scores = score(dien, tmp_path / "new.csv")
    types = dict(zip(scores.columns, scores.dtypes, strict=True))
    whole = dict.fromkeys(("user", "item", "label", "gaps"), pl.Int64)
    assert types == {**types, **whole, "price": pl.Float64, "code": pl.String, "large": pl.String, "empty": pl.String}
    assert scores["gaps"].to_list() == [None, *range(1, n)] and scores["price"][0] == 1.5


def test_a_file_that_changes_while_it_is_scored(
    dien: Run, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.csv"
    pl.DataFrame({"user": range(9), "item": range(9)}).write_csv(path)
    scored = predict.Scorer._score

    def more(self: predict.Scorer, frame: pl.DataFrame) -> pl.Series:
        with path.open("a") as file:
            file.write("1,4\n")
        return scored(self, frame)

    monkeypatch.setattr(predict.Scorer, "_score", more)
    with pytest.raises(UserError, match="has changed while it was read"):
        score(dien, path)
    assert not list(tmp_path.glob("*scores*"))


def test_places_that_take_no_scores(dien: Run, score: Callable[..., Any], tmp_path: Path) -> None:
    rows = pl.DataFrame({"user": [1], "item": [4]})
    with pytest.raises(UserError, match=r"is data\.path itself"):
        score(dien, rows, output="new.parquet")
    assert pl.read_parquet(tmp_path / "new.parquet").equals(rows)
    with pytest.raises(UserError, match="is no place for scores"):
        score(dien, rows, output="scores.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        score(dien, rows, output="folder.csv")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can't be written"):
        score(dien, rows, output="file/scores.csv")
    with pytest.raises(UserError, match="can't hold the lists of column 'item'"):
        score(dien, pl.DataFrame({"user": [1], "item": [[4]]}), output="scores.csv")


def test_log_that_changed(dien: Run, train: Callable[..., Run]) -> None:
    other = train("dnn", "data.users=150")
    config, hash_ = checkpoint.read(other.best).config(), dien.store.vocabulary_hash
    with pytest.raises(UserError, match=f"another vocabulary .* than the checkpoint's \\({hash_}\\)"):
        predict.Histories.of(config, str(other.folder.parent / "cache"), hash_)


def test_log_that_is_gone(impressions: Run, score: Callable[..., Any]) -> None:
    path = Path(impressions.settings["data"]["path"])
    rows = impressions.rows().with_columns(hour=pl.lit(3), price=pl.lit(0.5))
    path.rename(path.with_suffix(".away"))
    try:
        with pytest.raises(UserError, match=r"the users' histories can't be read from the log.*there is no such file"):
            score(impressions, rows.drop("history"))
        counts, _ = score(impressions, rows)  # their own histories need no log
        assert counts["rows"] == len(rows)
    finally:
        path.with_suffix(".away").rename(path)


def test_a_failure_leaves_the_scores_of_before(
    dien: Run, score: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "ROWS", 10)
    (tmp_path / "scores.parquet").write_text("of before")
    rows = dien.rows().drop("history").with_columns(item=pl.when(pl.int_range(pl.len()) != 57).then("item"))
    with pytest.raises(UserError, match="has no value in row 58"):
        score(dien, rows)
    assert (tmp_path / "scores.parquet").read_text() == "of before"
    assert not list(tmp_path.glob(".*"))


def test_killed_while_writing(dien: Run, tmp_path: Path) -> None:
    dien.rows().drop("history").write_parquet(tmp_path / "new.parquet")
    code = f"""
import os, signal, sys
from deepinterest.serving import files, predict
predict.ROWS = 10
write, left = files.Output.write, iter(range(5))
def counted(output, frame):
    write(output, frame)
    if next(left) == 4:
        output._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
files.Output.write = counted
sys.argv[1:] = ["task=predict", "data=events", "trainer=cpu", "data.path=new.parquet", "output=scores.parquet",
                "checkpoint={dien.best}", "paths.cache={dien.folder.parent / "cache"}"]
import runpy
runpy.run_path({str(ROOT / "run.py")!r}, run_name="__main__")
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert not (tmp_path / "scores.parquet").exists()
    assert list(tmp_path.glob(".scores.parquet-*.partial"))  # it was writing


# --------------------------------------------------------------------------------------------------- the command line


def test_command_line(dien: Run, tmp_path: Path) -> None:
    dien.rows().drop("history").write_parquet(tmp_path / "new.parquet")
    command = [
        sys.executable, str(ROOT / "run.py"), "task=predict", f"checkpoint={dien.best}", "data.path=new.parquet",
        "output=scores.parquet", f"paths.cache={dien.folder.parent / 'cache'}", "trainer=cpu", "trainer.threads=1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"{len(dien.predictions)} scores of" in done.stdout + done.stderr
    np.testing.assert_allclose(
        pl.read_parquet(tmp_path / "scores.parquet")["probability"], dien.predictions, atol=1e-6, rtol=0
    )


def test_what_goes_without_saying() -> None:
    words = ["seed=2", "task=predict", "data.path=a.csv", "--cfg", "job"]
    assert implied(words) == ["seed=2", "task=predict", "data=events", *words[2:]]
    for given in (["task=predict", "data=taobao"], ["task=train"], ["data.path=x"]):
        assert implied(given) == given


@pytest.mark.parametrize("missing", ["output", "checkpoint"])
def test_settings_that_are_missing(settings: Callable[..., Any], missing: str, tmp_path: Path) -> None:
    given = {"output": "output=a.csv", "checkpoint": "checkpoint=best.ckpt"}
    del given[missing]
    with pytest.raises(UserError, match=f"{missing} is missing: task=predict needs"):
        settings("dnn", tmp_path, "task=predict", "data=events", "data.path=a.csv", *given.values())


def test_settings_of_a_checkpoint(dien: Run, tmp_path: Path) -> None:
    """task=test needs no repeated settings; what the command line names goes first."""
    register()

    def of(*overrides: str) -> Any:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            cfg = compose("config", ["task=test", f"checkpoint={dien.best}", f"paths.run={tmp_path}", *overrides])
        typed(cfg)
        return restored(checkpoint.as_trained(resolved(cfg), list(overrides)))

    trained = restored(dien.settings)
    plain = of()
    assert (plain.data, plain.protocol, plain.model) == (trained.data, trained.protocol, trained.model)
    assert plain.task.name == "test" and plain.paths.run == str(tmp_path)
    assert plain.trainer != trained.trainer  # of the machine, not of the model
    assert of("model.hidden=64").model.hidden == 64 and of("model.hidden=64").model.mlp == trained.model.mlp
    assert of("model=din").model.name == "din" and of("model=din").data == trained.data
    assert of("reference=true").quirks.batch_dice and not plain.quirks.batch_dice
    assert of("protocol.max_history=7").protocol.max_history == 7
    assert plain.seed == trained.seed and of("seed=8").seed == 8


def test_default_folder_is_named_after_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    hydra = OmegaConf.create({"run": {"dir": "x"}})
    monkeypatch.setattr(folders, "_named", lambda: False)
    monkeypatch.setattr(folders.HydraConfig, "get", lambda: hydra)
    monkeypatch.setattr(folders, "_texts", {"config.yaml": "of the command line"})
    composed: dict[str, Any] = {"data": {"name": "completejourney"}, "model": {"name": "dien"}, "seed": 1}
    composed["paths"] = {"run": "/runs/2026_completejourney_dien_s1"}
    settings = {**composed, "data": {"name": "synthetic"}, "model": {"name": "din"}, "seed": 3}
    folders.name_after(settings, composed)
    assert settings["paths"] == {"run": "/runs/2026_synthetic_din_s3"} and hydra.run.dir == settings["paths"]["run"]
    assert composed["paths"] == {"run": "/runs/2026_completejourney_dien_s1"}
    assert "name: synthetic" in folders._texts["config.yaml"] and "din_s3" in folders._texts["config.yaml"]
    monkeypatch.setattr(folders, "_named", lambda: True)  # by hydra.run.dir
    folders.name_after(named := {**composed, "seed": 9}, composed)
    assert named["paths"] == composed["paths"]


def test_no_traces_in_the_environment(dien: Run) -> None:
    """A run's manifest names its files, and nothing of the machine it ran on."""
    manifest = json.loads((dien.folder / "vocabulary" / "vocabulary.json").read_text())
    assert set(manifest["files"]) == {"items.parquet"}  # nobody reads users here
    assert os.sep not in json.dumps(manifest)


def test_rows_that_do_not_fit_are_refused(dien: Run) -> None:
    model = load(dien.folder / "best.ckpt")
    good = [np.array(row) for row in ([1, 2, 3], [0, 2, 3], [1, 1], [1, 2, 3], [0, 0, 1])]
    assert model.score_rows(*good).shape == (3,)
    wrong = [
        (1, np.array([1, 2, 3]), r"offsets\[0\] is 1: the first history begins at 0"),
        (1, np.array([0, 2, 2**40]), r"offsets ends at 1099511627776: it must end at 3"),
        (3, np.array([1, 2, 10**6]), r"candidates\[2\] is 1000000: "),
        (4, np.array([1, 0, 1]), r"history_index\[1\] is 0: it is less"),
        (4, np.array([0, 0, 1.0]), r"must be numpy arrays of int64"),
        (0, [1, 2, 3], r"must be numpy arrays of int64"),
    ]
    for place, value, words in wrong:
        with pytest.raises(UserError, match=words):
            model.score_rows(*[value if place == number else row for number, row in enumerate(good)])


CELLS = {  # a text, and what a spreadsheet may be given
    "=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0", "+1+1": "'+1+1", "@SUM(A1)": "'@SUM(A1)", "-2+3": "'-2+3",
    " =1": "' =1", "\t=1": "'\t=1", "\uff1d1+1": "'\uff1d1+1", "-5": "-5", "+4.5e3": "+4.5e3", "-.5": "-.5",
    "a=b": "a=b",
}  # fmt: skip


@pytest.mark.parametrize("keep", [False, True])
def test_no_formulas_in_a_csv(dien: Run, score: Callable[..., Any], keep: bool, tmp_path: Path) -> None:
    rows = pl.DataFrame({"item": [-1] * len(CELLS), "history": [[1]] * len(CELLS), "=1+1": list(CELLS)})
    rows = rows.with_columns(pl.lit("-a").alias("-note"), pl.lit("b").alias("'-note"))
    _, _ = score(dien, rows, *(["keep_formulas=true"] if keep else []), output="scores.csv")
    written = pl.read_csv(tmp_path / "scores.csv", infer_schema=False)
    names = ["item", "=1+1", "-note", "'-note", "probability"]
    names = names if keep else ["item", "'=1+1", "''-note", "'-note", "probability"]
    assert written.columns == names
    assert written[names[1]].to_list() == list(CELLS if keep else CELLS.values())
    assert written["item"].to_list() == ["-1"] * len(CELLS)
    assert written[names[2]][0] == ("-a" if keep else "'-a")
    _, kept = score(dien, rows)  # Parquet is no spreadsheet's
    assert kept["=1+1"].to_list() == list(CELLS)
