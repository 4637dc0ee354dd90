"""What is decided after the blend: how probabilities become labels, class by class.

In this order: a factor on the class's probability, which for two classes is a threshold; a gate, below which an image
has none of the class; holes in it filled; small components of it, and images with little of it, emptied. Pixels that a
class loses go to the next likely one. Areas are shares of an image's pixels, so that they hold at any size."""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from comp.config import Competition
from comp.model import predict

RUN, FACTOR, GATE, HOLE, AREA, TOTAL = KINDS = ("run", "factor", "gate", "hole", "area", "total")

SAID = {
    HOLE: "holes in {} up to {:.2%} of the image are filled",
    AREA: "parts of {} below {:.2%} of the image are removed",
    TOTAL: "no {} where it is below {:.2%} of the image",
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

    @staticmethod
    def neutral(runs: int, classes: int) -> "Decisions":
        """Runs of equal weight, and nothing decided but the largest probability."""
        none = (0.0,) * classes
        return Decisions((1 / runs,) * runs, (1.0,) * classes, ((0.0, 0.0),) * classes, none, none, none)

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
    return settle_all(predict.to_labels(weighted), weighted, decisions)


def settle_all(labels: Tensor, weighted: Tensor, decisions: Decisions) -> Tensor:
    """Labels (n, H, W) of weighted probabilities with holes filled, and small parts and amounts of a class removed."""
    for kind in (HOLE, AREA, TOTAL):
        for c in range(1, weighted.shape[1]):
            labels = settle(labels, weighted, c, kind, getattr(decisions, kind)[c])
    return labels


def weigh(probabilities: Tensor, decisions: Decisions) -> Tensor:
    """Probabilities (n, C, H, W) times the classes' factors, and 0 in images that a gate keeps out."""
    weighted = probabilities * torch.tensor(decisions.factor, device=probabilities.device).view(-1, 1, 1)
    for c, (share, least) in enumerate(decisions.gate):
        if least:
            weighted[measure_gate(probabilities, c, share) < least, c] = 0
    return weighted


def measure_gate(probabilities: Tensor, c: int, share: float) -> Tensor:
    """The mean of each image's largest probabilities of a class, this share of all, one at least: float32 (n,)."""
    flat = probabilities[:, c].flatten(1)
    return flat.topk(max(1, round(share * flat.shape[1]))).values.mean(1)


def settle(labels: Tensor, weighted: Tensor, c: int, kind: str, limit: float) -> Tensor:
    """Labels (n, H, W) with holes of class `c` filled, or with too small parts of it given to the next likely class."""
    if not limit:
        return labels
    sizes = measure_sizes(labels == c, kind)
    if kind == HOLE:
        return labels.masked_fill(sizes <= limit, c)
    return torch.where((labels == c) & (sizes < limit), next_likely(weighted, c), labels)


def next_likely(weighted: Tensor, c: int) -> Tensor:
    """The labels (n, H, W) of weighted probabilities if class `c` were nowhere."""
    return predict.to_labels(weighted.index_fill(1, torch.tensor([c], device=weighted.device), -1.0))


def measure_sizes(here: Tensor, kind: str) -> Tensor:
    """Of pixels of a class, bool (n, H, W), the share of the image that their component, or the class, takes.

    Of the kind "hole" it is the share that a hole takes, and infinity outside of holes: float32 (n, H, W)."""
    if kind == TOTAL:
        return here.float().mean((1, 2), keepdim=True).expand(here.shape)
    sizes = [_component_sizes(image, kind == HOLE) for image in here.cpu().numpy()]
    return torch.from_numpy(np.stack(sizes)).to(here.device)


def _component_sizes(here: np.ndarray, holes: bool) -> np.ndarray:
    # What touches at a corner is one component; then what does not is a hole's rim.
    count, parts = cv2.connectedComponents((here != holes).astype(np.uint8), connectivity=4 if holes else 8)
    sizes = np.bincount(parts.ravel(), minlength=count).astype(np.float32) / here.size
    if holes:
        outside = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        sizes[[0, *np.unique(outside)]] = np.inf
    return sizes[parts]


def describe(decisions: Decisions, competition: Competition) -> Iterator[tuple[str, str]]:
    """The kind and the words of everything that was decided otherwise than by the largest probability."""
    classes, overlap = competition.classes, competition.overlap
    if len({*decisions.run}) > 1:
        yield RUN, "runs weigh " + ", ".join(f"{weight:.2f}" for weight in decisions.run)
    for c, name in enumerate(classes):
        factor, (share, least) = decisions.factor[c], decisions.gate[c]
        if factor != 1:
            threshold = f"above {0.5 / factor if overlap else 1 / (1 + factor):.2f}"
            yield FACTOR, f"{name} {threshold if overlap or len(classes) == 2 else f'times {factor:.2f}'}"
        if least:
            what = f"mean of the largest {share:.0%}" if share else "largest probability"
            yield GATE, f"no {name} where its {what} is below {least:.2f}"
        for kind, text in SAID.items():
            if share := getattr(decisions, kind)[c]:
                yield kind, text.format(name, share)
