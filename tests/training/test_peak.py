"""The highest memory of a run."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from deepinterest.training import peak

MIB = 2**20


@pytest.mark.skipif(not os.access(peak.CLEAR, os.W_OK), reason="the system lets no process forget its peak")
def test_a_run_is_not_told_the_memory_of_the_one_before() -> None:
    peak.start()
    before = peak.memory()["memory_gib"]
    block = np.ones(300 * MIB, dtype=np.int8)
    assert peak.memory()["memory_gib"] > before + 0.25
    del block
    assert peak.memory()["memory_gib"] > before + 0.25
    peak.start()
    assert peak.memory()["memory_gib"] < before + 0.1


def test_other_systems_tell_the_whole_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = peak.memory()["memory_gib"]
    monkeypatch.setattr(peak, "STATUS", tmp_path / "none")
    monkeypatch.setattr(peak, "CLEAR", tmp_path / "neither" / "none")
    peak.start()
    assert known * 0.9 <= peak.memory()["memory_gib"] < 64
