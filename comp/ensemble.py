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
from comp.arrays import Split
from comp.config import Competition, Metric, Predict
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
    equal: float  # score with equal weights
    kept: float  # score with the weights above, found without the fold that they are scored on
    tried: dict[str, float]  # score of each kind of weights that was tried


@dataclass(frozen=True)
class _Part:
    """Sampled pixels of one fold: probabilities float32 (runs, n, C, pixels), truth uint8 (n, pixels)."""

    probabilities: Tensor
    truth: np.ndarray


def same_folds(runs: Sequence[Sequence[Fold]], numbers: Sequence[int]) -> list[list[Fold]]:
    """These folds of every run, in this order. Raises Refused for a missing one."""
    for folds in runs:
        there = [fold.number for fold in folds]
        if missing := sorted(set(numbers).difference(there)):
            raise Refused(
                f"{folds[0].folder.parent}: fold {missing[0]} is not finished; train it, "
                f"or blend those that are with --folds {','.join(map(str, there))}"
            )
    return [[next(fold for fold in folds if fold.number == number) for number in numbers] for folds in runs]


def search(runs: Sequence[Sequence[Fold]], split: Split, competition: Competition) -> Blend:
    """Find weights of runs and classes on out-of-fold predictions; keep those that help.

    `runs` holds the same folds of every run, `split` the training pictures with the truth. Raises
    Refused where runs were not validated on the same pictures.
    """
    parts = _parts(runs, split, competition)
    classes, ignore = len(competition.classes), competition.arrays.ignore

    def by_run(part: _Part, weights: np.ndarray) -> np.ndarray:
        return _confusion(part, weights / weights.sum(), np.ones(classes), ignore)

    def by_class(part: _Part, weights: np.ndarray) -> np.ndarray:
        return _confusion(part, run_weights, weights, ignore)

    tried: dict[str, float] = {}
    run_weights, equal, kept = np.full(len(runs), 1 / len(runs)), 0.0, 0.0
    if len(runs) > 1:
        run_weights, equal, tried["run weights"] = _cross_fit(parts, by_run, np.ones(len(runs)), competition.metric)
        run_weights = run_weights / run_weights.sum()
    class_weights, even, tried["class weights"] = _cross_fit(parts, by_class, np.ones(classes), competition.metric)
    equal, kept = equal or even, max(even, tried["class weights"])
    return Blend(tuple(run_weights.tolist()), tuple(class_weights.tolist()), equal, kept, tried)


def blended(
    runs: Sequence[Sequence[Fold]], weights: Sequence[float], test: Split, settings: Predict, device: Device
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Blend a test split: yields (rows int64 (n,), probabilities float32 (n, C, H, W)) a batch at a time.

    Models take turns on chunks of pictures, so memory grows neither with their number nor with the
    number of pictures.
    """
    paths = [(fold.model, weight / len(folds)) for folds, weight in zip(runs, weights, strict=True) for fold in folds]
    count, (height, width) = len(test.ids), test.images.shape[1:3]
    loaded: models.Loaded | None = None
    chunk, total = 0, torch.empty(0)
    bar = tqdm(total=count * len(paths), desc="predict", unit="picture", disable=not sys.stderr.isatty())
    start = 0
    while start < count:
        for path, weight in paths:
            if len(paths) > 1 or loaded is None:
                loaded = models.load(path, device.device, loaded)
            if not chunk:
                classes = len(loaded.config.competition.classes)
                chunk = max(1, min(count, CHUNK_BYTES // (4 * classes * height * width)))
                total = torch.zeros(chunk, classes, height, width, device=device.device)
            rows = np.arange(start, min(count, start + chunk))
            for batch, probabilities in predict.over(loaded.model, test.images, rows, settings, device):
                total[batch[0] - start : batch[-1] + 1 - start].add_(probabilities, alpha=weight)
                bar.update(len(batch))
        for batch in np.array_split(rows, -(-len(rows) // settings.batch_size)):
            yield batch, total[batch[0] - start : batch[-1] + 1 - start].clone()
        total.zero_()
        start += chunk
    bar.close()


def label(probabilities: Tensor, class_weights: Sequence[float]) -> np.ndarray:
    """uint8 labels (n, H, W) of probabilities (n, C, H, W): the largest after weighting the classes."""
    weights = torch.tensor(class_weights, device=probabilities.device).view(-1, 1, 1)
    return (probabilities * weights).argmax(1).to(torch.uint8).cpu().numpy()


def _cross_fit(
    parts: Sequence[_Part], confusion: Callable[[_Part, np.ndarray], np.ndarray], start: np.ndarray, metric: Metric
) -> tuple[np.ndarray, float, float]:
    """Weights to use (the start, if others do not help), its score, and that of weights fitted without looking."""

    def score(confusions: list[np.ndarray]) -> float:
        return metrics.score(np.concatenate(confusions), metric)

    def climb(seen: Sequence[_Part]) -> np.ndarray:
        return _climb(lambda weights: score([confusion(part, weights) for part in seen]), start)

    plain = score([confusion(part, start) for part in parts])
    if len(parts) == 1:
        return start, plain, plain
    unseen = [confusion(part, climb([other for other in parts if other is not part])) for part in parts]
    fitted = score(unseen)
    return (climb(parts) if fitted > plain else start), plain, fitted


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
        for fold, others in zip(same, ids, strict=True):
            if not np.array_equal(others, ids[0]) or not row_of.keys() >= set(others.tolist()):
                raise Refused(f"{fold.folder}: validated on other pictures; blend runs over the same folds and arrays")
        rows = [row_of[name] for name in ids[0].tolist()]
        truth = np.stack([split.masks[row].reshape(-1)[::step] for row in rows])
        sampled = [p.reshape(*p.shape[:2], -1)[:, :, ::step].astype(np.float32) for p in probabilities]
        parts.append(_Part(torch.from_numpy(np.stack(sampled)), truth))
    return parts


def _confusion(part: _Part, runs: np.ndarray, classes: np.ndarray, ignore: int | None) -> np.ndarray:
    """Confusions int64 (n, C, C) of a part's sampled pixels under these weights."""
    together = torch.tensordot(torch.from_numpy(runs).float(), part.probabilities, 1)
    labels = label(together[..., None], classes.astype(np.float32))
    return metrics.confusion(part.truth[..., None], labels, len(classes), ignore)
