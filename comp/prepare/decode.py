"""One image file as an RGB array: what its header says, its pixels, and how they are brought to a size.

Images become 8-bit RGB whatever they were (palette, grey, 16-bit, CMYK, RGBA): first frame,
transparency dropped, turned upright as EXIF says.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from comp.config import Fit, Source
from comp.data.arrays import Size, fitted_size
from comp.errors import Refused

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
ORIENTATION = 274  # EXIF's tag: 1 is upright, from SIDEWAYS on height and width are swapped
SIDEWAYS = 5


@dataclass(frozen=True)
class Header:
    """What an image file says of itself, before its pixels are read."""

    size: Size  # as stored
    orientation: int
    format: str  # "JPEG"
    mode: str  # "RGB"
    named: str  # the format that its suffix means

    @property
    def upright(self) -> Size:
        """The size as the image is seen."""
        return self.size[::-1] if self.orientation >= SIDEWAYS else self.size


def read_header(path: Path) -> Header:
    """Read a file's header. Raises Refused."""
    Image.init()  # fills the table of suffixes
    with _opened(path) as image:
        named = Image.EXTENSION.get(path.suffix.lower(), "")
        orientation = image.getexif().get(ORIENTATION, 1)
        return Header(image.size[::-1], orientation, str(image.format), image.mode, named)


def open_image(path: Path) -> Image.Image:
    """The first frame of a file, as it is. Raises Refused."""
    with _opened(path) as image:
        image.load()
    return image


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UNREADABLE as error:
        raise Refused(f"{path}: cannot be read as an image: {error}") from None


def read_image(path: Path, source: Source) -> Image.Image:
    """Read an image as 8-bit RGB, as `source` says. Raises Refused."""
    image = open_image(path)
    if source.obey_exif:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise Refused(f"{path}: holds fractions; 8- or 16-bit images would fit")
    if image.mode.startswith("I"):
        # PIL would clip 16-bit grey to 255 instead of scaling it.
        values = np.asarray(image).astype(np.int64) >> (source.bits - 8)
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def place_image(image: Image.Image, size: Size, fit: Fit, fill: int = 0) -> np.ndarray:
    """Resize, and pad with `fill` on the right and below: uint8 (H, W, 3) of an image, (H, W) of labels.

    Images, which are RGB, are resized bilinearly with antialiasing, labels to the nearest.
    """
    height, width = fitted_size(image.size[::-1], size, fit)
    resampling = Image.Resampling.BILINEAR if image.mode == "RGB" else Image.Resampling.NEAREST
    pixels = np.asarray(image.resize((width, height), resampling))
    padding = [(0, size[0] - height), (0, size[1] - width), (0, 0)]
    return np.pad(pixels, padding[: pixels.ndim], constant_values=fill)
