"""Losses of a batch of logits against its labels, all computed in float32.

A loss takes logits (N, C, H, W) and labels int64 (N, H, W), in which `IGNORED` marks pixels that do not count, and
gives a scalar; 0, with a gradient of 0, where no pixel counts."""

import math
from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comp import config

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits (N, C, H, W) and labels (N, H, W)
IGNORED = -1
NEAR = 3  # pixels on either side of a label edge that the boundary loss looks at


def build_loss(
    loss: config.Loss, classes: tuple[str, ...], counts: np.ndarray, ignore: int | None, overlap: bool = False
) -> Loss:
    """The weighted sum of losses that a recipe names.

    `counts` int64 (C,) are the pixels per class of the fold's training part. The result takes logits (N, C, H, W) of
    any float dtype and labels uint8 or int64 (N, H, W), of which `ignore` does not count, and gives a float32 scalar.
    Class weights act on cross_entropy, boundary and focal: the others count every class alike already. Where classes
    overlap, a label's bit k - 1 says class k, and each is told from the first alone."""
    weights_on = cache(weigh_classes(loss.class_weights, classes, counts).to)  # a copy a device, not one a step
    known: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "cross_entropy": lambda z, y, w: cross_entropy(z, y, w, loss.label_smoothing),
        "boundary": lambda z, y, w: cross_entropy(z, near_edges(y), w, loss.label_smoothing),
        "focal": lambda z, y, w: focal(z, y, w, loss.gamma),
        "dice": lambda z, y, w: dice(z, y),
        "bce_dice": lambda z, y, w: bce_dice(z, y),
        "lovasz": lambda z, y, w: lovasz(z, y),
    }
    terms = [(factor, known[name]) for name, factor in loss.terms.items()]

    def compute(logits: Tensor, labels: Tensor) -> Tensor:
        # Half precision overflows in sums over pixels; autocast must not bring it back.
        with torch.autocast(logits.device.type, enabled=False):
            logits, labels, weights = logits.float(), labels.long(), weights_on(labels.device)
            pairs = [(logits, labels, weights)]
            if overlap:
                pairs = [(logits[:, [0, k]], labels >> k - 1 & 1, weights[[0, k]]) for k in range(1, len(classes))]
            kept = [(z, y if ignore is None else y.masked_fill(labels == ignore, IGNORED), w) for z, y, w in pairs]
            return torch.stack([factor * term(*pair) for pair in kept for factor, term in terms]).sum() / len(kept)

    return compute


def weigh_classes(choice: str | float | Mapping[str, float], classes: tuple[str, ...], counts: np.ndarray) -> Tensor:
    """Weight of each class, float32 (C,), from pixel counts (C,) or by name.

    A number is the power of a class's inverse frequency, "sqrt" is 0.5 and "inverse" 1, scaled so that the mean weight
    of a pixel is 1; a class without a pixel, whose inverse has no bound, weighs 0. By name, one not named weighs 1."""
    if isinstance(choice, Mapping):
        return torch.tensor([choice.get(name, 1.0) for name in classes], dtype=torch.float32)
    if choice == "none":
        return torch.ones(len(classes))
    frequency = counts / counts.sum()
    power = {"inverse": 1.0, "sqrt": 0.5}[choice] if isinstance(choice, str) else choice
    weights = np.power(frequency, -power, out=np.zeros(len(classes)), where=counts > 0)
    return torch.tensor(weights / (frequency @ weights), dtype=torch.float32)


def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, the mean weighted by `weights` (C,) of the pixels' true classes."""
    total = F.cross_entropy(logits, labels, weights, ignore_index=IGNORED, label_smoothing=smoothing, reduction="sum")
    # Not reduction="mean", which is 0/0 where every pixel is ignored or of a class that weighs 0.
    return _ratio(total, _pixel_weights(labels, weights).sum())


def focal(logits: Tensor, labels: Tensor, weights: Tensor, gamma: float) -> Tensor:
    """Focal loss, (1 - p)^gamma times cross-entropy (Lin et al. 2017), weighted mean as there."""
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    miss = -torch.expm1(-entropy).clamp_max(-1e-6)  # not 0, where the power has no slope for gamma < 1
    weight = _pixel_weights(labels, weights)
    return _ratio((weight * miss**gamma * entropy).sum(), weight.sum())


def near_edges(labels: Tensor) -> Tensor:
    """Labels int64 (N, H, W), IGNORED but where a square of 2 `NEAR` + 1 pixels around holds two different ones.

    An ignored pixel is not a label: a void outline between two classes hides no edge, and makes none."""
    highest = labels.float()  # of ignored pixels -1, lower than any
    lowest = torch.where(labels == IGNORED, -math.inf, -highest)
    pooled = F.max_pool2d(torch.stack([highest, lowest], 1), 2 * NEAR + 1, stride=1, padding=NEAR)
    return labels.masked_fill(pooled.sum(1) <= 0, IGNORED)


def dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - soft Dice over the whole batch, mean over the classes its labels hold (Milletari et al. 2016)."""
    return _dice_loss(logits.softmax(1), _one_hot(labels, logits.shape[1]), labels)


def bce_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of each class against the rest, plus Dice of the same sigmoids.

    Of two classes only the foreground counts: the sigmoid of their difference is the softmax that prediction takes."""
    truth = _one_hot(labels, logits.shape[1])
    if logits.shape[1] == 2:
        logits, truth = logits[:, 1:] - logits[:, :1], truth[:, 1:]
    counted = (labels != IGNORED).unsqueeze(1).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, truth.to(logits), counted.to(logits), reduction="sum")
    return _ratio(entropy, counted.sum()) + _dice_loss(logits.sigmoid(), truth, labels)


def lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    """Lovász-softmax of the batch, mean over the classes its labels hold (Berman et al. 2018)."""
    truths = _one_hot(labels, logits.shape[1])
    probabilities = logits.softmax(1).masked_fill((labels == IGNORED).unsqueeze(1), 0)
    total = logits.sum() * 0  # which has a gradient, too
    for truth, probability in zip(truths.unbind(1), probabilities.unbind(1), strict=True):
        if truth.is_cuda or truth.any():  # a class without a pixel adds 0; to ask a GPU is to wait for it
            errors = (truth.float() - probability).abs().flatten()
            total = total + (errors * _lovasz_weights(errors.detach(), truth.flatten())).sum()
    return _ratio(total, truths.any((0, 2, 3)).sum())


def _lovasz_weights(errors: Tensor, truth: Tensor) -> Tensor:
    """By how much each pixel (P,) raises the Jaccard loss when it joins those with larger errors."""
    # Floats from 0 to 1 are in the order of their bits, and torch sorts whole numbers ten times faster.
    order = (0x3F800000 - errors.view(torch.int32)).argsort()
    hit = truth[order]
    found = hit.cumsum(0)
    common = found[-1] - found
    union = found[-1] + (~hit).cumsum(0)
    # In closed form, since differences of neighbouring Jaccard values are lost in float32.
    rise = torch.where(hit, 1 / union, common / union / (union - 1).clamp_min(1))
    return torch.empty_like(errors).scatter_(0, order, rise)


def _dice_loss(probabilities: Tensor, truth: Tensor, labels: Tensor) -> Tensor:
    probabilities = probabilities * (labels != IGNORED).unsqueeze(1)
    common, pixels = (probabilities * truth).sum((0, 2, 3)), truth.sum((0, 2, 3))
    dices = _ratio(2 * common, probabilities.sum((0, 2, 3)) + pixels)
    return _ratio(((1 - dices) * (pixels > 0)).sum(), (pixels > 0).sum())


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """Bool (N, C, H, W): eight times smaller than F.one_hot, and ignored pixels belong to no class."""
    return labels.unsqueeze(1) == torch.arange(classes, device=labels.device).view(1, -1, 1, 1)


def _pixel_weights(labels: Tensor, weights: Tensor) -> Tensor:
    return F.pad(weights, (0, 1))[labels]  # IGNORED is -1: the last entry, a 0 behind the classes


def _ratio(total: Tensor, count: Tensor) -> Tensor:
    """total / count, and 0 where both are 0."""
    return total / count.clamp_min(1e-7)
