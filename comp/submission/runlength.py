"""Run-lengths: "start length start length …" of the pixels that are set, starts counted from 1.

Down the columns, as most competitions have it, or along the rows. Encoding works on many masks at once:
it finds the edges of all, and writes all numbers three digits at a time.
"""

import re
from functools import cache
from typing import Literal

import numpy as np

from comp.errors import Refused

Order = Literal["column", "row"]

UNKNOWN = 1 << 60  # pixels of an image whose size is not known
CHUNK = 1 << 19  # pixels encoded at a time: their temporary arrays stay in the cache


def encode_runs(masks: np.ndarray, order: Order = "column") -> list[str]:
    """Run-lengths of masks (N, H, W), bool or uint8 (not 0 is set): N texts "start length start length …".

    Starts count from 1, ascending; the text of an empty mask is "".
    """
    step = max(1, CHUNK // max(1, masks[:1].size))
    return [text for first in range(0, len(masks), step) for text in _encode(masks[first : first + step], order)]


def decode_runs(text: str, shape: tuple[int, int], order: Order = "column", empty: str = "") -> np.ndarray:
    """The mask, bool (H, W), of one run-length text. Raises Refused as `parse_runs` does."""
    flat = np.zeros(shape[0] * shape[1], bool)
    starts, lengths = parse_runs("" if text == empty else text, flat.size)
    for start, length in zip((starts - 1).tolist(), lengths.tolist(), strict=True):
        flat[start : start + length] = True
    return flat.reshape(shape, order="C" if order == "row" else "F")


def parse_runs(text: str, pixels: int = UNKNOWN) -> tuple[np.ndarray, np.ndarray]:
    """Starts (from 1) and lengths, int64, of one text; `pixels` is the image's area, if it is known.

    Raises Refused for what is not a whole number, an odd number of values, a start or length below 1, starts
    that do not ascend, an overlap, and a run that ends outside the image.
    """
    words = text.split()
    try:
        values = np.array(words, np.int64)
    except (ValueError, OverflowError):
        wrong = next(word for word in words if not re.fullmatch("-?[0-9]{1,18}", word))
        raise Refused(f"{wrong[:40]!r} is not a pixel's number or a length") from None
    if len(values) % 2:
        raise Refused(f"an odd number of run-length values, {len(values)}; they are pairs of start and length")
    starts, lengths = values[::2], values[1::2]
    for broken, problem in (
        (starts < 1, "starts before pixel 1, the first"),
        (lengths < 1, "is shorter than one pixel"),
        (lengths > pixels + 1 - starts, f"ends outside the image of {pixels} pixels"),
        (np.diff(starts, prepend=0) < 1, "does not start after the one before it"),
        (starts < np.append(0, starts + lengths)[:-1], "overlaps the one before it"),
    ):
        if broken.any():
            run = int(broken.argmax())
            raise Refused(f"run {run + 1}, '{starts[run]} {lengths[run]}', {problem}")
    return starts, lengths


def _encode(masks: np.ndarray, order: Order) -> list[str]:
    """`encode_runs` for few enough masks (N, H, W) to be encoded at once."""
    import cv2  # here, so that checking a file does not wait for it

    flat = np.ascontiguousarray(masks.astype(bool, copy=False))
    if order == "column":  # cv2 transposes several times as fast as numpy
        flat = np.stack([cv2.transpose(mask) for mask in flat.view(np.uint8)]).view(bool)
    flat = flat.reshape(len(masks), -1)
    # A pixel is an edge if it differs from the one before it; behind the last pixel may be one more edge.
    size = flat.shape[1] + 1
    edges = np.zeros((len(flat) * size + 7) // 8 * 8, bool)
    edge = edges[: len(flat) * size].reshape(len(flat), size)
    edge[:, 0], edge[:, -1] = flat[:, 0], flat[:, -1]
    np.not_equal(flat[:, 1:], flat[:, :-1], out=edge[:, 1:-1])
    found = _nonzero(edges)
    if edges.size <= np.iinfo(np.uint32).max:
        found = found.astype(np.uint32)  # half the memory to move, and quicker to divide
    number, place = _divmod(found, size)
    starts, ends = place[::2], place[1::2]
    digits = np.stack(_digits(starts + starts.dtype.type(1)) + _digits(ends - starts), axis=1)
    # The space behind a mask's last run becomes a line break, and masks without a run get an empty line.
    runs = np.bincount(number[::2], minlength=len(masks))
    digits.view(np.uint8)[np.cumsum(runs)[runs > 0] - 1, -1] = ord("\n")
    lines = iter(digits.tobytes().translate(None, b"\0").decode("ascii").split("\n"))
    return [next(lines) if any_run else "" for any_run in runs]


def _nonzero(edges: np.ndarray) -> np.ndarray:
    """np.flatnonzero of bool (n,), n a multiple of 8, of which few are set: first by words, then in those alone."""
    words = edges.view(np.uint64)
    some = np.flatnonzero(words != 0)
    within = np.flatnonzero(words[some].view(bool))
    return some[within >> 3] * 8 + (within & 7)


def _divmod(values: np.ndarray, divisor: int) -> tuple[np.ndarray, np.ndarray]:
    # numpy's own divmod does not use vector instructions
    divisor = values.dtype.type(divisor)
    quotient = values // divisor
    return quotient, values - quotient * divisor


def _digits(values: np.ndarray, last: bool = True) -> list[np.ndarray]:
    """Columns of uint32, each four characters: three digits and, in the last, a space; NUL is no character."""
    thousands, rest = _divmod(values, 1000)
    table = _three_digits(last)
    if not thousands.any():
        return [table.take(values)]
    # Where something stands before them, the digits are taken from the table's half with leading zeros.
    return [*_digits(thousands, last=False), table.take(np.minimum(values, rest + values.dtype.type(1000)))]


@cache
def _three_digits(last: bool) -> np.ndarray:
    """uint32 (2000,): 0 to 999 without leading zeros (0 itself is nothing), then with them."""
    end = " " if last else "\0"
    plain = ["\0\0\0\0", *(f"{value}".rjust(3, "\0") + end for value in range(1, 1000))]
    return np.frombuffer("".join(plain + [f"{value:03}{end}" for value in range(1000)]).encode(), np.uint32)
