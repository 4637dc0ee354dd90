"""Two processes under torchrun against one: the same training, the same files."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import ROOT, TINY, draw, inside, lay_out
from torch import nn

from comp import device, distributed

pytestmark = pytest.mark.slow

# In float32 and without Adam, which makes a whole step of a gradient's last digit, only the order of sums differs.
# SyncBatchNorm needs GPUs, so here batch norm takes its running statistics, in one process and in two.
# One job does all, since each process takes ten seconds to import what it needs; it is joined once and left at the end.
SCRIPT = """\
import atexit, json, runpy, sys
from torch import nn
from comp import device, distributed
atexit.register(lambda: print("still in the job", file=sys.stderr))
device._cpu_flags = set
nn.BatchNorm2d.forward = lambda self, x: nn.functional.batch_norm(
    x, self.running_mean, self.running_var, self.weight, self.bias)
commands, leave = json.loads(sys.argv[1]), distributed.leave
for sys.argv in commands:
    distributed.leave = leave if sys.argv is commands[-1] else lambda: None
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    distributed.join = lambda: None
"""
EXACT = ("train_fold.py", *TINY, "--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.05", "--fold", "0")
PLAIN = ("--set", "augment.cutmix=0", "--set", "augment.mixup=0")
RUNS = {"mixed": (), "plain": PLAIN, "accumulated": (*PLAIN, "--set", "optimizer.accumulate=2")}


def start_two(cwd, *commands: tuple[str, ...]) -> subprocess.Popen:
    given = json.dumps([[str(ROOT / "kernels" / script), *arguments] for script, *arguments in commands])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    job = [*launcher, "float32.py", given]
    return subprocess.Popen(job, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    images, masks = draw(25, 0)
    lay_out(folder, train_images=images, train_masks=masks, test_images=draw(11, 1)[0])
    (folder / "float32.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def two(place):
    """What two processes say that train each of the runs."""
    job = start_two(place, *((*EXACT, *options, "--runs", f"two-{name}") for name, options in RUNS.items()))
    said = job.communicate(timeout=300)[0]
    assert not job.returncode, said
    assert "still in the job" not in said  # which aborts one exit in five
    return said


def test_one_of_two_ranks_speaks(two):
    assert two.count("16 images to train on") == len(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_train_as_one(place, two, name, monkeypatch, capsys):
    monkeypatch.setattr(device, "_cpu_flags", set)
    monkeypatch.setattr(nn.BatchNorm2d, "forward", as_in_validation)
    inside(monkeypatch, capsys, *EXACT, *RUNS[name], "--runs", f"one-{name}", cwd=place)
    alone, shared = (place / f"{count}-{name}/tiny/recipe/fold-0" for count in ("one", "two"))
    assert {path.name for path in alone.iterdir()} == {path.name for path in shared.iterdir()}
    with np.load(alone / "oof.npz") as expected, np.load(shared / "oof.npz") as found:
        assert found["ids"].tolist() == expected["ids"].tolist()  # each once, in order
        assert np.array_equal(found["margins"][:, 1], expected["margins"][:, 1])
        if name == "mixed":  # each rank mixes its own share
            return
        assert np.abs(found["planes"].astype(int) - expected["planes"]).max() <= 1
    expected, found = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (alone, shared))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def as_in_validation(self, x):
    return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


def test_a_submission_is_made_by_one_process(place, two, monkeypatch, capsys):
    for name in distributed.LAUNCHED:
        monkeypatch.setenv(name, "0")
    words = ("ensemble.py", *TINY, "--folds", "0", "--runs", "two-plain")
    assert "without torchrun" in inside(monkeypatch, capsys, *words, cwd=place, status=2)


def test_a_lost_rank_ends_the_job_and_the_same_command_goes_on(place):
    job = start_two(place, (*EXACT, "--run", "lost", "--set", "epochs=400"))
    history = place / "runs" / "tiny" / "lost" / "fold-0" / "history.csv"
    deadline = time.monotonic() + 120
    while not history.exists() and job.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = subprocess.run(["pgrep", "-P", str(job.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    said = job.communicate(timeout=120)[0]
    assert job.returncode != 0
    assert "rank 0: another process of this job ended; start it again to go on" in said
    assert "Traceback" not in said.partition("closing signal")[0], said
