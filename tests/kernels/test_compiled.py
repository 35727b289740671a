from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepinterest.kernels import compiled


def test_kernels_run_where_nothing_can_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    """As in a container whose files and home are read-only; here numba has no file to keep the function beside."""
    space: dict[str, Any] = {}
    exec("def double(x):\n    return 2 * x", space)
    compiled._say_that_nothing_is_kept.cache_clear()
    for _ in range(2):
        assert compiled.compiled(space["double"])(np.arange(3)).tolist() == [0, 2, 4]
    assert len(caplog.records) == 1
    assert "NUMBA_CACHE_DIR" in caplog.text


def test_compiling_is_told_once_and_only_where_it_happens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "kernel.py").write_text("def double(x):\n    return 2 * x\n")

    def compute() -> list[str]:
        """In a new process's place: a function that numba hasn't seen yet, in the same file."""
        spec = importlib.util.spec_from_file_location("deepinterest.kernel", tmp_path / "kernel.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        compiled._say_that_it_takes_a_while.cache_clear()
        caplog.clear()
        double = compiled.compiled(module.double)
        assert double(np.arange(3)).tolist() == [0, 2, 4]
        assert double(np.arange(3.0)).tolist() == [0, 2, 4]  # another version of it
        return caplog.messages

    with caplog.at_level(logging.INFO):
        assert compute() == ["Compiling kernels, once for this machine (about 10 s)."]
        assert compute() == []
