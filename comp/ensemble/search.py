"""Decisions found on out-of-fold predictions, for the competition's own metric, and judged on images not used for it.

Each is found as often as there are parts of the images, without one of them, and judged on that one; what does not
help there is not used. One pass over all pixels (of large images over some, but of every image) tells the score under
every value of one decision of a class, since along its values a pixel leaves the class, or joins it, only once."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from comp import files
from comp.config import Competition
from comp.data import folds
from comp.data.arrays import Index, TrainSplit, pick_class, release_pages
from comp.ensemble import decisions as deciding
from comp.ensemble.decisions import AREA, FACTOR, GATE, HOLE, KINDS, RUN, TOTAL, Decisions
from comp.errors import Refused
from comp.model import metrics, predict
from comp.report import figures
from comp.train.runs import Runs

PARTS = 5  # into which the images of a single fold are dealt
GAIN = 1e-4  # a judged score that rises by less has not risen
WORK = 1 << 31  # pixels times classes squared, from which on pixels are thinned, but never images
BLOCK = 1 << 21  # probabilities that are looked at at a time

# The values that are tried, in groups along which a class shrinks.
_AREAS = [0.0, *(2.0 ** np.arange(-16, -1.5, 0.5)).tolist()]
CANDIDATES: dict[str, list[list[Any]]] = {
    RUN: [(2.0 ** np.arange(2, -2.5, -0.5)).tolist()],
    FACTOR: [(2.0 ** np.arange(3, -3.1, -0.125)).tolist()],
    GATE: [[(share, k / 40) for k in range(share > 0, 40)] for share in (0.0, 0.01, 0.1)],
    HOLE: [_AREAS[::-1]],
    AREA: [_AREAS],
    TOTAL: [_AREAS],
}


Curve = tuple[list[Any], list[float], int]  # values, the smoothed score of each on all images, the chosen one's place


@dataclass(frozen=True)
class Rung:
    """One kind of decision: what the score is with it and those before, and whether it is used."""

    kind: str
    score: float  # found without the images that it is judged on
    used: bool
    words: str
    curves: dict[str, Curve]  # by class, or run


@dataclass(frozen=True)
class _Part:
    """Images whose out-of-fold predictions are looked at together."""

    stored: Sequence[np.ndarray]  # of each run: uint8 (m, C - 1, H, W)
    places: np.ndarray  # in them
    rows: np.ndarray  # of the split
    masks: np.ndarray
    device: torch.device
    overlap: bool

    def blocks(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The probabilities (n, C, H, W) of each run, and the truth uint8 (n, H, W), with flat memory."""
        step = max(1, BLOCK // self.stored[0][:1].size)
        for start in range(0, len(self.rows), step):
            some = slice(start, start + step)
            planes = [torch.from_numpy(one[self.places[some]]).to(self.device) for one in self.stored]
            truth = torch.from_numpy(self.masks[self.rows[some]]).to(self.device)
            yield [predict.from_planes(one, self.overlap) for one in planes], truth
        for array in (*self.stored, self.masks):
            release_pages(array)


def search_decisions(
    runs: Runs, split: TrainSplit, index: Index, competition: Competition, device: torch.device, search: bool = True
) -> tuple[Decisions, list[Rung]]:
    """Find what helps; return it, and the ladder of all that was tried, which begins with nothing decided.

    `runs` holds the same folds of every run, `split` the training images with the truth. Raises Refused where runs were
    not validated on the same images, or on other masks than the split's."""
    parts, classes, metric = _parts(runs, split, index, competition, device), competition.classes, competition.metric
    neutral = Decisions.neutral(len(runs), len(classes))
    # chains[k] is found without part k, the last one on all.
    chains = [neutral] * (len(parts) + 1)
    plain = np.concatenate([_count(part, neutral, "", 0, competition)[0] for part in parts])
    reached = float(metrics.combine(plain, metric))
    ladder = [Rung("largest", reached, True, "the largest probability", {})]
    kinds = KINDS if parts[0].masks.shape[1:] == split.masks.shape[1:] else (RUN, FACTOR, GATE, TOTAL)  # thinned pixels
    for kind in tqdm(kinds if search and len(parts) > 1 else (), desc="decide", disable=None, leave=False):
        before, tried, curves = reached, 0.0, {}
        for target in range(1, len(runs if kind == RUN else classes)):
            found, judged, curve = _find(kind, target, chains, parts, competition)
            curves[f"run {target + 1}" if kind == RUN else classes[target]] = curve
            tried = max(tried, judged)
            if judged > reached + GAIN and found[-1] != chains[-1]:
                chains, reached = found, judged
        if curves:
            words = "; ".join(text for one, text in deciding.describe(chains[-1], competition) if one == kind)
            used = reached > before
            ladder.append(Rung(kind, reached if used else tried, used, words if used else "does not help", curves))
    return chains[-1], ladder


def write_ladder(ladder: Sequence[Rung], folder: Path | None = None) -> str:
    """The ladder as text; where a folder is given, it is left there as decisions.txt, with decisions.png."""
    lines = [f"  {rung.score:.4f}  {rung.kind:<8}{rung.words}" for rung in ladder]
    text = "\n".join(["out of fold; what is decided is scored on images that it was not found on:", *lines])
    curves = {
        f"{rung.kind}: {name}": ([deciding.show(rung.kind, value) for value in values], scores, place)
        for rung in ladder
        for name, (values, scores, place) in rung.curves.items()
        if rung.used and values[place] != getattr(Decisions.neutral(1, 2), rung.kind)[-1]
    }
    if folder:
        files.write_text(folder / "decisions.txt", text + "\n")
        (folder / "decisions.png").unlink(missing_ok=True)
        if curves:
            figures.draw_searches(curves, folder / "decisions.png")
    return text


def _find(
    kind: str, target: int, chains: list[Decisions], parts: list[_Part], competition: Competition
) -> tuple[list[Decisions], float, Curve]:
    """One decision more for every chain; the score of all parts, each under the chain found without it; the curve."""
    counted = {chain: [_count(part, chain, kind, target, competition) for part in parts] for chain in {*chains}}
    values, found, judged = [value for group in CANDIDATES[kind] for value in group], [], []
    neutral = values.index(getattr(Decisions.neutral(1, 2), kind)[-1])
    for k, chain in enumerate(chains):
        others = [one for number, one in enumerate(counted[chain]) if number != k]
        scores = _smooth(metrics.combine(np.concatenate(others, 1), competition.metric), kind)
        best = np.flatnonzero(scores > scores.max() - 1e-9)
        place = int(best[np.abs(best - neutral).argmin()])  # of equals the one that changes least
        found.append(_decide(chain, kind, target, values[place]))
        if k < len(parts):
            judged.append(counted[chain][k][place])
    reached = float(metrics.combine(np.concatenate(judged), competition.metric))
    return found, reached, (values, scores.tolist(), place)


def _smooth(scores: np.ndarray, kind: str) -> np.ndarray:
    """Means of three neighbours within each group: the middle of a plateau is better than a lucky peak."""
    groups = np.split(scores, np.cumsum([len(group) for group in CANDIDATES[kind]])[:-1])
    return np.concatenate([np.convolve(np.pad(group, 1, "edge"), np.ones(3) / 3, "valid") for group in groups])


def _decide(chain: Decisions, kind: str, target: int, value: Any) -> Decisions:
    values = [*getattr(chain, kind)]
    values[target] = value * values[target] if kind == RUN else value
    if kind == RUN:
        values = [weight / sum(values) for weight in values]
    return replace(chain, **{kind: tuple(values)})


def _count(part: _Part, chain: Decisions, kind: str, target: int, competition: Competition) -> np.ndarray:
    """What `metrics.combine` takes of a part's images, under each value of one decision; without a kind, of none."""
    counted, groups = [], CANDIDATES.get(kind, [[None]])
    n, ignored, overlap = len(competition.classes), competition.arrays.ignored, competition.overlap
    for runs, truth in part.blocks():
        if kind in ("", RUN):
            tried = [_decide(chain, kind, target, value) if kind else chain for value in groups[0]]
            labels = (deciding.label_images(_blend(runs, one), one, overlap) for one in tried)
            block = torch.stack([metrics.count_margins(truth, one, competition) for one in labels])
        elif overlap:
            block = _tally_alone(truth, _blend(runs, chain), chain, kind, target, groups, competition)
        else:
            blended = _blend(runs, chain)
            levels = [(*_levels(blended, chain, kind, target, group), len(group)) for group in groups]
            block = torch.cat([_tally(truth, *one, target, n, ignored) for one in levels])
        counted.append(metrics.contribute(block.cpu().numpy(), competition.metric))
    return np.concatenate(counted, 1)


def _blend(runs: list[Tensor], chain: Decisions) -> Tensor:
    return torch.stack([weight * one for weight, one in zip(chain.run, runs, strict=True)]).sum(0)


def _levels(probabilities: Tensor, chain: Decisions, kind: str, c: int, values: list) -> tuple[Tensor, Tensor]:
    """Under how many of the values, the first ones, a pixel is of class `c`; what it is otherwise: both (n, H, W)."""
    weighted = deciding.weigh(probabilities, chain)
    other = deciding.next_likely(weighted, c)
    if kind == FACTOR:  # it is while p · factor exceeds all others
        rest = weighted.index_fill(1, torch.tensor([c], device=weighted.device), 0.0).amax(1)
        ratio = rest / weighted[:, c].clamp_min(1e-9) * torch.where(other > c, 1 - 1e-6, 1 + 1e-6)  # of two, the first
        limits = torch.tensor(values[::-1], device=ratio.device)
        return len(values) - torch.bucketize(ratio, limits, right=True), other
    labels = deciding.label_images(probabilities, chain)
    here = labels == c
    if kind == GATE:
        largest = deciding.measure_gate(probabilities, c, values[0][0]).view(-1, 1, 1)
        limits = torch.tensor([least for _, least in values], device=largest.device)
        stays = torch.bucketize(largest, limits, right=True)
        return stays * here, torch.where(here, other, labels)
    sizes = deciding.measure_sizes(here, kind)
    limits = torch.tensor(values, dtype=sizes.dtype, device=sizes.device)
    if kind == HOLE:
        return torch.where(here, len(values), len(values) - torch.bucketize(sizes, limits.flip(0))), labels
    return torch.bucketize(sizes.contiguous(), limits, right=True) * here, torch.where(here, other, labels)


def _tally(
    truth: Tensor, level: Tensor, other: Tensor, count: int, c: int, classes: int, ignored: int | None
) -> Tensor:
    """Margins int64 (count, n, 4, classes), where a pixel is of class `c` under the first `level` values."""
    n, rows = len(truth), classes + 1
    true = truth.long() if ignored is None else truth.long().masked_fill(truth == ignored, classes)
    samples = torch.arange(n, device=truth.device).view(-1, 1, 1)
    codes = ((samples * (count + 1) + level) * rows + true) * classes + other
    counts = torch.bincount(codes.flatten(), minlength=n * (count + 1) * rows * classes)
    counts = counts.view(n, count + 1, rows, classes)[:, :, :classes]
    confusions = counts.cumsum(1)[:, :-1]  # of the pixels that are not of the class
    confusions[..., c] += counts.flip(1).cumsum(1).flip(1)[:, 1:].sum(-1)
    return metrics.to_margins(confusions.flatten(0, 1)).view(n, count, 4, classes).transpose(0, 1)


def _tally_alone(
    truth: Tensor, blended: Tensor, chain: Decisions, kind: str, c: int, groups: list[list], competition: Competition
) -> Tensor:
    """The same of overlapping classes: class `c` against the rest, while the other classes stay as they are."""

    def mark(there: Tensor) -> Tensor:
        ignored = competition.arrays.ignored
        return there.byte() if ignored is None else there.byte().masked_fill(truth == ignored, 2)

    labels, own, none = deciding.label_images(blended, chain, True), [], []
    others = (labels & ~(1 << c - 1)) > 0  # where a pixel is of another class, so never of none
    for group in groups:
        level, other = _levels(blended[:, [0, c]], chain.of_class(c), kind, 1, group)
        own.append(_tally(mark(pick_class(truth, c, True)), level, other, len(group), 1, 2, 2))
        level = level.masked_fill(others, len(group))
        none.append(_tally(mark(truth > 0), level, other, len(group), 1, 2, 2))
    counted = metrics.count_margins(truth, labels, competition).repeat(sum(len(group) for group in groups), 1, 1, 1)
    counted[..., c], counted[..., 0] = torch.cat(own)[..., 1], torch.cat(none)[..., 0]
    return counted


def _parts(runs: Runs, split: TrainSplit, index: Index, competition: Competition, device: torch.device) -> list[_Part]:
    pixels = split.masks[0].size * sum(fold.metrics["valid_images"] for fold in runs[0])
    step = math.ceil((pixels * len(competition.classes) ** 2 / WORK) ** 0.5)
    if step > 1:
        print(f"decides by one of {step}×{step} pixels of every image, and of no holes or parts, since that is much")
    row_of = {name: row for row, name in enumerate(split.ids.tolist())}
    parts = []
    for same in zip(*runs, strict=True):
        ids, planes, margins = zip(*(fold.oof() for fold in same), strict=True)
        for fold, others, stored, counted in zip(same, ids, planes, margins, strict=True):
            shape = (len(ids[0]), len(competition.classes) - 1, *split.images.shape[1:3])
            if not np.array_equal(others, ids[0]) or not row_of.keys() >= {*others.tolist()} or stored.shape != shape:
                raise Refused(f"{fold.folder}: validated on other images; blend runs over the same folds and arrays")
            rows = np.array([row_of[name] for name in others.tolist()])
            if not np.array_equal(counted[:, 1], index.counts[rows]):
                raise Refused(f"{fold.folder}: the training masks have changed since; train it again")
        dealt = np.zeros(len(rows), int)
        if len(runs[0]) == 1:  # groups and duplicates together
            groups = folds.find_groups(index, split.groups, rows)
            dealt = np.random.default_rng(0).permutation(len(rows))[groups] % PARTS
        for part in np.unique(dealt):
            at = np.flatnonzero(dealt == part)
            stored, places, masks, own = planes, at, split.masks, rows[at]
            if step > 1:  # few enough to stay in memory, so that no pass reads the files again
                stored, masks = [one[at, :, ::step, ::step] for one in planes], split.masks[own, ::step, ::step]
                places = own = np.arange(len(at))
            parts.append(_Part(stored, places, own, masks, device, competition.overlap))
    return parts
