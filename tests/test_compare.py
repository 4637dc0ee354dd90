"""Variants side by side: a table, a figure and a page; finished folds are taken as they are, and said to be."""

import csv
import time

import numpy as np
import pytest
from conftest import COMPETITION, RECIPE, TINY, draw, inside

from comp.model import segmenter

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path):
    images, masks = draw(24, 0)
    (tmp_path / "input").mkdir()
    np.savez(tmp_path / "input/tiny.npz", train_images=images, train_masks=masks, test_images=images[:2])
    (tmp_path / "tiny.toml").write_text(COMPETITION)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("epochs = 2", "epochs = 1"))
    return tmp_path


def test_a_comparison_leaves_its_table_and_page_and_goes_on(place, monkeypatch, capsys):
    build = segmenter.build_segmenter

    def slow(*arguments):  # as the first import of its libraries is
        time.sleep(0 if built else 3)
        built.append(arguments)
        return build(*arguments)

    built = []
    monkeypatch.setattr(segmenter, "build_segmenter", slow)
    command = ("compare.py", *TINY, "--vary", "optimizer.lr", "1e-3", "2e-3", "--workers", "0")
    output = inside(monkeypatch, capsys, *command, cwd=place)
    folder = place / "runs/tiny/compare-optimizer.lr"
    with open(folder / "table.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"recipe-lr-1e_3", "recipe-lr-2e_3"} and "finished before" not in output
    assert list(next(iter(rows.values()))) == [
        "run", "score", "spread", "mean IoU", "epochs", "seconds", "images/s", "M parameters"
    ]  # fmt: skip
    assert all(float(row["score"]) > 0 and float(row["images/s"]) > 0 for row in rows.values())
    seconds = [float(row["seconds"]) for row in rows.values()]
    assert max(seconds) - min(seconds) < 2.5  # no variant pays for what all need once
    assert "–" in output.splitlines()[-3] and "nan" not in output.split("spread")[1]  # one fold has no spread
    page = (folder / "report.html").read_text()
    assert "recipe-lr-2e_3" in page and "--vary optimizer.lr" in page and "data:image/png" in page
    again = inside(monkeypatch, capsys, *command, "--fold", "0,1", "--time-budget", "1h", cwd=place)
    assert again.count("fold 0: finished before, in") == 2 and again.count("epoch   1/1") == 2
    with open(folder / "table.csv", newline="") as file:
        assert all(float(row["spread"]) >= 0 for row in csv.DictReader(file))


def test_what_cannot_train_is_refused_first_and_what_diverges_leaves_the_others(place, monkeypatch, capsys):
    command = ("compare.py", *TINY, "--workers", "0", "--vary")
    output = inside(monkeypatch, capsys, *command, "model.encoder", "resnet18", "resnet19", cwd=place, status=2)
    assert "resnet19" in output and not (place / "runs/tiny/recipe-encoder-resnet18").exists()
    for values in (("1e-3", "1e-3"), ("1e-3", "0.001")):
        output = inside(monkeypatch, capsys, *command, "optimizer.lr", *values, cwd=place, status=2)
        assert "each once" in output
    assert "two values" in inside(monkeypatch, capsys, *command, "optimizer.lr", "1", cwd=place, status=2)
    for key, values, problem in (
        ("competition.metric.name", ("dice", "mean_iou"), "recipe-name-mean_iou: is scored by another metric than"),
        ("folds.count", ("2", "3"), "recipe-count-3: is scored on other images than recipe-count-2"),
    ):
        assert problem in inside(monkeypatch, capsys, *command, key, *values, cwd=place, status=2)
    assert not (place / "runs/tiny/recipe-count-2").exists()
    output = inside(monkeypatch, capsys, *command, "optimizer.lr", "1e30", "1e-3", cwd=place, status=2)
    assert output.count("training diverged") == 2  # where it happened, and at the end
    assert "1e-3" not in (place / "runs/tiny/compare-optimizer.lr/table.csv").read_text()
    assert "recipe-lr-1e_3" in (place / "runs/tiny/compare-optimizer.lr/table.csv").read_text()


def test_run_begins_the_names_of_what_is_compared(place, monkeypatch, capsys):
    command = ("compare.py", *TINY, "--workers", "0", "--run", "second", "--vary", "optimizer.lr", "1e-3", "2e-3")
    inside(monkeypatch, capsys, *command, cwd=place)
    made = {path.name for path in (place / "runs/tiny").iterdir() if path.is_dir()}
    assert made == {"second-recipe-lr-1e_3", "second-recipe-lr-2e_3", "compare-second"}


def test_with_and_without_images_that_only_train(place, monkeypatch, capsys):
    images, masks = draw(4, 9)
    np.savez(place / "input/more.npz", train_images=images, train_masks=masks)
    command = ("compare.py", *TINY, "--workers", "0", "--vary", "competition.arrays.extra", "", "more.npz")
    inside(monkeypatch, capsys, *command, cwd=place)
    assert "recipe-extra-more.npz" in (place / "runs/tiny/compare-competition.arrays.extra/table.csv").read_text()
