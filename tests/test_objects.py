"""Objects: found in labels, parted where they touch, matched, scored, written and read back."""

import csv

import cv2
import numpy as np
import pytest
import torch

from comp.config import Metric, Source, load_config
from comp.data import arrays, npz
from comp.errors import Refused
from comp.model import metrics, objects
from comp.submission.check import check_submission
from comp.submission.runlength import decode_runs
from comp.submission.write import open_writer

SIZE = (48, 64)
THRESHOLDS = (0.5, 0.6, 0.75, 0.9)
NUCLEI = load_config("dsb2018", overrides=["competition.kaggle=slug"]).competition


def draw(rng, count: int, size=SIZE, radius=(2, 8)) -> np.ndarray:
    """Discs numbered from 1 with gaps in the numbers, the later over the earlier, int32 (H, W)."""
    drawn = np.zeros(size, np.int32)
    for k in range(count):
        centre = tuple(int(rng.integers(side)) for side in size[::-1])
        cv2.circle(drawn, centre, int(rng.integers(*radius)), 1 + 2 * k, -1)
    return drawn


def count_by_hand(true: np.ndarray, found: np.ndarray, threshold: float) -> tuple[int, int, int]:
    hits = 0
    for t in set(true.ravel().tolist()) - {0}:
        for f in set(found.ravel().tolist()) - {0}:
            both = ((true == t) & (found == f)).sum()
            hits += both / ((true == t) | (found == f)).sum() > threshold
    return hits, len(set(true.ravel().tolist()) - {0}) - hits, len(set(found.ravel().tolist()) - {0}) - hits


@pytest.mark.parametrize(("name", "beta"), [("object_precision", 1.0), ("object_f_beta", 2.0), ("object_f_beta", 0.5)])
def test_scores_are_those_of_a_double_loop(name, beta):
    rng, metric = np.random.default_rng(0), Metric(name=name, average="per_image", thresholds=THRESHOLDS, beta=beta)
    for k in range(120):
        true = draw(rng, int(rng.integers(0, 6)))
        found = np.roll(true, (k % 3, k % 2), (0, 1)) if k % 4 else draw(rng, int(rng.integers(0, 6)))
        expected = []
        for threshold in THRESHOLDS:
            hits, missed, false = count_by_hand(true, found, threshold)
            weights = (1, 1, 1) if name == "object_precision" else (1 + beta**2, beta**2, 1)
            parts = np.array(weights) * (hits, missed, false)
            expected.append(parts[0] / parts.sum() if parts.sum() else 1)
        assert objects.score_objects(true, found, metric) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize(("empty", "value"), [(None, 1), (1, 1), (0, 0), ("left_out", np.nan)])
def test_an_image_without_objects_counts_what_the_metric_says(empty, value):
    metric, none = Metric(name="object_precision", average="per_image", empty=empty), np.zeros(SIZE, np.int32)
    assert objects.score_objects(none, none, metric) == pytest.approx(value, nan_ok=True)
    assert objects.score_objects(draw(np.random.default_rng(0), 3), none, metric) == 0


def test_below_half_an_object_is_matched_once():
    true, found = np.zeros((2, 1, 9), np.int32)
    true[0, :9], found[0, :4], found[0, 4:8] = 1, 1, 2  # both overlap it by 4 of 9
    ious, t, f = objects.match_objects(true, found)
    assert (ious.tolist(), t, f) == ([pytest.approx(4 / 9)], 1, 2)


def test_touching_objects_come_apart_at_their_necks():
    discs = np.zeros((2, 64, 96), np.int32)
    cv2.circle(discs[0], (30, 32), 13, 1, -1)
    cv2.circle(discs[0], (54, 32), 13, 2, -1)
    cv2.ellipse(discs[1], (48, 32), (24, 10), 0, 0, 360, 1, -1)  # one long object has one middle
    labels = (discs > 0).astype(np.uint8)
    assert objects.find_objects(labels[0], NUCLEI).max() == 1
    parted = [objects.find_objects(one, NUCLEI, (0.0, 0.03)) for one in labels]
    assert [one.max() for one in parted] == [2, 1]
    assert (parted[0] > 0).tolist() == (labels[0] > 0).tolist()
    assert objects.match_objects(discs[0], parted[0])[0].min() > 0.9
    # In a larger image a neck is a share of a window's side, so that it is as many pixels.
    wide = np.pad(labels[0], ((0, 3 * 64), (0, 3 * 96)))
    assert (objects.find_objects(wide, NUCLEI, (0.0, 0.03), 64 * 96)[:64, :96] == parted[0]).all()
    assert objects.find_objects(wide, NUCLEI, (0.0, 0.12)).max() == 1


def test_objects_grow_back_over_their_border():
    source = NUCLEI.source.model_copy(update={"border": 3})
    own = NUCLEI.model_copy(update={"classes": ("background", "nucleus", "border"), "source": source})
    labels = np.zeros((20, 30), np.uint8)
    labels[5:15, 5:25] = 1
    labels[4:16, 14:16] = 2
    found = objects.find_objects(labels, own)
    assert found.max() == 2 and ((found > 0) == (labels > 0)).all()
    assert (found[10, :15] < 2).all() and (found[10, 15:] != 1).all()


def test_objects_of_different_classes_are_apart():
    own = NUCLEI.model_copy(update={"classes": ("none", "a", "b")})
    labels = np.repeat(np.array([[0, 1, 1, 2, 2, 0, 1]], np.uint8), 4, axis=0)
    assert objects.find_objects(labels, own)[0].tolist() == [0, 1, 1, 3, 3, 0, 2]


@pytest.mark.parametrize("column", ["", "ClassId"])
def test_a_row_an_object_survives_write_and_check(tmp_path, column):
    layout = NUCLEI.submission.model_copy(update={"class_column": column})
    own = NUCLEI.model_copy(update={"submission": layout, "classes": ("none", "a", "b")})
    rng = np.random.default_rng(1)
    labels = np.stack([(draw(rng, n, radius=(2, 5)) > 0) * np.uint8(1 + n % 2) for n in (5, 0, 9)])
    with open_writer(tmp_path / "s.csv", own) as write:
        write(["x", "y", "z"], labels)
    with open(tmp_path / "s.csv", newline="") as file:
        _, *rows = csv.reader(file)
    for name, image in zip("xyz", labels, strict=True):
        found, total = objects.find_objects(image, own), np.zeros(SIZE, int)
        own_rows = [row for row in rows if row[0] == name]
        assert len(own_rows) == max(1, found.max())
        for row in own_rows:
            mask = decode_runs(row[-1], SIZE)
            total += mask
            assert not column or not mask.any() or {*image[mask].tolist()} == {int(row[1])}
        assert (total == (found > 0)).all()  # each pixel once
    assert check_submission(tmp_path / "s.csv", own, ["x", "y", "z"], SIZE) == len(rows)


def test_a_pixel_of_two_objects_and_a_missing_image_are_refused(tmp_path):
    path, head = tmp_path / "s.csv", "ImageId,EncodedPixels\n"
    path.write_text(head + "x,1 4\ny,\nx,4 2\n")
    with pytest.raises(Refused, match="'x': a pixel is of two objects"):
        check_submission(path, NUCLEI, ["x", "y"], SIZE)
    path.write_text(head + "x,1 4\nx,5 2\n")
    with pytest.raises(Refused, match="1 of 2 rows are missing, the first is 'y'"):
        check_submission(path, NUCLEI, ["x", "y"], SIZE)


def write_own(folder, text, **update):
    (folder / "own.py").write_text(text)
    metric = Metric(function=str(folder / "own.py"), average="per_image")
    return NUCLEI.model_copy(update={"metric": metric, "source": Source()} | update)


def tally(own, truth, prediction, groups=None, batches=1):
    rows = np.arange(len(truth))
    split = arrays.Split(truth.numpy()[..., None], truth.numpy(), rows.astype(str), groups, None)
    found = metrics.Tally(split, rows, own)
    for some in np.array_split(rows, batches):
        found.add(some, truth[some], prediction[some])
    return found


def test_a_function_of_ones_own_is_the_score(tmp_path):
    text = "def score_image(truth, prediction):\n    return None if not truth.any() else prediction.mean()\n"
    own = write_own(tmp_path, text)
    truth, prediction = torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, 4, 4, dtype=torch.uint8)
    truth[:2, 0], prediction[0, :2] = 1, 1
    found = tally(own, truth, prediction)
    np.testing.assert_equal(found.counts, [[0.5, 1], [0, 1], [np.nan, np.nan]])
    facts = metrics.scores(found.margins, own.classes, own.metric, found.counts)
    assert (facts["score"], facts["metric"]) == (0.25, "score_image of own.py")


GROUPED = """
def score_group(truth, prediction, ids):
    assert len(ids) == len(truth)
    return [(truth * prediction).sum(), truth.sum() + prediction.sum(), len(truth)]

def combine_counts(counts):
    return 2 * counts[0] / counts[1]
"""


@pytest.mark.parametrize("batches", [1, 2, 7])
def test_a_group_is_scored_whole_and_counts_are_added_up(tmp_path, batches):
    own = write_own(tmp_path, GROUPED)
    random = np.random.default_rng(batches)
    truth, prediction = (torch.from_numpy(random.integers(0, 2, (7, 4, 4), np.uint8)) for _ in range(2))
    groups = np.array(["a", "b", "a", "", "b", "a", ""])  # without a group, an image is scored alone
    found = tally(own, truth, prediction, groups, batches)
    assert found.counts[[3, 4, 5, 6], 2].tolist() == [1, 2, 3, 1] and np.isnan(found.counts[:3]).all()
    dice = 2 * (truth * prediction).sum() / (truth.sum() + prediction.sum())
    assert metrics.score(found.margins, own.metric, found.counts) == pytest.approx(float(dice))
    assert len(metrics.score_each(found.margins, own.metric, found.counts)) == 7


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", r"own\.py: has no function score_image\(truth, prediction\) or score_group\(truth, prediction, ids\)"),
        ("def score_image(a, b):\n    return 'good'", "gives str 'good'; a number or None would fit"),
        ("def score_image(a, b):\n    return [1, 2]", r"gives list \[1, 2\]; a number or None would fit"),
        ("def score_image(a, b):\n    return 1 / 0", "line 2: ZeroDivisionError"),
        ("def score_image(a):\n    return 1", r"own\.py: TypeError: score_image\(\) takes 1"),
        ("def score_group(a, b, c):\n    return 1", "score_group needs groups"),
        ("combine_counts = score_image = lambda *a: 1", "gives int 1; several numbers, for combine_counts would"),
        ("combine_counts = score_image = lambda *a: [1, 2]", r"combine_counts gives .*; a number would fit"),
    ],
)
def test_functions_that_do_not_fit_are_refused(tmp_path, text, problem):
    own = write_own(tmp_path, text)
    one = torch.zeros(1, 4, 4, dtype=torch.uint8)
    with pytest.raises(Refused, match=problem):
        found = tally(own, one, one)
        metrics.score(found.margins, own.metric, found.counts)


def test_a_function_that_leaves_out_every_image_is_refused(tmp_path):
    metric = Metric(function=str(tmp_path / "own.py"))
    with pytest.raises(Refused, match=r"own\.py: leaves out every image"):
        metrics.score(np.zeros((2, 4, 2), np.int64), metric, np.full((2, 2), np.nan))


def test_arrays_without_objects_are_refused_where_they_are_scored(tmp_path):
    zeros = np.zeros((4, *SIZE), np.uint8)
    np.savez(tmp_path / "dsb2018.npz", train_images=zeros, train_masks=zeros)
    with pytest.raises(Refused, match="no array 'train_instances'"):
        arrays.load_train(NUCLEI, tmp_path)
    np.savez(tmp_path / "dsb2018.npz", train_images=zeros, train_masks=zeros, train_instances=zeros[:2])
    with pytest.raises(Refused, match=r"whole numbers of shape \(4, 48, 64\) would fit"):
        arrays.load_train(NUCLEI, tmp_path)
    numbers = (np.arange(zeros.size) % 7).reshape(zeros.shape).astype(np.uint16)
    np.savez_compressed(tmp_path / "dsb2018.npz", train_images=zeros, train_masks=zeros, train_instances=numbers)
    assert (arrays.load_train(NUCLEI, tmp_path).instances == numbers).all()
    assert "train_instances" in npz.list_keys(tmp_path / "dsb2018.npz")


@pytest.mark.parametrize(
    "overrides",
    [
        ["competition.overlap=true"],
    ],
)
def test_what_does_not_go_with_objects_is_refused(overrides):
    with pytest.raises(Refused, match=r"objects"):
        load_config("dsb2018", overrides=overrides)


def test_objects_of_an_image_may_share_a_row(tmp_path):
    layout = {"runs": "json", "join": ";", "empty": "none"}
    own = NUCLEI.model_copy(update={"submission": NUCLEI.submission.model_copy(update=layout)})
    labels = np.zeros((2, *SIZE), np.uint8)
    labels[0, :2, 0], labels[0, 5, 5] = 1, 1
    with open_writer(tmp_path / "s.csv", own) as write:
        write(["x", "y"], labels)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[1:] == [f'x,"[1, 2];[{5 * SIZE[0] + 6}, 1]"', "y,none"]
    assert check_submission(tmp_path / "s.csv", own, ["x", "y"], SIZE) == 2
    (tmp_path / "s.csv").write_text("\n".join([*lines, "y,none"]) + "\n")
    with pytest.raises(Refused, match="a second row of this id"):
        check_submission(tmp_path / "s.csv", own, ["x", "y"], SIZE)
