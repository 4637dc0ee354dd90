"""Members of an npz file: checked, mapped or streamed, never unpickled; and any of them as uint8.

An npz is a zip of npy files. A stored (uncompressed) member lies in the file as it would in memory, so it can be
mapped; a compressed one is inflated in blocks of rows, so that memory stays flat. What is not stored as uint8
(compressed, float, other integers) is converted once, block by block, to an npz in the cache, and mapped from there."""

import hashlib
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from comp.errors import Refused
from comp.files import atomic_write

BLOCK = 8 << 20  # bytes that are inflated at a time


@dataclass(frozen=True)
class Member:
    """One array of an npz file, as its header describes it."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype
    header: int  # bytes before the data, inside the member
    offset: int | None  # where the data starts in the file; None: compressed

    def __str__(self) -> str:
        return f"{self.path}: {self.key}"


def list_keys(path: Path) -> list[str]:
    """Names of the arrays in an npz file."""
    with refuse_damage(path), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_member(path: Path, key: str) -> Member:
    """Read one member's header. Refused: no such key, object or structured or Fortran arrays, a damaged file."""
    there, where = list_keys(path), f"{path}: {key}"
    if key not in there:
        raise Refused(f"{path}: no array {key!r}; there are {', '.join(there) or 'none'}")
    with refuse_damage(where), open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as file:
            # zipfile has just read the local header, which may be longer than the central directory says.
            start = raw.tell()
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)  # later ones are for structured arrays
            header = file.tell()
    if dtype.hasobject or dtype.names or dtype.subdtype or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise Refused(f"{where}: an array of {dtype}, shape {shape}; save plain numbers or text")
    if fortran and len(shape) > 1:  # a sample would be spread over the whole file
        raise Refused(f"{where}: in Fortran order; save np.ascontiguousarray of it")
    if info.file_size != header + prod(shape) * dtype.itemsize:
        raise Refused(f"{where}: {info.file_size - header} bytes do not hold {dtype} of shape {shape}")
    offset = start + header if info.compress_type == zipfile.ZIP_STORED else None
    return Member(path, key, shape, dtype, header, offset)


def map_member(member: Member) -> np.ndarray:
    """A read-only view of a stored member; nothing is read until it is used."""
    if member.offset is None:
        raise Refused(f"{member}: compressed, so it cannot be mapped; save it with np.savez")
    with refuse_damage(member):
        return np.asarray(np.memmap(member.path, member.dtype, "r", member.offset, member.shape))


def iterate_blocks(member: Member) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) through the whole member, about `BLOCK` bytes at a time, checksum verified."""
    count, *sample = member.shape
    row = prod(sample) * member.dtype.itemsize
    step = max(1, BLOCK // row)
    with refuse_damage(member), zipfile.ZipFile(member.path) as archive, archive.open(f"{member.key}.npy") as file:
        file.read(member.header)
        for first in range(0, count, step):
            rows = min(step, count - first)
            data = file.read(rows * row)  # zipfile compares the checksum with the last of them
            yield first, np.frombuffer(data, member.dtype).reshape(rows, *sample)


def read_array(member: Member) -> np.ndarray:
    """A small member as an array in memory."""
    with refuse_damage(member), np.load(member.path, allow_pickle=False) as arrays:
        return arrays[member.key]


def write_npz(path: Path, members: Iterable[tuple[str, tuple[int, ...], type, Iterable[np.ndarray]]]) -> None:
    """Write members (key, shape, dtype, blocks of rows), stored, in flat memory; the same ones give the same bytes."""
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for key, shape, dtype, blocks in members:
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
                for block in blocks:
                    file.write(np.ascontiguousarray(block, dtype).data.cast("B"))


@contextmanager
def refuse_damage(where: Path | Member | str, kind: str = "an npz", hint: str = "; copy it again") -> Iterator[None]:
    """Turn what libraries raise at a damaged file, which may be nearly anything, into one line."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refused(f"{where}: cannot be read as {kind}: {reason}{hint}") from None


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
    """An array that the configuration asks for: a member or a slice of it, and its use. Refused: one of no images."""

    member: Member
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
        return self._arrange(np.broadcast_to(np.uint8(0), self.member.shape)).shape  # a zero without memory

    @property
    def key(self) -> str:
        """What, beside the file's state, decides the uint8 array."""
        return digest([VERSION, self.member.key, self.part, self.role, self.scale, *self.labels.items()])

    def load(self, ids: np.ndarray, cache: Path) -> np.ndarray:
        """A read-only uint8 array of `shape`, mapped from the npz, or from the cache after one conversion.

        `ids` name the samples. Raises Refused for values that do not fit, and OSError for a full disk."""
        plain = self.member.dtype in (np.uint8, np.bool_) and self.scale == 1 and not self.labels
        if plain and self.member.offset is not None:
            return self._arrange(map_member(self.member).view(np.uint8))
        path, state = self.member.path, file_state(self.member.path)
        file = cache / f"{state}.{self.key}.npz"
        with suppress(Refused):  # missing, or cut short
            return map_member(read_member(file, self.role))
        # Remove what was made of earlier states of the npz, and what killed processes left half written.
        for old in cache.glob("*"):
            stale = old.name.startswith(f"{path.name}.") and not old.name.startswith(f"{state}.")
            with suppress(FileNotFoundError):
                if stale or (old.name.startswith(".") and old.stat().st_mtime < time.time() - ABANDONED):
                    old.unlink()
        write_npz(file, [(self.role, self.shape, np.uint8, self._convert(ids))])
        return map_member(read_member(file, self.role))

    def _arrange(self, block: np.ndarray) -> np.ndarray:
        """Rows of the member as images (n, H, W, C) or masks (n, H, W), which are images of one channel."""
        if self.part is not None:
            block = block[:, self.part]
        images = block[..., None] if block.ndim == 3 else block
        if images.ndim != 4 or (self.role == "masks" and images.shape[3] != 1):
            fits = "(N, H, W) or (N, H, W, C)" if self.role == "images" else "(N, H, W)"
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
        for first, rows in iterate_blocks(self.member):
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
