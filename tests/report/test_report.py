"""Plots and tables of small run folders written here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from deepinterest.errors import UserError
from deepinterest.report import plots
from deepinterest.report.__main__ import main
from deepinterest.report.table import collect, compare, results_table
from deepinterest.training import scores


def write_run(
    root: Path, name: str, model: str, seed: int, *, auc: float = 0.7, split: str = "abc", noise: float = 1.0,
    config: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    folder = root / name
    folder.mkdir(parents=True)
    metrics = {"test/auc": auc, "test/gauc": 0.6, "test/logloss": 0.5, "seconds": 12.0, "probe/popularity_auc": 0.61}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "data_card.json").write_text(json.dumps({"protocol": "temporal", "split_hash": split}))
    settings = {
        "seed": seed,
        "data": {"name": "synthetic"},
        "model": {"name": model, "mlp": [200, 80]},
        "paths": {"run": str(folder)},
        **(config or {}),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    rng = np.random.default_rng(7)
    user, item, label = rng.integers(0, 60, 600), rng.integers(0, 50, 600), rng.integers(0, 2, 600)
    score = label + noise * np.random.default_rng([seed, len(name)]).normal(size=600)
    item = [f"item {number}" for number in item]  # raw values: texts in one log, numbers in another
    frame = pl.DataFrame({"user": user, "item": item, "label": label, "probability": 1 / (1 + np.exp(-score))})
    frame.sample(fraction=1, shuffle=True, seed=seed).write_parquet(folder / "predictions.parquet")
    return folder


def test_rows_are_means_over_seeds(tmp_path: Path) -> None:
    write_run(tmp_path, "a/1", "din", 1, auc=0.70)
    write_run(tmp_path, "a/2", "din", 2, auc=0.72)
    write_run(tmp_path, "b", "dnn", 1, auc=0.65)
    text = results_table(collect([tmp_path, tmp_path / "a"]))
    assert "| din | 0.7100 ± 0.0141 | 0.6000 ± 0.0000 | 0.5000 ± 0.0000 | 12.0 ± 0.0 | 1, 2 |" in text
    assert "| dnn | 0.6500 | 0.6000 | 0.5000 | 12.0 | 1 |" in text
    assert "Probes, AUC without a model: popularity 0.6100." in text
    assert "synthetic, temporal (split abc)" in text


def test_splits_never_share_a_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    write_run(tmp_path, "b", "din", 2, split="other")
    text = results_table(collect([tmp_path]), "din")
    assert text.count("| model |") == 2
    assert "±" not in "".join(line for line in text.splitlines() if line.startswith("| din"))


def test_settings_never_share_a_row(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1, config={"optimizer": {"lr": 0.1}})
    write_run(tmp_path, "b", "din", 1, config={"optimizer": {"lr": 0.2}})
    write_run(tmp_path, "c", "dnn", 1)
    runs = collect([tmp_path])
    text = results_table(runs, "din")
    assert "| din (optimizer.lr=0.1) |" in text
    assert "| din (optimizer.lr=0.2) |" in text
    assert "has 2 settings on this split" in text


def test_repeated_seed_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    write_run(tmp_path, "b", "din", 1)
    text = results_table(collect([tmp_path]))
    assert "1 older run(s) of a repeated seed" in text
    assert "| din | 0.7000 | " in text


def test_comparison(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, f"din{seed}", "din", seed, noise=1.5)
        write_run(tmp_path, f"best-{seed}", "dien", seed, noise=0.5)
        write_run(tmp_path, f"alike--{seed}", "dnn", seed, noise=1.5)
    write_run(tmp_path, "lonely", "other", 9)
    text = results_table(collect([tmp_path]), "din")
    dien, dnn, other = (
        next(line for line in text.splitlines() if line.startswith(f"- {name}")) for name in ("dien", "dnn", "other")
    )
    assert "no significant difference" not in dien
    assert dien.endswith("(seeds 1, 2)")
    assert "no significant difference" in dnn
    assert "no seed in common" in other
    runs = {(run.model, run.seed): run for run in collect([tmp_path])}
    found = compare([(runs["dien", seed], runs["din", seed]) for seed in (1, 2)], resamples=100)
    assert found == compare([(runs["dien", seed], runs["din", seed]) for seed in (1, 2)], resamples=100)
    frames = {key: pl.read_parquet(run.folder / "predictions.parquet") for key, run in runs.items()}
    aucs = {
        key: scores.auc(frame["label"].to_numpy(), frame["probability"].to_numpy()) for key, frame in frames.items()
    }
    assert found.value == pytest.approx(np.mean([aucs["dien", seed] - aucs["din", seed] for seed in (1, 2)]), abs=1e-9)


def test_a_folder_of_runs_as_baseline(tmp_path: Path) -> None:
    plain = {"optimizer": {"lr": 0.1, "eps": 1}}
    for seed in (1, 2):
        write_run(tmp_path, f"base/{seed}", "din", seed, noise=1.5, config=plain)
        write_run(tmp_path, f"faster-{seed}", "din", seed, noise=0.5, config={"optimizer": {"lr": 0.2, "eps": 1}})
        write_run(tmp_path, f"rounder-{seed}", "din", seed, noise=1.5, config={"optimizer": {"lr": 0.1, "eps": 2}})
        write_run(tmp_path, f"dnn-{seed}", "dnn", seed, noise=1.5, config=plain)
    text = results_table(collect([tmp_path]), str(tmp_path / "base"))
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.endswith("| 1, 2 |")]
    assert rows == ["din", "din (optimizer.lr=0.2)", "din (optimizer.eps=2)", "dnn"]
    compared = [line.partition(":")[0] for line in text.splitlines() if line.endswith("(seeds 1, 2)")]
    assert compared == ["- din (optimizer.lr=0.2)", "- din (optimizer.eps=2)", "- dnn"]
    with pytest.raises(UserError, match="has no run here"):
        results_table(collect([tmp_path / "base"]), str(tmp_path / "dnn-1"))


def test_predictions_must_be_of_the_same_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    other = write_run(tmp_path, "b", "dnn", 1)
    path = other / "predictions.parquet"
    pl.read_parquet(path).head(500).write_parquet(path)
    with pytest.raises(UserError, match="different rows"):
        results_table(collect([tmp_path]), "din")
    path.unlink()
    with pytest.raises(UserError, match=r"predictions\.parquet is missing"):
        results_table(collect([tmp_path]), "din")
    path.write_text("no parquet")
    with pytest.raises(UserError, match="can't be read as predictions"):
        results_table(collect([tmp_path]), "din")


@pytest.mark.parametrize("name", ["metrics.json", "data_card.json", "config.yaml"])
@pytest.mark.parametrize("text", ["{[", "3", '{"test/auc": "high"}'])
def test_corrupt_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (write_run(tmp_path, "a", "din", 1) / name).write_text(text)
    with pytest.raises(UserError, match=name):
        collect([tmp_path])


@pytest.mark.parametrize("name", ["data_card.json", "config.yaml"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write_run(tmp_path, "a", "din", 1) / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        collect([tmp_path])


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "runs/a", "din", 1)
    out = tmp_path / "new" / "results.md"
    assert main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    assert out.read_text() == capsys.readouterr().out
    assert main([str(tmp_path / "nothing")]) == 1
    assert main([str(tmp_path / "runs"), "--baseline", "dnn"]) == 1
    said = capsys.readouterr()
    assert "No run lies in" in said.err
    assert "'dnn' has no run here; name a folder of runs or one of din." in said.err


def test_report_needs_no_torch() -> None:
    code = "import sys, deepinterest.report.table, deepinterest.report.plots; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_plots_are_saved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    probability = rng.random(500)
    label = (rng.random(500) < probability).astype(np.int64)
    row = plots.AttentionRow([f"costs $ {i} or $ more" for i in range(50)], rng.random(50), "target", 1, 0.8)
    empty = plots.AttentionRow([], np.zeros(0), "target", 0, 0.1)
    figures = {
        "roc": plots.roc(label, probability),
        "one_class": plots.roc(np.zeros(3), np.full(3, 0.5)),
        "calibration": plots.calibration(label, probability, 15),
        "curves": plots.learning_curves({"train/loss": [(1, 0.5), (2, 0.4)], "validation/auc": [(2, 0.7)]}),
        "no_curves": plots.learning_curves({}),
        "attention": plots.attention([row, empty, row, row]),
        "no_attention": plots.attention([]),
    }
    for name, figure in figures.items():
        path = plots.save(figure, tmp_path / "plots" / f"{name}.png")
        assert path.read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "plots").iterdir())) == len(figures)


def test_roc_curve_has_the_area_of_the_auc() -> None:
    label, probability = np.array([1, 0, 1, 0, 1]), np.array([0.7, 0.7, 0.2, 0.1, 0.9])
    curve = plots.roc(label, probability).axes[0].lines[1]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(scores.auc(label, probability))
