"""Comparisons of run folders written here, where the answer is known."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console

from deepinterest import experiment
from deepinterest.compare import __main__ as command
from deepinterest.compare import figures, runs, scoring, tables
from deepinterest.compare.groups import Block, arrange
from deepinterest.compare.page import page
from deepinterest.compare.runs import collect
from deepinterest.errors import UserError
from deepinterest.training import scores

USERS, ROWS = 60, 600
PROBES = {"probe/popularity_auc": 0.61, "probe/in_history_auc": 0.55}
T_OF_TWO = 4.3027  # 97.5 % point of Student's t with 2 degrees of freedom
T_OF_ONE = 12.706


def write_run(
    root: Path, name: str, model: str, seed: int, *, noise: float = 1.0, split: str = "abc", told: str = "temporal",
    probes: dict[str, float] | None = None, metrics: dict[str, Any] | None = None, **config: Any,
) -> Path:  # fmt: skip
    """A run whose scores are the label plus noise of its own: runs of the same noise are as good as one another."""
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    user, item, label = rng.integers(0, USERS, ROWS), rng.integers(0, 50, ROWS), rng.integers(0, 2, ROWS)
    score = label + noise * np.random.default_rng([seed, *name.encode()]).normal(size=ROWS)
    frame = pl.DataFrame(
        {
            "user": user,
            "item": [f"item {number}" for number in item],  # raw values: texts in one log, numbers in another
            "label": label,
            "probability": 1 / (1 + np.exp(-score)),
            "history_length": (user % 7).astype(np.int32),
            "item_popularity": (100 - item).astype(np.int32),
        }
    )
    frame.sample(fraction=1, shuffle=True, seed=seed).write_parquet(folder / "predictions.parquet")
    found = {
        "test/auc": scores.auc(label, frame["probability"].to_numpy()),
        **{"test/gauc": 0.6, "test/logloss": 0.5, "test/ece": 0.01, "seconds": 12.0, "samples_per_s": 1000.0},
        **{"parameters": 1234.0, "memory_gib": 0.5},
        **(PROBES if probes is None else probes),
        **(metrics or {}),
    }
    settings = {
        "seed": seed,
        "task": "train",
        "data": {"name": "synthetic", "seed": 0},
        "protocol": {"max_history": 50},
        "model": {"name": model, "mlp": [200, 80]},
        "paths": {"run": str(folder)},
    }
    for key, value in config.items():
        settings[key] = {**settings[key], **value} if isinstance(settings.get(key), dict) else value
    (folder / "metrics.json").write_text(json.dumps(found))
    (folder / "data_card.json").write_text(json.dumps({"protocol": told, "split_hash": split}))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "curves.json").write_text(
        json.dumps({"train/loss": [[1, 0.7], [50, 0.6]], "val/auc": [[50, 0.6 + seed / 100], [100, 0.7 + seed / 100]]})
    )
    return folder


def set_metric(folder: Path, name: str, value: float) -> None:
    found = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**found, name: value}))


def look(root: Path, by: str | None = None, baseline: str | None = None, resamples: int = 300) -> tuple[str, list[str]]:
    """The Markdown, and its lines that are rows of a main table."""
    blocks, apart = arrange(collect([root]), by, baseline)
    text = tables.markdown([(block, scoring.examine(block, resamples)) for block in blocks], apart)
    mains = [block.partition("Mean ±")[0] for block in text.split("### ")[1:]]
    return text, [row for main in mains for row in main.splitlines() if row.startswith("| ")]


def row_of(rows: list[str], label: str) -> str:
    (found,) = (row for row in rows if row.startswith(f"| {label} |"))
    return found


# ---------------------------------------------------------------------------------------------------------- differences


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("several")
    for seed in (1, 2, 3):
        write_run(root, f"base{seed}", "din", seed, noise=1.5)
        write_run(root, f"better{seed}", "dien", seed, noise=0.5)
        write_run(root, f"worse{seed}", "dnn", seed, noise=6)
        write_run(root, f"alike{seed}", "pnn", seed, noise=1.5)
    for seed in (1, 2):
        write_run(root, f"two{seed}", "augru", seed, noise=0.5)
    write_run(root, "one", "agru", 1, noise=0.5)
    write_run(root, "lonely", "aigru", 9)
    return root


def test_verdicts(several: Path) -> None:
    text, rows = look(several, baseline="model=din")
    assert "| AUC less din | verdict |" in text
    verdicts = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[6] for row in rows}
    assert verdicts == {
        "": "verdict",
        "din": "baseline",
        "dien": "higher",
        "dnn": "lower",
        "pnn": "no significant difference",
        "augru": "too few seeds (2)",
        "agru": "too few seeds (1)",
        "aigru": "no seed in common",
    }
    assert "the interval holds the chance of the users alone" in text


def test_difference_is_that_of_the_aucs(several: Path) -> None:
    (block,), _ = arrange(collect([several]), None, "model=din")
    found = scoring.examine(block, 200).differences["dien"]
    auc = {run.name.rpartition("/")[2]: run.metrics["test/auc"] for run in block.runs}
    assert found.value == pytest.approx(np.mean([auc[f"better{s}"] - auc[f"base{s}"] for s in (1, 2, 3)]), abs=1e-9)
    assert found.seeds == [1, 2, 3]
    assert found.low < found.value < found.high
    assert found == scoring.examine(block, 200).differences["dien"]


def pairs(differences: np.ndarray, users: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """AUCs whose differences are `differences` (seeds,) of all users, moved by `users` (draws,) in each draw."""
    return [(np.append(d, d + users) + 0.5, np.full(1 + len(users), 0.5)) for d in differences]


def test_interval_of_users_alone() -> None:
    users = np.random.default_rng(1).normal(0, 0.01, 4000)
    for seeds in ([1], [1, 2, 3]):
        found = scoring.difference("din", seeds, pairs(np.full(len(seeds), 0.02), users))
        assert (found.low, found.high) == pytest.approx((0.02 - 0.0196, 0.02 + 0.0196), abs=0.001)


@pytest.mark.parametrize(("spread", "t"), [([0.01, 0.03], T_OF_ONE), ([0.01, 0.02, 0.03], T_OF_TWO)])
def test_interval_of_seeds_alone(spread: list[float], t: float) -> None:
    values = np.array(spread)
    found = scoring.difference("din", list(range(len(values))), pairs(values, np.zeros(5000)))
    half = t * values.std(ddof=1) / np.sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((0.02 - half, 0.02 + half), rel=0.1)


def test_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        shift = rng.normal(0, 0.01)  # of these users, the same for all seeds
        found = scoring.difference("din", [1, 2, 3], pairs(shift + rng.normal(0, 0.01, 3), rng.normal(0, 0.01, 200)))
        held += found.low <= 0 <= found.high
    assert 0.92 <= held / 400 <= 0.995  # with seeds drawn with replacement it is .93, and less where they differ more


def test_rows_of_one_class_decide_nothing() -> None:
    found = scoring.difference("din", [1, 2, 3], pairs(np.zeros(3), np.full(100, np.nan)))
    assert found.verdict == "not known: rows of one class only"


# ----------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_means_over_seeds(tmp_path: Path) -> None:
    for seed, auc in ((1, 0.70), (2, 0.72)):
        (write_run(tmp_path, f"a/{seed}", "din", seed) / "predictions.parquet").unlink()
        set_metric(tmp_path / f"a/{seed}", "test/auc", auc)
    (write_run(tmp_path, "b", "dnn", 1) / "predictions.parquet").unlink()
    set_metric(tmp_path / "b", "test/auc", 0.65)
    text, rows = look(tmp_path)
    assert row_of(rows, "din").startswith(
        "| din | 0.7100 ± 0.0141 | 0.6000 ± 0.0000 | 0.5000 ± 0.0000 | 0.0100 ± 0.0000 | 12.0 ± 0.0 | 1,000 | 1,234 | "
        "0.50 ± 0.00 | 1, 2 |"
    )
    assert row_of(rows, "dnn") == "| dnn | 0.6500 | 0.6000 | 0.5000 | 0.0100 | 12.0 | 1,000 | 1,234 | 0.50 | 1 |"
    assert "Probes, AUC without a model: in history 0.5500, popularity 0.6100." in text
    assert "### synthetic, temporal, split abc" in text
    assert "Without predictions.parquet, so in no curve:" in text


def test_settings_that_differ_name_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1, optimizer={"lr": 0.1})
    write_run(tmp_path, "b", "din", 1, optimizer={"lr": 0.2})
    write_run(tmp_path, "c", "dnn", 1, optimizer={"lr": 0.1})
    _, rows = look(tmp_path, baseline="model=din")
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| din, lr=0.1", "| din, lr=0.2", "| dnn, lr=0.1"]
    assert "| AUC less din, lr=0.1 |" in rows[0]
    assert row_of(rows, "dnn, lr=0.1").split(" | ")[6] == "too few seeds (1)"
    write_run(tmp_path, "d", "dnn", 1, optimizer={"lr": 0.2})
    _, rows = look(tmp_path, baseline="model=din")
    assert "| AUC less the baseline |" in rows[0]
    assert [row_of(rows, f"dnn, lr={lr}").split(" | ")[7] for lr in (0.1, 0.2)] == ["din, lr=0.1", "din, lr=0.2"]
    _, rows = look(tmp_path, baseline="model=din,optimizer.lr=0.2")
    assert row_of(rows, "din, lr=0.1").split(" | ")[6] == "too few seeds (1)"


def test_baseline_of_two_rows_is_told(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1, optimizer={"lr": 0.1})
    write_run(tmp_path, "b", "din", 1, optimizer={"lr": 0.2})
    write_run(tmp_path, "c", "dnn", 1, optimizer={"lr": 0.3})
    text, _ = look(tmp_path, baseline="model=din")
    assert (
        "model=din has 2 rows here (din, lr=0.1; din, lr=0.2), so nothing is compared with it for: dnn, lr=0.3" in text
    )


def test_by_names_the_rows_and_refuses_a_mixture(tmp_path: Path) -> None:
    for length in (20, 50):
        write_run(tmp_path, f"a{length}", "din", 1, protocol={"max_history": length}, optimizer={"lr": 0.1})
        write_run(tmp_path, f"b{length}", "dnn", 1, protocol={"max_history": length}, optimizer={"lr": 0.2})
    text, rows = look(tmp_path, by="model,protocol.max_history")
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[1:]] == [
        "din, max_history=20", "din, max_history=50", "dnn, max_history=20", "dnn, max_history=50",
    ]  # fmt: skip
    assert "rows differ in optimizer.lr: 0.1 (din, max_history=20; din, max_history=50), 0.2 (dnn" in text
    with pytest.raises(UserError, match=r"would mix 2 runs .*protocol\.max_history: 20, 50.*a20 and .*a50 do"):
        look(tmp_path, by="model")
    with pytest.raises(UserError, match=r"model\.name: din, dnn; optimizer\.lr: 0\.1, 0\.2\), as"):
        look(tmp_path, by="protocol.max_history")
    with pytest.raises(UserError, match=r"'data\.max_history', a setting that no run has; did you mean protocol\.max"):
        look(tmp_path, by="model,data.max_history")


def test_repeated_seed_counts_once(tmp_path: Path) -> None:
    old, new = write_run(tmp_path, "a", "din", 1), write_run(tmp_path, "b", "din", 1)
    os.utime(new / "metrics.json", (1, 1))
    text, rows = look(tmp_path)
    assert "1 older run(s) of a repeated seed" in text
    assert f"{json.loads((old / 'metrics.json').read_text())['test/auc']:.4f}" in row_of(rows, "din")


def test_a_test_of_a_checkpoint_has_no_cost(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1, task="test")
    _, rows = look(tmp_path)
    assert "| seconds |" not in rows[0]
    assert "| parameters |" in rows[0]
    write_run(tmp_path, "b", "din", 1)  # older, yet the training
    os.utime(tmp_path / "b" / "metrics.json", (1, 1))
    _, rows = look(tmp_path)
    assert row_of(rows, "din").endswith("| 12.0 | 1,000 | 1,234 | 0.50 | 1 |")


def test_a_folder_of_runs_as_baseline(tmp_path: Path) -> None:
    plain = {"lr": 0.1, "eps": 1}
    for seed in (1, 2, 3):
        write_run(tmp_path, f"base/{seed}", "din", seed, noise=1.5, optimizer=plain)
        write_run(tmp_path, f"faster-{seed}", "din", seed, noise=0.5, optimizer={"lr": 0.2, "eps": 1})
        write_run(tmp_path, f"rounder-{seed}", "din", seed, noise=1.5, optimizer={"lr": 0.1, "eps": 2})
        write_run(tmp_path, f"dnn-{seed}", "dnn", seed, noise=1.5, optimizer=plain)
    text, rows = look(tmp_path, baseline=str(tmp_path / "base"))
    assert {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[6] for row in rows[1:]} == {
        "din": "baseline",
        "din, lr=0.2": "higher",
        "din, eps=2": "no significant difference",
        "dnn": "no significant difference",
    }
    assert "| AUC less din |" in text


@pytest.mark.parametrize(
    ("baseline", "told"),
    [
        ("model=dnn", "'model=dnn' has no run here; the models are din"),
        ("din", "write --baseline model=din"),
        ("modle=din", "'modle', a setting that no run has; did you mean model?"),
    ],
)
def test_wrong_baseline(tmp_path: Path, baseline: str, told: str) -> None:
    write_run(tmp_path, "a", "din", 1)
    with pytest.raises(UserError, match=re.escape(told)):
        look(tmp_path, baseline=baseline)


def test_cautions(tmp_path: Path) -> None:
    first = write_run(tmp_path, "a", "din", 1, trainer={"threads": 1}, quirks={"best_of_test": True})
    second = write_run(tmp_path, "b", "dnn", 1, trainer={"threads": 2}, quirks={"best_of_test": False})
    (first / "environment.json").write_text(json.dumps({"commit": "abc", "torch": "2.9"}))
    (second / "environment.json").write_text(json.dumps({"commit": "def", "torch": "2.9"}))
    text, _ = look(tmp_path)
    assert "Chosen on the test rows (quirks.best_of_test), so too high: din." in text
    assert "Seconds and samples/s were not measured alike (trainer.threads: 1 or 2)." in text
    assert "The runs are of different commits: abc, def." in text
    assert "torchs" not in text


# -------------------------------------------------------------------------------------------------------- what is apart


def test_splits_never_share_a_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    write_run(tmp_path, "b", "din", 2, split="other", data={"seed": 5})
    write_run(tmp_path, "c", "din", 3, told="leave_last_out", split="third")
    blocks, apart = arrange(collect([tmp_path]))
    assert [len(block.runs) for block in blocks] == [1, 1, 1]
    told = "\n".join(apart)
    assert "measure 3 different things" in told
    assert re.search(r"protocol temporal, split other, data\.seed=5: .*b$", told, re.MULTILINE)
    assert re.search(r"protocol leave_last_out, split third, data\.seed=0: .*c$", told, re.MULTILINE)
    text, rows = look(tmp_path)
    assert text.startswith("These runs measure")
    assert "### 2. synthetic, temporal, split abc" in text
    assert "±" not in "".join(rows)


def test_equal_settings_and_other_data_are_told(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    write_run(tmp_path, "b", "din", 2, split="other")
    assert "the data themselves differ" in arrange(collect([tmp_path]))[1][-1]


def test_probes_and_measures_never_share_a_table(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    write_run(tmp_path, "b", "din", 2, probes={**PROBES, "probe/popularity_auc": 0.7})
    write_run(tmp_path, "c", "din", 3, evaluation={"gauc_weights": "clicks"})
    blocks, apart = arrange(collect([tmp_path]))
    assert len(blocks) == 3
    told = "\n".join(apart)
    assert re.search(r"probe/popularity_auc 0\.700000: .*b$", told, re.MULTILINE)


def test_probes_of_the_history_may_follow_its_length(tmp_path: Path) -> None:
    longer = {**PROBES, "probe/in_history_auc": 0.58}
    write_run(tmp_path, "a", "din", 1)
    write_run(tmp_path, "b", "din", 1, protocol={"max_history": 90}, probes=longer)
    text, rows = look(tmp_path, by="protocol.max_history")
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| max_history=50", "| max_history=90"]
    assert "in history 0.5500 (max_history=50) and 0.5800 (max_history=90)" in text
    write_run(tmp_path, "c", "din", 2, probes=longer)  # but here nothing says why
    assert len(arrange(collect([tmp_path]))[0]) == 2


# ------------------------------------------------------------------------------------------------------------ bad files


def test_predictions_must_be_of_the_same_rows(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    path = write_run(tmp_path, "b", "dnn", 1) / "predictions.parquet"
    whole = pl.read_parquet(path)
    whole.head(500).write_parquet(path)
    with pytest.raises(UserError, match="different rows"):
        look(tmp_path)
    whole.with_columns(probability=1 - pl.col("probability")).write_parquet(path)
    with pytest.raises(UserError, match="the files are not of one run"):
        look(tmp_path)
    whole.with_columns(probability=pl.lit(2.0)).write_parquet(path)
    with pytest.raises(UserError, match="can't be scored: Probabilities must lie"):
        look(tmp_path)
    whole.head(0).write_parquet(path)
    with pytest.raises(UserError, match="holds no rows"):
        look(tmp_path)
    path.write_text("no parquet")
    with pytest.raises(UserError, match="can't be read as predictions"):
        look(tmp_path)
    path.unlink()
    assert "Without predictions.parquet" in look(tmp_path)[0]
    with pytest.raises(UserError, match=r"predictions\.parquet is missing; a comparison with a baseline"):
        look(tmp_path, baseline="model=din")


def test_older_predictions_tell_no_history_length(tmp_path: Path) -> None:
    write_run(tmp_path, "a", "din", 1)
    path = write_run(tmp_path, "b", "dnn", 1) / "predictions.parquet"
    pl.read_parquet(path).drop("history_length", "item_popularity").write_parquet(path)
    text, _ = look(tmp_path)
    assert "don't tell history length and popularity" in text
    assert "**AUC by history length**" in text


@pytest.mark.parametrize("name", ["metrics.json", "data_card.json", "config.yaml", "curves.json", "environment.json"])
@pytest.mark.parametrize("text", ["{[", "3", '{"test/auc": "high"}'])
def test_corrupt_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    (write_run(tmp_path, "a", "din", 1) / name).write_text(text)
    if name == "environment.json" and text.startswith('{"'):
        assert collect([tmp_path])
    else:
        with pytest.raises(UserError, match=name):
            collect([tmp_path])


@pytest.mark.parametrize("name", ["data_card.json", "config.yaml"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (write_run(tmp_path, "a", "din", 1) / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        collect([tmp_path])


# ---------------------------------------------------------------------------------------------------------- the command


class Tags(HTMLParser):
    """Every attribute that a browser would follow, the tags, and those left open."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.seen: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_needs_nothing_else(several: Path) -> None:
    blocks, apart = arrange(collect([several]), None, "model=din")
    text = page([(block, scoring.examine(block, 200)) for block in blocks], apart)
    parser = Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "script" not in parser.seen and "link" not in parser.seen
    assert "http" not in text and "url(" not in text and "@import" not in text
    assert len(parser.links) == parser.seen.count("img") == 9
    for link in parser.links:
        kind, _, content = link.partition("base64,")
        assert kind == "data:image/svg+xml;"
        picture = base64.b64decode(content).decode()
        ElementTree.fromstring(picture)
        assert set(re.findall(r"https?://[^/\"]+", picture)) == {"http://www.w3.org"}  # names of its language
        assert all(link.startswith("#") for link in re.findall(r'href="([^"]+)"', picture))
    for title in ("ROC", "Calibration", "Validation AUC", "AUC by history length", "AUC and seconds"):
        assert f"<figcaption>{title}</figcaption>" in text
    assert 'name="viewport"' in text and '<html lang="en">' in text
    assert text == page([(block, scoring.examine(block, 200)) for block in blocks], apart)


HOSTILE = "<script>x</script>|$x$ \x1b[31m [a](javascript:b) `c` [/red]\n# d"


def test_names_are_no_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "a", HOSTILE, 1, told="<script>p\x07")
    blocks, apart = arrange(collect([tmp_path]))
    parts = [(block, scoring.examine(block, 100)) for block in blocks]
    html, text = page(parts, apart), tables.markdown(parts, apart)
    tables.show(Console(width=400), parts, apart)
    for shown in (html, text, capsys.readouterr().out):
        assert not re.search("[\x00-\x09\x0b-\x1f]", shown)  # control characters but the line break
        assert r"\x1b[31m" in shown and r"\n# d" in shown
    assert "<script" not in html + text
    assert r"&lt;script&gt;x&lt;/script&gt;\|$x$ \x1b[31m [a]\(javascript:b) \`c\`" in text
    assert text.count("\n#") == 0 and text.startswith("### synthetic, &lt;script&gt;p")


BOMB = "a0: &a0 x\n" + "\n".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 40))
DEEP = "[" * 100_000 + "]" * 100_000
NESTED = "[" * 900 + "]" * 900


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.yaml", BOMB, "more than 20,000 values"),
        ("config.yaml", "a: &a [*a]", "more than 20,000 values or 30 levels"),
        ("config.yaml", f"a: {DEEP}", "can't be read as YAML"),
        ("config.yaml", f"a: {NESTED}", "or 30 levels"),
        ("config.yaml", "a: " + "x" * 2**20, "too many for the settings"),
        ("config.yaml", "a: !!python/object/apply:os.getcwd []", "can't be read as YAML"),
        ("config.yaml", "model: {name: '${oc.env:HOME}'}", r"model\.name=\$\{oc\.env:HOME\}: an expression"),
        ("config.yaml", "logger: {tags: [a, '${now:%Y}']}", r"logger\.tags\[1\]=\$\{now:%Y\}: an expression"),
        ("config.yaml", "1: 2", "has '1' as a name"),
        ("metrics.json", f'{{"a": {DEEP}}}', "can't be read as JSON"),
        ("data_card.json", f'{{"protocol": {NESTED}, "split_hash": 1}}', "or 30 levels"),
        ("metrics.json", f'{{"test/auc": 1{"0" * 400}}}', "a number of 401 digits for test/auc"),
        ("curves.json", '{"val/auc": [[1, [2]]]}', "holds no list of"),
        ("curves.json", '{"val/auc": [[1e999, 2]]}', "holds no list of"),
        ("environment.json", f'{{"torch": {NESTED}}}', "or 30 levels"),
    ],
    ids=str,
)  # fmt: skip
def test_hostile_file_is_told_at_once(tmp_path: Path, name: str, text: str, message: str) -> None:
    (write_run(tmp_path, "a", "din", 1) / name).write_text(text)
    begin = time.monotonic()
    with pytest.raises(UserError, match=message):
        collect([tmp_path])
    assert time.monotonic() - begin < 10


def test_numbers_of_settings_are_read_as_settings(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "a", "din", 1)
    with (folder / "config.yaml").open("a") as file:
        file.write("optimizer: {lr: 1e-3, eps: 1.0e-08, c: true, none: null}\nday: 2017-11-25\n")
    (run,) = collect([tmp_path])
    told = {key: run.settings[key] for key in ("optimizer.lr", "optimizer.eps", "optimizer.none", "day")}
    assert told == {"optimizer.lr": "0.001", "optimizer.eps": "1e-08", "optimizer.none": "null", "day": "2017-11-25"}


def test_draws_are_the_same_whether_kept_or_not(several: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = look(several, baseline="model=din", resamples=100)
    monkeypatch.setattr(scoring, "MOST_KEPT", 0)
    assert look(several, baseline="model=din", resamples=100) == kept


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "runs/a", "din", 1)
    (tmp_path / "runs" / "killed").mkdir()
    (tmp_path / "runs" / "killed" / "last.ckpt").write_text("")
    out = tmp_path / "new" / "v1.2"
    assert command.main([str(tmp_path / "runs"), "--out", str(out), "--resamples", "100"]) == 0
    said = capsys.readouterr().out
    assert "synthetic, temporal, split abc" in said and "│ din" in said
    assert "Unfinished, so left out:" in said
    assert said.splitlines()[-2:] == [f"written: {out}.md", f"written: {out}.html"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["v1.2.html", "v1.2.md"]
    assert "| din |" in Path(f"{out}.md").read_text()
    assert command.main([str(tmp_path / "nothing")]) == 1
    assert "No run lies in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "runs"), "--resamples", "10"])
    assert "at least 100" in capsys.readouterr().err


def test_nothing_is_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "runs/a", "din", 1)
    (tmp_path / "out.md").write_text("before")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.os, "replace", fail)
    assert command.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 1
    assert "out.md can't be written: No space left on device." in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.md", "runs"]
    assert (tmp_path / "out.md").read_text() == "before"


def test_comparing_needs_no_torch() -> None:
    code = "import sys, deepinterest.compare.__main__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_real_runs(settings: Callable[..., Any], tmp_path: Path) -> None:
    for seed in (1, 2):
        config, plain = settings(
            "dnn", tmp_path, f"seed={seed}", f"paths.run={tmp_path}/runs/{seed}", f"paths.cache={tmp_path}/cache"
        )
        experiment.run(config, plain)
    text, rows = look(tmp_path / "runs")
    assert row_of(rows, "dnn").endswith("| 1, 2 |")
    assert "n/a" not in text.partition("**AUC by")[0]
    for name in ("seconds", "samples/s", "parameters", "GiB"):
        assert f"| {name} |" in rows[0]
    assert "**AUC by history length**" in text and "**AUC by the item's events in training**" in text
    assert "best reachable" in text


# ---------------------------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize(
    ("values", "labels", "rows"),
    [
        (np.arange(1, 11), ["1-2", "3-4", "5-6", "7-8", "9-10"], [2, 2, 2, 2, 2]),
        (np.array([0, 0, 0, 4, 4, 9]), ["0", "4-9"], [3, 3]),
        (np.full(5, 3), ["3"], [5]),
        (np.zeros(4, dtype=np.int64), ["0"], [4]),
    ],
)
def test_bins(values: np.ndarray, labels: list[str], rows: list[int]) -> None:
    found = scoring.bins_of(values)
    assert (found.labels, found.rows.tolist()) == (labels, rows)
    assert np.bincount(found.of(values), minlength=len(labels)).tolist() == rows


@pytest.fixture(scope="module")
def examined(several: Path) -> tuple[Block, scoring.Findings]:
    (block,), _ = arrange(collect([several]), None, "model=din")
    return block, scoring.examine(block, 100)


def test_roc_has_the_area_of_the_mean_auc(examined: tuple[Block, scoring.Findings]) -> None:
    block, findings = examined
    figure = figures.roc(block, findings)
    assert figure is not None
    for group, line in zip(block.groups, figure.axes[0].lines[1:], strict=True):
        auc = np.mean([run.metrics["test/auc"] for run in group.runs])
        assert np.trapezoid(line.get_ydata(), line.get_xdata()) == pytest.approx(auc, abs=0.005)


def test_parts_of_the_rows(examined: tuple[Block, scoring.Findings]) -> None:
    block, findings = examined
    run = block.groups[0].runs[0]
    frame = runs.predictions(run)
    assert frame is not None
    bins = findings.bins["history_length"]
    assert bins.labels[0] == "0"
    cold = frame.filter(pl.col("history_length") == 0)
    expected = scores.auc(cold["label"].to_numpy(), cold["probability"].to_numpy())
    assert findings.runs[run.folder].parts["history_length"][0] == expected
    assert bins.rows[0] == cold.height


def test_curves_are_means_over_seeds(examined: tuple[Block, scoring.Findings]) -> None:
    block, _ = examined
    figure = figures.curves(block, "Validation AUC", ("val/auc",))
    assert figure is not None
    before = 0  # a line a seed, then their mean where there are several
    for group in block.groups:
        count = len(group.runs)
        expected = [0.6 + seed / 100 for seed in group.seeds]
        expected += [float(np.mean(expected))] if count > 1 else []
        lines = figure.axes[0].lines[before : before + len(expected)]
        assert [line.get_ydata()[0] for line in lines] == pytest.approx(expected)
        before += len(expected)
    assert before == len(figure.axes[0].lines)
    assert figures.curves(block, "Validation logloss", ("val/logloss",)) is None


def test_significant_differences_are_filled(examined: tuple[Block, scoring.Findings]) -> None:
    block, findings = examined
    figure = figures.differences(block, findings)
    assert figure is not None
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "D"]
    hollow = {name for name, dot in zip(names, dots, strict=True) if dot.get_markerfacecolor() == "white"}
    assert hollow == {"pnn", "augru", "agru"}
