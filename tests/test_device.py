import subprocess
import sys
from pathlib import Path

import pytest

from comp import device
from comp.errors import Refused

STEPS = """
import resource
import torch
from comp import device
device.choose("cpu")
for turn in range(30):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(size * 2**18) for size in (1, 8, 40)]    # MB
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(Refused, match="--device"):
        device.choose(name)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_the_cpu_faults_its_memory_in_once():
    ran = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    pages = 20 * 49 * 2**20 // 4096
    assert int(ran.stdout) < pages / 20, ran.stderr
