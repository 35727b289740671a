"""Ctrl-C shows a sentence and ends with 130, never with a library's traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepinterest import ctrl_c
from deepinterest.config import LeaveLastOutConfig, SyntheticConfig
from deepinterest.data import store
from deepinterest.errors import Interrupted

ROOT = Path(__file__).parents[1]
# Ctrl-C in the moment that a module is first looked for
PRESS = """
import importlib.abc, os, runpy, signal, sys
class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
sys.argv = ["run.py", "data=synthetic"]
sys.path.insert(0, {root!r})
runpy.run_path({root!r} + "/run.py", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["hydra", "omegaconf.errors", "hydra.core.utils", "torch"])
def test_while_the_program_starts(module: str, tmp_path: Path) -> None:
    code = PRESS.format(module=module, root=str(ROOT))
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (130, "\nCtrl-C stopped the program before it began.\n")
    assert "Traceback" not in result.stdout


@pytest.fixture
def handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("handler")
@pytest.mark.parametrize("stage", store.STAGES)
def test_while_data_are_prepared(stage: str, tmp_path: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ctrl_c.quit_at_once()
    ctrl_c.clean_up_first()

    def press(name: str) -> None:
        if name == stage:
            signal.raise_signal(signal.SIGINT)

    data = SyntheticConfig(users=50, events_per_user=8)
    with pytest.raises(Interrupted, match=r"^Ctrl-C stopped the run\.$") as caught:
        store.prepare(data, LeaveLastOutConfig(), str(tmp_path), press)
    assert 128 + caught.value.number == 130
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]  # nothing half made
    assert store.load(store.prepare(data, LeaveLastOutConfig(), str(tmp_path))).samples


@pytest.mark.usefixtures("handler")
def test_what_ignores_ctrl_c_goes_on_ignoring_it() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctrl_c.quit_at_once()
    ctrl_c.clean_up_first()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
