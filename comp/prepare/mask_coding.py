"""How a mask file says which class a pixel is, and masks as label arrays.

A mask holds values (grey levels, palette entries) or colours. Which value or colour is which class
is given by the competition or, where the files leave no doubt, found from them. A pixel takes the
class of the nearest code, so that anti-aliased and JPEG masks can be read; one that is near no code
is ignored, and counted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from comp.errors import Refused, did_you_mean
from comp.prepare import decode

TOLERANCE = 48.0  # largest distance to a code, in grey levels or in RGB space
_UNKNOWN, _UNSEEN = -1, -2  # in the table: near no code; not yet looked at
_SAMPLE = 64  # masks that are looked at to find the coding; all others are held to what these say

Kind = Literal["values", "colours"]
Meaning = dict[int, int]  # code to class index or ignore value; a colour's code is 0xRRGGBB


@dataclass(frozen=True)
class Coding:
    """What the codes in a competition's masks mean."""

    kind: Kind
    meaning: Meaning
    ignore: int | None
    tolerance: float  # below half the way between two codes, so that values 0, 1, 2 are read exactly
    text: str  # in words, for the log
    table: np.ndarray  # int16 (256,) or (2**24,): label by code; filled in as codes are met


def detect_coding(
    masks: Sequence[Path], classes: tuple[str, ...], ignore: int | None, given: Mapping[str, str]
) -> Coding:
    """Find what the codes in `masks` mean.

    `given` maps codes ("3", or "#3c1098" for a colour) to class names or "ignore"; empty: found from
    the files. Raises Refused, listing the codes found, where they can be read in more than one way.
    """
    if given:
        return _coding(*_given(given, classes, ignore), classes, ignore, "as the competition says")
    chosen = [masks[k] for k in np.unique(np.linspace(0, len(masks) - 1, _SAMPLE).astype(int))]
    kind: Kind = "colours" if _hold_colours(chosen) else "values"
    counts: Counter[int] = Counter()
    for path in chosen:
        codes, times = np.unique(_codes(path, kind), return_counts=True)
        counts.update(dict(zip(codes.tolist(), times.tolist(), strict=True)))
    found = (_of_values if kind == "values" else _of_colours)(counts, len(classes), ignore)
    if found:
        return _coding(kind, found[0], classes, ignore, found[1])
    shown = ", ".join(f'"{_name(code, kind)}" = "…"' for code, _ in counts.most_common(len(classes) + 2))
    void = "; if 255 is void, arrays.ignore = 255" if ignore is None and kind == "values" and 255 in counts else ""
    raise Refused(
        f"{masks[0].parent}: the masks hold {len(counts)} {kind} for {len(classes)} classes; say which is which, "
        f'a class name or "ignore", in source.labels = {{{shown}}}{void}'
    )


def read_mask(path: Path, coding: Coding) -> tuple[np.ndarray, float]:
    """Read a mask: labels uint8 (H, W), and the share of its pixels that are near no class and ignored.

    Raises Refused where the file cannot be read or does not fit the coding.
    """
    codes = _codes(path, coding.kind)
    labels = coding.table[codes]
    if (labels == _UNSEEN).any():
        fresh = np.unique(codes[labels == _UNSEEN])
        coding.table[fresh] = _nearest(fresh, coding)
        labels = coding.table[codes]
    unknown = labels == _UNKNOWN
    share = float(unknown.mean())
    if share:
        example = _name(int(codes[unknown][0]), coding.kind)
        if coding.tolerance < 1 or share > 0.25:
            raise Refused(f"{path}: {share:.1%} of the pixels are of no class, such as {example} ({coding.text})")
        if coding.ignore is None:
            raise Refused(f"{path}: pixels near no class, such as {example}, can only be ignored: set arrays.ignore")
        labels = np.where(unknown, coding.ignore, labels)
    return labels.astype(np.uint8), share


def _given(given: Mapping[str, str], classes: tuple[str, ...], ignore: int | None) -> tuple[Kind, Meaning]:
    kind: Kind = "colours" if any(code.startswith("#") for code in given) else "values"
    meaning = {}
    for code, name in given.items():
        try:
            value = int(code[1:], 16) if code.startswith("#") else int(code) * (0x010101 if kind == "colours" else 1)
        except ValueError:
            value = -1
        if not 0 <= value < (2**24 if kind == "colours" else 256):
            raise Refused(f"source.labels: {code!r} is neither a value 0–255 nor a colour such as '#3c1098'")
        if name != "ignore" and name not in classes:
            raise Refused(f"source.labels.{code}: no class {name!r}{did_you_mean(name, [*classes, 'ignore'])}")
        if name == "ignore" and ignore is None:
            raise Refused(f"source.labels.{code}: is to be ignored, but arrays.ignore is not set (255 would fit)")
        meaning[value] = ignore if name == "ignore" else classes.index(name)
    return kind, meaning


def _of_values(counts: Counter[int], classes: int, ignore: int | None) -> tuple[Meaning, str] | None:
    void = set() if ignore is None else {ignore}
    binary = classes == 2
    if binary and set(counts) == {0, 255}:
        return {0: 0, 255: 1}, "0 and 255"
    if set(counts) <= set(range(classes)) | void:
        return {code: code for code in [*range(classes), *void]}, "class numbers"
    if binary and set(counts) == {1, 2, 3} and ignore is not None:
        return {1: 1, 2: 0, 3: ignore}, "a trimap"
    ends = sum(count for code, count in counts.items() if min(code, 255 - code) <= TOLERANCE)
    if binary and len(counts) > 8 and max(counts) > 255 - TOLERANCE and ends >= 0.9 * counts.total():
        return {0: 0, 255: 1}, "0 and 255, anti-aliased"
    exact = sorted(set(counts) - void)
    # Two values without a 0 may be a trimap's: pet before background.
    if len(exact) == classes and not (binary and 0 not in exact):
        return {code: k for k, code in enumerate(exact)} | {code: code for code in void}, "in ascending order"
    return None


def _of_colours(counts: Counter[int], classes: int, ignore: int | None) -> tuple[Meaning, str] | None:
    voc = {voc_colour(k): k for k in range(classes)} | ({} if ignore is None else {voc_colour(255): ignore})
    if counts.keys() <= voc.keys():
        return voc, "VOC's colours"
    if len(counts) == classes:
        return {code: k for k, code in enumerate(sorted(counts))}, "in ascending order, which is to be checked"
    return None


def voc_colour(index: int) -> int:
    """PASCAL VOC's colour of a class (255: void), as 0xRRGGBB: the index's bits dealt to the channels in turn."""
    return sum(((index >> (3 * j + k)) & 1) << (7 - j) << (16 - 8 * k) for j in range(3) for k in range(3))


def _coding(kind: Kind, meaning: Meaning, classes: tuple[str, ...], ignore: int | None, why: str) -> Coding:
    points = _points(np.array([*meaning]))
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    tolerance = min(TOLERANCE, 0.499 * apart[apart > 0].min(initial=1000.0))
    numbers = all(code == label for code, label in meaning.items())
    told = {code: label for code, label in meaning.items() if not numbers or label == ignore}
    names = [f"{_name(code, kind)} {'ignored' if k == ignore else classes[k]}" for code, k in told.items()]
    text = ", ".join([f"mask {kind}, {why}", *names])
    table = np.full(256 if kind == "values" else 2**24, _UNSEEN, np.int16)
    return Coding(kind, meaning, ignore, tolerance, text, table)


def _nearest(codes: np.ndarray, coding: Coding) -> np.ndarray:
    points = _points(codes)
    labels = np.full(len(codes), _UNKNOWN, np.int16)
    best = np.full(len(codes), coding.tolerance**2, np.float32)
    for point, label in zip(_points(np.array([*coding.meaning])), coding.meaning.values(), strict=True):
        distance = ((points - point) ** 2).sum(-1)
        labels[distance <= best] = label
        best = np.minimum(best, distance)
    return labels


def _points(codes: np.ndarray) -> np.ndarray:
    """Codes in RGB space, float32 (n, 3), where values 0 to 255 lie along one axis."""
    return np.stack([(codes >> shift) & 255 for shift in (16, 8, 0)], -1).astype(np.float32)


def _hold_colours(paths: Sequence[Path]) -> bool:
    """Whether any mask is coloured, or palettes give one value several colours, so that values mean nothing."""
    colours: dict[int, list[int]] = {}
    for path in paths:
        image = decode.load_image(path, "mask")
        if image.mode == "P":
            palette = image.getpalette("RGB")
            for value in np.unique(image).tolist():
                colour = palette[3 * value : 3 * value + 3]
                if colours.setdefault(value, colour) != colour:
                    return True
        elif _is_coloured(image):
            return True
    return False


def _is_coloured(image: Image.Image) -> bool:
    rgb = np.asarray(image.convert("RGB"))
    return bool((rgb != rgb[..., :1]).any())


def _codes(path: Path, kind: Kind) -> np.ndarray:
    """int32 (H, W)."""
    image = decode.load_image(path, "mask")
    if kind == "colours":
        rgb = np.asarray(image.convert("RGB")).astype(np.int32)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    if image.mode not in ("P", "L", "I", "I;16"):
        if _is_coloured(image):
            raise Refused(f"{path}: is coloured, but the other masks hold grey values")
        image = image.convert("RGB").convert("L")
    codes = np.asarray(image).astype(np.int32)
    if codes.max() > 255:
        raise Refused(f"{path}: holds the value {codes.max()}; masks go to 255")
    return codes


def _name(code: int, kind: Kind) -> str:
    return f"#{code:06x}" if kind == "colours" else str(code)
