"""Figures of a run: the marks, colours and cases that are promised are in the files."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from comp.data.arrays import Split
from comp.report import figures
from comp.report.figures import class_colours

CLASSES = ("background", "pet", "_border $x_{$")


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def history(epochs: int) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    losses = {"train_loss": 1 / epoch, "valid_loss": 1.1 / epoch}
    return pd.DataFrame({"epoch": epoch, "seconds": 9.0 * epoch, "lr": 1e-3, **losses, "score": 1 - 1 / epoch})


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def count(image: np.ndarray, colour) -> int:
    return int((image == np.asarray(colour, np.uint8)).all(-1).sum())


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


@pytest.mark.parametrize("stopped", [None, "no better score for 3 epochs $_{"])
def test_curves_mark_the_best_epoch_and_the_early_stop(tmp_path, stopped):
    figures.draw_curves(history(8), tmp_path / "c.png", best_epoch=5, stopped=stopped, title="demo $\\frac{ _")
    image = pixels(tmp_path / "c.png")
    assert count(image, rgb("#d55e00")) > 20  # the point of the best epoch
    assert (count(image, rgb("#8b3fa0")) > 0) == bool(stopped)
    assert list(tmp_path.iterdir()) == [tmp_path / "c.png"]


def test_curves_take_one_epoch_and_values_that_are_not_finite(tmp_path):
    figures.draw_curves(history(1), tmp_path / "one.png", best_epoch=1, stopped=None, title="")
    gaps = history(6)
    gaps.loc[2, ["train_loss", "valid_loss", "score"]] = [np.nan, np.inf, np.nan]
    figures.draw_curves(gaps, tmp_path / "gap.png", best_epoch=3, stopped=None, title="")
    nothing = history(1).assign(train_loss=np.nan, valid_loss=np.nan, score=np.nan)
    figures.draw_curves(nothing, tmp_path / "nan.png", best_epoch=1, stopped="the loss is not finite", title="")
    assert len({len(pixels(tmp_path / f"{name}.png")) for name in ("one", "gap", "nan")}) == 1


def split(images: np.ndarray, masks: np.ndarray, *names: str) -> Split:
    return Split(images, masks, np.array(names), None, None)


HEAD = 44  # pixels: a row's caption and headings


def test_examples_show_errors_in_the_predicted_colour(tmp_path):
    images = np.full((1, 40, 80, 1), 100, np.uint8)
    truths = np.zeros((1, 40, 80), np.uint8)
    predictions = truths.copy()
    predictions[0, :10, :20] = 1
    rows = figures.case_rows(split(images, truths, "a"), [(0, predictions[0], "worst", 0.5)])
    figures.draw_sheet(rows, CLASSES, tmp_path / "e.png")
    factor = 280 // 80
    wrong = 200 * factor**2
    cells = pixels(tmp_path / "e.png")[HEAD : HEAD + 40 * factor]  # without headings and legend
    assert count(cells, class_colours(2)[1]) == wrong
    assert count(cells[:, -(80 * factor + 6) :], class_colours(2)[1]) == wrong  # in the last column
    blend = (100 * 0.5 + class_colours(2)[1] * 0.5).astype(np.uint8)
    assert count(cells, blend) == wrong  # the prediction lies over its image
    assert count(cells, class_colours(2)[0]) == 0  # what is right is not coloured


@pytest.mark.parametrize("unscored", [{255}, {0, 255}])
def test_ignored_pixels_never_differ(tmp_path, unscored):
    images = np.full((1, 8, 8, 3), 100, np.uint8)
    truths, predictions = np.full((1, 8, 8), 255, np.uint8), np.ones((1, 8, 8), np.uint8)
    rows = figures.case_rows(split(images, truths, "a"), [(0, predictions[0], "worst", np.nan)], unscored)
    figures.draw_sheet(rows, CLASSES, tmp_path / "e.png", unscored)
    cells = pixels(tmp_path / "e.png")[HEAD : HEAD + 280]
    assert count(cells, class_colours(2)[1]) == 0
    assert count(cells, (177, 177, 177)) == 280 * 280  # the truth is veiled in white


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [(3, 5), (64, 128), (700, 33), (900, 1200)])
def test_examples_take_any_size_and_channels(tmp_path, size, channels):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, *size, channels), dtype=np.uint8)
    masks = rng.integers(0, 30, (2, *size), dtype=np.uint8)
    names = [f"class {i}" for i in range(30)]
    rows = figures.case_rows(
        split(images, masks, "x" * 300, "b"), [(0, masks[1], "worst", 0.1), (1, masks[0], "best", 0.2)]
    )
    figures.draw_sheet(rows, names, tmp_path / "e.png")
    height, width, _ = pixels(tmp_path / "e.png").shape
    assert width <= 4 * 286 + 6 and height < 2 * 330 + 700


def test_filmstrip_and_samples_hold_what_they_are_given(tmp_path):
    images = np.full((2, 16, 16, 3), 90, np.uint8)
    truths = np.zeros((2, 16, 16), np.uint8)
    frames = {f"epoch {k}": [(None, labels) for labels in np.full_like(truths, k)] for k in (1, 2)}
    two = split(images, truths, "a", "b")
    figures.draw_sheet(figures.series_rows(two, [0, 1], frames), CLASSES, tmp_path / "f.png")
    film = pixels(tmp_path / "f.png")
    cell = 16 * (280 // 16)
    for k in range(3):
        assert 2 * cell**2 <= count(film, class_colours(3)[k]) < 2.1 * cell**2
    assert count(film[:, -cell - 7 :], class_colours(3)[0]) >= 2 * cell**2  # ending in the truth
    draws = {"1": [(images[0], truths[0] + 2)] * 2, "2": [(images[0, :8], truths[0, :8] + 2)] * 2}  # crops among them
    figures.draw_sheet(figures.series_rows(two, [0, 1], draws), CLASSES, tmp_path / "s.png")
    blend = (90 * 0.5 + class_colours(3)[2] * 0.5).astype(np.uint8)
    assert count(pixels(tmp_path / "s.png"), blend) == 2 * 1.5 * cell**2


def test_curves_of_several_runs_take_what_is_not_finite(tmp_path):
    histories = {f"fold {k}": history(5).assign(score=lambda row, k=k: row["score"] - k / 9) for k in range(3)}
    histories["fold 1"]["score"] = np.nan
    figures.compare_curves(histories, tmp_path / "c.png", "own $_{")
    image = pixels(tmp_path / "c.png")
    assert count(image, rgb("#0072b2")) > 500 and count(image, rgb("#009e73")) > 500  # folds 0 and 2


def margins(counts):
    return np.stack([counts.diagonal(), counts.sum(1), counts.sum(0), counts[1:].sum(0)])


@pytest.mark.parametrize("classes", [2, 5, 30])
def test_confusion_takes_classes_that_are_never_true(tmp_path, classes):
    counts = np.arange(classes**2).reshape(classes, classes)
    counts[0] = 0
    figures.draw_confusion(counts, margins(counts), [f"_class $ {i}" * 3 for i in range(classes)], tmp_path / "c.png")
    figures.draw_confusion(
        np.zeros_like(counts), margins(counts * 0), list("ab" * 15)[:classes], tmp_path / "empty.png"
    )
    assert pixels(tmp_path / "c.png").std() > pixels(tmp_path / "empty.png").std()
    with Image.open(tmp_path / "c.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)  # sharp on a phone


def test_confusion_of_very_many_classes_shows_all(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: shown.update(axes=figure.axes[0]))
    counts = np.diag(np.arange(1, 201)) * 50 + np.ones((200, 200))  # the later a class, the better
    figures.draw_confusion(counts, margins(counts), [f"class {i}" for i in range(200)], tmp_path / "c.png")
    names = [label.get_text() for label in shown["axes"].get_yticklabels()]
    assert [name.split("  ")[0] for name in names] == [f"class {i}" for i in range(200)]
    assert names[0] == f"class 0  {51 / (250 + 250 - 51):.3f}"


def test_choose_takes_worst_median_and_best_once_each():
    scores = np.array([0.5, 0.1, np.nan, 0.9, 0.3, 0.2, 0.6, 0.4, 0.8, 0.7])
    indices, labels = figures.choose_cases(scores)
    assert labels == ["worst"] * 3 + ["median"] * 3 + ["best"]
    assert scores[indices].tolist() == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9]
    for n in range(1, 12):
        indices, labels = figures.choose_cases(np.linspace(0, 1, n))
        assert indices == sorted(set(indices)) and len(indices) >= min(n, 6)
        assert labels[0] == "worst" and (n == 1 or labels[-1] == "best")
    assert figures.choose_cases([]) == ([], [])
    assert figures.choose_cases([np.nan, np.nan])[1] == ["worst", "best"]


def test_colours_are_fixed_and_distinct():
    palette = class_colours(255)
    assert palette.dtype == np.uint8 and len(np.unique(palette, axis=0)) == 255
    assert (class_colours(21) == palette[:21]).all()
    assert palette[1].tolist() == [230, 159, 0] and palette[9].tolist() == class_colours(10)[-1].tolist()
    class_colours(3)[:] = 0
    assert class_colours(3).any()  # a caller's change stays the caller's
    apart = np.abs(palette[:64, None].astype(int) - palette[:64]).sum(-1) + 999 * np.eye(64, dtype=int)
    assert apart.min() > 30


def test_import_touches_nothing_global():
    code = "import sys, comp.report.figures; assert 'matplotlib.pyplot' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
