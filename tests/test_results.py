"""The command of the results table: what it runs, what it goes on with, and what it writes into the README."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import results  # noqa: E402 - a script, not a part of the package

PAGE = "# A page\n<!-- results: tiny -->\nold\n<!-- /results -->\n\nmore\n"


def make_run(folder: Path, model: str, seed: int, auc: float, *, split: str = "abc", seconds: float = 12.0) -> None:
    """A run folder whose predictions have the AUC: 200 users of 10 rows; some touches are scored below all else."""
    folder.mkdir(parents=True)
    rows = 2_000
    label = np.tile([0, 1], rows // 2)
    wrong = np.random.default_rng(seed).permutation(rows // 2) < round((1 - auc) * rows / 2)
    probability = np.where(label == 1, np.where(np.repeat(wrong, 2), 0.1, 0.9), 0.5)
    auc = 1 - wrong.mean()
    frame = {"user": np.repeat(np.arange(200), 10), "item": np.arange(rows), "label": label, "probability": probability}
    pl.DataFrame(frame).write_parquet(folder / "predictions.parquet")
    metrics = {"test/auc": auc, "test/gauc": auc - 0.01, "test/logloss": 0.5, "seconds": seconds,
               "probe/popularity_auc": 0.51234, "probe/category_count_auc": 0.6}  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(metrics))
    card = {"protocol": "temporal", "split_hash": split, "test_rows": rows}
    (folder / "data_card.json").write_text(json.dumps(card))
    (folder / "config.yaml").write_text(f"seed: {seed}\nmodel: {{name: {model}}}\ndata: {{name: made_up}}\n")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, small: Callable[..., list[str]]) -> None:
    """One task that takes seconds."""
    words = [word for word in small("dnn") if not word.startswith(("model=", "logger=", "trainer.threads="))]
    monkeypatch.setattr(results, "TASKS", {"tiny": results.Task(tuple(words))})


def test_runs_goes_on_and_writes(tiny: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    words = ["--data", "tiny", "--models", "dnn,pnn", "--folder", str(tmp_path), "--readme", str(page)]
    cache = f"paths.cache={tmp_path / 'cache'}"
    assert results.main([*words, "--seeds", "1", cache]) == 0
    first = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/*/metrics.json")}
    assert [*sorted(first)] == ["0", "1"]
    assert page.read_text() == PAGE  # not without --write
    shutil.rmtree(tmp_path / "tiny" / "1")  # as if it had been cut off there
    assert results.main([*words, "--seeds", "2", "--write", cache]) == 0
    again = {path.parent.name: path.stat().st_mtime_ns for path in tmp_path.glob("tiny/*/metrics.json")}
    assert [*sorted(again)] == ["0", "1", "2", "3"]
    assert again["0"] == first["0"] and again["1"] != first["1"]
    seeds = [json.loads((tmp_path / "tiny" / str(job) / "metrics.json").read_text())["test/auc"] for job in range(4)]
    text = page.read_text()
    assert text.startswith("# A page\n<!-- results: tiny -->\n`synthetic`, `leave_last_out`, ")
    assert text.endswith("\n<!-- /results -->\n\nmore\n") and "old" not in text
    mean = f"{(seeds[0] + seeds[2]) / 2:.4f}"[1:]  # job 0 is DNN of seed 1, job 2 of seed 2
    assert f"| DNN | {mean} ±" in text.replace("**", "")
    assert "seeds 1 to 2." in text and "Without a model: " in text
    assert "less DIN's" not in text  # which wasn't asked for
    capfd.readouterr()
    assert results.main([*words, "--seeds", "2", "--show"]) == 0
    assert text.split("-->\n")[1].split("<!--")[0] in capfd.readouterr().out


def test_table_of_known_runs(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path / f"{seed}a", "din", seed, 0.7)
        make_run(tmp_path / f"{seed}b", "dien", seed, 0.74, seconds=186)
        make_run(tmp_path / f"{seed}c", "dnn", seed, 0.7)
    text = results.table(tmp_path, ["dnn", "din", "dien"], 3)
    lines = text.splitlines()
    assert lines[0] == "`made_up`, `temporal`, 2,000 test rows, split abc, seeds 1 to 3."
    assert lines[2] == "| model | AUC | GAUC | logloss | AUC less DIN's | verdict | seconds |"
    cells = {row[1]: row for row in ([cell.strip() for cell in line.split("|")] for line in lines[4:7])}
    assert [*cells] == ["DNN", "DIN", "DIEN"]
    assert cells["DIN"][2:] == [".7000 ± .0000", ".6900 ± .0000", ".5000 ± .0000", "", "", "10", ""]
    assert cells["DIEN"][2] == "**.7400 ± .0000**" and cells["DIEN"][7] == "200"
    assert cells["DIEN"][5].startswith("+.0400 [+.0") and cells["DIEN"][6] == "higher"
    assert cells["DNN"][5].startswith("+.0000 [") and cells["DNN"][6] == "no significant difference"
    assert lines[-1] == "Without a model: category count .600, popularity .512."


def test_seed_counts_once_all_models_have_it(tmp_path: Path) -> None:
    for seed, model in ((1, "din"), (1, "dien"), (2, "din"), (3, "din"), (3, "dien")):
        make_run(tmp_path / f"{seed}{model}", model, seed, 0.6 + seed / 100)
    text = results.table(tmp_path, ["din", "dien"], 3)
    assert "seeds 1, 3." in text
    assert "| DIN | **.6200 ± .0141** |" in text  # .61 and .63
    assert "seed 1.\n" in results.table(tmp_path, ["din", "dien"], 2)
    assert results.main(["--show", "--data", "globo_popularity", "--folder", str(tmp_path / "none")]) == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [("models", "no seed has run with all of dnn, din yet"), ("split", "can't share a table"), ("page", "no place")],
)
def test_mistakes_are_sentences(
    broken: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(results, "TASKS", {"tiny": results.Task()})
    make_run(tmp_path / "tiny" / "0", "din", 1, 0.7)
    if broken != "models":
        make_run(tmp_path / "tiny" / "1", "dnn", 1, 0.7, split="other" if broken == "split" else "abc")
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("tiny", "else"))
    words = ["--data", "tiny", "--models", "dnn,din", "--folder", str(tmp_path), "--readme", str(page), "--seeds", "1"]
    assert results.main([*words, "--show", "--write"]) == 1
    assert message in capsys.readouterr().err
    assert page.read_text() == PAGE.replace("tiny", "else")


def test_commands(tmp_path: Path) -> None:
    def words(*more: str) -> list[str]:
        return results.command("globo_popularity", results._options(["--folder", str(tmp_path), *more]))

    found = words("--globo", "clicks.parquet", "--seeds", "2", "trainer.max_epochs=1")
    assert found[2:5] == ["-m", "seed=1,2", "model=dnn,wide_deep,pnn,din,aigru,agru,augru,dien"]
    assert {"experiment=globo_popularity", "data.path=clicks.parquet", "trainer.max_epochs=1"} < {*found}
    assert found[-1] == f"hydra.sweep.dir={tmp_path / 'globo_popularity'}"
    assert {"trainer.threads=1", "logger=none"} < {*found}
    assert "logger=none" not in words("logger=csv")
    (tmp_path / "globo_popularity").mkdir()
    (tmp_path / "globo_popularity" / "multirun.yaml").touch()
    assert words()[-1] == f"sweep.resume={tmp_path / 'globo_popularity'}"


def test_failed_job_is_told(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Any] = []

    def failing(command: list[str], check: bool) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        make_run(tmp_path / "tiny" / "0", "dnn", 1, 0.7)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(results.subprocess, "run", failing)
    words = ["--data", "tiny", "--models", "dnn", "--seeds", "1", "--folder", str(tmp_path)]
    status = 1
    assert results.main(words) == 1 and len(ran) == 1
    shutil.rmtree(tmp_path / "tiny")
    status = 130
    assert results.main(words) == 1
    shutil.rmtree(tmp_path / "tiny")
    status = 0
    assert results.main(words) == 0


@pytest.mark.parametrize("words", [["--data", "globo"], ["--models", "dnn,dni"], ["--seeds", "0"]])
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        results.main(words)
    assert "is not possible" in capsys.readouterr().err
