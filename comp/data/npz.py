"""Members of an npz file: checked, mapped or streamed, never unpickled.

An npz is a zip of npy files. A stored (uncompressed) member lies in the file as it would in memory,
so it can be mapped; a compressed one is inflated in blocks of rows, so that memory stays flat."""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO

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
    with _refuse_damage(str(path)), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_member(path: Path, key: str) -> Member:
    """Read one member's header. Refused: no such key, object or structured or Fortran arrays, a damaged file."""
    there, where = list_keys(path), f"{path}: {key}"
    if key not in there:
        raise Refused(f"{path}: no array {key!r}; there are {', '.join(there) or 'none'}")
    with _refuse_damage(where), open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        info = archive.getinfo(f"{key}.npy")
        with archive.open(info) as file:
            # zipfile has just read the local header, which may be longer than the central directory says.
            start = raw.tell()
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)  # later ones are for structured arrays
            header = file.tell()
    if dtype.hasobject:
        raise Refused(f"{where}: an object array, which only unpickling could read; save one plain array")
    if dtype.names or dtype.subdtype or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise Refused(f"{where}: {dtype} of shape {shape}; save plain numbers or text")
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
    with _refuse_damage(str(member)):
        return np.asarray(np.memmap(member.path, member.dtype, "r", member.offset, member.shape))


def iterate_blocks(member: Member) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) through the whole member, about `BLOCK` bytes at a time, checksum verified."""
    count, *sample = member.shape
    row = prod(sample) * member.dtype.itemsize
    step = max(1, BLOCK // row)
    with _opened(member) as file:
        file.read(member.header)
        for first in range(0, count, step):
            rows = min(step, count - first)
            data = file.read(rows * row)  # zipfile compares the checksum with the last of them
            yield first, np.frombuffer(data, member.dtype).reshape(rows, *sample)


def read_array(member: Member) -> np.ndarray:
    """A small member as an array in memory."""
    with _opened(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def write_npz(path: Path, members: Iterable[tuple[str, tuple[int, ...], type, Iterable[np.ndarray]]]) -> None:
    """Write members (key, shape, dtype, blocks of rows), stored so that they can be mapped, with flat memory.

    The same members always give the same bytes."""
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for key, shape, dtype, blocks in members:
            descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
                for block in blocks:
                    file.write(np.ascontiguousarray(block, dtype).data.cast("B"))


@contextmanager
def _opened(member: Member) -> Iterator[IO[bytes]]:
    name = f"{member.key}.npy"
    with _refuse_damage(str(member)), zipfile.ZipFile(member.path) as archive, archive.open(name) as file:
        yield file


@contextmanager
def _refuse_damage(where: str) -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    # zipfile, zlib and the npy header's parser raise nearly anything on damaged bytes.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refused(f"{where}: not a readable npz ({reason}); copy it again") from None
