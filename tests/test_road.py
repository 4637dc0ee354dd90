"""The whole road on a competition of the user's own: train, blend, check; stop and go on; refuse."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from conftest import COMPETITION, RECIPE, ROOT, TINY, count_margins, draw, inside, lay_out

from comp import config, files
from comp.kaggle import sandbox
from comp.model import metrics, predict
from comp.submission import runlength

pytestmark = pytest.mark.slow


def test_a_fold_leaves_its_files(trained):
    place, output = trained
    for number in range(3):
        folder = place / f"runs/tiny/recipe/fold-{number}"
        left = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
        figures = {"curves.png", "examples.png", "confusion.png", "samples.png", "filmstrip.png"}
        assert left == {"model.safetensors", "oof.npz", "history.csv", "metrics.json"} | figures
        facts = json.loads((folder / "metrics.json").read_text())
        assert facts["fold"] == number and 0 <= facts["score"] <= 1 and facts["epochs"] == 2
        history = pd.read_csv(folder / "history.csv")
        assert history.epoch.tolist() == [1, 2] and np.isfinite(history.train_loss).all()
    assert "pooled" in output and "± std" in output
    command = (place / "first-command.txt").read_text()  # as it is typed, not as it lies on this machine
    assert command.startswith("python kernels/train_fold.py --") and command.endswith("--fold all\n")


def test_out_of_fold_covers_every_image_once_and_matches_its_score(trained):
    place, _ = trained
    with np.load(place / "input/tiny.npz") as npz:
        masks = npz["train_masks"]
    seen = []
    for number in range(3):
        folder = place / f"runs/tiny/recipe/fold-{number}"
        with np.load(folder / "oof.npz") as oof:
            ids, planes = oof["ids"], oof["planes"]
        assert planes.dtype == np.uint8 and planes.shape[1:] == (2, 32, 48)
        labels = predict.to_labels(predict.from_planes(torch.from_numpy(planes))).numpy()
        rows = ids.astype(int)
        margins = count_margins(masks[rows], labels, 3)
        score = metrics.score(margins, config.Metric(background="drop_class"))
        assert score == pytest.approx(json.loads((folder / "metrics.json").read_text())["score"], abs=1e-3)
        seen += rows.tolist()
    assert sorted(seen) == list(range(24))


def test_a_finished_fold_says_so(trained, monkeypatch, capsys):
    place, _ = trained
    model = place / "runs/tiny/recipe/fold-0/model.safetensors"
    before = model.read_bytes()
    assert "fold 0 is finished" in inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=place)
    assert model.read_bytes() == before


def test_a_disk_without_the_room_for_predictions_is_seen_before_training(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path)
    monkeypatch.setattr(files, "free_bytes", lambda _: 20_000)
    output = inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "all", cwd=tmp_path, status=2)
    assert "24 images predicted out of fold take 0 MB" in output and "--runs" in output
    assert not (tmp_path / "runs/tiny/recipe").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "oof.npz"])
def test_a_finished_fold_that_lacks_a_part_stays_as_it_is(name, trained, tmp_path, monkeypatch, capsys):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "runs/tiny/recipe/fold-1"
    (folder / name).unlink()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for fold in ("1", "all"):
        output = inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", fold, cwd=tmp_path, status=2)
        assert f"fold-1: was finished, and lacks {name}; put it back, or delete the folder" in output
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_configuration_is_refused(trained, monkeypatch, capsys):
    place, _ = trained
    output = inside(
        monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "full", "--set", "epochs=3", cwd=place, status=2
    )
    assert "epochs: 2, now 3" in output and "--run" in output and "Traceback" not in output
    assert not (place / "runs/tiny/recipe/full").exists()


def test_the_ensemble_writes_a_checked_submission_that_says_what_made_it(trained, monkeypatch, capsys):
    place, _ = trained
    output = inside(monkeypatch, capsys, "ensemble.py", *TINY, "--tta", "d4", cwd=place)
    assert "out of fold" in output and "leaderboard" in output
    (csv,) = (place / "submissions").glob("tiny-recipe-*.csv")
    about = json.loads(csv.with_suffix(".json").read_text())
    assert about["folds"] == [0, 1, 2] and about["tta"] == "d4" and len(about["models"]) == 3
    frame = pd.read_csv(csv, keep_default_na=False)
    assert frame.columns.tolist() == ["id", "class", "rle"] and len(frame) == 7 * 2
    # The side file's leaderboard score is that of the masks as a reader of the file finds them.
    with np.load(place / "input/tiny.npz") as npz:
        truth = npz["test_masks"]
    labels = np.zeros_like(truth)
    for row in frame.itertuples():
        labels[int(row.id)][runlength.decode_runs(row.rle, (32, 48), "column").astype(bool)] = row[2]
    score = metrics.score(count_margins(truth, labels, 3), config.Metric(background="drop_class"))
    assert about["score"]["leaderboard"] == pytest.approx(score, abs=1e-6)
    assert "is there already" in inside(monkeypatch, capsys, "ensemble.py", *TINY, "--tta", "d4", cwd=place)


def test_other_code_or_names_make_another_submission(trained, tmp_path, monkeypatch, capsys):
    place, _ = trained
    own, made = tmp_path / "own.py", tmp_path / "made"
    command = "ensemble.py", *TINY, "--folds", "0", "--submissions", str(made)
    for text in ("one", "other"):
        own.write_text(f"def write_submission(path, predictions):\n    path.write_text('id\\n{text}\\n')\n")
        inside(monkeypatch, capsys, *command, "--set", f"competition.submission.function={own}", cwd=place)
    assert sorted(path.read_text() for path in made.glob("*.csv")) == ["id\none\n", "id\nother\n"]
    for name in ("stripe", "band"):
        classes = f'competition.classes=["ground", "{name}", "spot"]'
        inside(monkeypatch, capsys, *command, "--set", classes, cwd=place)
    assert len([*made.glob("*.csv")]) == 4


def test_the_ensemble_writes_the_columns_of_the_sample_in_its_order(trained, tmp_path, monkeypatch, capsys):
    place, _ = trained
    for name in ("runs", "tiny.toml", "recipe.toml"):
        (tmp_path / name).symlink_to(place / name)
    (tmp_path / "input").mkdir()
    (tmp_path / "input/tiny.npz").symlink_to(place / "input/tiny.npz")
    sample = tmp_path / "input/tiny-sample_submission.csv"
    rows = "".join(f"1 1,{id},{label}\n" for id in range(7) for label in (1, 2))
    sample.write_text("rle,id,class\n" + rows, encoding="utf-8-sig")
    command = ("ensemble.py", *TINY, "--folds", "0", "--tta", "none")
    assert "14 rows" in inside(monkeypatch, capsys, *command, cwd=tmp_path)
    (csv,) = tmp_path.glob("submissions/*.csv")
    assert pd.read_csv(csv).columns.tolist() == ["rle", "id", "class"]
    sample.write_text(sample.read_text(encoding="utf-8-sig").replace("rle", "mask", 1))
    csv.unlink()
    output = inside(monkeypatch, capsys, *command, cwd=tmp_path, status=2)
    assert "column 1 is 'id'; the sample submission has 'mask' there" in output


def test_fewer_folds_must_be_asked_for(trained, tmp_path, monkeypatch, capsys):
    place, _ = trained
    lonely = tmp_path / "runs/tiny/recipe"
    lonely.mkdir(parents=True)
    (lonely / "fold-1").symlink_to(place / "runs/tiny/recipe/fold-1")
    arguments = (*TINY, "--runs", str(tmp_path / "runs"))
    output = inside(monkeypatch, capsys, "ensemble.py", *arguments, cwd=place, status=2)
    assert "fold 0 is not finished" in output and "--folds 1" in output
    inside(monkeypatch, capsys, "ensemble.py", *arguments, "--folds", "1", "--tta", "none", cwd=place)


def test_a_model_of_all_images_makes_a_submission(trained, tmp_path, monkeypatch, capsys):
    place, _ = trained
    output = inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "full", cwd=place)
    assert "24 images to train on, none to validate on" in output
    folder = place / "runs/tiny/recipe/full"
    assert {path.name for path in folder.glob("[!.]*")} == {"model.safetensors", "history.csv", "metrics.json"}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert "is finished" in inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "full", cwd=place)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    arguments = ("--folds", "full", "--submissions", str(tmp_path))
    assert "leaderboard" in inside(monkeypatch, capsys, "ensemble.py", *TINY, *arguments, cwd=place)
    (side,) = tmp_path.glob("*.json")
    about = json.loads(side.read_text())
    assert list(about["models"]) == ["recipe/full"] and about["score"]["out_of_fold"] is None
    missing = ("--run", "other", *arguments)
    assert "other/full: no finished fold" in inside(
        monkeypatch, capsys, "ensemble.py", *TINY, *missing, cwd=place, status=2
    )


def test_arrays_without_test_images_say_so_before_training(tmp_path, monkeypatch, capsys):
    lay_out(tmp_path)
    images, masks = draw(24, 0)
    np.savez(tmp_path / "input/tiny.npz", train_images=images, train_masks=masks)
    output = inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=tmp_path)
    assert output.index("there are no test_images to make a submission of") < output.index("epoch")


def _weights(place):
    return safetensors.torch.load_file(place / "runs/tiny/recipe/fold-0/model.safetensors")


def _equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_workers_do_not_change_a_bit(trained, tmp_path, monkeypatch, capsys):
    place, _ = trained
    lay_out(tmp_path)
    inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", "--workers", "1", cwd=tmp_path)
    assert _equal(_weights(place), _weights(tmp_path))


LONG = RECIPE.replace("epochs = 2", "epochs = 8")


def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    def train(place, status=0):
        return inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=place, status=status)

    def strike(blow, sign):
        while not sign.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), blow)

    calm = tmp_path / "calm"
    lay_out(calm, LONG)
    train(calm)
    for blow in (signal.SIGINT, signal.SIGTERM):
        disturbed = tmp_path / blow.name
        lay_out(disturbed, LONG)
        folder = disturbed / "runs/tiny/recipe/fold-0"
        threading.Thread(target=strike, args=(blow, folder / "history.csv"), daemon=True).start()
        assert "the same command goes on" in train(disturbed, status=130)
        assert not (folder / "metrics.json").exists()
        assert "goes on from" in train(disturbed)
        assert _equal(_weights(calm), _weights(disturbed))
        films = [place / "runs/tiny/recipe/fold-0/filmstrip.png" for place in (calm, disturbed)]
        assert films[0].read_bytes() == films[1].read_bytes()


def test_what_a_killed_script_was_writing_does_not_stay(tmp_path):
    script = (
        "import argparse, time\nfrom comp import cli, files\n"
        "def main(args):\n"
        "    with files.atomic_write('submissions/a.csv') as beside:\n"
        "        beside.write_text('id')\n"
        "        print('half', flush=True)\n"
        "        time.sleep(60)\n"
        "cli.entry(argparse.ArgumentParser(), main)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "half\n" and len(list((tmp_path / "submissions").iterdir())) == 1
    process.terminate()
    assert process.wait(timeout=30) == 143 and not list((tmp_path / "submissions").iterdir())


@pytest.mark.parametrize(
    ("arrays", "arguments", "says"),
    [
        ({}, ["--fold", "3"], "fold 3: there are folds 0 to 2"),
        ({}, ["--fold", "x"], "fold x: there are folds 0 to 2"),
        ({}, ["--fold", "0", "--set", "folds.count=40"], "folds.count"),
        ({}, ["--fold", "0", "--set", "model.encoder=resnet19"], "resnet19"),
        ({}, ["--fold", "0", "--device", "cuda:9"], "--device cuda:9"),
        ({}, ["--fold", "0", "--competition", "nowhere"], "no competition named 'nowhere'"),
        ({}, ["--fold", "0", "--run", "../up"], "--run ../up"),
        ({}, ["--fold", "0", "--input", "elsewhere"], "tiny.npz: no such file"),
        ({"train_masks": draw(24, 0)[1] * 9}, ["--fold", "0"], "has label 9; 0 to 2 would fit"),
        ({"train_masks": np.minimum(draw(24, 0)[1], 1)}, ["--fold", "0"], "'spot'"),
        ({"train_images": np.zeros((24, 32), np.uint8)}, ["--fold", "0"], "train_images"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(tmp_path, arrays, arguments, says, monkeypatch, capsys):
    lay_out(tmp_path, **arrays)
    output = inside(monkeypatch, capsys, "train_fold.py", *TINY, *arguments, cwd=tmp_path, status=2)
    line = output.strip().splitlines()[-1]
    assert says in line and "Traceback" not in output, output
    assert not list(tmp_path.glob("runs/**/*.safetensors"))


@pytest.mark.skipif(bool(sandbox.find_unshare()[1]), reason=f"namespaces: {sandbox.find_unshare()[1]}")
def test_a_full_disk_is_one_line_and_the_run_goes_on_once_there_is_room(tmp_path):
    lay_out(tmp_path)
    (tmp_path / "small").mkdir()
    command = [sys.executable, str(ROOT / "kernels/train_fold.py"), *TINY, "--fold", "0", "--runs", "small/runs"]
    script = (
        'mount -t tmpfs -o size=1m none small && "$@"; status=$?; ls -A small/runs/tiny/recipe/fold-0; exit $status'
    )
    done = subprocess.run(
        [*sandbox.find_unshare()[0], "sh", "-c", script, "sh", *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stdout + done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert "No space left" in line and "Traceback" not in done.stderr
    assert not any(name.endswith(".safetensors") for name in done.stdout.splitlines())


OWN = """
def score_group(truth, prediction, ids):
    return [(truth == prediction).sum(), truth.size, len(ids)]

def combine_counts(counts):
    assert len(counts) == 3
    return counts[0] / counts[1]
"""


def test_the_road_of_a_score_that_groups_add_up_to(tmp_path, monkeypatch, capsys):
    """Trained, drawn, decided and predicted by a function of the user's: here the accuracy of all pixels."""
    own = COMPETITION.replace('name = "mean_iou"\nbackground = "drop_class"', 'function = "own.py"')
    groups = {"train_groups": (np.arange(24) // 3).astype(str), "test_groups": (np.arange(7) // 2).astype(str)}
    lay_out(tmp_path, competition=own, **groups)
    (tmp_path / "own.py").write_text(OWN)
    inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=tmp_path)
    metrics_of_fold = json.loads((tmp_path / "runs/tiny/recipe/fold-0/metrics.json").read_text())
    assert metrics_of_fold["score"] == pytest.approx(metrics_of_fold["pixel_accuracy"])
    assert "score_group of own.py" in (tmp_path / "runs/tiny/recipe/report.html").read_text()
    said = inside(monkeypatch, capsys, "ensemble.py", *TINY, "--folds", "0", cwd=tmp_path)
    (made,) = (tmp_path / "submissions").glob("*.json")
    about = json.loads(made.read_text())["score"]
    assert 0 < about["leaderboard"] <= 1 and about["out_of_fold"] >= metrics_of_fold["score"] - 1e-4, said
