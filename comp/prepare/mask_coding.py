"""What the values or colours in a competition's mask files mean, and masks as label arrays.

Known without a word are class numbers 0, 1, 2, …, with the ignored one among them; for two classes
0 and 255, 0 and 65535, and a trimap's 1, 2, 3; and PASCAL VOC's colours. `source.labels` says any
other coding. Codes are read exactly: a mask that holds one without a meaning is refused.
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

SAMPLE = 64  # masks that are looked at to find the coding; all others are held to what these say
LARGEST = 65535  # value of a mask

Kind = Literal["values", "colours"]
Meaning = dict[int, int]  # label by code; a value is its own code, a colour's is 0xRRGGBB


@dataclass(frozen=True)
class Coding:
    """What the codes in a competition's masks mean."""

    kind: Kind
    meaning: Meaning
    text: str  # in words, for the log
    table: np.ndarray  # int16 (65536,) or (2**24,): label by code; -1: none


def detect_coding(
    masks: Sequence[Path], classes: tuple[str, ...], ignore: int | None, given: Mapping[str, str]
) -> Coding:
    """Find what the codes in `masks` mean.

    `given` maps codes ("3", or "#3c1098" for a colour) to class names or "ignore"; empty: found from
    the files. Raises Refused, listing the codes found, where they are of no known coding.
    """
    if given:
        return _coding(*_given(given, classes, ignore), classes, ignore, "as the competition says")
    some = masks[:: -(-len(masks) // SAMPLE)]
    kind: Kind = "colours" if _hold_colours(some) else "values"
    counts: Counter[int] = Counter()
    for path in some:
        codes, times = np.unique(_read_codes(path, kind), return_counts=True)
        counts.update(dict(zip(codes.tolist(), times.tolist(), strict=True)))
    if found := _find(kind, {*counts}, len(classes), ignore):
        return _coding(kind, found[0], classes, ignore, found[1])
    shown = ", ".join(f'"{_name(code, kind)}" = "…"' for code, _ in counts.most_common(len(classes) + 2))
    void = "; if 255 is void, arrays.ignore = 255" if ignore is None and kind == "values" and 255 in counts else ""
    raise Refused(
        f"{masks[0].parent}: the masks hold {len(counts)} {kind} for {len(classes)} classes; say which is which, "
        f'a class name or "ignore", in source.labels = {{{shown}}}{void}'
    )


def read_mask(path: Path, coding: Coding) -> np.ndarray:
    """Read a mask as labels, uint8 (H, W). Raises Refused where it cannot be read or does not fit the coding."""
    codes = _read_codes(path, coding.kind)
    labels = coding.table[codes]
    if (unknown := labels < 0).any():
        example = _name(int(codes[unknown][0]), coding.kind)
        raise Refused(f"{path}: {unknown.mean():.1%} of the pixels are of no class, such as {example} ({coding.text})")
    return labels.astype(np.uint8)


def _find(kind: Kind, codes: set[int], classes: int, ignore: int | None) -> tuple[Meaning, str] | None:
    void = set() if ignore is None else {ignore}
    if kind == "colours":
        voc = {voc_colour(k): k for k in range(classes)} | {voc_colour(255): k for k in void}
        return (voc, "VOC's colours") if codes <= voc.keys() else None
    if classes == 2 and codes in ({0, 255}, {0, LARGEST}):
        return {0: 0, max(codes): 1}, f"0 and {max(codes)}"
    if classes == 2 and codes == {1, 2, 3} and ignore is not None:
        return {1: 1, 2: 0, 3: ignore}, "a trimap"
    numbers = {*range(classes)} | void
    return ({code: code for code in numbers}, "class numbers") if codes <= numbers else None


def _given(given: Mapping[str, str], classes: tuple[str, ...], ignore: int | None) -> tuple[Kind, Meaning]:
    kind: Kind = "colours" if any(code.startswith("#") for code in given) else "values"
    meaning: Meaning = {}
    label_of = {name: k for k, name in enumerate(classes)} | ({} if ignore is None else {"ignore": ignore})
    for code, name in given.items():
        try:
            value = int(code[1:], 16) if code.startswith("#") else int(code) * (0x010101 if kind == "colours" else 1)
        except ValueError:
            value = -1
        if not 0 <= value <= (0xFFFFFF if kind == "colours" else LARGEST):
            raise Refused(f"source.labels: {code!r} is neither a value 0–{LARGEST} nor a colour such as '#3c1098'")
        if name == "ignore" and ignore is None:
            raise Refused(f"source.labels.{code}: is to be ignored, but arrays.ignore is not set (255 would fit)")
        if name not in label_of:
            raise Refused(f"source.labels.{code}: no class {name!r}{did_you_mean(name, [*classes, 'ignore'])}")
        meaning[value] = label_of[name]
    return kind, meaning


def voc_colour(index: int) -> int:
    """PASCAL VOC's colour of a class (255: void), as 0xRRGGBB: the index's bits dealt to the channels in turn."""
    return sum(((index >> (3 * j + k)) & 1) << (7 - j) << (16 - 8 * k) for j in range(3) for k in range(3))


def _coding(kind: Kind, meaning: Meaning, classes: tuple[str, ...], ignore: int | None, why: str) -> Coding:
    numbers = all(code == label for code, label in meaning.items())
    told = {code: label for code, label in meaning.items() if not numbers or label == ignore}
    names = [f"{_name(code, kind)} {'ignored' if k == ignore else classes[k]}" for code, k in told.items()]
    table = np.full(LARGEST + 1 if kind == "values" else 2**24, -1, np.int16)
    table[[*meaning]] = [*meaning.values()]
    return Coding(kind, meaning, ", ".join([f"mask {kind}, {why}", *names]), table)


def _hold_colours(paths: Sequence[Path]) -> bool:
    """Whether any mask is coloured, or palettes give one value several colours, so that values mean nothing."""
    colour_of: dict[int, list[int]] = {}
    for path in paths:
        image = decode.open_image(path)
        if image.mode == "P":
            palette = image.getpalette("RGB") or []
            for value in np.unique(np.asarray(image)).tolist():
                colour = palette[3 * value : 3 * value + 3]
                if colour_of.setdefault(value, colour) != colour:
                    return True
        elif _is_coloured(image):
            return True
    return False


def _is_coloured(image: Image.Image) -> bool:
    rgb = np.asarray(image.convert("RGB"))
    return bool((rgb != rgb[..., :1]).any())


def _read_codes(path: Path, kind: Kind) -> np.ndarray:
    """int32 (H, W)."""
    image = decode.open_image(path)
    if kind == "colours":
        rgb = np.asarray(image.convert("RGB")).astype(np.int32)
        return rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2]
    if image.mode not in ("P", "L", "F") and not image.mode.startswith("I"):
        if _is_coloured(image):
            raise Refused(f"{path}: is coloured, but the other masks hold grey values")
        image = image.convert("RGB").convert("L")
    values = np.asarray(image)
    if values.dtype.kind == "f" and not (values == np.round(values)).all():
        raise Refused(f"{path}: holds fractions or NaN; whole numbers from 0 to {LARGEST} would fit")
    if values.min() < 0 or values.max() > LARGEST:
        raise Refused(f"{path}: holds values from {values.min()} to {values.max()}; 0 to {LARGEST} would fit")
    return values.astype(np.int32)


def _name(code: int, kind: Kind) -> str:
    return f"#{code:06x}" if kind == "colours" else str(code)
