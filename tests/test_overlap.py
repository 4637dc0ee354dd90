"""Classes that overlap: bits of a label, each class against the rest, in loss, score, prediction and file."""

import numpy as np
import pytest
import torch
from conftest import COMPETITION, TINY, count_margins, draw, inside, lay_out
from torch.nn import functional as F

from comp import config
from comp.model import losses, metrics, predict
from comp.submission.runlength import decode_runs
from comp.submission.write import open_writer

OVERLAP = COMPETITION.replace("[metric]", "overlap = true\n\n[metric]", 1).replace("mean_iou", "dice")
CLASSES = ("rest", "one", "two", "three")


def competition(overlap: bool, **more) -> config.Competition:
    layout = config.Submission(format="rle", rows="image_class", class_column="class")
    return config.Competition(name="x", classes=CLASSES, overlap=overlap, submission=layout, **more)


def to_bits(labels: np.ndarray) -> np.ndarray:
    """Labels of exclusive classes as bits."""
    return np.where(labels > 0, 1 << np.maximum(labels.astype(int) - 1, 0), 0).astype(np.uint8)


@pytest.mark.parametrize("ignore", [None, 255])
def test_the_loss_is_the_mean_of_two_class_losses(ignore):
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(2, 4, 6, 5)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 8, (2, 6, 5)).astype(np.uint8))
    if ignore:
        labels[:, 0] = ignore
    loss_of = losses.build_loss(config.Loss(), CLASSES, np.ones(4), ignore, overlap=True)
    known = (labels != 255).numpy()
    expected = [
        F.binary_cross_entropy_with_logits((logits[:, k] - logits[:, 0])[known], ((labels >> k - 1) & 1)[known].float())
        for k in (1, 2, 3)
    ]
    torch.testing.assert_close(loss_of(logits, labels), torch.stack(expected).mean())
    for name in ("dice", "bce_dice", "lovasz", "focal", "boundary"):
        some = losses.build_loss(config.Loss(terms={name: 1.0}), CLASSES, np.ones(4), ignore, overlap=True)
        assert torch.isfinite(some(logits, labels))


def test_labels_of_scores_are_bits_whether_logits_or_probabilities():
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    bits = predict.to_labels(logits, overlap=True)
    for k in (1, 2, 3):
        assert torch.equal((bits >> k - 1) & 1, (logits[:, k] > logits[:, 0]).to(torch.uint8))
    assert torch.equal(predict.to_labels(predict.activate(logits, True), True), bits)
    back = predict.from_planes(predict.to_planes(predict.activate(logits, True)), True)
    assert (predict.to_labels(back, True) == bits).float().mean() > 0.98


def test_each_class_counts_against_the_rest():
    rng = np.random.default_rng(1)
    truth, seen = (rng.integers(0, 8, (3, 9, 7)).astype(np.uint8) for _ in range(2))
    margins = metrics.count_margins(torch.from_numpy(truth), torch.from_numpy(seen), competition(True)).numpy()
    for k in (1, 2, 3):
        pair = [((labels >> k - 1) & 1).astype(np.uint8) for labels in (truth, seen)]
        np.testing.assert_array_equal(margins[:, :3, k], count_margins(*pair, 2)[:, :3, 1])
    np.testing.assert_array_equal(margins[:, :3, 0], count_margins(truth > 0, seen > 0, 2)[:, :3, 0])


def test_disjoint_classes_give_the_same_file_and_score_either_way(tmp_path):
    rng = np.random.default_rng(2)
    truth, labels = (rng.integers(0, 4, (5, 8, 6)).astype(np.uint8) for _ in range(2))
    ids = list("abcde")
    for name, own, values in (("one", competition(False), labels), ("bits", competition(True), to_bits(labels))):
        with open_writer(tmp_path / name, own) as write:
            write(ids, values)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "bits").read_bytes()
    metric = config.Metric(name="dice", average="per_image", background="drop_class")
    plain = metrics.score(count_margins(truth, labels, 4), metric)
    bits = [torch.from_numpy(to_bits(values)) for values in (truth, labels)]
    assert metrics.score(metrics.count_margins(*bits, competition(True)).numpy(), metric) == pytest.approx(plain)


def test_the_road_of_overlapping_classes(tmp_path, monkeypatch, capsys):
    masks = draw(24, 0)[1]
    bits = np.where(masks == 2, 3, masks)  # the spot lies on the stripe's class, too
    truth = draw(7, 1)[1]
    lay_out(tmp_path, competition=OVERLAP, train_masks=bits, test_masks=np.where(truth == 2, 3, truth))
    options = ("--set", "epochs=12", "--set", "optimizer.lr=0.01", "--set", "loss.terms={bce_dice=1.0}")
    said = inside(monkeypatch, capsys, "train_fold.py", *TINY, *options, "--fold", "0", cwd=tmp_path)
    assert "report.html" in said and "could not be made" not in said
    folder = tmp_path / "runs/tiny/recipe/fold-0"
    assert {"confusion.png", "examples.png", "filmstrip.png", "samples.png"} <= {path.name for path in folder.iterdir()}
    said = inside(monkeypatch, capsys, "ensemble.py", *TINY, "--folds", "0", cwd=tmp_path)
    assert "leaderboard" in said
    (made,) = (tmp_path / "submissions").glob("*.csv")
    rows = [line.split(",") for line in made.read_text().splitlines()[1:]]
    masks = {(id, label): decode_runs(runs, (32, 48)) for id, label, runs in rows}
    assert len(masks) == 14 and any((masks[f"{k}", "1"] & masks[f"{k}", "2"]).any() for k in range(7))
