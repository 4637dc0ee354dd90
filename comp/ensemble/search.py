"""Decisions found on out-of-fold predictions, for the competition's own metric, and judged on images not used for it.

Each is found as often as there are parts of the images, without one of them, and judged on that one; what does not
help there is not used. One pass over all pixels tells the score under every value of one decision of a class, since
along its values a pixel leaves the class, or joins it, only once; those that it cannot change are counted once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.ndimage import uniform_filter1d
from torch import Tensor
from tqdm import tqdm

from comp.config import Competition
from comp.data import folds
from comp.data.arrays import Index, TrainSplit, release_pages
from comp.ensemble import decisions as deciding
from comp.ensemble.decisions import AREA, FACTOR, GATE, HOLE, KINDS, NECK, NEUTRAL, RUN, SHARES, TOTAL, Decisions
from comp.errors import Refused
from comp.model import metrics, predict
from comp.report.tables import shorten
from comp.train.runs import Runs

PARTS = 5  # into which the images of a single fold are dealt
GAIN = 1e-4  # a judged score that rises by less has not risen
BLOCK = 1 << 21  # probabilities that are looked at at a time
MOST = 8.0  # the largest factor

# The values that are tried, in the order in which a class shrinks.
_AREAS = [0.0, *(2.0 ** np.arange(-16, -2, 0.5)).tolist()]
CANDIDATES: dict[str, list[Any]] = {
    RUN: (2.0 ** np.arange(2, -2.5, -0.5)).tolist(),
    FACTOR: (MOST * 2.0 ** np.arange(0, -6.1, -0.125)).tolist(),
    GATE: [(share, k / 40) for share in SHARES for k in range(40)],
    HOLE: _AREAS[::-1],
    AREA: _AREAS,
    TOTAL: _AREAS,
    NECK: [0.0, *(2.0 ** np.arange(-8, -5, 0.5)).tolist()],
}
SPARSE = 4  # of so many values one is tried where each means a look at every image


class Rung(NamedTuple):
    """One kind of decision: what the score is with it and those before, and whether it is used."""

    kind: str
    score: float  # found without the images that it is judged on
    used: bool
    words: str


class _Found(NamedTuple):
    """The best value of a kind of decision for one target: a class, or a run."""

    target: int
    score: float  # of all parts, each under the value that was found without it
    values: list[Any]  # of each chain
    curve: str  # the scores around the last one


class _Part(NamedTuple):
    """Images whose out-of-fold predictions are looked at together."""

    stored: Sequence[np.ndarray]  # of each run: uint8 (m, C - 1, H, W)
    places: np.ndarray  # in them
    split: TrainSplit
    rows: np.ndarray  # of it
    device: torch.device
    competition: Competition

    def blocks(self, weights: Sequence[float]) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
        """Rows, probabilities (n, C, H, W) blended of all runs, and the truth uint8 (n, H, W); with flat memory."""
        step, masks = max(1, BLOCK // self.stored[0][:1].size), self.split.masks
        for start in range(0, len(self.rows), step):
            some = slice(start, start + step)
            planes = [torch.from_numpy(one[self.places[some]]).to(self.device) for one in self.stored]
            truth = torch.from_numpy(masks[rows := self.rows[some]]).to(self.device)
            seen = [predict.from_planes(one, self.competition.overlap) for one in planes]
            yield rows, torch.stack([weight * one for weight, one in zip(weights, seen, strict=True)]).sum(0), truth
        for array in (*self.stored, masks):
            release_pages(array)


def search_decisions(
    runs: Runs, split: TrainSplit, index: Index, competition: Competition, device: torch.device, search: bool = True
) -> tuple[Decisions, list[Rung]]:
    """Find what helps; return it, and the ladder of all that was tried, which begins with nothing decided.

    `runs` holds the same folds of every run, `split` the training images with the truth. Raises Refused where runs were
    not validated on the same images, or on other masks than the split's."""
    parts = _parts(runs, split, index, competition, device)
    # chains[k] is found without part k, the last one on all.
    chains = [Decisions.neutral(len(runs), len(competition.classes))] * (len(parts) + 1)
    reached = _judge(parts, chains)
    ladder = [Rung("largest", reached, True, "the largest probability")]
    applies = {RUN: len(runs) > 1, NECK: competition.metric.name.startswith("object_")}
    kinds = [kind for kind in KINDS if applies.get(kind, True)]
    for kind in tqdm(kinds if search and len(parts) > 1 else (), desc="decide", disable=None, leave=False):
        targets = range(1, len(runs if kind == RUN else competition.classes))
        found = sorted(_find(kind, targets, parts, chains), key=lambda one: -one.score)
        helpful = [one for one in found if one.score > reached + GAIN and one.values[-1] != NEUTRAL[kind]]
        score, used = found[0].score, False
        words = "tried, and does not help" if score <= reached + GAIN else "tried; on all images it is of no use"
        for some in (helpful, helpful[:1])[: len(helpful)]:  # all together, or else the best alone
            trial = chains
            for one in some:
                trial = [_decide(c, kind, one.target, value) for c, value in zip(trial, one.values, strict=True)]
            if (now := _judge(parts, trial)) > reached + GAIN:
                chains, score, reached, used = trial, now, now, True
                words = "; ".join(text for of, text in deciding.describe(chains[-1], competition) if of == kind)
                words += f" (on all images, around it {'; '.join(one.curve for one in sorted(some))})"
                break
        ladder.append(Rung(kind, score, used, words))
    return chains[-1], ladder


def show_ladder(ladder: Sequence[Rung]) -> str:
    """The ladder as text, a rung a line."""
    lines = [f"  {rung.score:.4f}  {rung.kind:<8}{shorten(rung.words, 300)}" for rung in ladder]
    return "\n".join(["out of fold; what is decided is scored on images that it was not found on:", *lines])


def _find(kind: str, targets: Sequence[int], parts: list[_Part], chains: list[Decisions]) -> Iterator[_Found]:
    """The best value of one kind of decision for every target."""
    metric = parts[0].competition.metric
    values = CANDIDATES[kind][:: SPARSE if metrics.needs_images(metric) and kind not in (RUN, NECK) else 1]
    counted = {one: [_count(part, one, kind, targets, values) for part in parts] for one in {*chains}}
    for number, target in enumerate(targets):
        chosen, judged = list[Any](), []
        for k, chain in enumerate(chains):
            own = [one[number] for one in counted[chain]]
            scores = metrics.combine(np.concatenate(own[:k] + own[k + 1 :], 1), metric)
            # Means of three neighbours: the middle of a plateau is better than a lucky peak.
            means = uniform_filter1d(scores, 3, mode="nearest")
            best = np.flatnonzero(means > means.max() - 1e-9)
            place = int(best[np.abs(best - values.index(NEUTRAL[kind])).argmin()])  # of equals what changes least
            chosen.append(values[place])
            judged += [one[place] for one in own[k : k + 1]]
        curve = [f"{scores[k]:.4f}" for k in range(max(0, place - 2), min(place + 3, len(scores)))]
        curve[min(place, 2)] = f"[{curve[min(place, 2)]}]"
        yield _Found(target, float(metrics.combine(np.concatenate(judged), metric)), chosen, " ".join(curve))


def _judge(parts: list[_Part], chains: list[Decisions]) -> float:
    """The score of all parts, each under the chain that was found without it."""
    pairs = zip(parts, chains[:-1], strict=True)
    counted = [_count(part, chain, RUN, [0], [NEUTRAL[RUN]])[0][0] for part, chain in pairs]
    return float(metrics.combine(np.concatenate(counted), parts[0].competition.metric))


def _decide(chain: Decisions, kind: str, target: int, value: Any) -> Decisions:
    values = [*getattr(chain, kind)]
    values[target] = value * values[target] if kind == RUN else value
    if kind == RUN:
        values = [weight / sum(values) for weight in values]
    return replace(chain, **{kind: tuple(values)})


def _count(part: _Part, chain: Decisions, kind: str, targets: Sequence[int], values: list[Any]) -> list[np.ndarray]:
    """Of each target, what `metrics.combine` takes of a part's images under each value: (values, …)."""
    competition, metric, overlap = part.competition, part.competition.metric, part.competition.overlap
    if kind == RUN or metrics.needs_images(metric):  # value by value, which is slow
        tried = [_decide(chain, kind, target, value) for target in targets for value in values]
        contributed = []
        for one in tried:  # each alone, since a tally may hold the labels of a group
            tally = metrics.Tally(part.split, part.rows, competition, one.neck)
            for rows, blended, truth in part.blocks(one.run):
                tally.add(rows, truth, deciding.label_images(blended, one, overlap))
            contributed.append(metrics.contribute(tally.margins, metric, tally.counts))
        return np.split(np.stack(contributed), len(targets))
    counted: list[list[np.ndarray]] = [[] for _ in targets]
    for _, blended, truth in part.blocks(chain.run):
        weighted = blended if overlap else deciding.weigh(blended, chain)
        labels = deciding.label_images(blended, chain, overlap)
        as_is = metrics.count_margins(truth, labels, competition).cpu().numpy()
        for some, c in zip(counted, targets, strict=True):
            levels = _levels(blended, weighted, labels, chain, kind, c, values, overlap)
            gained = [_tally(truth, labels, *one, c, competition) for one in levels]
            gained = gained or [np.zeros((len(values), 1, 1, 1), np.int64)]  # no pixel changes
            some.append(metrics.contribute(as_is + np.concatenate(gained), metric))
    return [np.concatenate(some, 1) for some in counted]


def _levels(
    blended: Tensor, weighted: Tensor, labels: Tensor, chain: Decisions, kind: str, c: int, values: list, overlap: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """Which pixels a decision of class `c` may change, (P,); under how many of the values, the first ones, each is of
    the class; its label otherwise; how many values there are: all, but of a gate those of each share, one by one."""
    if overlap:  # class c against the rest, while the other classes stay as they are
        two, own = blended[:, [0, c]], chain.of_class(c)
        alone = _levels(two, deciding.weigh(two, own), labels >> c - 1 & 1, own, kind, 1, values, False)
        yield from ((at, level, labels.flatten()[at] & ~(1 << c - 1), count) for at, level, _, count in alone)
        return
    here = MOST * blended[:, c] >= blended[:, 0] if kind == FACTOR else labels == c
    if not here.any():
        return
    sizes = here if kind in (FACTOR, GATE) else deciding.measure_sizes(here, kind)
    pixels = (sizes.isfinite() if kind == HOLE else here).flatten().nonzero()[:, 0]
    seen, limits = weighted.movedim(1, -1).flatten(0, -2)[pixels], torch.tensor(values, device=labels.device)
    rest, other = seen.index_fill(1, torch.tensor([c], device=labels.device), -1.0).max(1)
    if kind == FACTOR:  # it is while p · factor exceeds all others
        first = torch.where(other > c, 1 + 1e-6, 1 - 1e-6)  # of two that are equal
        found = [(seen[:, c] / rest.clamp_min(1e-9) * first, 1 / limits)]
    elif kind == GATE:
        image = pixels // labels[0].numel()
        found = [(deciding.measure_gate(blended, c, s)[image], limits[limits[:, 0] == s, 1]) for s in SHARES]
    else:
        sign, other = (-1, labels.flatten()[pixels]) if kind == HOLE else (1, other)
        found = [(sign * sizes.flatten()[pixels], sign * limits)]
    yield from ((pixels, torch.bucketize(one, least, right=True), other, len(least)) for one, least in found)


def _tally(
    truth: Tensor, labels: Tensor, pixels: Tensor, level: Tensor, other: Tensor, count: int, c: int, own: Competition
) -> np.ndarray:
    """What margins gain, int64 (count, n, 4, C), where pixels are of class `c` under the first `level` values, else
    `other`, and not as `labels` (n, H, W) have them."""
    known, ignored, image = own.labels, own.arrays.ignored, pixels // truth[0].numel()
    true = truth.flatten()[pixels].long()
    true = true if ignored is None else true.masked_fill(true == ignored, known)

    def confuse(level: Tensor, levels: int, label: Tensor) -> Tensor:
        codes = ((image * levels + level) * (known + 1) + true) * known + label
        counts = torch.bincount(codes, minlength=len(truth) * levels * (known + 1) * known)
        return counts.view(len(truth), levels, known + 1, known)[:, :, :known]

    counts = confuse(level, count + 1, other)
    outside = counts.cumsum(1)[:, :-1]
    every = torch.arange(known, device=truth.device)
    joined = every | 1 << c - 1 if own.overlap else torch.full_like(every, c)
    now = outside.index_add(-1, joined, counts.sum(1, keepdim=True) - outside)
    gained = metrics.to_margins(now - confuse(level * 0, 1, labels.flatten()[pixels]), own.overlap)
    return gained.transpose(0, 1).cpu().numpy()


def _parts(runs: Runs, split: TrainSplit, index: Index, competition: Competition, device: torch.device) -> list[_Part]:
    row_of = {name: row for row, name in enumerate(split.ids.tolist())}
    parts = []
    for same in zip(*runs, strict=True):
        ids, planes, margins, _ = zip(*(fold.oof() for fold in same), strict=True)
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
            parts.append(_Part(planes, at, split, rows[at], device, competition))
    return parts
