"""Every score from one count: margins, int64 (N, 4, C), which hold four numbers of pixels by sample and class.

They are, in this order: pixels that are right; that truly are of the class; that are predicted as it; that are
predicted as it where the truth is not class 0. A class that neither truth nor prediction holds has no score and is
left out of means; a mean over nothing is 0, as in Keras.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

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
CHUNK = 1 << 18  # pixels that a CPU counts at once: few enough to stay in its cache


def count_confusion(truth: Tensor, prediction: Tensor, classes: int, ignore: int | None = None) -> Tensor:
    """Count pixels by sample, true class and predicted class: int64 (N, C, C), on the device of both.

    `truth` and `prediction` are labels uint8 (N, H, W). Pixels whose truth is `ignore` are not counted.
    Raises Refused.
    """
    if truth.shape != prediction.shape:
        raise Refused(f"the prediction is {tuple(prediction.shape)}, but the truth {tuple(truth.shape)}")
    counted, count = [], len(truth)
    step = max(1, count if truth.is_cuda else CHUNK // max(1, truth[:1].numel()))
    # The narrowest type that holds a chunk's codes is the fastest.
    dtype = torch.int16 if min(step, count) * (classes + 1) * classes < 1 << 15 else torch.int32
    for true, predicted in zip(truth.split(step), prediction.split(step), strict=True):
        bad = (true >= classes) if ignore is None else (true >= classes) & (true != ignore)
        if (bad | (predicted >= classes)).any():
            raise Refused(f"a label is outside 0 to {classes - 1}, in truth or prediction")
        true = true.to(dtype)
        if ignore is not None:
            true = true.masked_fill(true == ignore, classes)  # a row of their own, which is left out
        samples = torch.arange(len(true), dtype=dtype, device=truth.device).view(-1, 1, 1)
        codes = (samples * (classes + 1) + true) * classes + predicted
        counts = torch.bincount(codes.flatten(), minlength=len(true) * (classes + 1) * classes)
        counted.append(counts.view(-1, classes + 1, classes)[:, :classes])
    return torch.cat(counted)


def to_margins(confusions: Tensor) -> Tensor:
    """What scores need of confusions (N, C, C): margins int64 (N, 4, C)."""
    truth, prediction, elsewhere = confusions.sum(2), confusions.sum(1), confusions[:, 1:].sum(1)
    return torch.stack([confusions.diagonal(dim1=1, dim2=2), truth, prediction, elsewhere], 1)


def iou(margins: np.ndarray) -> np.ndarray:
    """Intersection over union per class, float64 (…, C) for (…, 4, C); NaN where there is no such pixel."""
    hits, truth, prediction, *_ = _rows(margins)
    return _ratio(hits, truth + prediction - hits)


def dice(margins: np.ndarray) -> np.ndarray:
    """Dice, which is F1, per class, float64 (…, C) for (…, 4, C); NaN where there is no such pixel."""
    hits, truth, prediction, *_ = _rows(margins)
    return _ratio(2 * hits, truth + prediction)


def score(margins: np.ndarray, metric: config.Metric) -> float:
    """The competition's score of margins (N, 4, C), from 0 to 1.

    "global" counts all samples as one image; "per_image" scores each and takes the mean. There a class that is in
    neither truth nor prediction counts as 1 for Dice, as competitions have it, and is left out for IoU.

    "drop_class" leaves class 0 out of the mean; what is taken for it still costs the others. "drop_truth" also leaves
    out the pixels that are truly 0, so that whatever is predicted there is free. A 0 predicted elsewhere counts
    against the class it should have been, and only there: class 0 never has a term of its own, where Keras'
    MeanIoU(ignore_class=0) gives it one, of 0, as soon as a single such pixel exists. Pixel accuracy has no mean over
    classes: "drop_class" changes nothing.
    """
    if metric.average == "global":
        margins = margins.sum(0, keepdims=True)
    if metric.background == "drop_truth":
        margins = margins[..., [0, 1, 3, 3], :] * (np.arange(margins.shape[-1]) > 0)
    if metric.name == "pixel_accuracy":
        hits, truth, *_ = _rows(margins)
        values = _ratio(hits.sum(-1), truth.sum(-1))
    else:
        by_class = iou(margins) if metric.name == "mean_iou" else dice(margins)
        if metric.background != "keep":
            by_class = by_class[:, 1:]
        if metric.name == "dice" and metric.average == "per_image":
            by_class = np.nan_to_num(by_class, nan=1.0)
        values = _mean(by_class)
    return float(np.nan_to_num(_mean(values)))


def scores(margins: np.ndarray, classes: tuple[str, ...], metric: config.Metric) -> dict[str, Any]:
    """Every score of margins (N, 4, C) as JSON has it; "score" is the competition's own.

    Under "classes", by name: iou, dice, precision and recall (None where undefined) and share, the
    class's part of all pixels.
    """
    pooled = margins.sum(0)
    hits, truth, prediction, _ = pooled
    columns = {
        "iou": iou(pooled),
        "dice": dice(pooled),
        "precision": _ratio(hits, prediction),
        "recall": _ratio(hits, truth),
        "share": _ratio(truth, truth.sum()),
    }
    readings = {name: score(margins, config.Metric(**fields)) for name, fields in READINGS.items()}
    by_class = {
        name: {key: None if np.isnan(column[c]) else float(column[c]) for key, column in columns.items()}
        for c, name in enumerate(classes)
    }
    own = {"score": score(margins, metric), "metric": describe_metric(metric)}
    return own | readings | {"classes": by_class}


def describe_metric(metric: config.Metric) -> str:
    """The metric in words, such as "mean IoU per image without class 0"."""
    average = " per image" if metric.average == "per_image" else ""
    background = {"drop_class": " without class 0", "drop_truth": " where the truth is not class 0"}
    return NAMES[metric.name] + average + background.get(metric.background, "")


def _rows(margins: np.ndarray) -> np.ndarray:
    """The four counts, each (…, C), in front."""
    return np.moveaxis(margins, -2, 0)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is defined; NaN where nothing is."""
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))
