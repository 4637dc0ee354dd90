"""Members of an npz file: checked, mapped or streamed, never unpickled.

An npz is a zip of npy files. A stored (uncompressed) member lies in the file as it would in memory,
so it can be mapped; a compressed one is inflated in blocks of rows, so that memory stays flat.
"""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Literal

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
    fortran: bool  # first index fastest
    header: int  # bytes before the data, inside the member
    offset: int | None  # where the data starts in the file; None: compressed

    def __str__(self) -> str:
        return f"{self.path}: {self.key}"

    @property
    def size(self) -> int:
        """Bytes of the data."""
        return prod(self.shape) * self.dtype.itemsize


def list_keys(path: Path) -> list[str]:
    """Names of the arrays in an npz file."""
    with _refuse_damage(str(path)), zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_member(path: Path, key: str) -> Member:
    """Read one member's header. Refused: no such key, object or structured arrays, a damaged file."""
    there, where = list_keys(path), f"{path}: {key}"
    if key not in there:
        raise Refused(f"{path}: no array {key!r}; there are {', '.join(there) or 'none'}")
    with _refuse_damage(where), open(path, "rb") as raw, zipfile.ZipFile(raw) as archive:
        info = archive.getinfo(f"{key}.npy")
        stored = info.compress_type == zipfile.ZIP_STORED
        with archive.open(info) as file:
            # zipfile has just read the local header, which may be longer than the central directory says.
            start = raw.tell()
            shape, fortran, dtype = _read_header(file, where)
            header = file.tell()
    found = Member(path, key, shape, dtype, fortran, header, start + header if stored else None)
    if info.file_size != header + found.size:
        raise Refused(f"{where}: {info.file_size - header} bytes do not hold {dtype} of shape {shape}")
    if stored and start + info.file_size > path.stat().st_size:
        raise Refused(f"{where}: truncated; copy the file again")
    return found


def map_member(member: Member) -> np.ndarray:
    """A read-only view of a stored member; nothing is read until it is used."""
    order: Literal["F", "C"] = "F" if member.fortran else "C"
    with _refuse_damage(str(member)):
        return np.asarray(np.memmap(member.path, member.dtype, "r", member.offset or 0, member.shape, order))


def iterate_blocks(member: Member) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) through the whole member, about `BLOCK` bytes at a time, checksum verified."""
    if member.fortran and len(member.shape) > 1:
        raise Refused(f"{member}: in Fortran order; save np.ascontiguousarray of it")
    count, *sample = member.shape
    row = prod(sample) * member.dtype.itemsize
    step = max(1, BLOCK // max(1, row))
    with _opened(member) as file:
        file.read(member.header)
        for first in range(0, count, step):
            rows = min(step, count - first)
            data = file.read(rows * row)  # zipfile compares the checksum with the last of them
            if len(data) != rows * row:
                raise Refused(f"{member}: truncated; copy the file again")
            yield first, np.frombuffer(data, np.uint8).view(member.dtype).reshape(rows, *sample)


def read_array(member: Member) -> np.ndarray:
    """A small member as an array in memory."""
    with _opened(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def write_header(file: IO[bytes], shape: tuple[int, ...], dtype: np.dtype | type) -> None:
    """Begin an npy file of a C-ordered array."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})


def write_npz(path: Path, members: Iterable[tuple[str, tuple[int, ...], type, Iterable[np.ndarray]]]) -> None:
    """Write members (key, shape, dtype, blocks of rows), stored so that they can be mapped, with flat memory.

    The same members always give the same bytes.
    """
    with atomic_write(path) as beside, zipfile.ZipFile(beside, "w") as archive:
        for key, shape, dtype, blocks in members:
            with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as file:
                write_header(file, shape, dtype)
                for block in blocks:
                    file.write(np.ascontiguousarray(block, dtype).data.cast("B"))


@contextmanager
def _opened(member: Member) -> Iterator[IO[bytes]]:
    with (
        _refuse_damage(str(member)),
        zipfile.ZipFile(member.path) as archive,
        archive.open(f"{member.key}.npy") as file,
    ):
        yield file


def _read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise Refused(f"{where}: npy version {version} is for structured arrays; save plain numbers or text")
    shape, fortran, dtype = readers[version](file)
    if dtype.hasobject:
        raise Refused(f"{where}: an object array, which only unpickling could read; save one plain array")
    if dtype.names or dtype.subdtype or dtype.itemsize == 0 or min(shape, default=0) < 0:
        raise Refused(f"{where}: {dtype} of shape {shape}; save plain numbers or text")
    return shape, fortran, dtype


@contextmanager
def _refuse_damage(where: str) -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except FileNotFoundError:
        raise Refused(f"{where}: no such file") from None
    except zipfile.BadZipFile as error:
        raise Refused(f"{where}: not a whole npz file ({error}); copy it again") from None
    # zipfile, zlib and the npy header's parser raise nearly anything on damaged bytes.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Refused(f"{where}: cannot be read: {reason}") from None
