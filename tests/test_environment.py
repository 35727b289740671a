"""The same run wherever it is started: environments without what they usually have, and folders that can't be written.

What these tests start are real commands, since HOME, the locale and the time zone are read once by a process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from conftest import Settings
from deepinterest import experiment

ROOT = Path(__file__).parents[1]
TIMES = ("seconds", "train/seconds", "samples_per_s", "memory_gib", "gpu_memory_gib")
ITEMS = [f"Käse {number} → {chr(0x4E2D)}" for number in range(40)]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def words(small: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run on a log with names in several scripts."""
    path = tmp_path_factory.mktemp("log") / "log.csv"
    rows = [(user, (user * 7 + number * number) % 40, number) for user in range(100) for number in range(12)]
    pl.DataFrame(
        {
            "user": [f"Benutzer→{user}" for user, _, _ in rows],
            "item": [ITEMS[item] for _, item, _ in rows],
            "timestamp": [1_500_000_000 + 3_600 * number + user for user, _, number in rows],
            "category": [f"Größe→{item % 5}" for _, item, _ in rows],
        }
    ).write_csv(path)
    return small("din", "data=events", f"data.path={path}", "data.columns.category=category", "logger=csv")


@pytest.fixture(scope="module")
def usual(words: list[str], settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run in the tests' own process."""
    folder = tmp_path_factory.mktemp("usual")
    experiment.run(*settings("din", folder, *words))
    return folder / "run"


def start(
    folder: Path, *words: str, before: tuple[str, ...] = (), **odd: str | None
) -> subprocess.CompletedProcess[str]:
    """`python run.py …` in `folder`, with variables that are set, or with None taken away."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "LC_"))}
    environment = {name: value for name, value in (plain | odd).items() if value is not None}
    command = [*before, sys.executable, str(ROOT / "run.py"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def equal(run: Path, usual: Path) -> None:
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (run, usual)]
    first, second = ({name: value for name, value in found.items() if name not in TIMES} for found in metrics)
    assert first == second
    cards = [json.loads((folder / "data_card.json").read_text()) for folder in (run, usual)]
    assert cards[0] == cards[1]
    tables = [pl.read_parquet(folder / "predictions.parquet") for folder in (run, usual)]
    assert tables[0].equals(tables[1])


def ordinary_user() -> tuple[str, ...]:
    """The start of a command that obeys permissions as anyone's does; root's obeys none."""
    if os.geteuid():
        return ()
    tool = shutil.which("setpriv")
    if tool is None:
        pytest.skip("root without setpriv can't do as an ordinary user does")
    return tool, "--bounding-set=-dac_override,-dac_read_search"


@pytest.mark.parametrize(
    "odd",
    [
        {"HOME": None, "LANG": None, "LC_ALL": "no_SUCH.locale", "TZ": "Bogus"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "TZ": "Pacific/Kiritimati"},  # ASCII alone
    ],
    ids=["unknown", "ascii"],
)
def test_same_numbers(odd: dict[str, str | None], words: list[str], usual: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = start(tmp_path, *words, f"paths.cache={tmp_path / 'cache'}", f"hydra.run.dir={run}", **odd)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    equal(run, usual)


def test_a_sweeps_job_is_that_run(words: list[str], usual: Path, tmp_path: Path) -> None:
    paths = (f"paths.cache={tmp_path / 'cache'}", f"hydra.sweep.dir={tmp_path / 'sweep'}")
    result = start(tmp_path, *words, "seed=1,2", *paths, "-m")
    assert result.returncode == 0, result.stderr
    equal(tmp_path / "sweep" / "0", usual)


def test_a_home_that_cant_be_written(words: list[str], usual: Path, tmp_path: Path) -> None:
    """Neither the settings of libraries nor compiled kernels find a place there; prepared data need one, and say so."""
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    user, run = ordinary_user(), f"hydra.run.dir={tmp_path / 'run'}"
    result = start(tmp_path, *words, run, before=user, HOME=str(home), XDG_CACHE_HOME=None)
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    assert result.returncode == 1 and "Permission denied" in line and "paths.cache" in line

    result = start(
        tmp_path, *words, run, f"paths.cache={tmp_path / 'cache'}", before=user, HOME=str(home), XDG_CACHE_HOME=None
    )
    assert result.returncode == 0, result.stderr
    assert not list(home.iterdir())
    equal(tmp_path / "run", usual)


def test_prepared_data_that_cant_be_written(words: list[str], usual: Path, tmp_path: Path) -> None:
    """Somebody else's cache is read as one's own."""
    cache = tmp_path / "cache"
    shutil.copytree(usual.parent / "cache", cache)
    for path in (*cache.rglob("*"), cache):
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = ordinary_user()
    result = start(tmp_path, *words, f"paths.cache={cache}", f"hydra.run.dir={tmp_path / 'run'}", before=user)
    assert result.returncode == 0, result.stderr
    equal(tmp_path / "run", usual)


def test_run_folders_that_cant_be_written(words: list[str], usual: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(usual, run)
    whole = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    user = ordinary_user()
    run.chmod(0o555)
    for command in ((f"resume={run}", "trainer.max_epochs=2"), (*words, f"hydra.run.dir={run / 'new'}")):
        result = start(tmp_path, *command, f"paths.cache={usual.parent / 'cache'}", before=user)
        (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
        assert result.returncode == 1 and "can't be written: Permission denied" in line, result.stderr
        assert "Traceback" not in result.stderr
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == whole
