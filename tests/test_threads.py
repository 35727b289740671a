"""Threads that wait leave their core to others."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from deepinterest.benchmark.threads import waiting_share

POLICY = "OMP_WAIT_POLICY"


def test_a_process_that_waits_uses_no_cpu() -> None:
    """Of this very process, which pytest started: torch's threads spin between pieces of work unless told not to."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert waiting_share() < 0.1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("mine", [None, "ACTIVE"])
def test_the_package_says_so_before_torch_is_imported_unless_the_user_has(mine: str | None) -> None:
    code = f"import os, sys, deepinterest; print(os.environ[{POLICY!r}], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != POLICY}
    environment |= {} if mine is None else {POLICY: mine}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [mine or "PASSIVE", "False"]
