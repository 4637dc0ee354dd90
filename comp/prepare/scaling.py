"""How deeper values than 8 bits become uint8: one rule for a competition, kept in its npz for its hidden images.

A `source.range` names the values that become 0 and 255, for all bands or for each; "percentiles" finds them in the
training images. Without one, values of 16 bits are divided by what the bits in use can hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp.errors import Refused
from comp.prepare import decode

LOOKED_AT = 64  # images, to find the bits in use or the percentiles
PIXELS = 4096  # of each of them, for percentiles
PERCENTILES = 0.5, 99.5
OUTSIDE = 0.98  # of the values, which leaves nothing of an image; a window of a CT leaves a tenth
WHAT_FITS = 'source.range = [low, high], the values that become 0 and 255, or source.range = "percentiles"'


@dataclass(frozen=True)
class Scaling:
    """Ranges that become 0 to 255, one for all bands or one for each; none: every image is uint8."""

    ranges: Sequence[Sequence[float]] = ()
    bits: int = 0  # in use, where that is what decided: then images of 8 bits stay as they are

    def __str__(self) -> str:
        if self.bits:
            return f"images of {self.bits} bits are scaled to 8"
        some = ", ".join(f"{low:g} to {high:g}" for low, high in self.ranges)
        return f"images are scaled from {some}" if some else "images of 8 bits"

    def apply(self, values: np.ndarray, band: int, path: Path, strict: bool) -> tuple[np.ndarray, str]:
        """Values (H, W, C) whose first is this band as uint8; and what was lost, in words. Strict: it is refused."""
        lost, fits = "", f"{WHAT_FITS}, would fit; or a source.reader of your own"
        if values.dtype == np.uint8 and (self.bits or not self.ranges):
            return values, lost
        if not self.ranges:
            raise Refused(f"{path}: holds {values.dtype}, the other images uint8; {WHAT_FITS}")
        ranges = np.array(self.ranges if len(self.ranges) == 1 else self.ranges[band : band + values.shape[2]])
        if values.dtype.kind == "f" and (bad := ~np.isfinite(values)).any():
            lost = f"{bad.mean():.1%} of the values are NaN or infinite"
            fits = "a source.reader of your own could fill them, and source.skip leaves images out"
            values = np.where(bad, ranges[:, 0].astype(values.dtype), values)
        elif self.bits and values.dtype.kind == "f":
            lost = f"holds {values.dtype}, the other images whole numbers"
        elif self.bits and (values.max() > ranges[0, 1] or values.min() < 0):
            worst = values.min() if values.min() < 0 else values.max()
            lost = f"holds {worst}, and {LOOKED_AT} images no more than {self.bits} bits"
        if lost and strict:
            raise Refused(f"{path}: {lost}; {fits}")
        scaled = (values - ranges[:, 0]) * (255 / (ranges[:, 1] - ranges[:, 0]))
        return np.rint(scaled).clip(0, 255).astype(np.uint8), lost


def find_scaling(given: str | tuple, images: Sequence[Sequence[Path]], channels: int, deep: bool) -> Scaling:
    """The rule for images of one or more band files each. `deep`: some are not uint8. Raises Refused."""
    some = images[:: -(-len(images) // LOOKED_AT) or 1]
    if not given:
        return _by_bits(some) if deep else Scaling()
    pixels = _look(some, channels)
    if given == "percentiles":
        low, high = np.nanpercentile(pixels, PERCENTILES, axis=0)
        return Scaling([*zip(low.tolist(), np.where(high > low, high, low + 1).tolist(), strict=True)])
    ranges = np.reshape(given, (-1, 2)).tolist()
    if len(ranges) not in (1, channels):
        raise Refused(f"source.range: {len(ranges)} ranges; the images have {channels} channels")
    for band, (low, high) in enumerate(np.broadcast_to(ranges, (channels, 2)).tolist()):
        if not low < high:
            raise Refused(f"source.range: from {low:g} to {high:g}; the first must be the lower one")
        values = pixels[np.isfinite(pixels[:, band]), band]
        seen = np.unique((values.clip(low, high) - low) // ((high - low) / 255))
        if ((values < low) | (values > high)).mean() > OUTSIDE or len(seen) < min(len(np.unique(values)), 3):
            there = f"channel {band} holds {values.min():g} to {values.max():g}"
            raise Refused(f"source.range: from {low:g} to {high:g} would leave little of the images: {there}")
    return Scaling([*map(tuple, ranges)])


def _by_bits(images: Sequence[Sequence[Path]]) -> Scaling:
    largest = 0
    for path in (path for paths in images for path in paths):
        values = decode.read_image(path)
        if values.dtype.kind not in "ui" or values.min() < 0:
            finite = values[np.isfinite(values)]
            found = f"from {finite.min():g} to {finite.max():g}" if finite.size else "that are all NaN or infinite"
            raise Refused(f"{path}: holds {values.dtype} {found}; {WHAT_FITS}, would fit")
        largest = max(largest, int(values.max()) if values.dtype != np.uint8 else 0)
    bits = max(8, largest.bit_length())
    return Scaling(((0.0, 2.0**bits - 1),), bits)


def _look(images: Sequence[Sequence[Path]], channels: int) -> np.ndarray:
    """Some pixels of each image, float64 (n, channels)."""
    pixels = []
    for paths in images:
        values = np.concatenate([decode.read_image(path) for path in paths], axis=-1, dtype=np.float64)
        values = values.reshape(-1, values.shape[-1])
        pixels.append(np.broadcast_to(values, (len(values), channels))[:: -(-len(values) // PIXELS)])
    return np.concatenate(pixels)
