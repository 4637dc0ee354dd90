"""Two processes under torchrun against one: the same training, the same files."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import COMPETITION, RECIPE, ROOT, TINY, draw

from comp import ranks

# In float32 and without Adam, which makes a whole step of a gradient's last digit, what differs is the order of sums.
SCRIPT = """\
import atexit, runpy, sys
from torch import distributed
from comp import device
atexit.register(lambda: distributed.is_initialized() and print("still in the job", file=sys.stderr))
device._cpu_flags = set
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
EXACT = (*TINY, "--set", "optimizer.name=sgd", "--set", "optimizer.lr=0.05", "--fold", "0")


def start(cwd, processes: int, script: str, *arguments: str) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
    command = [sys.executable, *launcher[: 0 if processes == 1 else None], "float32.py", str(ROOT / "kernels" / script)]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *arguments], cwd=cwd, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def ended(*jobs: subprocess.Popen) -> list[str]:
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert not any(job.returncode for job in jobs), "\n".join(said)
    assert not any("still in the job" in text for text in said)  # which aborts one exit in five
    return said


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "tiny.toml").write_text(COMPETITION)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "float32.py").write_text(SCRIPT)
    (folder / "input").mkdir()
    images, masks = draw(25, 0)
    test, _ = draw(11, 1)
    np.savez(folder / "input" / "tiny.npz", train_images=images, train_masks=masks, test_images=test)
    return folder


@pytest.mark.parametrize("mixing", ["0.5", "0.0"])
def test_two_ranks_are_one(place, mixing):
    mixed = ("--set", f"augment.cutmix={mixing}", "--set", f"augment.mixup={mixing}")
    runs = [place / "runs" / "tiny" / f"{count}-{mixing}" / "fold-0" for count in (1, 2)]
    jobs = [
        start(place, count, "train_fold.py", *EXACT, *mixed, "--run", run.parent.name)
        for count, run in enumerate(runs, start=1)
    ]
    said = ended(*jobs)
    assert said[1].count("pictures to train on") == 1  # one process speaks
    one, two = runs
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    expected, found = (safetensors.torch.load_file(folder / "model.safetensors") for folder in runs)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    with np.load(one / "oof.npz") as expected, np.load(two / "oof.npz") as found:
        assert found["ids"].tolist() == expected["ids"].tolist()  # each once, in order
        assert np.array_equal(found["confusions"].sum((1, 2)), expected["confusions"].sum((1, 2)))
        assert np.abs(found["probabilities"] - expected["probabilities"]).max() < 0.002


def test_two_ranks_blend_as_one(place):
    run = ("--run", "blended")
    ended(start(place, 1, "train_fold.py", *EXACT, *run))
    ended(*(start(place, n, "ensemble.py", *TINY, *run, "--folds", "0", "--submissions", f"by-{n}") for n in (1, 2)))
    (alone,), (shared,) = ((place / f"by-{n}").glob("*.csv") for n in (1, 2))
    assert alone.read_bytes() == shared.read_bytes()


def test_a_lost_rank_ends_the_job_and_the_same_command_goes_on(place):
    arguments = (*EXACT, "--run", "lost", "--set", "epochs=400")
    job = start(place, 2, "train_fold.py", *arguments)
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
    ranks.join("cuda:1")  # one was asked for
    assert not began
    ranks.join("auto")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"]
    assert began[0] == [sys.executable, *launcher, *sys.argv]
