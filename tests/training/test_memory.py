from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from deepinterest.training.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
torch.set_num_threads(1)
sizes = [(3000 + 37 * step % 500, 200) for step in range(60)]
def steps():
    for size in sizes:
        kept = [torch.ones(size) for _ in range(6)]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
steps()
before = faults()
steps()
print(faults() - before)
"""


def faults(how: str) -> int:
    found = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=False)
    if found.returncode == 77:
        pytest.skip("not glibc")
    assert found.returncode == 0, found.stderr
    return int(found.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's settings")
def test_steps_reuse_the_memory_of_those_before() -> None:
    # None; but a busy system takes pages back on its own, at times in more than half of the processes.
    assert any(faults("keep") < 100 for _ in range(30))
    assert any(faults("leave") > 10_000 for _ in range(30))
