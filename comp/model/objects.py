"""Objects, numbered from 1 in an array of the image's size, 0 is none: found in labels, matched with the true ones."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from scipy.optimize import linear_sum_assignment

from comp.config import Competition, Metric


def find_objects(labels: np.ndarray, own: Competition, necks: Sequence = (), window: float = math.inf) -> np.ndarray:
    """The objects, int32 (H, W), that labels, uint8 (H, W), show: parts of one class that touch are one object.

    They grow back over the class "border", which lies between objects. Of a class with a neck, a share of the side of
    the image, or of a `window` of so many pixels, touching parts are two objects where each has a middle of its own: a
    watershed from the maxima of the distance to the rim, smoothed over a neck: maxima are two necks apart at least."""
    from skimage.feature import peak_local_max  # two seconds, which few need to wait for
    from skimage.measure import label
    from skimage.segmentation import watershed

    found, side = np.zeros(labels.shape, np.int32), min(labels.size, window) ** 0.5
    for k in own.written:
        body, neck = labels == k, necks[k] * side if necks else 0.0
        area = body | (labels == len(own.classes) - 1) if own.source.border else body
        seeds = parts = label(body, connectivity=2)
        if neck or own.source.border:
            depth = cv2.distanceTransform(body.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            if neck:
                depth = cv2.GaussianBlur(depth, (0, 0), neck)
                places = peak_local_max(depth, max(1, round(2 * neck)), labels=parts, exclude_border=False)
                middles = np.zeros_like(body)
                middles[tuple(places.T)] = True
                seeds = label(body & (middles | ~np.isin(parts, parts[middles])), connectivity=2)  # each part has one
            parts = watershed(-depth, seeds, mask=area)
        np.copyto(found, parts + found.max(), where=(parts > 0) & (found == 0), casting="unsafe")
    return found


def match_objects(true: np.ndarray, found: np.ndarray, dice: bool = False) -> tuple[np.ndarray, int, int]:
    """IoUs, or Dice, of pairs of a true and a found object, each in one pair at most; how many of both there are."""
    t, f = (np.unique(np.append(0, one), return_inverse=True)[1][1:] for one in (true, found))  # numbers without gaps
    rows, columns = t.max(initial=0) + 1, f.max(initial=0) + 1
    shared = np.bincount(t * columns + f, minlength=rows * columns).reshape(rows, columns)
    both = shared[1:, 1:]
    ious = both / np.maximum(shared[1:].sum(1)[:, None] + shared[:, 1:].sum(0) - both, 1)
    values = 2 * ious / (1 + ious) if dice else ious
    return values[linear_sum_assignment(values, maximize=True)], rows - 1, columns - 1


def score_objects(true: np.ndarray, found: np.ndarray, metric: Metric) -> float:
    """The mean over the metric's IoU thresholds of precision, hits / (hits + false + missed), or of F-beta; or Dice."""
    ious, t, f = match_objects(true, found, dice := metric.name == "object_dice")
    if not t + f:  # no object, neither true nor found
        return np.nan if metric.empty == "left_out" else float(1 if metric.empty is None else metric.empty)
    if dice:
        return float(ious.sum() / max(t, f))
    hits = (ious[:, None] > np.array(metric.thresholds or (0.5,))).sum(0)
    if metric.name == "object_precision":
        return float((hits / (t + f - hits)).mean())
    recall = metric.beta**2
    return float(((1 + recall) * hits / (recall * t + f)).mean())
