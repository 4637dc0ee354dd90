"""What is decided after the blend: how probabilities become labels, class by class.

In this order: a factor on the class's probability, which for two classes is a threshold; a gate, below which an image
has none of the class; holes in it filled; small components of it, and images with little of it, emptied. Pixels that a
class loses go to the next likely one. Areas are shares of an image's pixels, so that they hold at any size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from comp.config import Competition
from comp.model import predict

RUN, FACTOR, GATE, HOLE, AREA, TOTAL, NECK = KINDS = ("run", "factor", "gate", "hole", "area", "total", "neck")

NEUTRAL: dict[str, Any] = dict.fromkeys(KINDS, 0.0) | {RUN: 1.0, FACTOR: 1.0, GATE: (0.0, 0.0)}
SHARES = (0.0, 0.01, 0.1)  # of an image's pixels, those with the largest probabilities, that a gate looks at
SAID = {
    GATE: "no {0} where the mean of its largest probabilities ({1[0]:.0%} of the pixels, or one) is below {1[1]:.2f}",
    HOLE: "holes in {} up to {:.2%} of the image are filled",
    AREA: "parts of {} below {:.2%} of the image are removed",
    TOTAL: "no {} where it is below {:.2%} of the image",
    NECK: "objects of {} that touch are parted at necks, smoothed over {:.2%} of the image's side",
}


@dataclass(frozen=True)
class Decisions:
    """What is decided: of each run its weight, and of each class the rest. The first class is what the others leave."""

    run: tuple[float, ...]  # they sum to 1
    factor: tuple[float, ...]  # on the class's probability, before the largest is taken
    gate: tuple[tuple[float, float], ...]  # a share of the pixels, and the least mean of so many largest probabilities
    hole: tuple[float, ...]  # the largest hole that is filled
    area: tuple[float, ...]  # the least component that stays
    total: tuple[float, ...]  # the least that an image has of the class, or it has none
    neck: tuple[float, ...]  # the share of the image's side that is smoothed over where objects that touch are parted

    @staticmethod
    def neutral(runs: int, classes: int) -> "Decisions":
        """Runs of equal weight, and nothing decided but the largest probability."""
        return Decisions((1 / runs,) * runs, **{kind: (NEUTRAL[kind],) * classes for kind in KINDS[1:]})

    def of_class(self, c: int) -> "Decisions":
        """What is decided of one class against the first."""
        return Decisions(self.run, **{kind: (getattr(self, kind)[0], getattr(self, kind)[c]) for kind in KINDS[1:]})


def label_images(probabilities: Tensor, decisions: Decisions, overlap: bool = False) -> Tensor:
    """uint8 labels (n, H, W) of blended probabilities (n, C, H, W), on their device; overlapping classes as bits."""
    if overlap:
        classes = range(1, probabilities.shape[1])
        alone = [label_images(probabilities[:, [0, c]], decisions.of_class(c)) << (c - 1) for c in classes]
        return torch.stack(alone).sum(0).to(torch.uint8)
    weighted = weigh(probabilities, decisions)
    labels = predict.to_labels(weighted)
    # Holes are filled, and small parts and amounts of a class given to the next likely one.
    for kind, c in product((HOLE, AREA, TOTAL), range(1, weighted.shape[1])):
        if limit := getattr(decisions, kind)[c]:
            here = labels == c
            sizes = measure_sizes(here, kind)
            if kind == HOLE:
                labels = labels.masked_fill(sizes <= limit, c)
            else:
                others = weighted.index_fill(1, torch.tensor([c], device=weighted.device), -1.0)
                labels = torch.where(here & (sizes < limit), predict.to_labels(others), labels)
    return labels


def weigh(probabilities: Tensor, decisions: Decisions) -> Tensor:
    """Probabilities (n, C, H, W) times the classes' factors, and 0 in images that a gate keeps out."""
    weighted = probabilities * torch.tensor(decisions.factor, device=probabilities.device).view(-1, 1, 1)
    for c, (share, least) in enumerate(decisions.gate):
        if least and (weighted[:, c] >= weighted[:, 0]).any():  # else there is nothing to keep out
            weighted[measure_gate(probabilities, c, share) < least, c] = 0
    return weighted


def measure_gate(probabilities: Tensor, c: int, share: float) -> Tensor:
    """The mean of each image's largest probabilities of a class, this share of all, one at least: float32 (n,)."""
    flat = probabilities[:, c].flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1]))).values.mean(1)


def measure_sizes(here: Tensor, kind: str) -> Tensor:
    """Of pixels of a class, bool (n, H, W), the share of the image that their component, or the class, takes.

    Of the kind "hole" it is the share that a hole takes, and infinity outside of holes: float32 (n, H, W)."""
    if kind == TOTAL:
        return here.float().mean((1, 2), keepdim=True).expand(here.shape)
    holes, measured = kind == HOLE, []
    for image in here.cpu().numpy():
        # What touches at a corner is one component; then what does not is a hole's rim.
        parts = cv2.connectedComponents((image != holes).astype(np.uint8), connectivity=4 if holes else 8)[1]
        sizes = np.bincount(parts.ravel()).astype(np.float32) / image.size
        if holes:
            sizes[np.concatenate([[0], parts[0], parts[-1], parts[:, 0], parts[:, -1]])] = np.inf
        measured.append(sizes[parts])
    return torch.from_numpy(np.stack(measured)).to(here.device)


def describe(decisions: Decisions, competition: Competition) -> Iterator[tuple[str, str]]:
    """The kind and the words of everything that was decided otherwise than by the largest probability."""
    classes, overlap = competition.classes, competition.overlap
    if len({*decisions.run}) > 1:
        yield RUN, "runs weigh " + ", ".join(f"{weight:.2f}" for weight in decisions.run)
    for c, name in enumerate(classes):
        if (factor := decisions.factor[c]) != 1:
            threshold = f"above {0.5 / factor if overlap else 1 / (1 + factor):.2f}"
            yield FACTOR, f"{name} {threshold if overlap or len(classes) == 2 else f'times {factor:.2f}'}"
        for kind, text in SAID.items():
            if (value := getattr(decisions, kind)[c]) != NEUTRAL[kind]:
                yield kind, text.format(name, value)
