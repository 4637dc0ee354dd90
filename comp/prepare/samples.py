"""What is found in a download: samples, the layers of their masks, and what is odd."""

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from comp.data.arrays import Size
from comp.errors import Refused
from comp.prepare.decode import SUFFIXES


class Finding(NamedTuple):
    """One odd thing about one sample or file."""

    id: str  # of a test sample "test/…"
    finding: str  # its kind
    detail: str
    group: str = ""  # the first sample of those that belong together


class Layer(NamedTuple):
    """One part of a mask: a file, or run-lengths of one class."""

    content: Path | str
    label: int | None = None  # the class; None: the file's values say
    row: str = ""  # where run-lengths stand


@dataclass(frozen=True)
class Sample:
    """One image, with its mask where it has one."""

    id: str
    images: tuple[Path, ...]  # one file, or one for each band or set of bands
    mask: tuple[Layer, ...] | None = None  # None: not known; (): nothing is marked
    fold: int = 1  # in which it validates, where a split is given
    group: str = ""
    extra: bool = False  # it trains in every fold, and never validates
    size: Size = (0, 0)  # of the image as it is read; `build` finds it

    @property
    def order(self) -> tuple:
        """What samples are sorted by: ids, in which numbers count as such, so that slice_9 comes before slice_10."""
        parts = re.split("([0-9]+)", self.id)
        return [int(part) if k % 2 else part for k, part in enumerate(parts)], self.id

    @property
    def files(self) -> list[Path]:
        """All files that it is read from."""
        return [*self.images, *(path for path, _ in self.mask_files)]

    @property
    def mask_files(self) -> list[tuple[Path, int | None]]:
        """The files among the layers of its mask, with their labels."""
        return [(layer.content, layer.label) for layer in self.mask or () if isinstance(layer.content, Path)]


@dataclass(frozen=True)
class Found:
    """The samples of a download, ordered by id; `odd` names what was left out, and why."""

    train: list[Sample]
    test: list[Sample]
    odd: list[Finding]


def list_files(folder: Path) -> list[tuple[str, Path]]:
    """Every file below a folder: its path from there as people see it (NFC, with slashes), and as it is; sorted."""
    if not folder.is_dir():
        raise Refused(f"{folder}: no such folder")
    paths = (Path(place, name) for place, _, names in os.walk(folder, followlinks=True) for name in names)
    return sorted((as_seen(path.relative_to(folder).as_posix()), path) for path in paths)


def as_seen(text: str) -> str:
    """Letters with marks in one form: an archive of macOS writes é as two characters, a CSV as one."""
    return unicodedata.normalize("NFC", text)


def is_image(path: Path) -> bool:
    # "._name.jpg" is what macOS leaves in archives beside "name.jpg"; it holds no image.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def name_labels(classes: tuple[str, ...]) -> dict[str, int]:
    """Labels by what a class may be called: its number, or its name."""
    return {str(label): label for label in range(len(classes))} | {name: k for k, name in enumerate(classes)}
