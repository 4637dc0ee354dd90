"""Any array of an npz as uint8, and the folder in which converted arrays are cached.

What the file stores as uint8 is memory-mapped where it lies. Anything else (compressed, float, other
integers) is converted once, block by block, to an npz in the cache, and mapped from there."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from comp.data import npz
from comp.errors import Refused

VERSION = 1  # raised when conversion changes, so that older caches are not used
ABANDONED = 600  # seconds without a write, after which a half-written file is a killed process's


def cache_folder(folder: Path) -> Path:
    """Where to cache what is made of an input folder: `folder`/.cache, else a temporary folder; made on first write."""
    cache = Path(folder).absolute() / ".cache"
    place = cache if cache.exists() else cache.parent
    if place.is_dir() and os.access(place, os.W_OK):
        return cache
    return Path(tempfile.gettempdir()) / f"comp-{os.getuid()}-{digest([os.fspath(cache)])}"


def file_state(path: Path) -> str:
    """A file's name, size and time of change: another string once the file changes."""
    status = path.stat()
    return f"{path.name}.{status.st_size:x}-{status.st_mtime_ns:x}"


def digest(values: list, data: bytes = b"") -> str:
    """Twelve hexadecimal digits of JSON-able values and bytes."""
    return hashlib.blake2b(json.dumps(values).encode() + data, digest_size=6).hexdigest()


@dataclass(frozen=True)
class Wanted:
    """An array the configuration asks for: a member, or one slice of it, and what it is used as.

    Raises Refused for a dtype or shape that holds no images."""

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
        return self._arrange(np.broadcast_to(np.uint8(0), self.member.shape)).shape

    @property
    def key(self) -> str:
        """What, beside the file's state, decides the uint8 array."""
        return digest([VERSION, self.member.key, self.part, self.role, self.scale, *self.labels.items()])

    def load(self, ids: np.ndarray, cache: Path) -> np.ndarray:
        """A read-only uint8 array of `shape`, mapped from the npz, or from the cache after one conversion.

        `ids` name the samples. Raises Refused for values that do not fit, naming the sample, OSError for a full disk.
        """
        plain = self.member.dtype in (np.uint8, np.bool_) and self.scale == 1 and not self.labels
        if plain and self.member.offset is not None:
            return self._arrange(npz.map_member(self.member).view(np.uint8))
        path, state = self.member.path, file_state(self.member.path)
        file = cache / f"{state}.{self.key}.npz"
        with suppress(Refused):  # missing, or cut short
            return npz.map_member(npz.read_member(file, self.role))
        # Remove what was made of earlier states of the npz, and what killed processes left half written.
        for old in cache.glob("*"):
            stale = old.name.startswith(f"{path.name}.") and not old.name.startswith(f"{state}.")
            with suppress(FileNotFoundError):
                if stale or (old.name.startswith(".") and old.stat().st_mtime < time.time() - ABANDONED):
                    old.unlink()
        npz.write_npz(file, [(self.role, self.shape, np.uint8, self._convert(ids))])
        return npz.map_member(npz.read_member(file, self.role))

    def _arrange(self, block: np.ndarray) -> np.ndarray:
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

    def _convert(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the array in uint8 blocks: images scaled and rounded, masks only if they are whole."""
        table, fits = np.zeros(256, np.uint8), "labels are whole numbers from 0 to 255"
        if self.role == "images":
            fits = "images are 0 to 255 once multiplied by competition.arrays.scale"
        if self.labels:
            fits = f"competition.arrays.labels and ignore say {', '.join(map(str, self.labels))}"
            table[[*self.labels]] = [*self.labels.values()]
        brightest = 0.0
        for first, rows in npz.iterate_blocks(self.member):
            found = values = self._arrange(rows)
            if self.role == "images" and (self.scale != 1 or values.dtype.kind == "f"):
                values = np.rint(values * np.float64(self.scale))
            with np.errstate(invalid="ignore"):
                numbers = values.astype(np.uint8)
            wrong = numbers != values  # a NaN is unlike any number
            if self.labels:
                wrong |= ~np.isin(numbers, [*self.labels])
                numbers = table[numbers]
            if wrong.any():
                at = int(wrong.reshape(len(wrong), -1).any(axis=1).argmax())
                raise Refused(f"{self}: sample {str(ids[first + at])!r} has {found[at][wrong[at]].flat[0]}; {fits}")
            brightest = max(brightest, float(found.max()))
            yield numbers
        if self.role == "images" and self.member.dtype.kind == "f" and self.scale == 1 and 0 < brightest <= 1:
            raise Refused(f"{self}: no value is above 1; set competition.arrays.scale = 255")
