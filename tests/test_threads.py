"""Threads that wait leave their core to others."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from deepinterest import kernels
from deepinterest.benchmark.threads import waiting_share
from deepinterest.config import Accelerator, KernelName, Precision, TrainerConfig
from deepinterest.training.trainer import threads

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


@pytest.mark.parametrize(
    ("settings", "of_kernels", "of_torch"),
    [
        ({}, 2, 1),
        ({"threads": 1}, 1, 1),
        ({"kernel": KernelName.torch}, 2, 2),  # all is torch's work
        ({"precision": Precision["64-true"]}, 2, 2),
        ({"compile": True}, 2, 2),
        ({"devices": 2}, 2, 2),  # Lightning shares the threads out among the processes
    ],
)
def test_threads_are_the_kernels_where_those_compute(settings: dict[str, Any], of_kernels: int, of_torch: int) -> None:
    before = torch.get_num_threads()
    kernels.give_kernels(None, 2)
    try:
        with threads(TrainerConfig(accelerator=Accelerator.cpu, **settings)):
            assert (kernels.allowed(), torch.get_num_threads()) == (of_kernels, of_torch)
        assert (kernels.allowed(), torch.get_num_threads()) == (2, 2)  # the next run of this process finds them so
    finally:
        kernels.give_kernels(None, before)
