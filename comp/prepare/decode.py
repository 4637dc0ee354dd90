"""One picture file as an RGB array: its header, whichever way it is turned, and how it is brought to a size.

Pictures become 8-bit RGB whatever they were (palette, grey, 16-bit, CMYK, RGBA): first frame,
transparency dropped. EXIF's orientation is obeyed, so that a picture is as it is seen, unless the
masks were drawn on pictures that were not turned, which their sizes tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from comp.config import Fit
from comp.data.arrays import Size, fitted_size
from comp.errors import Refused

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
ORIENTATION = 274  # EXIF's tag: 1 is upright, from SIDEWAYS on height and width are swapped
SIDEWAYS = 5


@dataclass(frozen=True)
class Header:
    """What a picture file says of itself, before its pixels are read."""

    size: Size  # as stored
    orientation: int
    format: str  # "JPEG"
    mode: str  # "RGB"
    named: str  # the format that its suffix means

    @property
    def upright(self) -> Size:
        """The size as the picture is seen."""
        return self.size[::-1] if self.orientation >= SIDEWAYS else self.size


def read_header(path: Path) -> Header:
    """Read a file's header. Raises Refused."""
    Image.init()  # fills the table of suffixes
    try:
        with Image.open(path) as image:
            named = Image.EXTENSION.get(path.suffix.lower(), "")
            orientation = image.getexif().get(ORIENTATION, 1)
            return Header(image.size[::-1], orientation, str(image.format), image.mode, named)
    except UNREADABLE as error:
        raise Refused(f"{path}: cannot be read as a picture: {error}") from None


def decide_turns(pictures: Sequence[Header], masks: Sequence[Header | None]) -> list[bool]:
    """Which pictures are to be turned upright as EXIF says, bool (N,).

    A mask's size decides for its picture where it can. The others, test pictures too, follow the
    majority of those, and are turned where there is none.
    """
    votes = [
        mask.size == picture.upright if mask and picture.upright != picture.size else None
        for picture, mask in zip(pictures, masks, strict=True)
    ]
    usual = votes.count(True) >= votes.count(False)
    return [
        picture.orientation > 1 and (usual if vote is None else vote)
        for picture, vote in zip(pictures, votes, strict=True)
    ]


def load_image(path: Path, role: str) -> Image.Image:
    """The first frame of a file, as it is. Raises Refused, saying what it was to be: a picture, or a mask."""
    try:
        image = Image.open(path)
        image.load()
    except UNREADABLE as error:
        raise Refused(f"{path}: cannot be read as a {role}: {error}") from None
    return image


def find_depth(paths: Sequence[Path]) -> int:
    """How many bits grey pictures of more than 8 really use, 12 say of 16: what the largest value of all needs."""
    return max(8, max(int(np.asarray(load_image(path, "picture")).max()) for path in paths).bit_length())


def read_image(path: Path, turn: bool, bits: int = 16) -> Image.Image:
    """Read a picture as 8-bit RGB, turned upright where `turn` says so. Raises Refused.

    Of a deep grey picture (mode "I…") the highest 8 of `bits` bits are kept.
    """
    image = load_image(path, "picture")
    if turn:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise Refused(f"{path}: holds fractions; 8- or 16-bit pictures would fit")
    if image.mode.startswith("I"):
        # PIL would clip 16-bit grey to 255 instead of scaling it.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> (bits - 8)).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def place_image(image: Image.Image, size: Size, fit: Fit, fill: int = 0) -> np.ndarray:
    """Resize, and pad with `fill` on the right and below: uint8 (H, W, 3) of a picture, (H, W) of labels.

    Pictures, which are RGB, are resized bilinearly with antialiasing, labels to the nearest.
    """
    height, width = fitted_size(image.size[::-1], size, fit)
    resampling = Image.Resampling.BILINEAR if image.mode == "RGB" else Image.Resampling.NEAREST
    pixels = np.asarray(image.resize((width, height), resampling))
    padding = [(0, size[0] - height), (0, size[1] - width), (0, 0)]
    return np.pad(pixels, padding[: pixels.ndim], constant_values=fill)
