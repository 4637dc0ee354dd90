"""Folds side by side: two processes on the CPU stand for two GPUs."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, TINY, kernel, lay_out, load

run_on_devices = load("train_fold.py").run_on_devices


def test_each_device_runs_one_command_at_a_time_and_one_that_fails_stops_no_other(capsys):
    script = "import sys, time; print('on', sys.argv[1]); time.sleep(0.2); print('naïve'); sys.exit(sys.argv[2] == 'b')"
    statuses = run_on_devices("abc", ["x", "y"], lambda name, device: [sys.executable, "-c", script, device, name])
    assert statuses == {"a": 0, "b": 1, "c": 0}
    lines = capsys.readouterr().out.splitlines()
    assert {"a | on x", "b | on y", "a | naïve", "b | naïve", "c | naïve"} <= {*lines} and len(lines) == 6
    assert lines.index("c | naïve") == 5  # once a device was free


def test_ctrl_c_ends_all_once_and_nothing_else_is_begun(capsys):
    script = """
import signal, time
def heard(*_): print("heard", flush=True); time.sleep(0.5); print("saved", flush=True); raise SystemExit(130)
signal.signal(signal.SIGTERM, heard)
print("ready", flush=True)
time.sleep(60)
"""
    threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run_on_devices("abc", ["x", "y"], lambda *_: [sys.executable, "-c", script])
    assert sorted(capsys.readouterr().out.split("\n")[:-1]) == sorted(
        f"{name} | {word}" for name in "ab" for word in ("ready", "heard", "saved")
    )


def test_a_second_ctrl_c_kills_what_does_not_end(capsys):
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    for seconds in (1.5, 2.5):
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_on_devices("ab", ["x", "y"], lambda *_: [sys.executable, "-c", script])
    assert time.monotonic() - started < 30
    assert sorted(capsys.readouterr().out.split()) == sorted("a | deaf b | deaf".split())


@pytest.mark.slow
def test_two_folds_at_a_time_are_the_folds_that_come_one_after_the_other(tmp_path):
    lay_out(tmp_path)
    words = ("train_fold.py", *TINY[:-1])
    kernel(*words, "cpu", "--fold", "0,1", "--run", "after", cwd=tmp_path)
    said = kernel(*words, "cpu,cpu", "--fold", "0,1", "--run", "beside", cwd=tmp_path)
    assert "2 folds at a time, on cpu, cpu" in said and "fold 1 | epoch   2/2" in said and "pooled" in said
    for fold in ("fold-0", "fold-1"):
        after, beside = (tmp_path / "runs/tiny" / run / fold for run in ("after", "beside"))
        assert (after / "model.safetensors").read_bytes() == (beside / "model.safetensors").read_bytes()
        assert (after / "oof.npz").read_bytes() == (beside / "oof.npz").read_bytes()
    assert (tmp_path / "runs/tiny/beside/report.html").exists()


@pytest.mark.slow
def test_a_fold_that_fails_leaves_the_other_whole(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "runs/tiny/recipe/fold-0").mkdir(parents=True)
    (tmp_path / "runs/tiny/recipe/fold-0/oof.npz").mkdir()
    said = kernel("train_fold.py", *TINY[:-1], "cpu,cpu", "--fold", "0,1", cwd=tmp_path, status=2)
    assert "fold 1 | fold 1 is finished" in said and "fold 0 ended with status 2" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert (tmp_path / "runs/tiny/recipe/report.html").exists()


@pytest.mark.slow
def test_both_go_on_after_ctrl_c(tmp_path):
    lay_out(tmp_path)
    command = [sys.executable, str(ROOT / "kernels/train_fold.py"), *TINY[:-1], "cpu,cpu", "--fold", "0,1"]
    command += ["--set", "epochs=60"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folders = [tmp_path / f"runs/tiny/recipe/fold-{k}" for k in (0, 1)]
    end = time.monotonic() + 120
    while not all((folder / "history.csv").exists() for folder in folders) and time.monotonic() < end:
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 130 and said.count("interrupted; the same command goes on from what is on disk") == 3, (
        said
    )
    assert all((folder / "checkpoint.safetensors").exists() for folder in folders)
    said = kernel("train_fold.py", *command[2:], cwd=tmp_path)
    assert said.count("goes on from checkpoint.safetensors") == 2
