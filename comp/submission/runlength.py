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

UNKNOWN = 1 << 60  # the area of a picture whose size is not known
CHUNK = 1 << 20  # pixels encoded at a time: their temporary arrays stay in the cache


def encode_runs(masks: np.ndarray, order: Order = "column") -> list[str]:
    """Run-lengths of masks (N, H, W), bool or uint8 (not 0 is set): N texts "start length start length …".

    Starts count from 1, ascending; the text of an empty mask is "".
    """
    count, height, width = masks.shape
    if order == "row":  # one long column
        masks, height, width = masks.reshape(count, height * width, 1), height * width, 1
    texts = [""] * count
    step = max(1, min(CHUNK // max(1, height * width), count))
    edges = np.empty(step * (height + 1) * width + 8, bool)  # one for all steps: new memory is slow at first touch
    for first in range(0, count, step):
        numbers, text = _encode(masks[first : first + step].astype(bool, copy=False), edges)
        for number, line in zip(numbers, text.split("\n"), strict=False):  # text ends with a line break
            texts[first + number] = line
    return texts


def decode_runs(text: str, shape: tuple[int, int], order: Order = "column", empty: str = "") -> np.ndarray:
    """The mask, bool (H, W), of one run-length text. Raises Refused as `parse_runs` does."""
    height, width = shape
    starts, lengths = parse_runs("" if text == empty else text, height * width)
    edges = np.stack([starts - 1, starts - 1 + lengths], axis=1).ravel()
    stretches = np.diff(edges, prepend=0, append=height * width)
    flat = np.repeat(np.arange(len(stretches)) % 2 == 1, stretches)
    return flat.reshape(height, width) if order == "row" else flat.reshape(width, height).T.copy()


def parse_runs(text: str, pixels: int = UNKNOWN) -> tuple[np.ndarray, np.ndarray]:
    """Starts (from 1) and lengths, int64, of one text; `pixels` is the picture's area, if it is known.

    Raises Refused for what is no whole number, an odd number of values, a start or length below 1, starts
    that do not ascend, an overlap, and a run that ends outside the picture.
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
    never = np.zeros(len(starts[:1]), bool)
    for wrong, problem in (
        (starts < 1, "starts before pixel 1, the first"),
        (lengths < 1, "is shorter than one pixel"),
        (lengths > pixels + 1 - starts, f"ends outside the picture of {pixels} pixels"),
        (np.append(never, starts[1:] <= starts[:-1]), "does not start after the one before it"),
        (np.append(never, starts[1:] < (starts + lengths)[:-1]), "overlaps the one before it"),
    ):
        if wrong.any():
            run = int(wrong.argmax())
            raise Refused(f"run {run + 1}, '{starts[run]} {lengths[run]}', {problem}")
    return starts, lengths


def _encode(masks: np.ndarray, edges: np.ndarray) -> tuple[list[int], str]:
    """Numbers of the masks (N, H, W) that are not empty, and a line of column-major runs for each.

    `edges` is memory to work in.
    """
    count, height, width = masks.shape
    # A pixel is an edge if it differs from the one before it, which for the top of a column is the bottom
    # of the column to its left. One more row holds the edge behind the last pixel. Comparing in place and
    # sorting the few edges by column costs half of transposing the masks.
    size = count * (height + 1) * width
    edges[size : size + 8] = False
    edge = edges[:size].reshape(count, height + 1, width)
    np.not_equal(masks[:, 1:], masks[:, :-1], out=edge[:, 1:height])
    np.not_equal(masks[:, 0, 1:], masks[:, -1, :-1], out=edge[:, 0, 1:])
    edge[:, 0, 0] = masks[:, 0, 0]
    edge[:, height] = False
    edge[:, height, -1] = masks[:, -1, -1]
    found = _nonzero(edges[: -(-size // 8) * 8])
    if not len(found):
        return [], ""
    if size <= np.iinfo(np.uint32).max:
        found = found.astype(np.uint32)  # half the memory to move, and quicker to divide
    line, column = _divmod(found, width)
    number, line = _divmod(line, height + 1)
    place = column * found.dtype.type(height) + line
    if width > 1:
        # Lines ascend already, so a stable sort by column is enough, and keys of 16 bits are radix-sorted.
        by_column = (number * found.dtype.type(width) + column).astype(np.min_scalar_type(count * width))
        place = place.take(np.argsort(by_column, kind="stable"))
    starts, ends, number = place[::2], place[1::2], number[::2]
    digits = np.stack(_digits(starts + place.dtype.type(1)) + _digits(ends - starts), axis=1)
    last = np.flatnonzero(np.append(number[1:] != number[:-1], True))
    digits.view(np.uint8)[last, -1] = ord("\n")
    return number[last].tolist(), digits.tobytes().translate(None, b"\0").decode("ascii")


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
