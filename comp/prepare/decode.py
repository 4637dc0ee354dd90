"""One image or mask file as an array: what its header says, and its values.

Photographs become grey or RGB: the first frame, without transparency, upright as EXIF says. Deeper values, and bands
that are no colours, are read as stored; one rule, which the npz keeps for hidden images, makes them uint8."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageOps

from comp.data.arrays import Size
from comp.data.npz import refuse_damage
from comp.errors import Refused

logging.getLogger("tifffile").disabled = True  # what is wrong with a file is told in one line
Image.MAX_IMAGE_PIXELS = None  # slides have gigapixels

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".npy", ".h5"}
SIDEWAYS = 5  # EXIF orientations from here on swap height and width
MOST_BANDS = 16
LARGE = 1 << 27  # pixels, from which on Pillow's copies would take too much memory
LOOKED_AT = 64  # images, to check the range or to find the percentiles
PIXELS = 4096  # of each of them, for percentiles
PERCENTILES = 0.5, 99.5
OUTSIDE = 0.98  # of the values, which leaves nothing of an image; a window of a CT leaves a tenth
WHAT_FITS = 'source.range = [low, high], the values that become 0 and 255, or source.range = "percentiles"'


class Header(NamedTuple):
    """What a file says of its values before they are read."""

    size: Size  # as the image is read
    channels: int
    deep: bool  # values that are not uint8
    orientation: int = 1  # EXIF's; 1: upright


def read_header(path: Path, mask: bool = False) -> Header:
    """Read a file's header; of a mask without EXIF, which may be behind the pixels. Raises Refused."""
    with refuse_damage(path, "an image", ""):
        if (stored := _open_stored(path, pixels=False)) is not None:
            height, width = stored.shape[:2]
            return Header((height, width), stored.shape[2], stored.dtype not in (np.uint8, np.bool_))
        with Image.open(path) as image:
            orientation = 1 if mask else image.getexif().get(ExifTags.Base.Orientation, 1)
            size = image.size if orientation >= SIDEWAYS else image.size[::-1]
            return Header(size, 1 if _is_grey(image) else 3, image.mode[0] in "IF", orientation)


def read_image(path: Path) -> np.ndarray:
    """An image's values (H, W, C): uint8 of a photograph, else of the dtype that the file holds. Raises Refused."""
    with refuse_damage(path, "an image", ""):
        if (stored := _open_stored(path)) is not None:
            return stored
        with Image.open(path) as image:
            image.getexif()  # of some formats it is behind the pixels
            seen = ImageOps.exif_transpose(image)
            if _is_grey(seen):
                return np.asarray(seen if seen.mode[0] in "IF" else seen.convert("L"))[..., None]
            if "transparency" in seen.info:
                seen = seen.convert("RGBA")
            return np.asarray(seen.convert("RGB"))


def read_mask_values(path: Path) -> tuple[np.ndarray, bytes | None]:
    """A mask's values as they are stored, (H, W), or its colours, uint8 (H, W, 3); and its palette, if it has one.

    A TIFF whose 0 is white is not turned round: its values are what was written. Raises Refused."""
    palette = None
    with refuse_damage(path, "an image", ""):
        if (stored := _open_stored(path)) is None:
            with Image.open(path) as image:
                if image.mode == "P" or image.mode[0] in "IF":
                    stored, palette = np.asarray(image), bytes(image.getpalette() or []) or None
                else:
                    stored = np.asarray(image.convert("L" if _is_grey(image) else "RGB"))
                    photometric = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation)
                    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:  # whose values Pillow turns round
                        stored = 255 - stored
    if stored.ndim == 3:
        if stored.shape[2] == 1 or (stored == stored[..., :1]).all():
            stored = stored[..., 0]
        elif stored.shape[2] != 3 or stored.dtype != np.uint8:
            raise Refused(f"{path}: a mask of {stored.shape[2]} bands of {stored.dtype}; one band would fit")
    return stored, palette


def resize_image(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Resize uint8 (H, W, C) bilinearly with antialiasing."""
    bands = [pixels] if pixels.shape[2] == 3 else [np.ascontiguousarray(band) for band in np.moveaxis(pixels, -1, 0)]
    resized = [Image.fromarray(band).resize(size[::-1], Image.Resampling.BILINEAR) for band in bands]
    return np.dstack([*map(np.asarray, resized)])


def _open_stored(path: Path, pixels: bool = True) -> np.ndarray | None:
    """The bands (H, W, C) of an npy or HDF5 file, a TIFF that is no photograph, or colours of 16 bits; None of others.

    Without pixels, an array that has their shape and dtype."""
    suffix, bands_last = path.suffix.lower(), True
    if suffix == ".npy":
        stored = np.load(path, mmap_mode=None if pixels else "r", allow_pickle=False)
    elif suffix == ".h5":
        import h5py

        with h5py.File(path) as file:
            (data,) = file.values()  # one, or it is refused
            stored = data[()] if pixels else np.broadcast_to(data.dtype.type(0), data.shape)
    elif suffix in (".tif", ".tiff"):
        with tifffile.TiffFile(path) as file:
            series = file.series[0]
            page = series.keyframe
            if page is None or (_is_photograph(page) and len(series.pages) == 1):
                return None
            bands_last = series.axes[-1] == "S"
            # A broadcast zero has the shape and no memory.
            stored = _read_series(path, series) if pixels else np.broadcast_to(series.dtype.type(0), series.shape)
            if page.photometric == tifffile.PHOTOMETRIC.RGB and any(page.extrasamples) and bands_last:
                stored = stored[..., :3]  # without the transparency
    else:
        with Image.open(path) as image:
            how = str(image.tile[0][3]) if image.tile else ""
            deep = "16" in how if image.format == "PNG" else image.format == "PPM" and "65535" in how
            if not deep or image.mode[0] == "I":
                return None
            stored = np.broadcast_to(np.uint16(0), (image.height, image.width, 3))
        if pixels:  # of which Pillow would drop the lower bits
            stored = np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))[..., 2::-1]
    if stored.dtype.kind not in "buif":
        raise Refused(f"{path}: holds {stored.dtype}; numbers would fit")
    if stored.ndim == 2:
        stored, bands_last = stored[..., None], True
    if stored.ndim == 3 and 0 not in stored.shape:
        ends = stored, np.moveaxis(stored, 0, -1)
        for arranged in ends if bands_last else ends[::-1]:  # where both ends could be bands, as the file says
            if arranged.shape[2] <= MOST_BANDS:
                return arranged * np.uint8(255) if pixels and stored.dtype == np.bool_ else arranged
    raise Refused(f"{path}: holds an array of shape {stored.shape}; an image of 1 to {MOST_BANDS} bands would fit")


def _read_series(path: Path, series: tifffile.TiffPageSeries) -> np.ndarray:
    """A TIFF's values; where tifffile wants imagecodecs for them, which not every machine has, OpenCV reads a page."""
    try:
        return series.asarray()
    except ValueError as error:
        values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if "imagecodecs" in str(error) else None
        if values is None or values.shape != series.shape or values.dtype != series.dtype:
            raise
        return values if values.ndim == 2 else values[..., [2, 1, 0, *range(3, values.shape[2])]]


def _is_photograph(page: tifffile.TiffPage) -> bool:
    """Whether a TIFF's page is grey, colours or a palette in 8 bits, which Pillow reads, however compressed."""
    photometric, samples, colours = page.photometric, page.samplesperpixel, tifffile.PHOTOMETRIC
    if page.dtype is None or page.dtype.kind not in "bu" or not np.isin(page.bitspersample, (1, 8)).all():
        return False
    if photometric == colours.RGB and page.imagewidth * page.imagelength > LARGE:
        return False
    if photometric in (colours.MINISBLACK, colours.MINISWHITE, colours.PALETTE):
        return samples == 1
    return samples == 3 or photometric == colours.SEPARATED or (samples == 4 and any(page.extrasamples))


def _is_grey(image: Image.Image) -> bool:
    return Image.getmodebase(image.mode) == "L"


@dataclass(frozen=True)
class Scaling:
    """Ranges that become 0 to 255, one for all bands or one for each; none: every image is uint8."""

    ranges: Sequence[Sequence[float]] = ()

    def __str__(self) -> str:
        some = ", ".join(f"{low:g} to {high:g}" for low, high in self.ranges)
        return f"images are scaled from {some}" if some else "images of 8 bits"

    def apply(self, values: np.ndarray, band: int, path: Path, strict: bool) -> tuple[np.ndarray, str]:
        """Values (H, W, C) whose first is this band as uint8; and what was lost, in words. Strict: it is refused."""
        if not self.ranges:
            if values.dtype == np.uint8:
                return values, ""
            raise Refused(f"{path}: holds {values.dtype}, the other images uint8; {WHAT_FITS}")
        low, high = np.transpose(self.ranges if len(self.ranges) == 1 else self.ranges[band : band + values.shape[2]])
        lost = ""
        if values.dtype.kind == "f" and (bad := ~np.isfinite(values)).any():
            lost = f"{bad.mean():.1%} of the values are NaN or infinite"
            if strict:
                raise Refused(f"{path}: {lost}; a source.reader may mend it, or source.skip leave it out")
            values = np.where(bad, low.astype(values.dtype), values)
        return np.rint((values - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8), lost


def find_scaling(given: str | tuple, images: Sequence[Sequence[Path]], channels: int, deep: bool) -> Scaling:
    """The rule for images of one or more band files each. `deep`: they are not uint8. Raises Refused."""
    if not (given := given or ("percentiles" if deep else "")):
        return Scaling()
    looked = []
    for paths in images[:: -(-len(images) // LOOKED_AT) or 1]:
        values = np.concatenate([read_image(path) for path in paths], axis=-1, dtype=np.float64)
        values = values.reshape(-1, values.shape[-1])
        looked.append(np.broadcast_to(values, (len(values), channels))[:: -(-len(values) // PIXELS)])
    pixels = np.concatenate(looked)  # float64 (n, channels)
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
