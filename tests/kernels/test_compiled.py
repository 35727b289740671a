from __future__ import annotations

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
