"""Every score from one count: margins, int64 (N, 4, C), which hold four numbers of pixels by sample and class.

They are, in this order: pixels that are right; that truly are of the class; that are predicted as it; that are
predicted as it where the truth is not class 0. A class in neither has no score; a mean of nothing is 0, as in Keras."""

from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comp import files
from comp.config import Competition, Metric
from comp.data.arrays import Split, number_groups, pick_class
from comp.errors import Refused
from comp.model import objects

NAMES = {"mean_iou": "mean IoU", "dice": "Dice", "f_beta": "F{beta:g}"}  # others are words as they stand
# The scores that are printed beside the competition's own: their columns' names, and what they are of a metric.
READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "mean_iou": ("IoU", {}),
    "mean_iou_without_0": ("IoU w/o 0", {"background": "drop_class"}),
    "mean_iou_truth_without_0": ("IoU truth≠0", {"background": "drop_truth"}),
    "mean_iou_per_image": ("IoU/image", {"average": "per_image"}),
    "dice": ("Dice", {"name": "dice"}),
    "dice_per_image": ("Dice/image", {"name": "dice", "average": "per_image"}),
    "pixel_accuracy": ("accuracy", {"name": "pixel_accuracy"}),
}


def count_confusion(truth: Tensor, prediction: Tensor, classes: int, ignore: int | None = None) -> Tensor:
    """Count pixels by sample, true class and predicted class: int64 (N, C, C), on the device of both.

    Both are labels uint8 (N, H, W); pixels whose truth is `ignore` are not counted. Raises Refused."""
    if truth.shape != prediction.shape:
        raise Refused(f"the prediction is {tuple(prediction.shape)}, but the truth {tuple(truth.shape)}")
    true = truth.int() + 1
    if ignore is not None:
        true = true.masked_fill(truth == ignore, 0)  # a row of their own, which is left out
    if ((true > classes) | (prediction >= classes)).any():
        raise Refused(f"a label is outside 0 to {classes - 1}, in truth or prediction")
    samples = torch.arange(len(true), dtype=torch.int32, device=truth.device).view(-1, 1, 1)
    codes = (samples * (classes + 1) + true) * classes + prediction
    counts = torch.bincount(codes.flatten(), minlength=len(true) * (classes + 1) * classes)
    return counts.view(-1, classes + 1, classes)[:, 1:]


def to_margins(confusions: Tensor, overlap: bool = False) -> Tensor:
    """What scores need of confusions (…, K, K), of C classes or of the labels that overlapping ones have: (…, 4, C)."""
    truth, prediction, elsewhere = confusions.sum(-1), confusions.sum(-2), confusions[..., 1:, :].sum(-2)
    if not overlap:
        return torch.stack([confusions.diagonal(dim1=-2, dim2=-1), truth, prediction, elsewhere], -2)
    holds = hold_classes(confusions.shape[-1]).to(confusions.device)
    hits = (holds @ confusions.double() @ holds.T).diagonal(dim1=-2, dim2=-1)  # no GPU multiplies whole numbers
    truth, prediction = (one.double() @ holds.T for one in (truth, prediction))
    elsewhere = torch.cat([prediction[..., :1] - hits[..., :1], hits[..., 1:]], -1)
    return torch.stack([hits, truth, prediction, elsewhere], -2).long()


def count_margins(truth: Tensor, prediction: Tensor, competition: Competition) -> Tensor:
    """Margins int64 (N, 4, C) of labels uint8 (N, H, W), each class against the rest. Raises Refused."""
    counted = count_confusion(truth, prediction, competition.labels, competition.arrays.ignored)
    return to_margins(counted, competition.overlap)


def hold_classes(labels: int) -> Tensor:
    """Which of overlapping classes each of so many labels holds, float64 (C, labels); the first is none of them."""
    return torch.stack([pick_class(torch.arange(labels), k, True) for k in range(labels.bit_length())]).double()


def iou(margins: np.ndarray) -> np.ndarray:
    """Intersection over union per class, float64 (…, C) for (…, 4, C); NaN where there is no such pixel."""
    hits, truth, prediction, _ = np.moveaxis(margins, -2, 0)
    return _ratio(hits, truth + prediction - hits)


def f_beta(margins: np.ndarray, beta: float) -> np.ndarray:
    """F-beta per class, float64 (…, C) for (…, 4, C); NaN where there is no such pixel. Recall counts beta² times."""
    hits, truth, prediction, _ = np.moveaxis(margins, -2, 0)
    return _ratio((1 + beta**2) * hits, beta**2 * truth + prediction)


def needs_images(metric: Metric) -> bool:
    """Whether a metric looks at each image, since counts of its pixels do not tell its value."""
    return bool(metric.function) or metric.name.startswith("object_")


def load_own(metric: Metric) -> Callable:
    """The function of the user's that scores an image, or all images of a group. Raises Refused."""
    return files.load_function(metric.function, "score_image(truth, prediction)", "score_group(truth, prediction, ids)")


class Tally:
    """What a score is made of, counted batch by batch of images.

    `margins` are int64 (n, 4, C). `counts`, float64 (n, K), are of metrics that look at images: numbers which are added
    up, of most a value and 1; NaN of an image that adds none, as all of a group but its last."""

    def __init__(self, split: Split, rows: np.ndarray, competition: Competition, necks: tuple = ()):
        """`rows` of the split are of all images that will come. Raises Refused."""
        self._split, self._rows, self._order, self._competition = split, rows, np.argsort(rows), competition
        self._necks, metric = necks, competition.metric
        self.margins = np.zeros((len(rows), 4, len(competition.classes)), np.int64)
        self.confusion = torch.zeros(competition.labels, competition.labels, dtype=torch.int64)  # of all images
        self.units = np.arange(len(rows))  # a number for each image, the same for those that are scored together
        self._own = load_own(metric) if metric.function else None
        self._several = bool(metric.function) and "combine_counts" in files.load_functions(metric.function)
        if self._own and self._own.__name__ == "score_group" and split.masks is not None:
            if split.groups is None:
                raise Refused(f"{metric.function}: score_group needs groups, as source.group makes them")
            self.units = number_groups(split.groups[rows])
        self._sizes, self._counts = Counter(self.units.tolist()), dict[int, np.ndarray]()
        self._waiting: dict[int, dict[int, list]] = defaultdict(dict)

    def add(self, rows: np.ndarray, truth: Tensor, prediction: Tensor) -> None:
        """Count some images, labels uint8 (n, H, W). Raises Refused for what a function of the user's raises."""
        places = self._order[np.searchsorted(self._rows, rows, sorter=self._order)]
        own = self._competition
        confusions = count_confusion(truth, prediction, own.labels, own.arrays.ignored)
        self.margins[places] = to_margins(confusions, own.overlap).cpu().numpy()
        self.confusion += confusions.sum(0).cpu()
        if not needs_images(own.metric):
            return
        whole = []
        for place, *image in zip(places.tolist(), truth.cpu().numpy(), prediction.cpu().numpy(), strict=True):
            waiting = self._waiting[unit := int(self.units[place])]
            waiting[place] = image
            if len(waiting) == self._sizes[unit]:
                whole.append(dict(sorted(self._waiting.pop(unit).items())))
        with ThreadPoolExecutor() as pool:
            self._counts |= zip(map(max, whole), pool.map(self._score, whole), strict=True)

    def _score(self, images: dict[int, list]) -> np.ndarray:
        """Counts of one unit's images, which are pairs of labels (H, W) by their places, in order of these."""
        competition, rows = self._competition, self._rows[[*images]]
        truth, prediction = map(np.stack, zip(*images.values(), strict=True))
        if not self._own or competition.source.instances:  # of objects, as they are known, or else found
            known = self._split.instances
            parts = (objects.find_objects(one, competition) for one in truth)
            truth = np.stack([*parts]) if known is None else known[rows]
        if not self._own:
            found = objects.find_objects(prediction[0], competition, self._necks)
            value: Any = objects.score_objects(truth[0], found, competition.metric)
            return np.array([value, 0 * value + 1])
        whole = self._own.__name__ == "score_group"
        value = self._own(truth, prediction, self._split.ids[rows]) if whole else self._own(truth[0], prediction[0])
        if value is None and not self._several:
            return np.full(2, np.nan)
        if not _are_numbers(value) or np.ndim(value) != self._several:
            fits = "several numbers, for combine_counts" if self._several else "a number or None"
            what = f"{self._own.__name__} gives {type(value).__name__} {value!r:.40}"
            raise Refused(f"{competition.metric.function}: {what}; {fits} would fit")
        return np.array(value if self._several else [value, 1], np.float64)

    @property
    def counts(self) -> np.ndarray:
        counts = np.full((len(self._rows), max(map(len, self._counts.values()), default=2)), np.nan)
        for place, row in self._counts.items():
            counts[place] = row
        return counts


def score(margins: np.ndarray, metric: Metric, counts: np.ndarray | None = None) -> float:
    """The competition's score of margins (N, 4, C), from 0 to 1; where it looks at images, of their counts (N, K).

    "global" counts all samples as one image; "per_image" scores each and takes the mean. "drop_class" leaves class 0
    out of the mean; what is taken for it still costs the others. "drop_truth" also leaves out the pixels that are truly
    0, so that whatever is predicted there is free. A 0 predicted elsewhere counts against the class it should have
    been, and only there, where Keras' MeanIoU(ignore_class=0) gives class 0 a term of 0 as soon as one such pixel
    exists. Pixel accuracy has no mean over classes: "drop_class" changes nothing."""
    if metric.function and counts is not None and np.isnan(counts).all():
        raise Refused(f"{metric.function}: leaves out every image that is scored")
    return float(combine(contribute(margins, metric, counts), metric))


def contribute(margins: np.ndarray, metric: Metric, counts: np.ndarray | None = None) -> np.ndarray:
    """What images add to a score, of margins (…, N, 4, C): counts (…, N, K), values (…, N), or a sum (…, 1, 4, C)."""
    if needs_images(metric):
        assert counts is not None  # margins alone do not tell what such a metric counts
        return counts
    return margins.sum(-3, keepdims=True) if metric.average == "global" else _values(margins, metric)


def combine(contributed: np.ndarray, metric: Metric) -> np.ndarray:
    """The scores (…) of what images contributed, batches of them concatenated along the images' axis."""
    if needs_images(metric):
        sums = np.nansum(contributed, -2)
        own = files.load_functions(metric.function).get("combine_counts") if metric.function else None
        scores = np.apply_along_axis(own, -1, sums) if own else np.nan_to_num(_ratio(sums[..., 0], sums[..., 1]))
        if not _are_numbers(scores) or scores.shape != sums.shape[:-1]:
            raise Refused(f"{metric.function}: combine_counts gives {scores!r:.40}; a number would fit")
        return scores
    if metric.average == "global":
        contributed = _values(contributed.sum(-3, keepdims=True), metric)
    return np.nan_to_num(_mean(contributed))


def score_each(margins: np.ndarray, metric: Metric, counts: np.ndarray) -> np.ndarray:
    """A score for each image, float64 (N,), by which cases are chosen; where groups have one, Dice."""
    if needs_images(metric):
        if not metric.function or load_own(metric).__name__ == "score_image":
            return np.array([np.nan if np.isnan(one).any() else combine(one[None], metric) for one in counts])
        metric = Metric(name="dice", background="drop_class")
    return _values(margins, metric.model_copy(update={"average": "per_image", "empty": "left_out"}))


def _are_numbers(values: Any) -> bool:
    array = np.asarray(values)
    return array.dtype.kind in "buif" and bool(np.isfinite(array).all())


def _values(margins: np.ndarray, metric: Metric) -> np.ndarray:
    """The metric's value of every image, float64 (…, N); NaN where it has none."""
    if metric.background == "drop_truth":
        margins = margins[..., [0, 1, 3, 3], :] * (np.arange(margins.shape[-1]) > 0)
    if metric.name == "pixel_accuracy":
        return _ratio(margins[..., 0, :].sum(-1), margins[..., 1, :].sum(-1))
    beta = metric.beta if metric.name == "f_beta" else 1.0
    by_class = iou(margins) if metric.name == "mean_iou" else f_beta(margins, beta)
    first = 0 if metric.background == "keep" else 1
    by_class, weights = by_class[..., first:], np.array(metric.weights or [1.0] * margins.shape[-1])[first:]
    empty = metric.empty if metric.empty is not None or metric.name == "mean_iou" else 1
    if metric.average == "per_image" and empty in (0, 1):
        by_class = np.nan_to_num(by_class, nan=empty)
    if metric.thresholds:
        by_class = np.where(np.isnan(by_class), np.nan, (by_class[..., None] > np.array(metric.thresholds)).mean(-1))
    return _mean(by_class, weights)


def scores(margins: np.ndarray, classes: tuple[str, ...], metric: Metric, counts: np.ndarray | None = None) -> dict:
    """Every score of margins (N, 4, C) as JSON has it; "score" is the competition's own, of `counts` where it has them.

    Under "classes", by name: iou, dice, precision and recall, None where undefined; share, its part of all pixels."""
    pooled = margins.sum(0)
    hits, truth, prediction, _ = pooled
    columns = {"iou": iou(pooled), "dice": f_beta(pooled, 1.0), "share": _ratio(truth, truth.sum())}
    columns |= {"precision": _ratio(hits, prediction), "recall": _ratio(hits, truth)}
    readings = {name: score(margins, Metric(**fields)) for name, (_, fields) in READINGS.items()}
    by_class = {
        name: {key: None if np.isnan(column[c]) else float(column[c]) for key, column in columns.items()}
        for c, name in enumerate(classes)
    }
    return {"score": score(margins, metric, counts), "metric": describe_metric(metric), **readings, "classes": by_class}


def describe_metric(metric: Metric) -> str:
    """The metric in words, such as "mean IoU per image without class 0"."""
    if metric.function:
        return f"{load_own(metric).__name__} of {Path(metric.function).name}"
    background = {"drop_class": " without class 0", "drop_truth": " where the truth is not class 0"}
    kind = metric.name.removeprefix("object_")
    name = NAMES.get(kind, kind.replace("_", " ")).format(beta=metric.beta) + " of objects" * (kind != metric.name)
    if metric.thresholds:
        share = "mean {} over IoU" if needs_images(metric) else "share of {}"
        name = f"{share.format(name)} thresholds {min(metric.thresholds):g} to {max(metric.thresholds):g}"
    return name + " per image" * (metric.average == "per_image") + background.get(metric.background, "")


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=whole > 0)


def _mean(values: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """Weighted mean over the last axis of what is defined; NaN where nothing is."""
    return _ratio(np.nansum(values * weights, -1), (~np.isnan(values) * weights).sum(-1))
