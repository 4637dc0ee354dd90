"""Where to compute, in which precision, and with memory that is kept."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from comp import device, distributed
from comp.errors import Refused

STEPS = """
import resource
import torch
from comp import device
device.choose_device("cpu")
for turn in range(30):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(size * 2**18) for size in (1, 8, 40)]    # MB
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_precision_is_decided_with_a_reason(monkeypatch):
    assert device.choose_device("cpu").reason
    monkeypatch.setattr(device, "_cpu_flags", lambda: {"avx512_bf16"})
    assert device.choose_device("cpu").dtype == torch.bfloat16
    monkeypatch.setattr(device, "_cpu_flags", set)
    assert device.choose_device("cpu").dtype == torch.float32
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "set_device", [].append)
    for capability, dtype in {(7, 5): torch.float16, (9, 0): torch.bfloat16, (6, 0): torch.float32}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d, c=capability: c)
        assert device._cuda(torch.device("cuda")).dtype == dtype
    with pytest.raises(Refused):
        device.choose_device("tpu")


def test_several_devices_are_every_gpu_or_those_that_are_named(monkeypatch):
    assert device.find_devices("auto") == ["cpu"] and device.find_devices("cpu,cpu") == ["cpu", "cpu"]
    with pytest.raises(Refused, match="--device cuda:7"):
        device.find_devices("cpu,cuda:7")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device.find_devices("auto") == ["cuda:0", "cuda:1"] and device.find_devices("cuda:1") == ["cuda:1"]
    for name, value in zip(distributed.LAUNCHED, ("0", "1", "2", "127.0.0.1", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert device.find_devices("auto") == ["auto"]  # torchrun has given each process its own
    with pytest.raises(Refused, match="torchrun"):
        device.find_devices("cuda:0,cuda:1")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta", ""])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(Refused, match="--device"):
        device.choose_device(name)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_the_cpu_faults_its_memory_in_once():
    ran = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    pages = 20 * 49 * 2**20 // 4096
    assert int(ran.stdout) < pages / 20, ran.stderr


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_on_a_cpu(tmp_path):
    """The parts that a CPU can judge: equal losses, equal decisions, infinite steps; the rest needs one."""
    command = [sys.executable, str(ROOT / "tests/gpu.py"), "--only", "1,5,11", "--device", "cpu"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    table = json.loads((tmp_path / "runs/demo/gpu/gpu.json").read_text())
    verdicts = [(line["part"], line["verdict"]) for line in table["lines"] if line["verdict"] != "skipped"]
    expected = [(1, "ok")] * 4 + [(5, "ok")] * 3 + [(11, "ok"), (11, "read")] * 2
    assert ran.returncode == 0 and verdicts == expected, ran.stdout + ran.stderr
    unknown = subprocess.run([*command, "--only", "12"], capture_output=True, text=True, cwd=tmp_path)
    assert unknown.returncode == 2 and "parts 1 to 11" in unknown.stderr
