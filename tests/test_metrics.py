"""Scores agree with scikit-learn and with what each reading of the background promises."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import count_margins
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from comp.config import Metric
from comp.errors import Refused
from comp.model import metrics
from comp.report import tables

VOID = 255
READINGS = [
    Metric(name=name, average=average, background=background)
    for name in ("mean_iou", "dice", "pixel_accuracy")
    for average in ("global", "per_image")
    for background in ("keep", "drop_class", "drop_truth")
]
samples = st.tuples(st.integers(0, 10**6), st.integers(2, 7))


def pair(seed=0, classes=5, n=6, right=0.6):
    """Truth and prediction uint8 (n, 8, 6), a share of whose pixels agree."""
    rng = np.random.default_rng(seed)
    truth, other = rng.integers(0, classes, (2, n, 8, 6), dtype=np.uint8)
    return truth, np.where(rng.random(truth.shape) < right, truth, other).astype(np.uint8)


def count_confusion(truth, prediction, classes, ignore=None):
    """`metrics.count_confusion` of arrays."""
    return metrics.count_confusion(torch.tensor(truth), torch.tensor(prediction), classes, ignore).numpy()


def count(truth, prediction, classes=3):
    """Margins (N, 4, C) of images given as rows of labels."""
    as_images = [np.array(rows, np.uint8)[:, None] for rows in (truth, prediction)]
    return count_margins(*as_images, classes)


@settings(max_examples=30, deadline=None)
@given(samples, st.sampled_from([None, 0, VOID]))
def test_confusions_are_scikit_learns(sample, ignore):
    seed, classes = sample
    truth, prediction = pair(seed, classes)
    if ignore == VOID:
        truth[:, 0] = VOID
    ours = count_confusion(truth, prediction, classes, ignore)
    assert ours.dtype == np.int64 and ours.shape == (6, classes, classes)
    for one, t, p in zip(ours, truth, prediction, strict=True):
        kept = t != ignore if ignore is not None else np.full(t.shape, True)
        expected = np.zeros((classes, classes), int)
        np.add.at(expected, (t[kept], p[kept]), 1)
        np.testing.assert_array_equal(one, expected)
        if kept.any():
            np.testing.assert_array_equal(one, sklearn.confusion_matrix(t[kept], p[kept], labels=range(classes)))


def test_confusions_of_very_many_classes_are_counted_by_sample():
    truth, prediction = pair(classes=255, n=11, right=0.5)
    each = [count_confusion(truth[k : k + 1], prediction[k : k + 1], 255) for k in range(11)]
    np.testing.assert_array_equal(count_confusion(truth, prediction, 255), np.concatenate(each))


def test_margins_are_sums_of_the_confusion():
    confusion = count_confusion(*pair(), 5)
    hits, truth, prediction, elsewhere = np.moveaxis(count_margins(*pair(), 5), 1, 0)
    np.testing.assert_array_equal(hits, np.diagonal(confusion, axis1=1, axis2=2))
    np.testing.assert_array_equal(truth, confusion.sum(2))
    np.testing.assert_array_equal(prediction, confusion.sum(1))
    np.testing.assert_array_equal(elsewhere, prediction - confusion[:, 0])


def test_labels_out_of_range_and_shapes_that_differ_are_refused():
    truth, prediction = pair()
    for bad in [(truth + 1, prediction), (truth, prediction + 1)]:
        with pytest.raises(Refused, match="outside 0 to 4"):
            count_confusion(*bad, 5)
    with pytest.raises(Refused, match=r"\(5, 8, 6\)"):
        count_confusion(truth, prediction[:5], 5)


@settings(max_examples=30, deadline=None)
@given(samples)
def test_global_scores_are_scikit_learns(sample):
    truth, prediction = pair(*sample)
    margins = count_margins(truth, prediction, sample[1])
    t, p = truth.ravel(), prediction.ravel()
    # Without labels=, scikit-learn also takes the classes that truth or prediction holds.
    ious, dices = sklearn.jaccard_score(t, p, average=None), sklearn.f1_score(t, p, average=None)
    present = np.union1d(t, p)
    assert metrics.score(margins, Metric()) == pytest.approx(ious.mean())
    assert metrics.score(margins, Metric(name="dice")) == pytest.approx(dices.mean())
    assert metrics.score(margins, Metric(background="drop_class")) == pytest.approx(ious[present > 0].mean())
    accuracy = metrics.score(margins, Metric(name="pixel_accuracy"))
    assert accuracy == pytest.approx(sklearn.accuracy_score(t, p))
    kept = t > 0
    expected = sklearn.jaccard_score(t[kept], p[kept], labels=present[present > 0], average="macro", zero_division=0)
    counted = np.isin(present[present > 0], np.union1d(t[kept], p[kept])).mean()
    assert metrics.score(margins, Metric(background="drop_truth")) == pytest.approx(expected / counted)


@settings(max_examples=30, deadline=None)
@given(samples)
def test_per_image_scores_are_means_over_images(sample):
    truth, prediction = pair(*sample)
    margins = count_margins(truth, prediction, sample[1])
    flat = list(zip(truth.reshape(6, -1), prediction.reshape(6, -1), strict=True))
    expected = np.mean([sklearn.jaccard_score(t, p, average="macro") for t, p in flat])
    assert metrics.score(margins, Metric(average="per_image")) == pytest.approx(expected)
    expected = np.mean(
        [sklearn.f1_score(t, p, average="macro", labels=range(sample[1]), zero_division=1) for t, p in flat]
    )
    assert metrics.score(margins, Metric(name="dice", average="per_image")) == pytest.approx(expected)


@pytest.mark.parametrize("metric", READINGS, ids=metrics.describe_metric)
@settings(max_examples=20, deadline=None)
@given(sample=samples)
def test_every_reading_gives_1_to_the_truth_and_0_to_1_otherwise(metric, sample):
    truth, prediction = pair(*sample)
    truth[:, 0, 0] = 1
    assert metrics.score(count_margins(truth, truth, sample[1]), metric) == 1
    assert 0 <= metrics.score(count_margins(truth, prediction, sample[1]), metric) <= 1


@pytest.mark.parametrize("metric", READINGS, ids=metrics.describe_metric)
@settings(max_examples=20, deadline=None)
@given(sample=samples)
def test_no_reading_depends_on_the_order_of_samples_pixels_or_later_classes(metric, sample):
    seed, classes = sample
    truth, prediction = pair(seed, classes)
    expected = metrics.score(count_margins(truth, prediction, classes), metric)
    rng = np.random.default_rng(seed)
    order, pixels = rng.permutation(6), rng.permutation(48)
    renamed = np.concatenate([[0], 1 + rng.permutation(classes - 1)]).astype(np.uint8)
    moved = [renamed[a[order].reshape(6, -1)[:, pixels]].reshape(6, 8, 6) for a in (truth, prediction)]
    assert metrics.score(count_margins(*moved, classes), metric) == pytest.approx(expected)


def test_a_class_in_neither_truth_nor_prediction_is_left_out():
    assert metrics.score(count([[0, 0, 1, 1]], [[0, 0, 1, 0]]), Metric()) == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Predicted where it is not, it counts.
    assert metrics.score(count([[0, 0, 1, 1]], [[0, 0, 1, 2]]), Metric()) == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_three_readings_of_the_background():
    truth, prediction = [[0, 0, 0, 1, 1, 2, 2]], [[0, 1, 1, 1, 0, 2, 2]]
    margins = count(truth, prediction)
    assert metrics.score(margins, Metric()) == pytest.approx((1 / 4 + 1 / 4 + 1) / 3)
    # The two 1 predicted on background still cost class 1 its union.
    assert metrics.score(margins, Metric(background="drop_class")) == pytest.approx((1 / 4 + 1) / 2)
    # They cost nothing; the 0 predicted on class 1 costs class 1 and adds no term of its own.
    assert metrics.score(margins, Metric(background="drop_truth")) == pytest.approx((1 / 2 + 1) / 2)


def test_where_the_truth_is_dropped_predicting_0_can_only_lose():
    truth, prediction = pair(classes=4)
    metric = Metric(background="drop_truth")
    before = metrics.score(count_margins(truth, prediction, 4), metric)
    free = np.where(truth == 0, 3, prediction)
    assert metrics.score(count_margins(truth, free, 4), metric) == before
    lost = np.where((truth == 2) & (prediction == 2), 0, prediction)
    assert metrics.score(count_margins(truth, lost, 4), metric) < before


def test_empty_against_empty_is_1_for_dice_per_image_and_left_out_for_iou():
    margins = count([[0, 0], [1, 0]], [[0, 0], [0, 0]], classes=2)
    dice = Metric(name="dice", average="per_image", background="drop_class")
    assert metrics.score(margins, dice) == pytest.approx((1 + 0) / 2)
    iou = Metric(average="per_image", background="drop_class")
    assert metrics.score(margins, iou) == 0
    assert metrics.score(margins[:1], iou) == 0  # a mean over nothing


def test_ignored_pixels_change_no_score():
    truth, prediction = pair()
    truth[:, :3] = VOID
    changed = prediction.copy()
    changed[:, :3] = 0
    for metric in READINGS:
        both = [metrics.score(count_margins(truth, p, 5, VOID), metric) for p in (prediction, changed)]
        assert both[0] == both[1]


def test_scores_are_json_and_agree_with_score():
    truth, prediction = pair()
    margins = count_margins(truth, prediction, 6)
    metric = Metric(background="drop_truth")
    names = ("background", "soil", "bedrock", "sand", "big rock", "absent")
    values = metrics.scores(margins, names, metric)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["score"] == values["mean_iou_truth_without_0"] == metrics.score(margins, metric)
    assert values["metric"] == "mean IoU where the truth is not class 0"
    t, p = truth.ravel(), prediction.ravel()
    soil = values["classes"]["soil"]
    assert soil["iou"] == pytest.approx(sklearn.jaccard_score(t == 1, p == 1))
    assert soil["dice"] == pytest.approx(sklearn.f1_score(t == 1, p == 1))
    assert soil["precision"] == pytest.approx(sklearn.precision_score(t == 1, p == 1))
    assert soil["recall"] == pytest.approx(sklearn.recall_score(t == 1, p == 1))
    assert soil["share"] == pytest.approx((t == 1).mean())
    assert values["classes"]["absent"] == dict(iou=None, dice=None, precision=None, recall=None, share=0.0)


def test_scores_of_no_samples_or_no_counted_pixels_are_json_too():
    for n in (0, 2):
        values = metrics.scores(np.zeros((n, 4, 2), np.int64), ("a", "b"), Metric())
        json.dumps(values, allow_nan=False)
        assert values["score"] == 0
        assert tables.score_table(values)


def folds_table(folds, pooled):
    """As `runs.summarize_folds` prints it."""
    frames = tables.folds_frame(folds), tables.folds_frame({"pooled": pooled})
    return f"score: {pooled['metric']}\n{tables.to_text(pd.concat(frames))}"


def test_tables_are_aligned_narrow_and_show_every_class_and_fold():
    margins = count_margins(*pair(n=20), 5)
    names = ("background", "soil", "bedrock", "sand", "a class whose name is far too long for any table")
    metric = Metric(background="drop_class")
    pooled = metrics.scores(margins, names, metric)
    folds = {k: metrics.scores(margins[k::3], names, metric) for k in range(3)}
    for text in (tables.score_table(pooled), folds_table(folds, pooled)):
        assert max(map(len, text.splitlines())) <= 100
        assert "mean IoU without class 0" in text
    one = tables.score_table(pooled).splitlines()
    assert [line.split()[0] for line in one[:5]] == ["class", *names[:4]]
    assert len({len(line) for line in one[:6]}) == 1
    rows = {line[:6].strip(): line.split() for line in folds_table(folds, pooled).splitlines()[1:]}
    assert list(rows) == ["fold", "0", "1", "2", "mean", "± std", "pooled"]
    three = [values["score"] for values in folds.values()]
    assert rows["mean"][1] == f"{np.mean(three):.4f}"
    assert rows["± std"][2] == f"{np.std(three, ddof=1):.4f}"
    assert rows["pooled"][1] == f"{pooled['score']:.4f}"


def test_a_single_fold_has_no_spread():
    values = metrics.scores(count_margins(*pair(), 5), tuple("abcde"), Metric())
    assert "std" not in folds_table({0: values}, values)


THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)


def test_the_share_of_thresholds_is_tgs_own_score():
    """Each image by hand: the thresholds below its IoU; 1 where truth and prediction are empty, 0 where one is."""
    metric = Metric(average="per_image", background="drop_class", thresholds=THRESHOLDS, empty=1)
    truth = [[1] * 10, [0] * 10, [0] * 10, [1] * 10]
    seen = [[1] * 8 + [0] * 2, [0] * 10, [1] + [0] * 9, [0] * 10]
    shares = [3 / 5, 1, 0, 0]  # 0.8 is not above 0.8
    assert metrics.score(count(truth, seen, 2), metric) == pytest.approx(np.mean(shares))
    assert metrics.describe_metric(metric).startswith("share of mean IoU thresholds 0.5 to 0.9 per image")


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_f_beta_is_scikit_learns(beta):
    truth, seen = pair(classes=3)
    expected = sklearn.fbeta_score(truth.ravel(), seen.ravel(), beta=beta, average=None)
    margins = count_margins(truth, seen, 3)
    assert metrics.score(margins, Metric(name="f_beta", beta=beta)) == pytest.approx(expected.mean())
    weighted = Metric(name="f_beta", beta=beta, weights=(1.0, 0.0, 3.0))
    assert metrics.score(margins, weighted) == pytest.approx((expected[0] + 3 * expected[2]) / 4)


@pytest.mark.parametrize(("empty", "expected"), [(0, 0.5), (1, 1.0), ("left_out", 1.0), (None, 1.0)])
def test_what_is_empty_counts_as_the_competition_says(empty, expected):
    margins = count([[0, 0], [1, 0]], [[0, 0], [1, 0]], classes=2)
    metric = Metric(name="dice", average="per_image", background="drop_class", empty=empty)
    assert metrics.score(margins, metric) == pytest.approx(expected)


def test_images_contribute_alone_what_they_do_together():
    truth, seen = pair(classes=4, n=7)
    margins = count_margins(truth, seen, 4)
    for metric in READINGS:
        parts = [metrics.contribute(some, metric) for some in (margins[:3], margins[3:])]
        assert metrics.combine(np.concatenate(parts), metric) == pytest.approx(metrics.score(margins, metric))
