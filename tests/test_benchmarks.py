"""The benchmarks run, at sizes that take seconds, and what they generate has the shape they claim."""

from __future__ import annotations

import ast
import gzip
import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import amazon, measure, taobao  # noqa: E402 - they are scripts, not a part of the package

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


def test_taobao_log(tmp_path: Path) -> None:
    for name in ("a", "b"):
        taobao.generate(tmp_path / name, 50_000, seed=3)
    log = pl.read_parquet(tmp_path / "a")
    assert log.equals(pl.read_parquet(tmp_path / "b"))
    assert log.height == 50_000
    assert log["user"].n_unique() == 500
    assert log["item"].max() < 2_000
    assert log.group_by("item").agg(pl.col("category").n_unique())["category"].max() == 1
    assert log["timestamp"].max() - log["timestamp"].min() < 9 * 86_400
    lengths = log["user"].value_counts()["count"]
    assert lengths.max() > 3 * lengths.median()
    popularity = log["item"].value_counts()["count"].sort(descending=True)
    assert popularity[:20].sum() > 8 * popularity[1_000:1_020].sum()


def test_lengths_add_up() -> None:
    assert taobao.lengths(np.random.default_rng(0), 1_000, 54_321).sum() == 54_321


def test_taobao_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BENCHMARK_BEGAN", repr(time.time()))
    path, cache = tmp_path / "log.parquet", tmp_path / "cache"
    taobao.generate(path, 20_000)
    prepared = taobao.prepare(path, cache)
    card = prepared["card"]
    assert card["events"] == 20_000 - sum(n for key, n in card.items() if key.startswith("dropped: "))
    assert card["protocol"] == "leave_last_out"
    assert prepared["peak"] >= max(stage["peak"] for stage in prepared["stages"].values()) > 2**20
    assert prepared["prepare"] >= sum(stage["seconds"] for stage in prepared["stages"].values()) - 0.1
    loaded = taobao.load(
        path, cache, rounds=3, batches=2 * card["train_rows"] // taobao.ROWS
    )  # goes on to an epoch more
    assert len(loaded["rows_per_s"]) == 3 and min(loaded["rows_per_s"]) > 0
    started = taobao.start(path, cache)
    assert 0 < started["first_batch"] <= started["model"] < 600
    assert 2**20 < started["own_peak"] <= started["model_own_peak"] < started["model_peak"]
    taobao.report({"events": 20_000, "prepare": prepared, "load": loaded, "start": started})
    shown = capsys.readouterr().out
    assert "| loader, rows/s in batches of 1,024 |" in shown
    assert "| drawing negatives |" in shown


OWN_PEAK = """
import sys
import numpy as np
from benchmarks.measure import OwnPeak
size = 100 * 2**20
own = OwnPeak()
before = own.look()
assert np.load(sys.argv[1], mmap_mode="r").sum() == size
assert own.look() < before + size / 2
held = np.ones(size, np.uint8)
assert own.look() > before + size / 2
"""


def test_own_peak_holds_no_mapped_file(tmp_path: Path) -> None:
    np.save(tmp_path / "file.npy", np.ones(100 * 2**20, np.uint8))
    arguments = [sys.executable, "-c", OWN_PEAK, tmp_path / "file.npy"]  # this process may hold freed memory
    result = subprocess.run(arguments, cwd=measure.ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_a_step_beyond_its_limit_is_ended(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"beyond 0\.01 GiB"):
        measure.step("benchmarks.taobao", ["--folder", str(tmp_path), "--events", "20000", "--step", "load"], 0.01)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("amazon")
    amazon.generate(folder, 3_000)
    return folder


def test_amazon_files(files: Path) -> None:
    with gzip.open(files / "reviews_Books.json.gz", "rt") as file:
        reviews = [json.loads(line) for line in file]
    with gzip.open(files / "meta_Books.json.gz", "rt") as file:
        items = {record["asin"]: record for record in map(ast.literal_eval, file)}
    pairs = [(review["reviewerID"], review["asin"]) for review in reviews]
    assert len(pairs) == len(set(pairs)) == 3_000
    asins = [asin for _, asin in pairs]
    assert len(set(asins)) == 1 + sum(first != second for first, second in pairwise(asins))
    assert set(asins) < set(items)
    assert 480 < np.mean([len(review["reviewText"]) for review in reviews]) <= 500
    assert any('"' in review["reviewText"] for review in reviews)
    assert all(record["categories"][0][-1].startswith("Shelf & Co's") for record in items.values())


def test_the_other_ways_agree(files: Path, tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    found = {}
    for name in ("line_by_line_eval", "line_by_line_json", "pandas"):
        (tmp_path / name).mkdir()
        amazon.WAYS[name](files, tmp_path / name)
    for name in ("line_by_line_eval", "line_by_line_json"):
        lines = [line.split("\t") for part in ("train", "test") for line in (tmp_path / name / f"{part}.tsv").open()]
        found[name] = {
            user: (target, items.split("\x02")) for label, user, target, _, items, _ in lines if label == "1"
        }
    frame = pl.concat([pl.read_parquet(tmp_path / "pandas" / f"{part}.parquet") for part in ("train", "test")])
    positives = frame.filter(pl.col("label") == 1)
    found["pandas"] = {
        user: (target, list(items))
        for user, target, items in positives.select("reviewerID", "asin", "items").iter_rows()
    }
    assert len(found["pandas"]) > 100
    assert found["pandas"] == found["line_by_line_eval"] == found["line_by_line_json"]


def test_amazon_end_to_end(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.amazon", "--reviews", "3000", "--rounds", "1", "--folder", tmp_path,
         "--ways", "ours", "line_by_line_json"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert "| `data=amazon` |" in answer.stdout
    result = json.loads(answer.stdout.splitlines()[-1])
    assert result["ways"]["ours"][0]["card"]["events"] == 3_000
