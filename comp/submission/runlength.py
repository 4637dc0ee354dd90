"""Run-lengths: "start length start length …" of the pixels that are set, starts counted from 1; and their dialects.

Encoding works on many masks at once: it finds the edges of all, and writes all numbers three digits at a time."""

import json
import re
from functools import cache

import numpy as np

from comp.config import Order, Submission
from comp.errors import Refused

UNKNOWN = 1 << 60  # pixels of an image whose size is not known
CHUNK = 1 << 20  # pixels encoded at a time: their temporary arrays stay in the cache


def encode_runs(masks: np.ndarray, order: Order = "column") -> list[str]:
    """Run-lengths of masks (N, H, W), bool or uint8 (not 0 is set): N texts; of an empty mask it is ""."""
    step = max(1, CHUNK // max(1, masks[:1].size))
    return [text for first in range(0, len(masks), step) for text in _encode(masks[first : first + step], order)]


def decode_runs(text: str, shape: tuple[int, int], order: Order = "column", relative: bool = False) -> np.ndarray:
    """The mask, bool (H, W), of one run-length text; `parse_runs` says what it refuses and what relative means."""
    pixels = shape[0] * shape[1]
    edges = parse_runs(text, pixels, "relative" if relative else "absolute")
    repeats = np.diff(edges.ravel(), prepend=0, append=pixels)  # of False and True in turn
    flat = np.repeat(np.arange(len(repeats)) % 2 == 1, repeats)
    return flat.reshape(shape) if order == "row" else flat.reshape(shape[::-1]).T


def to_dialect(text: str, layout: Submission, pixels: int) -> str:
    """A text of `encode_runs`, not an empty one, as a competition writes it for images of so many pixels."""
    if layout.runs == "absolute" and layout.base == 1:
        return text
    edges = parse_runs(text)
    values = np.column_stack([edges[:, 0] + layout.base, np.diff(edges)]).ravel()
    if layout.runs in ("relative", "alternating"):  # lengths of what is not set and what is, in turn
        values = np.diff(edges.ravel(), prepend=0, append=pixels)[: -1 if layout.runs == "relative" else None]
    return json.dumps(values.tolist()) if layout.runs == "json" else " ".join(map(str, values.tolist()))


def parse_runs(text: str, pixels: int = UNKNOWN, runs: str = "absolute", base: int = 1) -> np.ndarray:
    """Of each run its first pixel and the one behind its last, counted from 0: int64 (n, 2).

    The text calls the first of the image's `pixels` `base`. `runs` names its dialect, as in `Submission`; relative
    starts count the pixels since the end of the run before. Raises Refused for what is not a whole number, an odd
    number of values, a start before the first pixel, a length below 1, runs that overlap or end outside the image, and
    alternating lengths that do not fill it."""
    if runs == "json":
        try:
            text = " ".join(map(str, json.loads(text)))
        except (ValueError, TypeError, RecursionError):
            raise Refused(f"{text[:40]!r} is no list of numbers in JSON") from None
    words = text.split()
    try:
        values = np.array(words, np.int64)
    except (ValueError, OverflowError):
        wrong = next(word for word in words if not re.fullmatch("-?[0-9]{1,18}", word))
        raise Refused(f"{wrong[:40]!r} is not a pixel's number or a length") from None
    in_turn = runs in ("relative", "alternating")
    if in_turn and (odd := values[(values < 0) | (values > pixels)]).size:
        raise Refused(f"{odd[0]} is no number of the image's {pixels} pixels")
    if runs == "alternating":
        if pixels < UNKNOWN and values.sum() != pixels:
            raise Refused(f"the lengths are {values.sum()} pixels together; the image has {pixels}")
        values = values[:-1]  # without the pixels behind the last run
    if len(values) % 2:
        raise Refused(f"an odd number of run-length values, {len(values)}; they are pairs of start and length")
    starts, lengths = np.cumsum(values)[::2] if in_turn else values[::2] - base, values[1::2]
    for broken, problem in (
        (starts < 0, f"starts before pixel {base}, the first"),
        (lengths < 1, "is shorter than one pixel"),
        (lengths > pixels - starts, f"ends outside the image of {pixels} pixels"),
        (starts < np.append(0, starts + lengths)[:-1], "starts before the end of the one before it"),
    ):
        if broken.any():
            run = int(broken.argmax())
            raise Refused(f"run {run + 1}, '{values[2 * run]} {values[2 * run + 1]}', {problem}")
    return np.column_stack([starts, starts + lengths])


def _encode(masks: np.ndarray, order: Order) -> list[str]:
    """`encode_runs` of few enough masks (N, H, W) to be encoded at once."""
    count, height, width = (len(masks), masks[0].size, 1) if order == "row" else masks.shape  # rows: one long column
    masks = masks.astype(bool, copy=False).reshape(count, height, width)
    # A pixel is an edge if it differs from the one before it, which for the top of a column is the bottom of the
    # column to its left. One more row holds the edge behind the last pixel. Comparing in place and sorting the few
    # edges by column takes half the time of transposing the masks.
    edge = np.zeros((count, height + 1, width), bool)
    np.not_equal(masks[:, 1:], masks[:, :-1], out=edge[:, 1:-1])
    np.not_equal(masks[:, 0, 1:], masks[:, -1, :-1], out=edge[:, 0, 1:])
    edge[:, 0, 0], edge[:, -1, -1] = masks[:, 0, 0], masks[:, -1, -1]
    found = np.flatnonzero(edge)
    if edge.size <= np.iinfo(np.uint32).max:
        found = found.astype(np.uint32)  # half the memory to move, and quicker to divide
    line, column = _divmod(found, width)
    number, line = _divmod(line, height + 1)
    place = column * height + line
    if width > 1:
        # Lines ascend already, so a stable sort by column is enough, and keys of 16 bits are radix-sorted.
        by_column = (number * width + column).astype(np.min_scalar_type(count * width))
        place = place.take(np.argsort(by_column, kind="stable"))
    starts, ends = place[::2], place[1::2]
    digits = np.stack(_digits(starts + 1) + _digits(ends - starts), axis=1)
    # The space behind a mask's last run becomes a line break, and masks without a run get an empty line.
    runs = np.bincount(number[::2], minlength=count)
    digits.view(np.uint8)[np.cumsum(runs)[runs > 0] - 1, -1] = ord("\n")
    lines = iter(digits.tobytes().translate(None, b"\0").decode().split("\n"))
    return [next(lines) if any_run else "" for any_run in runs]


def _divmod(values: np.ndarray, divisor: int) -> tuple[np.ndarray, np.ndarray]:
    # numpy's own divmod does not use vector instructions
    quotient = values // divisor
    return quotient, values - quotient * divisor


def _digits(values: np.ndarray, end: str = " ") -> list[np.ndarray]:
    """The numbers as columns of four characters, uint32: three digits and `end`; NUL is no character."""
    thousands, rest = _divmod(values, 1000)
    if not thousands.any():
        return [_three_digits(end).take(values)]
    # Where something stands before them, the digits are taken from the table's half with leading zeros.
    return [*_digits(thousands, "\0"), _three_digits(end).take(np.minimum(values, rest + 1000))]


@cache
def _three_digits(end: str) -> np.ndarray:
    """uint32 (2000,): 0 to 999 without leading zeros (0 itself is nothing), then with them."""
    plain, padded = (f"{k:\0>3}{end}" for k in range(1, 1000)), (f"{k:03}{end}" for k in range(1000))
    return np.frombuffer("".join(["\0\0\0\0", *plain, *padded]).encode(), np.uint32)
