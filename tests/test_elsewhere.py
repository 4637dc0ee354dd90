"""The road again, with two words more: in the sandbox, and on a Kaggle of our own with the real client."""

import csv
import importlib.util
import json
import os
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import COMPETITION, RECIPE, ROOT, TINY, draw, kernel
from kaggle_server import KEY, TOKEN, Competition, Kaggle

from comp import bundle, client, elsewhere, namespaces, remote, sandbox
from comp.errors import Refused

POLL = 0.05
needs_namespaces = pytest.mark.skipif(bool(namespaces.command()[1]), reason=f"namespaces: {namespaces.command()[1]}")


def lay_out(place, competition=COMPETITION):
    images, masks = draw(24, 0)
    test_images, _ = draw(7, 1)
    (place / "input").mkdir(parents=True)
    np.savez(place / "input/tiny.npz", train_images=images, train_masks=masks, test_images=test_images)
    (place / "tiny.toml").write_text(competition)
    (place / "recipe.toml").write_text(RECIPE)


def weights(place, fold):
    return safetensors.torch.load_file(place / f"runs/tiny/recipe/fold-{fold}/model.safetensors")


@needs_namespaces
def test_the_sandbox_gives_what_here_gives(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    for place, on in ((here, "here"), (there, "sandbox")):
        lay_out(place)
        output = kernel("train_fold.py", *TINY, "--fold", "0", "--on", on, cwd=place)
        blended = kernel("ensemble.py", *TINY, "--folds", "0", "--on", on, cwd=place)
    assert "Kaggle would keep" in output and "Kaggle would keep" in blended
    one, other = weights(here, 0), weights(there, 0)
    assert all(torch.equal(one[key], other[key]) for key in one)
    (ours,), (theirs,) = ((place / "submissions").glob("*.csv") for place in (here, there))
    assert ours.name == theirs.name and ours.read_bytes() == theirs.read_bytes()
    assert "is finished" in kernel("train_fold.py", *TINY, "--fold", "0", "--on", "sandbox", cwd=there)


@needs_namespaces
def test_what_fails_in_the_sandbox_is_one_line_here(tmp_path):
    lay_out(tmp_path)
    bad = ("--fold", "0", "--on", "sandbox", "--set", "model.encoder=resnet19")
    output = kernel("train_fold.py", *TINY, *bad, cwd=tmp_path, status=2)
    assert "resnet19" in output and "ended with status 2" in output
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    """A Kaggle that runs what is pushed in the sandbox, and planted credentials that must stay where they are."""
    truth = draw(7, 1)[1]

    def run(text, request, inputs):
        result = sandbox.rehearse(text, inputs, echo=False)
        return ("ERROR" if result.status else "COMPLETE"), result.folder, result.log

    def score(file, competition):
        frame = pd.read_csv(file, keep_default_na=False)
        if len(frame) != 2 * len(truth):
            raise ValueError("Submission must have 14 rows")
        return 0.5, None

    with Kaggle(tmp_path / "server", run=run, score=score) as server:
        for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
            monkeypatch.delenv(name)
        for name, value in server.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        (tmp_path / ".env").write_text(f"KAGGLE_KEY={KEY}\n")
        data = tmp_path / "data"
        data.mkdir()
        server.competitions = {"tiny-on-kaggle": Competition(data)}
        yield server
        client._PROCESS.stop()


def load(script):
    """An entry script as a module."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / "kernels" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def on_kaggle(monkeypatch, script, *arguments):
    """What `--on kaggle` does, with polls that do not make a test wait."""
    monkeypatch.setattr(sys, "argv", [script, *TINY, *arguments, "--on", "kaggle"])
    entry = load(script)
    parser = entry.arguments()
    parser.add_argument("--on")
    elsewhere.kaggle(entry.jobs(parser.parse_args()), POLL)


@needs_namespaces
@pytest.mark.parametrize("code", [False, True])
def test_five_words_from_arrays_to_a_score(tmp_path, kaggle, monkeypatch, capsys, code):
    place = tmp_path / "place"
    about = f'kaggle = "tiny-on-kaggle"\ncode_competition = {str(code).lower()}\n'
    lay_out(place, about + COMPETITION)
    shutil.copy(place / "input/tiny.npz", tmp_path / "data/tiny.npz")
    monkeypatch.chdir(place)

    folds = "0" if code else "all"
    on_kaggle(monkeypatch, "train_fold.py", "--fold", folds)
    for fold in range(1 if code else 3):
        folder = place / f"runs/tiny/recipe/fold-{fold}"
        assert json.loads((folder / "kernel.json").read_text())["version"] == 1
        assert (folder / "model.safetensors").exists() and (folder / "curves.png").exists()
    pushes = kaggle.count("SaveKernel")
    assert [len(versions) for versions in kaggle.kernels.values()] == [1] * (1 if code else 3)
    on_kaggle(monkeypatch, "train_fold.py", "--fold", folds)
    assert kaggle.count("SaveKernel") == pushes  # all are finished: nothing is pushed again

    on_kaggle(monkeypatch, "ensemble.py", "--folds", folds)
    assert not kaggle.datasets  # the folds' kernels are the ensemble's inputs
    (csv_file,) = (place / "submissions").glob("tiny-recipe-*.csv")
    submit = load("submit.py")
    arguments = [str(csv_file), "--competition", "tiny.toml"]
    wait = remote.wait_score
    monkeypatch.setattr(
        submit.remote, "wait_score", lambda competition, ref, poll, patience: wait(competition, ref, POLL)
    )
    assert submit.main(submit.arguments().parse_args(arguments)) == 0
    with open(place / "submissions/ledger.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["public"] == "0.5" and row["status"] == "COMPLETE" and row["file"] == csv_file.name
    assert kaggle.count("CreateCodeSubmission" if code else "CreateSubmission") == 1
    with pytest.raises(Refused, match="was submitted on"):
        submit.main(submit.arguments().parse_args(arguments))
    assert "public" in capsys.readouterr().out

    planted = (KEY, TOKEN)
    for version in (version for versions in kaggle.kernels.values() for version in versions):
        assert not any(secret in json.dumps(version.request) for secret in planted)
    for path in (path for path in place.rglob("*") if path.is_file()):
        assert not any(secret.encode() in path.read_bytes() for secret in planted), path


@needs_namespaces
def test_folds_trained_here_travel_as_a_dataset(tmp_path, kaggle, monkeypatch):
    place = tmp_path / "place"
    lay_out(place)  # no competition on Kaggle: the arrays travel as a dataset, too
    kernel("train_fold.py", *TINY, "--fold", "0", cwd=place)
    kernel("ensemble.py", *TINY, "--folds", "0", "--submissions", "here", cwd=place)
    monkeypatch.chdir(place)
    on_kaggle(monkeypatch, "ensemble.py", "--folds", "0")
    assert len(kaggle.datasets) == 2
    (ours,), (theirs,) = (place / "here").glob("*.csv"), (place / "submissions").glob("*.csv")
    assert ours.read_bytes() == theirs.read_bytes()


@needs_namespaces
def test_a_kernel_that_fails_leaves_nothing_here(tmp_path, kaggle, monkeypatch):
    place = tmp_path / "place"
    lay_out(place, 'kaggle = "tiny-on-kaggle"\n' + COMPETITION)  # but its data lack the npz
    monkeypatch.chdir(place)
    with pytest.raises(Refused, match="ended on Kaggle as ERROR"):
        on_kaggle(monkeypatch, "train_fold.py", "--fold", "0")
    assert not (place / "runs").exists()


def test_no_credentials_is_one_line(tmp_path, monkeypatch):
    lay_out(tmp_path, 'kaggle = "tiny-on-kaggle"\n' + COMPETITION)
    for name in [name for name in os.environ if name.startswith("KAGGLE_")]:
        monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    output = kernel("train_fold.py", *TINY, "--fold", "0", "--on", "kaggle", cwd=tmp_path, status=2)
    line = output.strip().splitlines()[-1]
    assert "credentials" in line and "Traceback" not in output


def test_the_real_pack_is_small_and_the_same_each_time():
    one = bundle.script(bundle.pack(ROOT / "kernels/train_fold.py", ["--fold", "0"]))
    assert one == bundle.script(bundle.pack(ROOT / "kernels/train_fold.py", ["--fold", "0"]))
    assert len(one.encode()) < 400_000
