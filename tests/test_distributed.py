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

from comp import device, distributed

# In float32 and without Adam, which makes a whole step of a gradient's last digit, what differs is the order of sums.
# One job does all, since each process takes ten seconds to import what it needs; it is joined once and left at the end.
SCRIPT = """\
import atexit, json, runpy, sys
from torch import distributed
from comp import device, ranks
atexit.register(lambda: distributed.is_initialized() and print("still in the job", file=sys.stderr))
device._cpu_flags = set
commands, leave = json.loads(sys.argv[1]), ranks.leave
for sys.argv in commands:
    ranks.leave = leave if sys.argv is commands[-1] else lambda: None
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code:
            raise
    ranks.join = lambda device: None
"""
EXACT = ("train_fold.py", *TINY, "--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.05", "--fold", "0")
BLEND = ("ensemble.py", *TINY, "--folds", "0")
MIXED, PLAIN = (("--set", f"augment.cutmix={share}", "--set", f"augment.mixup={share}") for share in (0.5, 0.0))


def start_two(cwd, *commands: tuple[str, ...]) -> subprocess.Popen:
    given = json.dumps([[str(ROOT / "kernels" / script), *arguments] for script, *arguments in commands])
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    job = [*launcher, "float32.py", given]
    return subprocess.Popen(job, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    images, masks = draw(25, 0)
    lay_out(folder, train_images=images, train_masks=masks, test_images=draw(11, 1)[0], test_masks=draw(11, 1)[1])
    (folder / "float32.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def two(place):
    """What two processes say that train with pictures mixed and not, and blend."""
    training = [(*EXACT, *mixed, "--runs", f"two-{mixed is MIXED}") for mixed in (MIXED, PLAIN)]
    job = start_two(place, *training, (*BLEND, "--runs", "two-True", "--submissions", "by-two"))
    said = job.communicate(timeout=300)[0]
    assert not job.returncode, said
    assert "still in the job" not in said  # which aborts one exit in five
    return said


@pytest.fixture
def one(place, monkeypatch, capsys):
    """Runs a script as one process, which is this one."""
    monkeypatch.setattr(device, "_cpu_flags", set)
    return lambda *command: inside(monkeypatch, capsys, *command, cwd=place)


def test_one_of_two_ranks_speaks(two):
    assert two.count("16 pictures to train on") == 2  # in two trainings


@pytest.mark.parametrize("mixed", [MIXED, PLAIN])
def test_two_ranks_are_one(place, two, one, mixed):
    runs = [f"{count}-{mixed is MIXED}" for count in ("one", "two")]
    one(*EXACT, *mixed, "--runs", runs[0])
    alone, shared = (place / run / "tiny/recipe/fold-0" for run in runs)
    assert {path.name for path in alone.iterdir()} == {path.name for path in shared.iterdir()}
    expected, found = (safetensors.torch.load_file(folder / "model.safetensors") for folder in (alone, shared))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with np.load(alone / "oof.npz") as expected, np.load(shared / "oof.npz") as found:
        assert found["ids"].tolist() == expected["ids"].tolist()  # each once, in order
        assert np.array_equal(found["confusions"].sum((1, 2)), expected["confusions"].sum((1, 2)))
        assert np.abs(found["probabilities"] - expected["probabilities"]).max() < 0.002


def test_two_ranks_blend_as_one(place, two, one):
    one(*BLEND, "--runs", "two-True", "--submissions", "by-one")
    (alone,), (shared,) = ((place / folder).glob("*.csv") for folder in ("by-one", "by-two"))
    assert alone.read_bytes() == shared.read_bytes()


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


def test_two_gpus_start_the_same_command_again_under_torchrun(monkeypatch):
    began = []
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "execv", lambda program, words: began.append(words))
    monkeypatch.setattr(sys, "argv", ["kernels/train_fold.py", "--run", "a", "--fold", "0"])
    distributed.join("cuda:1")  # one was asked for
    assert not began
    distributed.join("auto")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    assert began[0] == [sys.executable, *launcher, *sys.argv]
