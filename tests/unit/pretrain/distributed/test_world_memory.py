"""Freed memory that stays, seen by the page faults of processes of their own: the settings last as long as they do."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from pretrain.distributed.world import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    keep_freed_memory()
for _ in range(30):  # the heap grows for some steps: little things of torch lie in its gaps
    before = faults()
    torch.zeros(48 * 2**20 // 4)
print(faults() - before)
"""


def faults(how: str) -> int:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    return int(ended.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are those of glibc")
def test_a_tensor_above_32_mib_finds_its_memory_again():
    """Without the settings each needs 12,288 new pages of 4 KiB, or 24 huge ones."""
    assert faults("kept") < 12 < 24 <= faults("returned")
