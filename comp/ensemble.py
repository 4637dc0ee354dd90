"""Folds and runs blended into labels.

Weights of runs and of classes are found on out-of-fold predictions and judged on folds that they
did not see; what does not help there is not used. The folds of one run weigh the same: no training
picture was held out from two of them, so nothing could judge a difference.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from comp import metrics, models, predict
from comp.arrays import Split, release
from comp.config import Competition, Predict
from comp.device import Device
from comp.errors import Refused
from comp.runs import Fold

CHUNK_BYTES = 512 << 20  # of probabilities, held while models take turns on the same pictures
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


@dataclass(frozen=True)
class _Part:
    """One fold: ids' rows, probabilities float16 (n, C, H, W) of each run, and sampled pixels of both for searching."""

    rows: np.ndarray
    probabilities: tuple[np.ndarray, ...]
    sampled: Tensor  # float32 (runs, n, C, pixels)
    truth: np.ndarray  # uint8 (n, pixels)


def same_folds(runs: Sequence[Sequence[Fold]], numbers: Sequence[int]) -> list[list[Fold]]:
    """These folds of every run, in this order. Raises Refused for a missing one."""
    for folds in runs:
        there = [fold.number for fold in folds]
        if missing := sorted(set(numbers).difference(there)):
            raise Refused(
                f"{folds[0].folder.parent}: fold {missing[0]} is not finished; train it, "
                f"or blend those that are with --folds {','.join(map(str, there))}"
            )
    return [[fold for number in numbers for fold in folds if fold.number == number] for folds in runs]


def equal(runs: int, classes: int) -> Blend:
    """All runs and classes weighted the same, and no score: for models without out-of-fold predictions."""
    return Blend((1 / runs,) * runs, (1.0,) * classes, "equal weights", {})


def search(runs: Sequence[Sequence[Fold]], split: Split, competition: Competition) -> Blend:
    """Find weights of runs and classes on out-of-fold predictions; keep those that help.

    `runs` holds the same folds of every run, `split` the training pictures with the truth. Weights are
    found on sampled pixels, and scored on all pixels of the fold that was left out. Raises Refused where
    runs were not validated on the same pictures.
    """
    parts = _parts(runs, split, competition)
    kinds = {"equal weights": (False, False)}
    if len(parts) > 1:
        kinds |= {"class weights": (False, True)}
        if len(runs) > 1:
            kinds |= {"run weights": (True, False), "run and class weights": (True, True)}
    scores = {}
    for kind, free in kinds.items():
        held_out = [_find([p for p in parts if p is not part] or parts, *free, competition) for part in parts]
        confusions = [_all_pixels(part, *w, split, competition) for part, w in zip(parts, held_out, strict=True)]
        scores[kind] = metrics.score(np.concatenate(confusions), competition.metric)
    best = max(scores, key=lambda kind: scores[kind])  # equal weights, which come first, win a tie
    run_weights, class_weights = _find(parts, *kinds[best], competition)
    return Blend(tuple(run_weights.tolist()), tuple(class_weights.tolist()), best, scores)


def batches(test: Split, classes: int, settings: Predict) -> list[np.ndarray]:
    """The rows of a test split in batches of up to `settings.batch_size`, fewer where pictures are large."""
    size = max(1, min(settings.batch_size, CHUNK_BYTES // _bytes(test, classes)))
    rows = np.arange(len(test.ids))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def blended(
    runs: Sequence[Sequence[Fold]],
    weights: Sequence[float],
    test: Split,
    batches: Sequence[np.ndarray],
    settings: Predict,
    device: Device,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Blend batches of a test split: yields (rows int64 (n,), probabilities float32 (n, C, H, W)) for each.

    Models take turns on chunks of pictures, so memory grows neither with their number nor with the
    number of pictures.
    """
    paths = [(fold.model, weight / len(folds)) for folds, weight in zip(runs, weights, strict=True) for fold in folds]
    at, loaded = paths[0][0], models.load(paths[0][0], device.device)
    classes = len(loaded.config.competition.classes)
    pictures = sum(map(len, batches))
    bar = tqdm(total=pictures * len(paths), desc="predict", unit="picture", disable=not sys.stderr.isatty())
    largest = max(map(len, batches), default=1)
    chunk = min(len(batches), max(1, CHUNK_BYTES // _bytes(test, classes) // largest))
    buffer = torch.empty(chunk * largest, classes, *test.images.shape[1:3], device=device.device)
    for start in range(0, len(batches), chunk or 1):
        some = batches[start : start + chunk]
        rows = np.concatenate(some)
        total = buffer[: len(rows)].zero_()
        for path, weight in paths:
            if path != at:
                at, loaded = path, models.load(path, device.device, loaded)
            # Tiles belong to the model, which was validated so; augmentation and batches to this prediction.
            own = settings.model_copy(update={"tile": loaded.config.predict.tile})
            seen = 0
            for batch, probabilities in predict.over(loaded.model, test.images, rows, own, device):
                total[seen : seen + len(batch)].add_(probabilities, alpha=weight)
                seen += len(batch)
                bar.update(len(batch))
        for batch, part in zip(some, total.split([len(batch) for batch in some]), strict=True):
            yield batch, part.clone()
    bar.close()


def _bytes(test: Split, classes: int) -> int:
    """Of one picture's probabilities."""
    return 4 * classes * test.images.shape[1] * test.images.shape[2]


def label(probabilities: Tensor, class_weights: Sequence[float]) -> np.ndarray:
    """uint8 labels (n, H, W) of probabilities (n, C, H, W): the largest after weighting the classes."""
    weights = torch.tensor(class_weights, dtype=torch.float32, device=probabilities.device).view(-1, 1, 1)
    return predict.labels(probabilities * weights)


def _find(
    parts: Sequence[_Part], by_run: bool, by_class: bool, competition: Competition
) -> tuple[np.ndarray, np.ndarray]:
    """Run and class weights that score best on these parts; those that are not free stay equal."""
    count, ignore = len(competition.classes), competition.arrays.ignore
    runs, classes = np.full(len(parts[0].sampled), 1 / len(parts[0].sampled)), np.ones(count)

    def score(runs: np.ndarray, classes: np.ndarray) -> float:
        confusions = []
        for part in parts:
            together = torch.tensordot(torch.from_numpy(runs / runs.sum()).float(), part.sampled, 1)
            labels = label(together[..., None], classes)
            confusions.append(metrics.confusion(part.truth[..., None], labels, count, ignore))
        return metrics.score(np.concatenate(confusions), competition.metric)

    if by_run:
        runs = _climb(lambda weights: score(weights, classes), runs)
    if by_class:
        classes = _climb(lambda weights: score(runs, weights), classes)
    return runs / runs.sum(), classes


def _all_pixels(
    part: _Part, runs: np.ndarray, classes: np.ndarray, split: Split, competition: Competition
) -> np.ndarray:
    """Confusions int64 (n, C, C) of a whole fold under these weights, with flat memory."""
    confusions = []
    for start in range(0, len(part.rows), 64):
        some = slice(start, start + 64)
        together = sum(
            weight * torch.from_numpy(p[some].astype(np.float32))
            for weight, p in zip(runs.tolist(), part.probabilities, strict=True)
        )
        truth = np.ascontiguousarray(split.masks[part.rows[some]])
        confusions.append(metrics.confusion(truth, label(together, classes), len(classes), competition.arrays.ignore))
    for probabilities in part.probabilities:
        release(probabilities)
    return np.concatenate(confusions)


def _climb(objective: Callable[[np.ndarray], float], start: np.ndarray) -> np.ndarray:
    """Coordinate ascent in factors, within `MOST` of the start, until a round brings nothing."""
    best, score, improved = start, objective(start), True
    while improved:
        improved = False
        for i in range(len(best)):
            for factor in FACTORS:
                trial = best.copy()
                trial[i] *= factor
                if 1 / MOST <= trial[i] / start[i] <= MOST and (reached := objective(trial)) > score + 1e-5:
                    best, score, improved = trial, reached, True
    return best


def _parts(runs: Sequence[Sequence[Fold]], split: Split, competition: Competition) -> list[_Part]:
    row_of = {name: row for row, name in enumerate(split.ids.tolist())}
    pixels = split.images.shape[1] * split.images.shape[2]
    pictures = sum(fold.metrics["valid_pictures"] for fold in runs[0])
    most = SAMPLE_VALUES // (len(runs) * len(competition.classes) * pictures)
    # An odd step does not fall on the same columns in every line.
    step = max(1, pixels // max(1, most)) | 1
    parts = []
    for same in zip(*runs, strict=True):
        ids, probabilities = zip(*(fold.oof()[:2] for fold in same), strict=True)
        for fold, others, stored in zip(same, ids, probabilities, strict=True):
            shape = (len(ids[0]), len(competition.classes), *split.images.shape[1:3])
            fits = np.array_equal(others, ids[0]) and row_of.keys() >= set(others.tolist())
            if not fits or stored.shape != shape:
                raise Refused(f"{fold.folder}: validated on other pictures; blend runs over the same folds and arrays")
        rows = np.array([row_of[name] for name in ids[0].tolist()])
        truth = np.stack([split.masks[row].reshape(-1)[::step] for row in rows])
        sampled = [p.reshape(*p.shape[:2], -1)[:, :, ::step].astype(np.float32) for p in probabilities]
        parts.append(_Part(rows, probabilities, torch.from_numpy(np.stack(sampled)), truth))
    return parts
