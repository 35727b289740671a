"""The soak: it measures what it says, it sees growth of each kind, and a short one of our own has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import soak  # noqa: E402 - they are scripts, not a part of the package

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="processes are read from /proc")
STEADY = {
    "memory": 400.0, "memory_gain": 0.5, "open_files": 54.0, "threads": 15.0, "left_behind": 0.0, "run_files": 9.0,
    "temporary": 0.0, "shared": 0.0,
}  # fmt: skip


def cycles(*measured: dict[str, float]) -> list[soak.Cycle]:
    return [soak.Cycle(n, "process 0 of 2", 100 * n, 0.9, 60.0, {**STEADY, **one}) for n, one in enumerate(measured, 1)]


def grown(*measured: dict[str, float]) -> list[str]:
    return [one.name for one in soak.growth(cycles(*measured)) if not one.fine]


def test_no_growth() -> None:
    noise = [{"memory": 400 + (-1) ** n * 9, "open_files": 54 + n % 2, "run_files": 9 + n % 2} for n in range(12)]
    assert grown(*noise) == []
    assert grown({"memory": 700, "open_files": 80, "run_files": 2}, {}, {}, {}) == []  # the first one is apart
    text = soak.report(cycles({}, {}, {}))
    assert "verdict: no growth in 3 cycles, 3 minutes and 300 steps" in text
    assert "| open files | 54.0 | 54.0 | +0.000 | +0.0 | 2.0 |" in text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("memory", [400 + 3 * n for n in range(12)]),
        ("memory_gain", [25] * 6 + [0] * 3),
        ("open_files", [54 + n for n in range(6)]),
        ("threads", [15, 15, 15, 15, 15, 19]),  # late, but there
        ("left_behind", [0, 0, 1, 0, 0, 0]),
        ("run_files", [9, 9, 10, 10, 11, 11]),
        ("temporary", [0, 0, 0, 1]),
        ("shared", [0, 2, 4, 6]),
    ],
)
def test_growth_of_each_kind(name: str, values: list[float]) -> None:
    assert grown(*({name: value} for value in values)) == [name]
    assert f"verdict: growth of {name.replace('_', ' ')} in" in soak.report(cycles(*({name: v} for v in values)))


def test_a_stray_value_is_no_slope() -> None:
    assert soak.slope([1, 1, 1, 90, 1, 1, 1]) == 0
    assert soak.slope([0, 2, 4, 6]) == 2
    assert soak.slope([5]) == 0


MEASURES = """
import os, sys, threading
from benchmarks import soak
own = os.getpid()
opened, memory, tasks = soak.open_files(own), soak.own_memory(own), soak.threads(own)
held, leak, stop = open(sys.argv[1], "w"), bytearray(os.urandom(64 * soak.MIB)), threading.Event()
thread = threading.Thread(target=stop.wait)
thread.start()
assert soak.open_files(own) == opened + 1
assert 60 < soak.own_memory(own) - memory < 80
assert soak.threads(own) == tasks + 1
stop.set()
thread.join()
assert len(leak) == 64 * soak.MIB
assert soak.own_memory(2**22 + 1) == soak.open_files(2**22 + 1) == soak.threads(2**22 + 1) == 0  # no such process
"""


def test_measures_of_a_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEASURES, str(tmp_path / "a")]  # the tests' own process may hold freed memory
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_processes_and_files_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; held = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "held")]
    environment = {**os.environ, soak.MARK: "mine"}
    pipe = subprocess.PIPE
    monkeypatch.setattr(soak, "SHARED", (tmp_path,))
    (tmp_path / "before").touch()
    before = soak._shared()
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert soak.marked("mine") == [process.pid]
        assert soak.marked("yours") == []
        (tmp_path / "left").touch()
        assert soak.new_files(before) == {tmp_path / "left"}  # the other one is in use
    assert soak.marked("mine") == []
    assert soak.new_files(before) == {tmp_path / "left", tmp_path / "held"}


SMALL = ("data.users=300", "model=dnn", "model.mlp=[8]")


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(soak, "SHARED", ())  # tests beside this one write there
    code = soak.main(["--cycles", "3", "--seconds", "15", "--folder", str(tmp_path), *SMALL])
    told = capsys.readouterr().out
    assert code == 0, told
    assert "verdict: no growth in 3 cycles" in told
    assert "killed process 0 of 2" in told and "killed process 1 of 2" in told
    assert not soak.marked("mine")


@pytest.mark.slow
def test_a_soak_with_a_leak(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's own start-up hook leaves a file behind with every process."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text("import tempfile; tempfile.mkstemp()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
    monkeypatch.setattr(soak, "SHARED", ())
    assert soak.main(["--cycles", "3", "--seconds", "1", "--folder", str(tmp_path / "soak"), *SMALL]) == 1
    assert "verdict: growth of temporary in 3 cycles" in capsys.readouterr().out
