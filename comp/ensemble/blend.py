"""How folds and runs are blended into labels.

Weights of runs and of classes are found on out-of-fold predictions and judged on folds that they did
not see; they are used only where they help there. The folds of one run weigh the same: no training
image was held out from two of them, so nothing could judge a difference.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from comp.config import Competition
from comp.data.arrays import TrainSplit, release_pages
from comp.errors import Refused
from comp.model import metrics, predict
from comp.train.runs import Fold, Runs

SAMPLE_VALUES = 8 << 20  # probabilities that a search looks at: enough pixels for three digits
FACTORS = (0.5, 0.8, 1.25, 2.0)
MOST = 4.0  # a weight further than this from 1 has found noise


@dataclass(frozen=True)
class Blend:
    """How probabilities become labels, and what out-of-fold predictions say of it."""

    runs: tuple[float, ...]  # weight of each run; they sum to 1
    classes: tuple[float, ...]  # factor on each class's probability before the largest is taken
    kind: str  # which kind of weights these are
    scores: dict[str, float]  # of each kind that was tried, weights found without the fold that they are scored on


# The probabilities (n, C, H, W) of each run, and the truth uint8 (n, H, W).
_Block = tuple[Sequence[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class _Part:
    """One fold of every run, and a block of sampled pixels."""

    folder: Path  # of the first run
    rows: np.ndarray  # of the split
    probabilities: tuple[np.ndarray, ...]  # float16, of each run
    truth: np.ndarray  # int64 (n, C): pixels per class, as they were when the fold was validated
    sample: _Block

    def blocks(self, split: TrainSplit) -> Iterator[_Block]:
        """All of its pixels, with flat memory."""
        for start in range(0, len(self.rows), 64):
            some = slice(start, start + 64)
            yield [p[some] for p in self.probabilities], np.ascontiguousarray(split.masks[self.rows[some]])
        for probabilities in self.probabilities:
            release_pages(probabilities)


def same_folds(runs: Runs, numbers: Sequence[int]) -> list[list[Fold]]:
    """These folds of every run, in this order. Raises Refused for a missing one."""
    chosen = []
    for folds in runs:
        by_number = {fold.number: fold for fold in folds}
        if missing := sorted({*numbers} - {*by_number}):
            there = f"--folds {','.join(map(str, by_number))}"
            raise Refused(f"{folds[0].folder.parent}: fold {missing[0]} is not finished; train it, or blend {there}")
        chosen.append([by_number[number] for number in numbers])
    return chosen


def search_weights(runs: Runs, split: TrainSplit, competition: Competition) -> Blend:
    """Find weights of runs and classes on out-of-fold predictions; keep those that help.

    `runs` holds the same folds of every run, `split` the training images with the truth. Weights are
    found on sampled pixels, and scored on all pixels of the fold that was left out. Raises Refused where
    runs were not validated on the same images, or on other masks than the split's.
    """
    parts = _parts(runs, split, competition)
    kinds = {"equal weights": (False, False)}
    if len(parts) > 1:
        kinds |= {"class weights": (False, True)}
        if len(runs) > 1:
            kinds |= {"run weights": (True, False), "run and class weights": (True, True)}
    counted: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for part in parts:
        others = [p for p in parts if p is not part] or parts
        found = {kind: _find(others, *free, competition) for kind, free in kinds.items()}
        margins: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
        for block in part.blocks(split):  # which may be slow to read: once, for all kinds
            for kind, weights in found.items():
                margins[kind].append(_margins(block, *weights, competition))
        for kind in kinds:
            counted[kind].append(np.concatenate(margins[kind]))
        if not np.array_equal(counted["equal weights"][-1][:, 1], part.truth):
            raise Refused(f"{part.folder}: the training masks have changed since; train it again")
    scores = {kind: metrics.score(np.concatenate(parts), competition.metric) for kind, parts in counted.items()}
    best = max(scores, key=lambda kind: scores[kind])  # equal weights, which come first, win a tie
    run_weights, class_weights = _find(parts, *kinds[best], competition)
    return Blend(tuple(run_weights.tolist()), tuple(class_weights.tolist()), best, scores)


def label_images(probabilities: Tensor, class_weights: Sequence[float]) -> Tensor:
    """uint8 labels (n, H, W) of probabilities (n, C, H, W): the largest after weighting the classes."""
    weights = torch.tensor(class_weights, dtype=torch.float32, device=probabilities.device).view(-1, 1, 1)
    return predict.to_labels(probabilities * weights)


def _find(parts: Sequence[_Part], by_run: bool, by_class: bool, own: Competition) -> tuple[np.ndarray, np.ndarray]:
    """Run and class weights that score best on these parts; those that are not free stay equal."""

    def score(runs: np.ndarray, classes: np.ndarray) -> float:
        counted = [_margins(part.sample, runs / runs.sum(), classes, own) for part in parts]
        return metrics.score(np.concatenate(counted), own.metric)

    count = len(parts[0].probabilities)
    runs, classes = np.full(count, 1 / count), np.ones(len(own.classes))
    if by_run:
        runs = _climb(lambda weights: score(weights, classes), runs)
    if by_class:
        classes = _climb(lambda weights: score(runs, weights), classes)
    return runs / runs.sum(), classes


def _margins(block: _Block, runs: np.ndarray, classes: np.ndarray, own: Competition) -> np.ndarray:
    """Margins int64 (n, 4, C) of a block's images under these weights."""
    probabilities, truth = block
    together = torch.zeros(probabilities[0].shape)
    for weight, p in zip(runs.tolist(), probabilities, strict=True):
        together.add_(torch.from_numpy(p.astype(np.float32, copy=False)), alpha=weight)
    labels = label_images(together, classes.tolist())
    confusions = metrics.count_confusion(torch.from_numpy(truth), labels, len(classes), own.arrays.ignored)
    return metrics.to_margins(confusions).numpy()


def _climb(objective: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Coordinate ascent in factors, within `MOST` of the start, until a round brings nothing."""
    best, score, improved = start, objective(start), True
    while improved:
        improved = False
        for i, factor in product(range(len(best)), FACTORS):
            trial = best.copy()
            trial[i] *= factor
            if 1 / MOST <= trial[i] / start[i] <= MOST and (reached := objective(trial)) > score + 1e-5:
                best, score, improved = trial, reached, True
    return best


def _parts(runs: Runs, split: TrainSplit, competition: Competition) -> list[_Part]:
    row_of = {name: row for row, name in enumerate(split.ids.tolist())}
    pixels = split.images.shape[1] * split.images.shape[2]
    images = sum(fold.metrics["valid_images"] for fold in runs[0])
    most = SAMPLE_VALUES // (len(runs) * len(competition.classes) * images)
    # An odd step does not fall on the same columns in every line.
    step = max(1, pixels // max(1, most)) | 1
    parts = []
    for same in zip(*runs, strict=True):
        ids, probabilities, margins = zip(*(fold.oof() for fold in same), strict=True)
        truths = [counted[:, 1] for counted in margins]
        for fold, others, stored, truth in zip(same, ids, probabilities, truths, strict=True):
            shape = (len(ids[0]), len(competition.classes), *split.images.shape[1:3])
            fits = np.array_equal(others, ids[0]) and row_of.keys() >= set(others.tolist())
            if not fits or stored.shape != shape or not np.array_equal(truth, truths[0]):
                raise Refused(f"{fold.folder}: validated on other images; blend runs over the same folds and arrays")
        rows = np.array([row_of[name] for name in ids[0].tolist()])
        # Sampled pixels stand below one another, as an image of one column.
        masks = np.stack([split.masks[row].reshape(-1, 1)[::step] for row in rows])
        sampled = [p.reshape(*p.shape[:2], -1, 1)[:, :, ::step].astype(np.float32) for p in probabilities]
        if competition.metric.average == "global":  # as one image, whose margins are few
            masks = masks.reshape(1, -1, 1)
            sampled = [p.swapaxes(0, 1).reshape(1, p.shape[1], -1, 1) for p in sampled]
        parts.append(_Part(same[0].folder, rows, probabilities, truths[0], (sampled, masks)))
    return parts
