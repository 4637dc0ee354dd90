"""A sample's mask from its layers: files and run-lengths, one over the other, as labels and as numbered objects."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from comp.config import Competition
from comp.data.arrays import Size
from comp.errors import Refused
from comp.prepare import decode, mask_coding
from comp.prepare.mask_coding import Coding
from comp.prepare.samples import Layer, Sample
from comp.prepare.table import decode_layer
from comp.submission.runlength import Order

BORDER = "border"  # the class that `source.border` makes
MOST_OBJECTS = 65_534  # one less than uint16 holds, so that numbers can be turned round
BITS = np.concatenate([[0], 1 << np.arange(8), np.zeros(247)]).astype(np.uint8)  # of a label, where classes overlap


@dataclass(frozen=True)
class MaskReader:
    """What the layers of a competition's masks mean, and how they become arrays."""

    competition: Competition
    size: Size
    coding: Coding | None  # of files without a class; None: their values number the objects
    binary: Coding | None  # of files of one class
    order: Order
    text: str  # in words, for the log

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray, str]:
        """Labels, uint8, and objects numbered from 1, uint16, both of `size`; and what was lost, in words.

        Where classes overlap, bit k - 1 of a label is class k. Raises Refused for a layer that cannot be read, does
        not fit the coding or lies over another class.
        """
        competition, arrays = self.competition, self.competition.arrays
        labels = np.zeros(sample.size, np.uint8)
        objects = np.zeros(sample.size, np.uint16)
        shared, number, n = 0, 0, len(competition.classes)
        for layer in sample.mask or ():
            own, parts = self._decode(layer, sample)
            there = own > 0
            if competition.overlap:
                labels |= BITS[own]
                if arrays.ignored is not None:
                    labels[own == arrays.ignored] = arrays.ignored
            elif (clash := there & (labels > 0) & (labels != own)).any():
                before, here = ((*competition.classes, "ignored")[min(a[clash][0], n)] for a in (labels, own))
                what = f"{clash.sum():,} pixels are {here} here and {before} in another layer"
                raise Refused(f"{layer.row or layer.content}: {sample.id}: {what}; overlap = true would keep both")
            else:
                labels[there] = own[there]
            if competition.source.instances:
                if number + parts.max(initial=0) > MOST_OBJECTS:
                    raise Refused(f"{sample.id}: more than {MOST_OBJECTS} objects")
                shared += np.count_nonzero(there & (objects > 0))
                np.copyto(objects, parts + number, where=(parts > 0) & (objects == 0), casting="unsafe")
                number += int(parts.max(initial=0))
        labels, objects = (decode.resize_labels(values, self.size) for values in (labels, objects))
        if width := competition.source.border:
            known = labels != (256 if arrays.ignored is None else arrays.ignored)
            labels[_borders(objects, width) & known] = competition.classes.index(BORDER)
        return labels, objects, f"{shared:,} pixels are of two objects; the first has them" if shared else ""

    def _decode(self, layer: Layer, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """A layer's labels, uint8 (H, W), 0 where it says nothing; and its objects, numbered from 1."""
        if isinstance(layer.content, str):
            relative = self.competition.source.table.get("starts") == "relative"
            own = decode_layer(layer, sample, self.order, relative).astype(np.uint8)
        elif layer.label is None and self.coding is None:
            values = mask_coding.read_codes(layer.content, "values")
            _, parts = np.unique(np.append(0, values), return_inverse=True)  # 0 comes first, whether it occurs or not
            parts = parts[1:].reshape(values.shape)
            return (parts > 0).astype(np.uint8), parts
        else:
            coding = self.binary if layer.label is not None else self.coding
            assert coding is not None
            own = mask_coding.read_mask(layer.content, coding)
        return own * np.uint8(layer.label or 1), (own > 0) & (own != (self.competition.arrays.ignored or 0))


def make_reader(
    competition: Competition, samples: Sequence[Sample], size: Size, order: Order, proof: str
) -> MaskReader:
    """Find what the files of all masks mean. Raises Refused."""
    own, ignore = competition.source, competition.arrays.ignore
    classes = tuple(name for name in competition.classes if not (own.border and name == BORDER))
    plain = [[path for path, label in one.mask_files if label is None] for one in samples]
    of_class = [path for one in samples for path, label in one.mask_files if label is not None]
    coding, texts = None, [proof] if proof else []
    if own.instances and any(plain) and max(map(len, plain)) == 1 and not own.labels:
        if len(classes) != 2:
            raise Refused("source.instances: a mask's values number objects of one class, and there are several")
        texts.append("mask values number the objects")
    elif files := [file for some in plain for file in some]:
        coding = mask_coding.detect_coding(files, classes, ignore, own.labels)
        texts.append(coding.text)
    elif own.labels:
        raise Refused("source.labels: no file's values say its classes, since all masks' classes are known otherwise")
    binary = mask_coding.detect_coding(of_class, ("the rest", "the class"), None, {}) if of_class else None
    texts += [binary.text] if binary else []
    return MaskReader(competition, size, coding, binary, order, "; ".join(texts))


def _borders(objects: np.ndarray, width: int) -> np.ndarray:
    """Where two objects lie in the square of this many pixels around a pixel, bool (H, W)."""
    square, turned = np.ones((width, width), np.uint8), MOST_OBJECTS + 1 - objects
    turned[objects == 0] = 0  # so that what is between objects counts nowhere
    highest, lowest = cv2.dilate(objects, square), MOST_OBJECTS + 1 - cv2.dilate(turned, square)
    return (highest > 0) & (lowest != highest)
