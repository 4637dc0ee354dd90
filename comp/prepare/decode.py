"""One image file as an RGB array: what its header says, its pixels, and how they are brought to a size.

Images become 8-bit RGB whatever they were (palette, grey, 16-bit, CMYK, RGBA): first frame,
transparency dropped, turned upright as EXIF says.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from comp.config import Fit
from comp.data.arrays import Size, fitted_size
from comp.errors import Refused

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
SIDEWAYS = 5  # EXIF orientations from here on swap height and width
DEPTH = 16  # bits of grey images deeper than 8, unless all of a set use fewer
LOOKED_AT = 64  # of those images, to find out


def read_header(path: Path, obey_exif: bool = False) -> tuple[Size, int, bool]:
    """The size as the image is read, EXIF's orientation (1: upright), and whether it is deep: grey, over 8 bits."""
    image = open_image(path, pixels=False)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    size = image.size if obey_exif and orientation >= SIDEWAYS else image.size[::-1]
    return size, orientation, image.mode.startswith("I")


def open_image(path: Path, pixels: bool = True) -> Image.Image:
    """The first frame of a file, as it is, or only its header. Raises Refused."""
    try:
        with Image.open(path) as image:
            image.getexif()  # of some formats it is behind the pixels
            if pixels:
                image.load()
            return image
    except UNREADABLE as error:
        raise Refused(f"{path}: cannot be read as an image: {error}") from None


def find_depth(deep: Sequence[Path]) -> int:
    """How many bits these images really use, 12 say of 16: those of the largest value in LOOKED_AT of them."""
    some = deep[:: -(-len(deep) // LOOKED_AT) or 1]
    largest = [int(np.asarray(open_image(path)).max()) for path in some]
    return max(8, max(largest).bit_length()) if largest else DEPTH


def read_image(path: Path, obey_exif: bool = True, bits: int = DEPTH) -> Image.Image:
    """Read an image as 8-bit RGB; of a deep one the highest 8 of `bits` bits are kept. Raises Refused."""
    image = open_image(path)
    if obey_exif:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise Refused(f"{path}: holds fractions; 8- or 16-bit images would fit")
    if image.mode.startswith("I"):
        # PIL would clip 16-bit grey to 255 instead of scaling it.
        values = np.asarray(image).astype(np.int64) >> (bits - 8)
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
