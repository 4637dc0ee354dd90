"""Every score from one count: confusions, int64 (N, C, C), by sample, true class and predicted class.

A class that neither truth nor prediction holds has no score and is left out of means; a mean over
nothing is 0, as in Keras.
"""

from typing import Any

import numpy as np

from comp import config
from comp.errors import Refused

NAMES = {"mean_iou": "mean IoU", "dice": "Dice", "pixel_accuracy": "pixel accuracy"}
READINGS: dict[str, dict[str, Any]] = {
    "mean_iou": {},
    "mean_iou_without_0": {"background": "drop_class"},
    "mean_iou_truth_without_0": {"background": "drop_truth"},
    "mean_iou_per_image": {"average": "per_image"},
    "dice": {"name": "dice"},
    "dice_per_image": {"name": "dice", "average": "per_image"},
    "pixel_accuracy": {"name": "pixel_accuracy"},
}
CHUNK = 1 << 18  # pixels counted at once: few enough to stay in the processor's cache


def count_confusion(truth: np.ndarray, prediction: np.ndarray, classes: int, ignore: int | None = None) -> np.ndarray:
    """Count pixels by sample, true class and predicted class: int64 (N, C, C).

    `truth` and `prediction` are whole numbers (N, H, W), uint8 at best; memory maps, too. Pixels whose
    truth is `ignore` are not counted. Raises Refused.
    """
    if truth.shape != prediction.shape:
        raise Refused(f"the prediction is {prediction.shape}, but the truth {truth.shape}")
    result = np.zeros((len(truth), classes, classes), np.int64)
    step = max(1, CHUNK // max(1, truth[:1].size))
    # The narrowest type that holds a chunk's codes is the fastest.
    dtype = np.min_scalar_type(step * (classes + 1) * classes)
    for start in range(0, len(truth), step):
        true, predicted = truth[start : start + step].astype(dtype), prediction[start : start + step]
        bad = (true >= classes) if ignore is None else (true >= classes) & (true != ignore)
        if bad.any() or (predicted >= classes).any():
            raise Refused(f"a label is outside 0 to {classes - 1}, in truth or prediction")
        if ignore is not None:
            true = np.where(true == ignore, classes, true)  # a row of their own, which is left out
        samples = np.arange(len(true), dtype=dtype)[:, None, None]
        codes = (samples * (classes + 1) + true) * classes + predicted
        counts = np.bincount(codes.ravel(), minlength=len(true) * (classes + 1) * classes)
        result[start : start + step] = counts.reshape(-1, classes + 1, classes)[:, :classes]
    return result


def iou(confusions: np.ndarray) -> np.ndarray:
    """Intersection over union per class, float64 (…, C) for (…, C, C); NaN where there is no such pixel."""
    hits, truth, prediction = _margins(confusions)
    return _ratio(hits, truth + prediction - hits)


def dice(confusions: np.ndarray) -> np.ndarray:
    """Dice, which is F1, per class, float64 (…, C) for (…, C, C); NaN where there is no such pixel."""
    hits, truth, prediction = _margins(confusions)
    return _ratio(2 * hits, truth + prediction)


def score(confusions: np.ndarray, metric: config.Metric) -> float:
    """The competition's score of confusions (N, C, C), from 0 to 1.

    "global" counts all samples as one image; "per_image" scores each and takes the mean. There a class that is in
    neither truth nor prediction counts as 1 for Dice, as competitions have it, and is left out for IoU.

    "drop_class" leaves class 0 out of the mean; its confusions still cost the others. "drop_truth"
    also leaves out the pixels that are truly 0, so that whatever is predicted there is free. A 0
    predicted elsewhere counts against the class it should have been, and only there: class 0 never
    has a term of its own, where Keras' MeanIoU(ignore_class=0) gives it one, of 0, as soon as a
    single such pixel exists. Pixel accuracy has no mean over classes: "drop_class" changes nothing.
    """
    if metric.average == "global":
        confusions = confusions.sum(0, keepdims=True)
    if metric.background == "drop_truth":
        confusions = confusions * (np.arange(confusions.shape[-1]) > 0)[:, None]
    if metric.name == "pixel_accuracy":
        hits, truth, _ = _margins(confusions)
        values = _ratio(hits.sum(-1), truth.sum(-1))
    else:
        by_class = iou(confusions) if metric.name == "mean_iou" else dice(confusions)
        if metric.background != "keep":
            by_class = by_class[:, 1:]
        if metric.name == "dice" and metric.average == "per_image":
            by_class = np.nan_to_num(by_class, nan=1.0)
        values = _mean(by_class)
    return float(np.nan_to_num(_mean(values)))


def scores(confusions: np.ndarray, classes: tuple[str, ...], metric: config.Metric) -> dict[str, Any]:
    """Every score of confusions (N, C, C) as JSON has it; "score" is the competition's own.

    Under "classes", by name: iou, dice, precision and recall (None where undefined) and share, the
    class's part of all pixels.
    """
    pooled = confusions.sum(0)
    hits, truth, prediction = _margins(pooled)
    columns = {
        "iou": iou(pooled),
        "dice": dice(pooled),
        "precision": _ratio(hits, prediction),
        "recall": _ratio(hits, truth),
        "share": _ratio(truth, truth.sum()),
    }
    readings = {name: score(confusions, config.Metric(**fields)) for name, fields in READINGS.items()}
    by_class = {
        name: {key: None if np.isnan(column[c]) else float(column[c]) for key, column in columns.items()}
        for c, name in enumerate(classes)
    }
    own = {"score": score(confusions, metric), "metric": describe_metric(metric)}
    return own | readings | {"classes": by_class}


def describe_metric(metric: config.Metric) -> str:
    """The metric in words, such as "mean IoU per image without class 0"."""
    average = " per image" if metric.average == "per_image" else ""
    background = {"drop_class": " without class 0", "drop_truth": " where the truth is not class 0"}
    return NAMES[metric.name] + average + background.get(metric.background, "")


def _margins(confusions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per class: pixels that are right, that truly are it, that are predicted as it."""
    return np.diagonal(confusions, axis1=-2, axis2=-1), confusions.sum(-1), confusions.sum(-2)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))
