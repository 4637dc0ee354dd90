"""Mask files in a zip or a tar: one for each image, in the values or colours that the competition asks for."""

import importlib
import io
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from comp import files
from comp.config import Competition
from comp.data.npz import refuse_damage
from comp.errors import Refused

Sizes = np.ndarray | tuple[int, ...] | None  # (N, 2) heights and widths of images, or one for all of them


@contextmanager
def open_archive(path: str | Path, competition: Competition) -> Iterator[Any]:
    """Yield `write(ids, labels)`, which adds a file for each image, uint8 (H, W); the archive appears whole."""
    codes, name = label_codes(competition), competition.submission.file
    kind = zipfile.ZipFile if Path(path).suffix == ".zip" else tarfile.TarFile
    with files.atomic_write(path) as beside, kind(beside, "w") as archive:

        def write(ids: Iterable[Any], labels: Iterable[np.ndarray]) -> None:
            for image_id, image in zip(ids, labels, strict=True):
                data, member = io.BytesIO(), name.replace("{id}", str(image_id))
                if name.endswith(".npy"):
                    np.save(data, codes[image])
                elif name.endswith(".h5"):
                    with importlib.import_module("h5py").File(data, "w") as file:
                        file["mask"] = codes[image]
                else:
                    Image.fromarray(codes[image]).save(data, Image.registered_extensions()[Path(name).suffix])
                if isinstance(archive, zipfile.ZipFile):
                    archive.writestr(zipfile.ZipInfo(member), data.getvalue(), zipfile.ZIP_DEFLATED)
                else:
                    about = tarfile.TarInfo(member)
                    about.size = len(data.getvalue())
                    archive.addfile(about, io.BytesIO(data.getvalue()))

        yield write


def label_codes(competition: Competition) -> np.ndarray:
    """What each label is in the files: uint8 or uint16 (C,), or colours uint8 (C, 3)."""
    values = competition.submission.values or range(len(competition.classes))
    if colours := [bytes.fromhex(value[1:]) for value in values if isinstance(value, str)]:
        return np.frombuffer(b"".join(colours), np.uint8).reshape(-1, 3)
    return np.array(values, np.min_scalar_type(max(values)))


def check_archive(path: Path, competition: Competition, ids: list, sizes: Sizes) -> int:
    """Read an archive back; return how many files it has. Raises Refused for names, sizes, values not asked for."""
    name, codes = competition.submission.file, label_codes(competition)
    wanted = {name.replace("{id}", str(image_id)): k for k, image_id in enumerate(ids)}
    sizes = None if sizes is None else np.broadcast_to(sizes, (len(ids), 2))
    seen = set()
    for member, data in _read_members(path):
        where = f"{path}: {member}"
        with refuse_damage(where, "a mask", ""):
            if name.endswith(".h5"):
                values = importlib.import_module("h5py").File(data)["mask"][()]
            else:
                values = np.load(data, allow_pickle=False) if name.endswith(".npy") else np.asarray(Image.open(data))
        if wanted and (member not in wanted or member in seen):
            raise Refused(f"{where}: of no test image, or there twice; names look like {next(iter(wanted))!r}")
        if sizes is not None and (size := values.shape[:2]) != tuple(sizes[wanted[member]]):
            raise Refused(f"{where}: is {size[0]}×{size[1]}; its image is {'×'.join(map(str, sizes[wanted[member]]))}")
        found = np.unique(values.reshape(-1, *values.shape[2:]), axis=0).tolist()
        if values.shape[2:] != codes.shape[1:] or any(one not in codes.tolist() for one in found):
            raise Refused(f"{where}: holds other values than {codes.tolist()}, such as {found[-1]}")
        seen.add(member)
    if missing := wanted.keys() - seen:
        raise Refused(f"{path}: {len(missing)} of {len(wanted)} files are missing, the first is {min(missing)!r}")
    return len(seen)


def _read_members(path: Path) -> Iterator[tuple[str, io.BytesIO]]:
    with refuse_damage(path, "an archive", ""):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                yield from ((name, io.BytesIO(archive.read(name))) for name in archive.namelist())
        else:
            with tarfile.open(path) as tar:
                for member in tar:
                    if file := tar.extractfile(member):  # None of a folder
                        yield member.name, io.BytesIO(file.read())
