"""What `import deepinterest` does by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

FREED = """
import time
import deepinterest
import polars as pl

def own():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

before = own()
parts = [pl.select(pl.int_range(200_000)).to_series() for _ in range(100)]
assert own() > before + 140 * 2**20
del parts
time.sleep(0.3)
pl.select(pl.int_range(20_000)).to_series()  # the allocator looks for old memory when it is asked for some
print(own() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_polars_gives_memory_back() -> None:
    plain = {key: value for key, value in os.environ.items() if key != "_RJEM_MALLOC_CONF"}
    result = subprocess.run([sys.executable, "-c", FREED], env=plain, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 30 * 2**20
