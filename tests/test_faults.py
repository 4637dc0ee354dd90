"""Things fail on purpose: killed anywhere, at every file, by a full disk; and the same command still finishes.

Each start is a process of its own. Importing torch takes seconds, so one server imports everything once, computes
nothing, and forks a child per start, which runs the entry script as a user does."""

import errno
import json
import math
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import COMPETITION, RECIPE, ROOT, TINY, draw
from PIL import Image
from test_fit import train

from comp import files
from comp.data import batches, npz
from comp.errors import Refused
from comp.report import figures
from comp.train import fit, runs
from comp.train.step import Step

pytestmark = pytest.mark.slow

SMALL = """model = { architecture = "PlainUnet", options = { widths = [4, 8] } }"""
LINES = [SMALL if line.startswith("model") else line for line in RECIPE.splitlines()]
FOLD = "runs/tiny/recipe/fold-0"
TRAIN = ("train_fold.py", *TINY, "--fold", "0")
WORKERS = (*TRAIN, "--workers", "2")
BLEND = ("ensemble.py", *TINY, "--folds", "0", "--tta", "none")
KILLED = -9

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "pytest",
        "pandas",
        "albumentations",
        "segmentation_models_pytorch",
        "comp.train.pages",
        "comp.data.demo",
        "comp.ensemble.search",
    ]
)


def start(place, command, fault=None, below="runs"):
    """Start an entry script in `place`; `fault` strikes where it writes `below` there."""
    process = SERVER.Process(target=_run, args=(str(place), command, fault, below))
    process.start()
    return process


def finish(place, command, fault=None, below="runs"):
    """Run an entry script to its end; return its status, what it printed, and what it said of errors."""
    process = start(place, command, fault, below)
    process.join(120)
    process.kill()  # if it hangs
    return process.exitcode, (place / "output.txt").read_text(), (place / "errors.txt").read_text()


def _run(place, command, fault, below):
    os.chdir(place)
    for number, name in ((1, "output.txt"), (2, "errors.txt")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    fit.CHECKPOINT_EVERY, fit.CHECKPOINT_SHARE = 0.0, math.inf  # after every step
    if fault in ("hang", "kill a worker"):
        _disturb_workers(fault)
    elif fault == "draw":
        figures.draw_curves = lambda *_, **__: 1 / 0
    elif fault:
        _strike_once(fault, os.path.abspath(below))
    sys.argv = list(command)
    runpy.run_path(str(ROOT / "kernels" / command[0]), run_name="__main__")


def _strike_once(fault, below):
    """Fail at the first place where no process before this one has failed; places.txt keeps them.

    A place is what is done to which file: opened to write, synced, renamed or removed."""
    struck = set(open("places.txt").read().splitlines()) if os.path.exists("places.txt") else set()
    sync = os.fsync

    def look(what, path):
        folder, name = os.path.split(os.path.abspath(os.fsdecode(path)))
        # Before it is renamed, a file's name begins with the number of its process.
        place = f"{what} {os.path.basename(folder)}/{re.sub(r'^[.][0-9]+', '', name)}"
        if place not in struck and folder.startswith(below):
            struck.add(place)
            with open("places.txt", "a") as file:
                print(place, file=file)
            if fault == "kill":
                os.kill(os.getpid(), 9)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            look("open", arguments[0])
        elif event == "os.rename":
            look("rename", arguments[0])
        elif event == "os.remove" and fault == "kill" and os.path.exists(arguments[0]):  # a full disk does not mind
            look("remove", arguments[0])

    def fsync(number):
        look("sync", os.readlink(f"/proc/self/fd/{number}"))
        sync(number)

    os.fsync = fsync
    sys.addaudithook(hook)


def _disturb_workers(fault):
    """A worker hangs, or kills itself, over the eleventh epoch, which it reads some epochs ahead."""
    trainer, real = os.getpid(), batches._Samples._sample

    def sample(self, epoch, place, row):
        if os.getpid() != trainer and epoch == 10:
            open("hangs.txt", "w").close()
            time.sleep(600) if fault == "hang" else os.kill(os.getpid(), 9)
        return real(self, epoch, place, row)

    batches._Samples._sample = sample


def lay_out(place, epochs=2):
    place.mkdir(exist_ok=True)
    images, masks = draw(24, 0)
    test_images, _ = draw(7, 1)
    (place / "input").mkdir()
    np.savez(place / "input/tiny.npz", train_images=images, train_masks=masks, test_images=test_images)
    (place / "tiny.toml").write_text(COMPETITION)
    (place / "recipe.toml").write_text("\n".join(LINES).replace("epochs = 2", f"epochs = {epochs}"))
    return place


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run that nothing disturbed, by its number of epochs."""
    made = {}

    def of(epochs):
        if epochs not in made:
            place = lay_out(tmp_path_factory.mktemp("calm"), epochs)
            status, _, errors = finish(place, TRAIN)
            assert status == 0, errors
            made[epochs] = place
        return made[epochs]

    return of


def everything_is_whole(place):
    """Whatever can be seen in the run's folders can be read to its end."""
    readers = {
        ".json": lambda path: json.loads(path.read_text()),
        ".safetensors": lambda path: [tensor.sum() for tensor in safetensors.torch.load_file(path).values()],
        ".npy": lambda path: np.load(path, allow_pickle=False),
        ".npz": lambda path: [npz.read_array(npz.read_member(path, key)) for key in npz.list_keys(path)],
        ".csv": pd.read_csv,
        ".png": lambda path: Image.open(path).load(),
        ".html": lambda path: path.read_text().rindex("</html>"),
        ".txt": lambda path: path.read_text().index("\n"),
    }
    for path in [*place.glob("runs/**/*"), *place.glob("submissions/*")]:
        if path.is_file() and not path.name.startswith("."):
            readers[path.suffix](path)


def same_result(place, calm):
    assert (place / FOLD / "model.safetensors").read_bytes() == (calm / FOLD / "model.safetensors").read_bytes()
    for key in ("ids", "planes", "margins"):
        one, other = (npz.read_array(npz.read_member(each / FOLD / "oof.npz", key)) for each in (place, calm))
        assert np.array_equal(one, other), key
    one, other = (pd.read_csv(each / FOLD / "history.csv")[["epoch", "lr", "score"]] for each in (place, calm))
    assert one.equals(other)
    # Nothing is left of the processes that died.
    assert {p.name for p in (place / FOLD).iterdir()} == {p.name for p in (calm / FOLD).iterdir()}


@pytest.mark.parametrize("command", [TRAIN, WORKERS], ids=["alone", "with workers"])
def test_killed_at_twenty_random_moments(tmp_path, calm, command):
    undisturbed, place = calm(40), lay_out(tmp_path, 40)
    seconds = json.loads((undisturbed / FOLD / "metrics.json").read_text())["seconds"]
    chance, rows = random.Random(0), []
    while len(rows) < 20:
        # Each start gets two epochs further at most, and then a moment more: so the kills are spread
        # over the run however fast or busy the machine is.
        goal = _epochs_done(place) + chance.randint(0, 2)
        process = start(place, command)
        while process.is_alive() and _epochs_done(place) < goal:
            time.sleep(0.005)
        process.join(chance.uniform(0.02, 0.1 * seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            everything_is_whole(place)
            rows.append(_epochs_done(place))
            print(f"killed after {rows[-1]} epochs")
        else:
            assert process.exitcode == 0, (place / "errors.txt").read_text()
            same_result(place, undisturbed)
            shutil.rmtree(place / "runs")  # it was quicker; the next one starts anew
    assert len(set(rows)) > 3, "spread over the run"
    status, _, errors = finish(place, command)
    assert status == 0, errors
    same_result(place, undisturbed)


def _epochs_done(place):
    """Rows of the history, which each epoch replaces as a whole."""
    history = place / FOLD / "history.csv"
    return len(history.read_text().splitlines()) - 1 if history.exists() else 0


@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_a_fault_at_every_file_that_training_writes(tmp_path, calm, fault):
    undisturbed, place = calm(2), lay_out(tmp_path)
    places = _until_it_finishes(place, TRAIN, fault, "runs")
    same_result(place, undisturbed)
    images = ("curves.png", "examples.png", "samples.png", "confusion.png")
    tables = ("config.json", "history.csv", "metrics.json", "command.txt", "report.html")
    for name in (*images, *tables, "model.safetensors", "checkpoint.safetensors", "oof.npz"):
        assert {what for what, _, struck in places if struck == f".{name}"} >= {"open", "sync", "rename"}, name


@pytest.mark.parametrize("fault", ["kill", "full disk"])
def test_a_fault_at_every_file_that_the_ensemble_writes(tmp_path, calm, fault):
    shutil.copytree(calm(2), tmp_path, dirs_exist_ok=True)
    places = _until_it_finishes(tmp_path, BLEND, fault, "submissions")
    kinds = [(what, name.rpartition(".")[2]) for what, _, name in places]
    assert kinds == [(what, kind) for kind in ("csv", "json") for what in ("open", "sync", "rename")]
    (csv,) = (tmp_path / "submissions").glob("[!.]*.csv")
    again = shutil.move(csv, tmp_path / "before.csv")
    assert finish(tmp_path, BLEND)[0] == 0
    assert csv.read_bytes() == again.read_bytes()


def _until_it_finishes(place, command, fault, below):
    """Start again and again, each time to fail at a place further on; returns (what, folder, name) of all."""
    for _ in range(100):
        status, _, errors = finish(place, command, fault, below)
        everything_is_whole(place)
        if status == 0:
            break
        assert status == (KILLED if fault == "kill" else 2), errors
        if fault != "kill":
            assert "No space left" in errors and len(errors.splitlines()) == 1, errors
    assert status == 0, errors
    lines = (place / "places.txt").read_text().splitlines()
    print(f"{len(lines)} places")
    return [(line.split()[0], *line.split(maxsplit=1)[1].split("/")) for line in lines]


@pytest.fixture
def halfway(tmp_path):
    """A run that was killed between two epochs; its folder, and what is in there."""
    place = lay_out(tmp_path / "halfway", 40)
    process = start(place, TRAIN)
    while process.is_alive() and not (place / FOLD / "history.csv").exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    return place


def contents(place):
    return {p: p.read_bytes() for p in (place / "runs").rglob("*") if p.is_file() and not p.name.startswith(".")}


def refused(place, command, *says):
    """One line, status 2, and nothing of the run touched."""
    before = contents(place)
    status, _, errors = finish(place, command)
    assert status == 2 and len(errors.splitlines()) == 1, errors
    assert errors.startswith(f"{command[0]}: ") and all(part in errors for part in says), errors
    assert contents(place) == before


def change(place, **arrays):
    with np.load(place / "input/tiny.npz") as members:
        np.savez(place / "input/new.npz", **(dict(members) | arrays))
    (place / "input/new.npz").replace(place / "input/tiny.npz")


def test_what_changed_under_a_half_finished_run(halfway):
    refused(halfway, (*TRAIN, "--set", "optimizer.lr=0.5"), "optimizer.lr: 0.002, now 0.5", "--run")
    change(halfway, train_images=draw(24, 0)[0] ^ 1)
    refused(halfway, TRAIN, "folds-3-seed0.csv", "sample '0' has another id, image, mask")
    change(halfway, train_images=draw(9, 0)[0], train_masks=draw(9, 0)[1])
    refused(halfway, TRAIN, "folds-3-seed0.csv")
    (halfway / "input/tiny.npz").unlink()
    refused(halfway, TRAIN, "tiny.npz: no such file")


def test_an_input_that_vanishes_while_it_is_used_costs_nothing(tmp_path, calm):
    place = lay_out(tmp_path, 40)
    process = start(place, TRAIN)
    while process.is_alive() and not (place / FOLD / "history.csv").exists():
        time.sleep(0.01)
    shutil.rmtree(place / "input")
    process.join(120)
    assert process.exitcode == 0, (place / "errors.txt").read_text()
    same_result(place, calm(40))


def test_the_second_process_on_a_run_refuses(tmp_path):
    place = lay_out(tmp_path, 10000)
    first = start(place, TRAIN)
    while first.is_alive() and not (place / FOLD / "history.csv").exists():
        time.sleep(0.01)
    status, _, errors = finish(place, TRAIN)
    first.kill()
    assert status == 2 and "another process is at work on it" in errors and len(errors.splitlines()) == 1, errors


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_is_heard_while_the_workers_hang(tmp_path, number, code):
    place = lay_out(tmp_path, 40)
    process = start(place, WORKERS, "hang")
    history = place / FOLD / "history.csv"
    while process.is_alive() and not (history.exists() and len(history.read_text().splitlines()) > 10):
        time.sleep(0.01)
    time.sleep(1)  # now it waits for a batch of the eleventh epoch
    os.kill(process.pid, number)
    time.sleep(1)
    assert process.is_alive()
    os.kill(process.pid, number)
    asked = time.monotonic()
    process.join(30)
    print(f"heard {time.monotonic() - asked:.2f} s after it came")
    assert process.exitcode == code, (place / "errors.txt").read_text()
    assert (place / "errors.txt").read_text().count("\n") == (code == 130)
    status, output, errors = finish(place, WORKERS)
    assert status == 0 and "goes on from checkpoint.safetensors" in output, errors


def test_a_worker_that_is_killed_costs_nothing(tmp_path, calm):
    place = lay_out(tmp_path, 40)
    status, _, errors = finish(place, WORKERS, "kill a worker")
    assert status == 2 and "DataLoader worker " in errors and len(errors.splitlines()) == 1, errors
    status, output, errors = finish(place, WORKERS)
    assert status == 0 and "goes on from checkpoint.safetensors" in output, errors
    same_result(place, calm(40))


def test_an_error_in_drawing_costs_a_figure_and_no_fold(tmp_path):
    place = lay_out(tmp_path)
    status, output, errors = finish(place, TRAIN, "draw")
    assert status == 0, errors
    assert "figures could not be made (ZeroDivisionError" in output and "fold 0 is finished" in output
    assert (place / "runs/tiny/recipe/report.html").exists()


def test_a_damaged_checkpoint_is_refused_and_nothing_starts_anew_unasked(halfway, calm):
    path = halfway / FOLD / runs.CHECKPOINT
    data = bytearray(path.read_bytes())
    data[-5] ^= 1  # a single bit of a weight
    path.write_bytes(data)
    refused(halfway, TRAIN, "damaged", "delete")
    path.unlink()
    status, output, errors = finish(halfway, TRAIN)
    assert status == 0, output + errors
    same_result(halfway, calm(40))


def test_a_checkpoint_of_something_else(tmp_path):
    network = ("model.architecture=PlainUnet", "model.options={widths=[4]}", "epochs=1")
    train(tmp_path, *network)
    with pytest.raises(Refused, match="of another network"):
        train(tmp_path, *network, "model.options={widths=[8]}")
    tensors, metadata = files.read_tensors(tmp_path / runs.CHECKPOINT)
    for wrong in ({"epoch": "3"}, {"history": {}}, {"speed": 1}):
        text = json.dumps(json.loads(metadata["facts"]) | wrong)
        about = {"facts": text, "checksum": runs._checksum(tensors, text)}
        safetensors.torch.save_file(tensors, tmp_path / runs.CHECKPOINT, about)
        with pytest.raises(Refused, match="another version"):
            train(tmp_path, *network)


@pytest.mark.parametrize("blocked", ["runs", "runs/tiny", FOLD, f"{FOLD}/oof.npz"])
def test_a_place_that_cannot_be_written(tmp_path, blocked):
    """What stands in the way is a file or a folder, since nothing is read-only to root."""
    place = lay_out(tmp_path)
    path = place / blocked
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir() if path.suffix else path.write_text("in the way\n")
    status, _, errors = finish(place, TRAIN)
    assert status == 2 and errors.startswith("train_fold.py: ") and len(errors.splitlines()) == 1, errors
    assert path.name in errors, errors
    assert path.is_dir() or path.read_text() == "in the way\n"


def test_what_was_counted_before_an_interruption_is_counted(tmp_path, monkeypatch):
    """Steps that were skipped and seconds, in an epoch that is stopped half way and gone on with."""
    real, steps = Step._backward, []

    def stopped(model, *rest):
        steps.append(1)
        if len(steps) == 2:
            os.kill(os.getpid(), 15)
        time.sleep(0.2)
        return real(model, *rest) * (float("nan") if len(steps) == 1 else 1)

    monkeypatch.setattr(Step, "_backward", stopped)
    overrides = ("epochs=1", "batch_size=3", "ema=0.0")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, *overrides)
    _, state = train(tmp_path, *overrides)
    assert len(steps) == 4 and state.skipped == 1 and state.trained == 12
    assert state.training > 0.8
    assert torch.isfinite(torch.tensor(state.history[0]["train_loss"]))
