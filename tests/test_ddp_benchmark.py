"""`python -m benchmarks.ddp`: its bytes are what they claim to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_bytes_of_each_way_to_keep_the_tables() -> None:
    size = ("--users", "3000", "--items", "20000", "--categories", "40", "--steps", "5", "--model", "din")
    command = [sys.executable, "-m", "benchmarks.ddp", "--batch-size", "32", *size]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=True)
    one, *found = json.loads(result.stdout.splitlines()[-1])["results"]
    ways = {each["way"]: each for each in found}
    assert list(ways) == ["replicated", "sharded", "dense"] and all(each["processes"] == 2 for each in found)
    assert (one["table_bytes"], one["other_bytes"]) == (0, 0)
    table = 4 * 18 * (3001 + 20001 + 41)
    assert ways["dense"]["table_bytes"] == table  # 2 (W - 1) / W is 1
    # 32 histories of 14 events at the median: some hundred rows of 4 + 4 * 18 bytes.
    assert 76 * 100 < ways["replicated"]["table_bytes"] < 76 * 3200
    assert ways["replicated"]["table_bytes"] < ways["dense"]["table_bytes"] / 5
    assert 76 * 50 < ways["sharded"]["table_bytes"] < 148 * 3200
    assert ways["sharded"]["table_mib"] == pytest.approx(ways["replicated"]["table_mib"] / 2, rel=0.01)
    assert ways["replicated"]["other_bytes"] == ways["dense"]["other_bytes"] > 0
    assert all(len(each["rows_per_s"]) == 5 and min(each["rows_per_s"]) > 0 for each in (one, *found))
