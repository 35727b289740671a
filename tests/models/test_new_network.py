"""A network is tested from the day it is registered."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PLUGIN = """
from dataclasses import dataclass

import deepinterest
from deepinterest import config, models
from deepinterest.models.dnn import DNN

@dataclass
class LatestConfig(config.ModelConfig):
    name: str = "latest"

class Latest(DNN):
    pass

config.SCHEMAS["model"]["latest"] = LatestConfig
models.NETWORKS[LatestConfig] = Latest
"""


@pytest.mark.slow
def test_a_registered_network_is_tested(tmp_path: Path) -> None:
    (tmp_path / "registers_latest.py").write_text(PLUGIN)
    files = [str(TESTS / name) for name in ("models/test_models.py", "test_broken_batches.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "registers_latest", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [*command, "-k", "latest"], cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stdout
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None and int(passed[1]) > 40
