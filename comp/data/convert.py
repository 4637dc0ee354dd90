"""Any array of an npz as uint8.

What the file stores as uint8 is memory-mapped where it lies. Anything else (compressed, float, other
integers) is converted once, block by block, to an npy file in the cache, and mapped from there.
"""

import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from comp.data import cache, npz
from comp.errors import Refused
from comp.files import atomic_write

VERSION = 1  # raised when conversion changes, so that older caches are not used


@dataclass(frozen=True)
class Wanted:
    """An array the configuration asks for: a member, or one slice of it, and what it is used as.

    Raises Refused for a dtype or shape that holds no pictures.
    """

    member: npz.Member
    part: int | None  # index on the second axis; None: all of it
    role: Literal["images", "masks"]
    scale: float = 1.0  # images are multiplied by it
    labels: dict[int, int] = field(default_factory=dict)  # masks: a value to the label it becomes; empty: as it is

    def __post_init__(self) -> None:
        if self.member.dtype.kind not in "buif":
            raise Refused(f"{self}: {self.member.dtype} cannot be {self.role}; uint8 would fit")
        if 0 in self.member.shape or 0 in self.shape:
            raise Refused(f"{self}: shape {self.member.shape} holds no sample")

    def __str__(self) -> str:
        return str(self.member) if self.part is None else f"{self.member}[:, {self.part}]"

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, H, W, C) of images, (N, H, W) of masks."""
        # A broadcast zero has the shape and no memory.
        return self.arrange(np.broadcast_to(np.uint8(0), self.member.shape)).shape

    @property
    def mappable(self) -> bool:
        plain = self.member.dtype in (np.uint8, np.bool_) and self.scale == 1
        return plain and not self.labels and self.member.offset is not None

    @property
    def key(self) -> str:
        """What, beside the file's state, decides the uint8 array."""
        return cache.digest([VERSION, self.member.key, self.part, self.role, self.scale, *self.labels.items()])

    def arrange(self, block: np.ndarray) -> np.ndarray:
        """Rows of the member as images (n, H, W, C) or masks (n, H, W), which are images of one channel."""
        if self.part is not None:
            block = block[:, self.part]
        images = block[..., None] if block.ndim == 3 else block
        if images.ndim == 4:
            _, first, second, last = images.shape
            # 1, 3 or 4 channels may come first; where both ends could be channels, the last is.
            if first in (1, 3, 4) and first < min(second, last) and last not in (1, 3, 4):
                images = np.moveaxis(images, 1, -1)
        if images.ndim != 4 or (self.role == "masks" and images.shape[3] != 1):
            fits = "(N, H, W), (N, H, W, C) or (N, C, H, W)" if self.role == "images" else "(N, H, W)"
            raise Refused(f"{self}: {self.role} of shape {block.shape}; {fits} would fit")
        return images if self.role == "images" else images[..., 0]


def as_uint8(sources: list[Wanted], ids: np.ndarray, folder: Path) -> list[np.ndarray]:
    """Read-only uint8 arrays of one file's sources, shaped as `Wanted.shape` says; `ids` name the samples.

    Raises Refused for values that do not fit, naming the sample, and for a full disk.
    """
    if all(source.mappable for source in sources):
        return [_mapped(source) for source in sources]
    path, place = sources[0].member.path, cache.cache_folder(folder)
    cache.forget(place, path)
    targets = [(source, place / f"{cache.state(path)}.{source.key}.npy") for source in sources]
    missing = [target for target in targets if _opened(*target) is None]
    for _, together in groupby(missing, lambda target: target[0].member):  # images and masks of one member in one pass
        _convert(list(together), ids)
    arrays = [_opened(*target) for target in targets]
    if any(array is None for array in arrays):
        raise Refused(f"{place}: what {path.name} became there vanished while it was used; try again")
    return arrays


def _mapped(source: Wanted) -> np.ndarray:
    return source.arrange(npz.map_member(source.member).view(np.uint8))


def _opened(source: Wanted, file: Path) -> np.ndarray | None:
    """Mapped from the npz, or from the file that it was converted to; None: that has yet to be done."""
    if source.mappable:
        return _mapped(source)
    with suppress(OSError, ValueError, EOFError):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.shape == source.shape and array.dtype == np.uint8:
            return np.asarray(array)
    return None


def _convert(targets: list[tuple[Wanted, Path]], ids: np.ndarray) -> None:
    """Stream one member into a uint8 npy file for each of its sources."""
    member, folder = targets[0][0].member, targets[0][1].parent
    need, free = sum(prod(source.shape) for source, _ in targets), shutil.disk_usage(folder).free
    if need > free:
        raise Refused(f"{member}: {need:,} bytes as uint8, and {folder} has room for {free:,}")
    brightest = [0.0] * len(targets)
    try:
        with ExitStack() as stack:
            outputs = []
            for source, file in targets:
                outputs.append(stack.enter_context(open(stack.enter_context(atomic_write(file)), "wb")))
                npz.write_header(outputs[-1], source.shape, np.uint8)
            for first, rows in npz.iterate_blocks(member):
                for at, (source, _) in enumerate(targets):
                    values = source.arrange(rows)
                    outputs[at].write(np.ascontiguousarray(_as_uint8(values, source, ids[first:])).data)
                    brightest[at] = max(brightest[at], float(values.max()))
            for at, (source, _) in enumerate(targets):
                unscaled = source.role == "images" and member.dtype.kind == "f" and source.scale == 1
                if unscaled and 0 < brightest[at] <= 1:
                    raise Refused(f"{source}: no value is above 1; set competition.arrays.scale = 255")
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror or error}, while {member} was converted to uint8") from None


def _as_uint8(values: np.ndarray, source: Wanted, ids: np.ndarray) -> np.ndarray:
    """Images scaled and rounded, masks only if they are whole; `ids` name the samples."""
    found, fits = values, "labels are whole numbers from 0 to 255"
    if source.role == "images":
        fits = "images are 0 to 255 once multiplied by competition.arrays.scale"
        if source.scale != 1:
            values = values * np.float64(source.scale)
        if values.dtype.kind == "f":
            values = np.rint(values)
    with np.errstate(invalid="ignore"):
        becomes = values.astype(np.uint8)
    wrong = becomes != values  # a NaN is unlike any number
    if source.labels:
        fits = f"competition.arrays.labels and ignore say {', '.join(map(str, source.labels))}"
        table = np.zeros(256, np.uint8)
        table[[*source.labels]] = [*source.labels.values()]
        wrong |= ~np.isin(becomes, [*source.labels])
        becomes = table[becomes]
    if wrong.any():
        at = int(wrong.reshape(len(wrong), -1).any(axis=1).argmax())
        raise Refused(f"{source}: sample {str(ids[at])!r} has {found[at][wrong[at]].flat[0]}; {fits}")
    return becomes
