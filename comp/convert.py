"""Any array of an npz as uint8.

What the file stores as uint8 is memory-mapped where it lies. Anything else (compressed, float, other
integers) is converted once, block by block, to an npy file in the cache, and mapped from there.
"""

import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO, Literal, NoReturn

import numpy as np

from comp import cache, npz
from comp.errors import Refused
from comp.files import whole

VERSION = 1  # raised when conversion changes, so that older caches are not used


@dataclass(frozen=True)
class Source:
    """An array the configuration asks for: a member, or one slice of it, and what it is used as.

    Raises Refused for a dtype or shape that holds no pictures.
    """

    member: npz.Member
    part: int | None  # index on the second axis; None: all of it
    role: Literal["images", "masks"]
    scale: float = 1.0  # images are multiplied by it
    labels: tuple[tuple[int, int], ...] = ()  # masks: pairs of a value and the label that it becomes; empty: as it is

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
        return cache.digest([VERSION, self.member.key, self.part, self.role, self.scale, *self.labels])

    def arrange(self, block: np.ndarray) -> np.ndarray:
        """Rows of the member as images (n, H, W, C) or masks (n, H, W)."""
        if self.part is not None:
            block = block[:, self.part]
        arranged = _images(block) if self.role == "images" else _masks(block)
        if arranged is None:
            fits = "(N, H, W), (N, H, W, C) or (N, C, H, W)" if self.role == "images" else "(N, H, W)"
            raise Refused(f"{self}: {self.role} of shape {block.shape}; {fits} would fit")
        return arranged


def uint8(sources: list[Source], ids: np.ndarray, folder: Path) -> list[np.ndarray]:
    """Read-only uint8 arrays of one file's sources, shaped as `Source.shape` says; `ids` name the samples.

    Raises Refused for values that do not fit, naming the sample, and for a full disk.
    """
    if all(source.mappable for source in sources):
        return [_mapped(source) for source in sources]
    path, place = sources[0].member.path, cache.cache_folder(folder)
    cache.forget(place, path)
    files = [place / f"{cache.state(path)}.{source.key}.npy" for source in sources]
    missing: dict[str, list[tuple[Source, Path]]] = {}
    for source, file in zip(sources, files, strict=True):
        if not source.mappable and _cached(source, file) is None:
            missing.setdefault(source.member.key, []).append((source, file))
    for targets in missing.values():  # images and masks of one member in one pass
        _convert(targets, ids)
    arrays = []
    for source, file in zip(sources, files, strict=True):
        array = _mapped(source) if source.mappable else _cached(source, file)
        if array is None:
            raise Refused(f"{file}: vanished while it was used; try again")
        arrays.append(array)
    return arrays


def _images(block: np.ndarray) -> np.ndarray | None:
    if block.ndim == 3:
        return block[..., None]
    if block.ndim != 4:
        return None
    _, first, second, last = block.shape
    # 1, 3 or 4 channels may come first; where both ends could be channels, the last is.
    if first in (1, 3, 4) and first < min(second, last) and last not in (1, 3, 4):
        return np.moveaxis(block, 1, -1)
    return block


def _masks(block: np.ndarray) -> np.ndarray | None:
    if block.ndim == 4 and 1 in (block.shape[3], block.shape[1]):
        block = block[..., 0] if block.shape[3] == 1 else block[:, 0]
    return block if block.ndim == 3 else None


def _mapped(source: Source) -> np.ndarray:
    return source.arrange(npz.mapped(source.member).view(np.uint8))


def _cached(source: Source, file: Path) -> np.ndarray | None:
    with suppress(OSError, ValueError, EOFError):
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        if array.shape == source.shape and array.dtype == np.uint8:
            return np.asarray(array)
    return None


def _convert(targets: list[tuple[Source, Path]], ids: np.ndarray) -> None:
    """Stream one member into a uint8 npy file for each of its sources."""
    member, folder = targets[0][0].member, targets[0][1].parent
    need, free = sum(prod(source.shape) for source, _ in targets), shutil.disk_usage(folder).free
    if need > free:
        raise Refused(f"{member}: {need:,} bytes as uint8, and {folder} has room for {free:,}")
    try:
        with ExitStack() as stack:
            outputs = [_output(stack, source, file) for source, file in targets]
            highest = [0.0] * len(targets)
            for first, rows in npz.blocks(member):
                for at, (source, _) in enumerate(targets):
                    values = source.arrange(rows)
                    outputs[at].write(np.ascontiguousarray(_as_uint8(values, source, ids, first)).data)
                    highest[at] = max(highest[at], float(values.max()))
            for (source, _), high in zip(targets, highest, strict=True):
                unscaled = source.role == "images" and member.dtype.kind == "f" and source.scale == 1
                if unscaled and 0 < high <= 1:
                    raise Refused(f"{source}: no value is above 1; set competition.arrays.scale = 255")
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror or error}, while {member} was converted to uint8") from None


def _output(stack: ExitStack, source: Source, file: Path) -> BinaryIO:
    output = stack.enter_context(open(stack.enter_context(whole(file)), "wb"))
    npz.write_header(output, source.shape, np.uint8)
    return output


def _as_uint8(values: np.ndarray, source: Source, ids: np.ndarray, first: int) -> np.ndarray:
    """Images scaled and rounded, masks only if they are whole; `first` is the number of the first sample."""
    raw, floats = values, values.dtype.kind == "f"
    if source.role == "images" and source.scale != 1:
        values = np.rint(values * np.float64(source.scale))
    elif source.role == "images" and floats:
        values = np.rint(values)
    # Written so that a NaN, for which every comparison is false, does not pass.
    if not (values.min() >= 0 and values.max() <= 255):
        _refuse(~((values >= 0) & (values <= 255)), raw, source, ids[first:])
    whole_numbers = values.astype(np.uint8)
    if source.role == "masks" and floats and not np.array_equal(whole_numbers, values):
        _refuse(whole_numbers != values, raw, source, ids[first:])
    if source.labels:
        table = np.full(256, -1, np.int16)
        for value, label in source.labels:
            table[value] = label
        labels = table[whole_numbers]
        if labels.min() < 0:
            _refuse(labels < 0, raw, source, ids[first:])
        return labels.astype(np.uint8)
    return whole_numbers


def _refuse(wrong: np.ndarray, values: np.ndarray, source: Source, ids: np.ndarray) -> NoReturn:
    at = int(wrong.reshape(len(wrong), -1).any(axis=1).argmax())
    fits = "labels are whole numbers from 0 to 255"
    if source.labels:
        fits = f"competition.arrays.labels and ignore say {', '.join(str(value) for value, _ in source.labels)}"
    elif source.role == "images":
        fits = "images are 0 to 255 once multiplied by competition.arrays.scale"
    raise Refused(f"{source}: sample {str(ids[at])!r} has {values[at][wrong[at]].flat[0]}; {fits}")
