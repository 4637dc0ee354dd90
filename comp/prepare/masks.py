"""A sample's mask as labels and numbered objects: what files' values or colours mean, and layers laid together.

Known without a word are class numbers 0, 1, 2, … and the ignored one; for two classes 0 and 255, or 0 and 65535.
`source.labels` says any other coding. A code without a meaning is refused."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np

from comp.config import Competition
from comp.data.arrays import Size
from comp.errors import Refused, did_you_mean
from comp.prepare import decode
from comp.prepare.samples import Finding, Layer, Sample, read_windows
from comp.prepare.table import decode_layer
from comp.report.tables import shorten
from comp.submission.runlength import Order

SAMPLE = 64  # masks that are looked at to find the coding; all others are held to what these say
LARGEST = 65535  # value of a mask
Kind = Literal["values", "colours"]
LENGTHS = {"values": LARGEST + 1, "colours": 1 << 24}  # of the table of labels by code
MOST_OBJECTS = 65_534  # one less than uint16 holds, which stands for what is between them
BITS = np.concatenate([[0], 1 << np.arange(8), np.zeros(247)]).astype(np.uint8)  # of a label, where classes overlap


class Coding(NamedTuple):
    """What the codes in a competition's masks mean. A value is its own code, a colour's is 0xRRGGBB."""

    kind: Kind
    table: np.ndarray  # int16 (LENGTHS[kind],): label by code; -1: none
    text: str  # in words, for the log
    palette: bytes | None = None  # the files' own, where the kind is "values"; another one would mean other things


@dataclass(frozen=True)
class MaskReader:
    """What the layers of a competition's masks mean, and how they become arrays."""

    competition: Competition
    size: Size
    coding: Coding | None  # of files without a class; None: their values number the objects
    binary: Coding | None  # of files of one class
    order: Order
    odd: set[Finding] = field(default_factory=set)  # what was lost while reading

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Labels, uint8, and objects from 1, uint16, or 255 times annotators' shares, of `size`. Raises Refused."""
        competition, ignored = self.competition, self.competition.arrays.ignored
        size, nearest = self.size[::-1], cv2.INTER_NEAREST_EXACT
        labels, objects = (cv2.resize(one, size, interpolation=nearest) for one in self.window(sample))
        if width := competition.source.border:
            # Where two objects lie in the square of this many pixels around a pixel.
            square, between = np.ones((width, width), np.uint8), np.uint16(MOST_OBJECTS + 1)
            lowest = cv2.erode(np.where(objects == 0, between, objects), square)
            border = (lowest < cv2.dilate(objects, square)) & (labels != ignored)
            labels[border] = len(competition.classes) - 1  # the class "border"
        return labels, objects

    @cached_property
    def window(self) -> Callable[[Sample], tuple[np.ndarray, ...]]:
        return read_windows(self.lay)

    def lay(self, sample: Sample) -> tuple[np.ndarray, ...]:
        """The layers laid together: labels and objects, or 255 times shares, of the image's own size.

        Where classes overlap, bit k - 1 of a label is class k; else a layer over one of another class is refused."""
        competition, arrays = self.competition, self.competition.arrays
        if competition.source.soft:
            shares = np.mean([*map(_read_shares, sample.mask or ())] or np.zeros((1, *sample.size)), axis=0)
            return (shares > 0.5).astype(np.uint8), np.rint(255 * shares).astype(np.uint16)
        labels: np.ndarray = np.zeros(sample.size, np.uint8)
        objects: np.ndarray = np.zeros(sample.size, np.uint16)
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
                if (last := number + int(parts.max(initial=0))) > MOST_OBJECTS:
                    raise Refused(f"{sample.id}: more than {MOST_OBJECTS} objects")
                shared += np.count_nonzero(there & (objects > 0))
                np.copyto(objects, parts + number, where=(parts > 0) & (objects == 0), casting="unsafe")
                number = last
        if shared:
            lost = f"{shared:,} pixels are of two objects; the first has them"
            self.odd.add(Finding(sample.id, "objects overlap", lost))
        return labels, objects

    def _decode(self, layer: Layer, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """A layer's labels, uint8 (H, W), 0 where it says nothing; and its objects, numbered from 1."""
        coding = self.coding if layer.label is None else self.binary
        if isinstance(layer.content, str):
            own = decode_layer(layer, sample, self.order, self.competition).astype(np.uint8)
        elif coding is None:
            values = read_codes(layer.content, "values")
            _, parts = np.unique(np.append(0, values), return_inverse=True)  # 0 comes first, whether it occurs or not
            parts = parts[1:].reshape(values.shape)
            return (parts > 0).astype(np.uint8), parts
        else:
            own = read_mask(layer.content, coding)
        return own * np.uint8(layer.label or 1), (own > 0) & (own != (self.competition.arrays.ignored or 0))


def make_reader(competition: Competition, samples: Sequence[Sample], size: Size, order: Order) -> MaskReader:
    """Find what the files of all masks mean. Raises Refused."""
    own, ignore = competition.source, competition.arrays.ignore
    classes = competition.classes[:-1] if own.border else competition.classes  # without "border", which no file has
    plain = [[path for path, label in one.mask_files if label is None] for one in samples]
    of_class = [path for one in samples for path, label in one.mask_files if label is not None]
    coding = None
    if own.instances and max(map(len, plain)) == 1 and not own.labels:
        if len(classes) != 2:
            raise Refused("source.instances: a mask's values number objects of one class, and there are several")
    elif files := [file for some in plain for file in some if not own.soft]:
        coding = detect_coding(files, classes, ignore, own.labels)
    elif own.labels:
        raise Refused("source.labels: no file's values say its classes, since all masks' classes are known otherwise")
    binary = detect_coding(of_class, ("the rest", "the class"), None, {}) if of_class and not own.soft else None
    return MaskReader(competition, size, coding, binary, order)


def _read_shares(layer: Layer) -> np.ndarray:
    """What one annotator marked, or the mean of several: 0 to 1, (H, W). Raises Refused."""
    values = decode.read_mask_values(Path(layer.content))[0]
    grey = values.dtype.kind == "u" and values.max() not in range(32)  # up to 31 they may be counts, or 0 and 1
    shares = values / np.float32(np.iinfo(values.dtype).max if grey else 1)
    if values.ndim == 2 and ((shares >= 0) & (shares <= 1)).all():
        return shares
    raise Refused(f"{layer.content}: holds {values.min()} to {values.max()}; shares from 0 to 1, or to 255, would fit")


def detect_coding(masks: Sequence[Path], classes: tuple[str, ...], ignore: int | None, given: dict[str, str]) -> Coding:
    """Find what the codes in `masks` mean, or read it from `given`: `source.labels`. Raises Refused of unknown ones."""
    names = dict(enumerate(classes)) | ({} if ignore is None else {ignore: "ignore"})
    if given:
        kind: Kind = "colours" if any(code.startswith("#") for code in given) else "values"
        pattern, base = ("#[0-9a-fA-F]{6}", 16) if kind == "colours" else ("[0-9]+", 10)
        labels, meaning = {name: label for label, name in names.items()}, dict[int, int]()
        for code, name in given.items():
            if not re.fullmatch(pattern, code) or (value := int(code.lstrip("#"), base)) >= LENGTHS[kind]:
                raise Refused(f"source.labels: {code!r}; all are values 0–{LARGEST}, or all are colours like '#3c1098'")
            if name not in labels:
                unset = "; arrays.ignore is not set; 255 would fit"
                hint = unset if name == "ignore" else did_you_mean(name, [*labels])
                raise Refused(f"source.labels.{code}: no class {name!r}{hint}")
            meaning[value] = labels[name]
    else:
        some = masks[:: -(-len(masks) // SAMPLE)]
        kind = "colours" if any(decode.read_mask_values(path)[0].ndim == 3 for path in some) else "values"
        counts: Counter[int] = Counter()
        for path in some:
            counts.update(dict(zip(*np.unique(read_codes(path, kind), return_counts=True), strict=True)))
        meaning = {label: label for label in names if kind == "values"}  # no colour says its class
        if kind == "values" and len(classes) == 2 and {*counts} in ({0, 255}, {0, LARGEST}):
            meaning = {0: 0, max(counts): 1}
        if not counts.keys() <= meaning.keys():
            if masks[0].suffix.lower() in (".jpg", ".jpeg"):
                raise Refused(f"{masks[0]}: a JPEG, of {len(counts)} inexact values; a source.reader could round them")
            shown = ", ".join(f'"{_name(code, kind)}" = "…"' for code, _ in counts.most_common(len(classes) + 2))
            rare = counts.most_common()[-1][0]
            void = f"; {_name(rare, kind)} is in {next(path.name for path in some if rare in read_codes(path, kind))}"
            void += "; if 255 is void, arrays.ignore = 255" if ignore is None and 255 in counts else ""
            what = f"the masks hold {len(counts)} {kind} for {len(classes)} classes; say which is which"
            raise Refused(f'{masks[0].parent}: {what}, a class or "ignore", in source.labels = {{{shown}}}{void}')
    table = np.full(LENGTHS[kind], -1, np.int16)
    table[[*meaning]] = [*meaning.values()]
    text = ", ".join(f"{_name(code, kind)} {names[label]}" for code, label in meaning.items())
    palette = decode.read_mask_values(masks[0])[1] if kind == "values" else None
    return Coding(kind, table, shorten(f"mask {kind}: {text}", 400), palette)


def read_mask(path: Path, coding: Coding) -> np.ndarray:
    """Read a mask as labels, uint8 (H, W). Raises Refused where it cannot be read or does not fit the coding."""
    codes = read_codes(path, coding.kind, coding.palette)
    labels = coding.table[codes]
    if (unknown := labels < 0).any():
        example = _name(int(codes[unknown][0]), coding.kind)
        raise Refused(f"{path}: {unknown.mean():.1%} of the pixels are of no class, such as {example} ({coding.text})")
    return labels.astype(np.uint8)


def read_codes(path: Path, kind: Kind, usual: bytes | None = None) -> np.ndarray:
    """Whole numbers (H, W). Refused is also another palette than the `usual` one, with which values mean others."""
    values, palette = decode.read_mask_values(path)
    if usual and palette not in (None, usual):
        raise Refused(f"{path}: has another palette than other masks; colours in source.labels would say what is what")
    if kind == "colours":
        if palette is not None:
            values = np.frombuffer(palette.ljust(768, b"\0"), np.uint8).reshape(256, 3)[values]
        elif values.dtype != np.uint8:
            raise Refused(f"{path}: holds {values.dtype}, but the other masks hold colours")
        rgb = np.broadcast_to(values if values.ndim == 3 else values[..., None], (*values.shape[:2], 3))
        return rgb @ np.array([1 << 16, 1 << 8, 1], np.int32)
    if values.ndim == 3:
        raise Refused(f"{path}: is coloured, but the other masks hold grey values")
    if values.dtype in (np.uint8, np.uint16):
        return values
    if not ((values >= 0) & (values <= LARGEST) & (values == np.round(values))).all():
        raise Refused(f"{path}: holds fractions, NaN or values beyond {LARGEST}; 0 to {LARGEST} would fit")
    return values.astype(np.int32)


def _name(code: int, kind: Kind) -> str:
    return f"#{code:06x}" if kind == "colours" else str(code)
