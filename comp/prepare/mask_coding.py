"""What the values or colours in a competition's mask files mean, and masks as label arrays.

Known without a word are class numbers 0, 1, 2, … and the ignored one; for two classes 0 and 255, or 0 and
65535; and PASCAL VOC's colours. `source.labels` says any other coding. Codes are read exactly: a mask that
holds one without a meaning is refused.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from comp.errors import Refused, did_you_mean
from comp.prepare import decode
from comp.report.tables import shorten

SAMPLE = 64  # masks that are looked at to find the coding; all others are held to what these say
LARGEST = 65535  # value of a mask

Kind = Literal["values", "colours"]
LENGTHS = {"values": LARGEST + 1, "colours": 1 << 24}  # of the table of labels by code


@dataclass(frozen=True)
class Coding:
    """What the codes in a competition's masks mean. A value is its own code, a colour's is 0xRRGGBB."""

    kind: Kind
    table: np.ndarray  # int16 (LENGTHS[kind],): label by code; -1: none
    text: str  # in words, for the log
    palette: bytes | None = None  # the files' own, where the kind is "values"; another one would mean other things


def detect_coding(
    masks: Sequence[Path], classes: tuple[str, ...], ignore: int | None, given: Mapping[str, str]
) -> Coding:
    """Find what the codes in `masks` mean, or read it from `given`: `source.labels`.

    Raises Refused, listing the codes found, where they are of no known coding.
    """
    names = dict(enumerate(classes)) | ({} if ignore is None else {ignore: "ignore"})
    if given:
        kind: Kind = "colours" if any(code.startswith("#") for code in given) else "values"
        meaning = _read_given(given, kind, {name: label for label, name in names.items()})
    else:
        some = masks[:: -(-len(masks) // SAMPLE)]
        kind = "colours" if _hold_colours(some) else "values"
        counts: Counter[int] = Counter()
        for path in some:
            counts.update(dict(zip(*np.unique(read_codes(path, kind), return_counts=True), strict=True)))
        if kind == "values" and len(classes) == 2 and {*counts} in ({0, 255}, {0, LARGEST}):
            meaning = {0: 0, max(counts): 1}
        else:
            meaning = {voc_colour(label) if kind == "colours" else label: label for label in names}
        if not counts.keys() <= meaning.keys():
            if (jpeg := masks[0]).suffix.lower() in (".jpg", ".jpeg"):
                raise Refused(
                    f"{jpeg}: a JPEG keeps no exact values, and holds {len(counts)}; a source.reader could round"
                )
            shown = ", ".join(f'"{_name(code, kind)}" = "…"' for code, _ in counts.most_common(len(classes) + 2))
            void = "; if 255 is void, arrays.ignore = 255" if ignore is None and 255 in counts else ""
            raise Refused(
                f"{masks[0].parent}: the masks hold {len(counts)} {kind} for {len(classes)} classes; say which is "
                f'which, a class name or "ignore", in source.labels = {{{shown}}}{void}'
            )
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


def voc_colour(index: int) -> int:
    """PASCAL VOC's colour of a class (255: void), as 0xRRGGBB: the index's bits dealt to the channels in turn."""
    return sum(((index >> (3 * j + k)) & 1) << (7 - j) << (16 - 8 * k) for j in range(3) for k in range(3))


def _read_given(given: Mapping[str, str], kind: Kind, labels: dict[str, int]) -> dict[int, int]:
    meaning: dict[int, int] = {}
    pattern, base = ("#[0-9a-fA-F]{6}", 16) if kind == "colours" else ("[0-9]+", 10)
    for code, name in given.items():
        if not re.fullmatch(pattern, code) or (value := int(code.lstrip("#"), base)) >= LENGTHS[kind]:
            raise Refused(f"source.labels: {code!r}; all are values 0–{LARGEST}, or all are colours such as '#3c1098'")
        if name not in labels:
            void = "; arrays.ignore is not set (255 would fit)" if name == "ignore" else did_you_mean(name, [*labels])
            raise Refused(f"source.labels.{code}: no class {name!r}{void}")
        meaning[value] = labels[name]
    return meaning


def _hold_colours(paths: Sequence[Path]) -> bool:
    """Whether any mask is coloured, or palettes differ, so that values mean nothing."""
    palettes = set()
    for path in paths:
        values, palette = decode.read_mask_values(path)
        if values.ndim == 3:
            return True
        palettes |= {palette} - {None}
    return len(palettes) > 1


def read_codes(path: Path, kind: Kind, usual: bytes | None = None) -> np.ndarray:
    """Whole numbers (H, W). Refused is also another palette than the `usual` one, with which values mean others."""
    values, palette = decode.read_mask_values(path)
    if usual and palette not in (None, usual):
        raise Refused(f"{path}: has another palette than other masks; colours in source.labels would say what is what")
    if kind == "colours":
        if palette is not None:
            colours = np.zeros((256, 3), np.uint8)
            known = np.frombuffer(palette, np.uint8).reshape(-1, 3)
            colours[: len(known)] = known
            values = colours[values]
        elif values.dtype != np.uint8:
            raise Refused(f"{path}: holds {values.dtype}, but the other masks hold colours")
        rgb = np.broadcast_to(values if values.ndim == 3 else values[..., None], (*values.shape[:2], 3))
        red, green, blue = np.moveaxis(rgb.astype(np.int32), -1, 0)
        return red << 16 | green << 8 | blue
    if values.ndim == 3:
        raise Refused(f"{path}: is coloured, but the other masks hold grey values")
    if values.dtype in (np.uint8, np.uint16):
        return values
    with np.errstate(invalid="ignore"):
        if not ((values >= 0) & (values <= LARGEST) & (values == np.round(values))).all():
            raise Refused(f"{path}: holds fractions, NaN or values beyond {LARGEST}; 0 to {LARGEST} would fit")
    return values.astype(np.int32)


def _name(code: int, kind: Kind) -> str:
    return f"#{code:06x}" if kind == "colours" else str(code)
