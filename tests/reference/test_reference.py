"""The golden check, weights by published name in both directions, and the command line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import Settings
from deepinterest import experiment, models
from deepinterest.config import SCHEMAS, EvaluationConfig, OptimizerConfig
from deepinterest.errors import UserError
from deepinterest.nn.embedding import Features
from deepinterest.reference import golden, names
from deepinterest.reference.__main__ import main
from deepinterest.reference.weights import export_weights, import_weights, read
from deepinterest.training.module import ClickModel

GOLDEN = Path(__file__).parent / "golden"
TYPES = list(names.PUBLISHED)

Arrays = dict[str, np.ndarray]


def random_weights(model: str) -> Arrays:
    """Published variables of a small graph, by the network's own shapes, in random numbers."""
    settings = {"embedding_dim": 3, "mlp": [7, 5], "attention": [6, 4], "hidden": 5, "aux_net": [4, 3]}
    schema = SCHEMAS["model"][model]
    config = schema(**{name: value for name, value in settings.items() if name in schema.__dataclass_fields__})
    features = Features(torch.zeros(1, 2, dtype=torch.int64), [11, 4], torch.arange(6)[:, None], [6])
    network = models.build(features, config, names.ALL_QUIRKS)
    generator = torch.Generator().manual_seed(3)
    parameters = {name: torch.randn(p.shape, generator=generator) for name, p in network.named_parameters()}
    return names.exported(model, parameters)


def save(path: Path, arrays: Arrays, change: Callable[[Arrays], object] = lambda arrays: None) -> Path:
    arrays = {name: array.copy() for name, array in arrays.items()}
    change(arrays)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a published type's golden file with something changed: `changed("DIN", lambda arrays: …)`."""

    def make(kind: str, change: Callable[[Arrays], object], name: str | None = None) -> Path:
        return save(tmp_path / f"{name or kind}.npz", dict(np.load(GOLDEN / f"{kind}.npz")), change)

    return make


# -------------------------------------------------------------------------------------------------------------- golden


@pytest.mark.parametrize("kind", TYPES)
def test_every_published_graph_is_matched(kind: str) -> None:
    found = golden.check(GOLDEN / f"{kind}.npz")
    assert [(d.quantity, d.optimizer, d.largest, d.where) for d in found if not d.fine] == []
    assert len(found) == 5 + 2 * 4
    assert {d.optimizer for d in found} == {None, "deferred", "dense"}


@pytest.mark.parametrize("form", golden.FORMS)
def test_one_form_of_the_optimizer(form: golden.Form) -> None:
    found = golden.check(GOLDEN / "DNN.npz", optimizer=form)
    assert all(d.fine for d in found)
    assert [d.optimizer for d in found] == [None] * 5 + [form] * 4


def bump(key: str, by: float) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[key].reshape(-1)[-1:] += by

    return change


@pytest.mark.parametrize(
    ("key", "by", "quantity"),
    [
        ("forward/click_probability", 1e-5, "click probability"),
        ("forward/loss", 1e-5, "loss"),
        ("forward/auxiliary_loss", 1e-5, "auxiliary loss"),
        ("forward/accuracy", 1e-5, "accuracy"),
        ("gradient_norm/gru1/gru_cell/gates/kernel", 1e-5, "gradient norms, relative"),
        ("gradient_norm/f3_att1_1/bias", 1e-6, "gradient norms, relative"),  # it is 0 in exact arithmetic
        ("training/loss", 1e-5, "losses of the steps"),
        ("training/auxiliary_loss", 1e-5, "auxiliary losses of the steps"),
        ("trained/click_probability2", 1e-5, "trained click probability"),
        ("trained/item_embedding", 3e-5, "trained item table"),
    ],
)
def test_a_changed_expectation_is_found(
    changed: Callable[..., Path], key: str, by: float, quantity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed("DIEN", bump(key, by))
    assert {d.quantity for d in golden.check(path) if not d.fine} == {quantity}
    assert main(["check", str(path), "--optimizer", "dense"]) == 1
    assert "OVER" in capsys.readouterr().out


def test_the_item_table_may_deviate_by_more(changed: Callable[..., Path]) -> None:
    """Where a gradient is as small as Adam's eps, its rounding is amplified."""
    path = changed("DIEN", bump("trained/item_embedding", 1e-5))
    assert all(d.fine for d in golden.check(path))


@pytest.mark.parametrize("kind", TYPES)
def test_every_weight_counts(kind: str, tmp_path: Path) -> None:
    """Each variable, when off, moves something over its tolerance: none is read into the wrong place unnoticed."""
    arrays = dict(np.load(GOLDEN / f"{kind}.npz"))
    for key in [key for key in arrays if key.startswith("init/")]:
        if "f3_att" in key and key.endswith("bias"):
            continue  # softmax takes it out again
        # Attention is nearly even at these weights, so its own have little say in the numbers.
        scale, shift = (2.0, 0.3) if "att" in key or "f11" in key or key == "init/prelu_" else (1.05, 0.02)
        path = save(tmp_path / f"{kind}.npz", arrays | {key: arrays[key] * scale + shift})
        assert any(not d.fine for d in golden._forward(golden.Golden(path))), key


@pytest.mark.parametrize("quirk", ["frozen_norm", "batch_dice", "padded_sum", "padded_auxiliary", "half_loss"])
def test_every_quirk_counts(quirk: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "ALL_QUIRKS", replace(names.ALL_QUIRKS, **{quirk: False}))
    assert any(not d.fine for d in golden.check(GOLDEN / "DIEN.npz", optimizer="deferred"))


def test_what_is_not_finite_is_over(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    for key in ("training/loss", "gradient_norm/f1/kernel"):
        path = changed("DNN", bump(key, float("nan")))
        assert main(["check", str(path)]) == 1
        assert "nan" in capsys.readouterr().out


def test_command_shows_a_line_for_each_file(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(GOLDEN / "DNN.npz"), str(GOLDEN / "PNN.npz"), "--optimizer", "deferred"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == "18 of 18 comparisons are within their tolerance."
    (line,) = (line for line in shown if "PNN.npz" in line)
    numbers = [float(word) for word in line.split()[1:]]
    assert len(numbers) == 9 and max(numbers) < 5e-6

    path = changed("DNN", bump("trained/item_embedding", 1.0))
    assert main(["check", str(path)]) == 1
    shown = capsys.readouterr().out.splitlines()
    for form, line in zip(golden.FORMS, shown[-3:-1], strict=True):
        assert line == f"OVER: DNN.npz, trained item table with {form} Adam: 1.0e+00 at item 299; 2e-05 is allowed"
    assert shown[-1] == "11 of 13 comparisons are within their tolerance."
    assert "1.0e+00" in next(line for line in shown if line.strip().startswith("DNN.npz"))


def test_the_model_of_another_name(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = changed("DIN-V2-gru-vec-attGru", lambda arrays: None, "mine")
    assert main(["check", str(path)]) == 2
    assert f"{path} isn't named after a model" in capsys.readouterr().err
    assert main(["check", str(path), "--model", "augru", "--optimizer", "dense"]) == 0
    assert main(["check", str(path), "--model", "DIN-V2-gru-qa-attGru", "--optimizer", "dense"]) == 1  # same variables
    assert main(["check", str(path), "--model", "augro"]) == 2
    assert "there is no model augro" in (error := capsys.readouterr().err) and "did you mean augru?" in error


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("forward/loss"), "has no forward/loss"),
        (lambda a: a.pop("gradient_norm/f1/bias"), "has no gradient_norm/f1/bias"),
        (lambda a: a.pop("init/f2/bias"), "has no f2/bias, which dnn needs"),
        (lambda a: a.pop("init/mid_embedding_var"), "has no init/mid_embedding_var"),
        (lambda a: a.update({"init/f2/kernel": a["init/f2/kernel"].T}), "(80, 200); dnn expects (200, 80) here"),
        (lambda a: a.update({"init/f9/kernel": a["init/f2/kernel"]}), "has a variable f9/kernel, which dnn has not"),
        (lambda a: a.update({"init/f2/bias": a["init/f2/bias"] * np.nan}), "f2/bias"),
        (lambda a: a.update({"batch1/user": a["batch1/user"][:4]}), "has the shape (4,); expected is (6)"),
        (lambda a: a.update({"batch1/user": a["batch1/user"] + 30}), "whole numbers from 0 to 29"),
        (lambda a: a.update({"batch0/length": a["batch0/length"] + 1}), "reach its width, 8"),
        (lambda a: a.update({"training/batch_order": a["training/batch_order"] + 1}), "numbers from 0 to 2"),
        (lambda a: a.update({"forward/loss": np.array("low")}), "holds <U3, not numbers"),
    ],
)
def test_an_incomplete_golden_file_is_named(
    changed: Callable[..., Path], change: Callable[[Arrays], object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = changed("DNN", change)
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err
    assert says in error and str(path) in error and error.count("\n") == 1


@pytest.mark.parametrize("content", [None, b"", b"no archive", b"PK\x03\x04 cut off", "npy"])
def test_a_broken_file_is_named(
    content: bytes | str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "DIN.npz"
    if content == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    assert main(["check", str(path)]) == 2
    assert str(path) in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_truncated_file_is_named(changed: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = changed("DIN", lambda arrays: None)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert main(["check", str(path)]) == 2
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])  # a member's checksum is wrong
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err.count("can't be read as a NumPy .npz file") == 2


# -------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", TYPES)
def test_import_and_export_are_inverse(kind: str, tmp_path: Path) -> None:
    arrays = random_weights(names.ours(kind))
    source, checkpoint, out = tmp_path / f"{kind}.npz", tmp_path / "new" / "w.ckpt", tmp_path / "out.npz"
    save(source, arrays)
    assert main(["import", str(source), "--out", str(checkpoint)]) == 0
    assert main(["export", str(checkpoint), str(out)]) == 0
    again = dict(np.load(out))
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(again[name], array), name
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["new", "out.npz", source.name])
    assert [path.name for path in checkpoint.parent.iterdir()] == ["w.ckpt"]


@pytest.mark.parametrize("kind", TYPES)
def test_golden_weights_round_trip(kind: str, tmp_path: Path) -> None:
    import_weights(GOLDEN / f"{kind}.npz", kind, tmp_path / "w.ckpt")
    export_weights(tmp_path / "w.ckpt", tmp_path / "w.npz")
    first, again = read(GOLDEN / f"{kind}.npz"), read(tmp_path / "w.npz")
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_every_parameter_has_a_published_name() -> None:
    for model in names.PUBLISHED.values():
        arrays = random_weights(model)
        network, _ = names.network(model, arrays, "here")
        assert sum(p.numel() for p in network.parameters()) == sum(array.size for array in arrays.values()), model


def test_gru_kernels_are_input_above_state() -> None:
    arrays = random_weights("dien")
    network, _ = names.network("dien", arrays, "here")
    cell = network.extraction  # type: ignore[attr-defined]
    gates, candidate = arrays["gru1/gru_cell/gates/kernel"], arrays["gru1/gru_cell/candidate/kernel"]
    assert gates.shape == (6 + 5, 2 * 5) and candidate.shape == (6 + 5, 5)
    assert np.array_equal(cell.input[:, :10].detach(), gates[:6]) and np.array_equal(cell.gates.detach(), gates[6:])
    assert np.array_equal(cell.input[:, 10:].detach(), candidate[:6])
    assert np.array_equal(cell.candidate.detach(), candidate[6:])


def checkpoint_like(arrays: Arrays) -> None:
    """What a real TensorFlow checkpoint holds besides, under the names that variables have in a session."""
    for name in list(arrays):
        array = arrays.pop(name)
        arrays |= {f"{name}:0": array, f"{name}/Adam:0": array, f"{name}/Adam_1:0": array}
    arrays |= {"Metrics/beta1_power": np.float32(0.3), "Metrics/beta2_power": np.float32(0.9)}  # type: ignore[dict-item]
    arrays |= {"bn1/moving_mean": np.zeros(9, np.float32), "bn1/moving_variance": np.ones(9, np.float32)}


def test_slots_and_suffixes_are_ignored(tmp_path: Path) -> None:
    arrays = random_weights("din")
    plain, real = save(tmp_path / "a.npz", arrays), save(tmp_path / "b.npz", arrays, checkpoint_like)
    golden_like = tmp_path / "c.npz"
    np.savez(golden_like, **{f"init/{k}": a for k, a in arrays.items()}, other=np.zeros(2))  # type: ignore[arg-type]
    for path in (plain, real, golden_like):
        assert read(path).keys() == arrays.keys()
        assert all(np.array_equal(read(path)[name], arrays[name]) for name in arrays)


def test_trained_moving_statistics_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "DIN.npz", random_weights("din"), lambda a: a.update({"bn1/moving_mean": np.full(9, 0.1)}))
    with pytest.raises(UserError, match=r"bn1/moving_mean .* trained its batch norm"):
        import_weights(path, "din", tmp_path / "w.ckpt")
    assert not (tmp_path / "w.ckpt").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda a: a.pop("prelu_"), "has no prelu_, which dien needs"),
        (lambda a: a.update({"f1/kernel": a["f1/kernel"][:-1]}), "f1/kernel"),
        (lambda a: a.update({"uid_embedding_var": np.zeros((6, 2), np.float32)}), "(6, 2); dien expects (6, 3) here"),
        (lambda a: a.update({"uid_embedding_var": np.float32(0)}), "uid_embedding_var"),
        (lambda a: a.update({"f1/bias": np.zeros((2, 0), np.float32)}), "(2, 0)"),
        (lambda a: a.update({"f2/bias": np.arange(5)}), "f2/bias"),
        (lambda a: a.update({"f4/bias": np.zeros(2, np.float32)}), "a variable f4/bias, which dien has not"),
    ],
)
def test_wrong_weights_are_named(
    change: Callable[[Arrays], object], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "DIEN.npz", random_weights("dien"), change)
    assert main(["import", str(path), "--out", str(tmp_path / "w.ckpt")]) == 2
    error = capsys.readouterr().err
    assert says in error and str(path) in error and error.count("\n") == 1


def click_model(model: str, arrays: Arrays) -> ClickModel:
    """A fresh module of the run, all quirks on, with the widths of the arrays and other weights."""
    network, _ = names.network(model, {k: np.zeros_like(a) for k, a in arrays.items()}, "here")
    return ClickModel(network, OptimizerConfig(), EvaluationConfig(), names.ALL_QUIRKS, vocabulary_hash="v")


@pytest.mark.parametrize("model", names.PUBLISHED.values())
def test_a_run_loads_imported_weights(model: str, tmp_path: Path) -> None:
    arrays = random_weights(model)
    import_weights(save(tmp_path / "w.npz", arrays), model, tmp_path / "w.ckpt")
    loaded = experiment._load(tmp_path / "w.ckpt", lambda: click_model(model, arrays))
    own = names.exported(model, {name: p.detach() for name, p in loaded.network.named_parameters()})
    assert all(np.array_equal(own[name], arrays[name]) for name in arrays)


def test_a_run_is_tested_again_through_the_published_names(settings: Settings, tmp_path: Path) -> None:
    """Train, export, import, test: the scores are the same."""

    def run(folder: str, *more: str) -> dict[str, float]:
        config, plain = settings("dien", tmp_path / folder, "reference=true", *more)
        return experiment.run(config, plain)

    trained = run("a")
    best, out, again = tmp_path / "a" / "run" / "best.ckpt", tmp_path / "w.npz", tmp_path / "again.ckpt"
    assert main(["export", str(best), str(out)]) == 0  # the model is that of config.yaml
    assert main(["import", str(out), "--model", "dien", "--out", str(again)]) == 0
    tested = run("b", "task=test", f"checkpoint={again}")
    assert tested["test/logloss"] == trained["test/logloss"] and tested["test/auc"] == trained["test/auc"]


def weights_file(path: Path, model: str, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"state_dict": {f"network.{name}": value for name, value in state.items()}, "model": model}, path)
    return path


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("users.tables.0.weight"), "train with quirks.user_embedding=true"),
        (lambda s: s.pop("head.layers.1.weight"), "has no head.layers.1.weight"),
        (lambda s: s.update({"head.layers.5.weight": torch.zeros(2)}), "head.layers.5.weight, which the published din"),
        (lambda s: s.update({"head.layers.2.running_var": torch.full((7,), 2.0)}), "quirks.batch_dice=true"),
    ],
)
def test_what_the_published_graph_lacks_is_not_exported(
    change: Callable[[dict[str, torch.Tensor]], object], says: str, tmp_path: Path
) -> None:
    state = names.network("din", random_weights("din"), "here")[0].state_dict()
    change(state)
    with pytest.raises(UserError, match=says):
        export_weights(weights_file(tmp_path / "w.ckpt", "din", state), tmp_path / "w.npz")
    assert not (tmp_path / "w.npz").exists()


def test_settings_the_published_graph_lacks(tmp_path: Path) -> None:
    path = weights_file(
        tmp_path / "w.ckpt", "augru", names.network("augru", random_weights("augru"), "x")[0].state_dict()
    )
    (tmp_path / "config.yaml").write_text("model: {name: augru, attention_update: paper, reset_gate: before}")
    with pytest.raises(UserError, match=r"model\.attention_update=paper"):
        export_weights(path, tmp_path / "w.npz")
    (tmp_path / "config.yaml").write_text("model: [")
    with pytest.raises(UserError, match=r"config\.yaml can't be read as YAML"):
        export_weights(path, tmp_path / "w.npz")


def test_the_model_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = names.network("pnn", random_weights("pnn"), "here")[0].state_dict()
    path, out = tmp_path / "w.ckpt", tmp_path / "w.npz"
    torch.save({"state_dict": {f"network.{name}": value for name, value in state.items()}}, path)
    assert main(["export", str(path), str(out)]) == 2
    assert "doesn't say which model it holds" in capsys.readouterr().err
    assert main(["export", str(path), str(out), "--model", "PNN"]) == 0
    out.unlink()
    (tmp_path / "config.yaml").write_text("model: {name: pnn}")
    assert main(["export", str(path), str(out)]) == 0
    path.write_bytes(b"no checkpoint")
    assert main(["export", str(path), str(out)]) == 2
    assert main(["export", str(tmp_path / "none.ckpt"), str(out)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    source = save(tmp_path / "DNN.npz", random_weights("dnn"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder can't be written"):
        import_weights(source, "dnn", tmp_path / "folder")
    with pytest.raises(UserError, match="can't be written"):
        import_weights(source, "dnn", source / "w.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DNN.npz", "folder"]


# ----------------------------------------------------------------------------------------------------------- TensorFlow


def test_without_tensorflow_the_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)  # the import fails
    (tmp_path / "ckpt_noshuffDIEN3.index").write_bytes(b"")
    prefix = tmp_path / "ckpt_noshuffDIEN3"
    for name in (prefix, f"{prefix}.index"):
        assert main(["import", str(name), "--model", "dien", "--out", str(tmp_path / "w.ckpt")]) == 2
        assert "pip install tensorflow" in capsys.readouterr().err


def test_a_tensorflow_checkpoint_is_read(tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    v1 = tensorflow.compat.v1
    arrays = random_weights("dien")
    with v1.Graph().as_default():
        held = {
            **arrays,
            **{f"{name}/{slot}": np.zeros_like(array) for name, array in arrays.items() for slot in ("Adam", "Adam_1")},
            "bn1/moving_mean": np.zeros(9, np.float32), "bn1/moving_variance": np.ones(9, np.float32),
            "Metrics/beta1_power": np.float32(0.9),
        }  # fmt: skip
        saver = v1.train.Saver({name: v1.Variable(array) for name, array in held.items()})
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            saver.save(session, str(tmp_path / "ckpt_noshuffDIEN3"))
    import_weights(tmp_path / "ckpt_noshuffDIEN3", "DIEN", tmp_path / "w.ckpt")
    export_weights(tmp_path / "w.ckpt", tmp_path / "w.npz")
    again = read(tmp_path / "w.npz")
    assert again.keys() == arrays.keys() and all(np.array_equal(again[name], arrays[name]) for name in arrays)
    (tmp_path / "broken.index").write_bytes(b"nothing")
    with pytest.raises(UserError, match="can't be read as a TensorFlow checkpoint"):
        import_weights(tmp_path / "broken", "DIEN", tmp_path / "w.ckpt")
