"""Which files below a folder are images, which are their masks, and which split each belongs to.

Two layouts are known. PASCAL VOC has lists: ImageSets/Segmentation/{train,val,test}.txt name the
stems in JPEGImages and SegmentationClass. In any other, the folders' names say what lies in them
("images", "train/masks", "annotations/trimaps", "test_images"), and a mask has the stem of its
image, with or without "_mask" behind it. Files that belong nowhere are named, not lost.
"""

import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from comp.data.arrays import Size
from comp.errors import Refused

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# Words of a folder's path, between slashes and underscores. "train_masks" holds masks.
MASK_FOLDERS = {"mask", "masks", "label", "labels", "trimaps", "annotations"}
VAL_FOLDERS = {"val", "valid", "validation"}
IMAGE_FOLDERS = {"image", "images", "train", "test"} | VAL_FOLDERS


class Finding(NamedTuple):
    """One odd thing about one sample or file."""

    id: str  # of a test sample "test/…"
    finding: str  # its kind
    detail: str
    group: str = ""  # the first sample of those that belong together


@dataclass(frozen=True, order=True)
class Sample:
    """One image, with its mask where it has one; ordered by id."""

    id: str  # the file's stem, or its whole name
    image: Path
    mask: Path | None
    fold: int = 1  # 0 if a given split validates on it
    size: Size = (0, 0)  # of the image as it is read; `build` finds it


@dataclass(frozen=True)
class Layout:
    """What a folder holds; `odd` names every file that was left out, and why."""

    train: list[Sample]
    test: list[Sample]
    odd: list[Finding]


def find_samples(source: Path, ids: str = "stem", for_test: bool = False) -> Layout:
    """Find the samples below `source`, ordered by stem. Raises Refused where the wanted split is not there.

    `ids`: "stem" or, with the suffix, "name". `for_test`: the test images are wanted, else the training images.
    """
    if not source.is_dir():
        raise Refused(f"{source}: no such folder")
    lists = sorted(path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}ImageSets/Segmentation"))
    if len(lists) > 1:
        years = ", ".join(path.parts[-3] for path in lists)
        raise Refused(f"{source}: holds several VOC years ({years}); name one of them as --source")
    layout = _read_voc(lists[0]) if lists else _read_folders(source)
    if not (layout.test if for_test else layout.train):
        there = {f"{one.detail}/" for one in layout.odd if one.finding in ("folder not used", "no mask")}
        raise Refused(
            f"{source}: no {'test images' if for_test else 'image with a mask'} (images lie in "
            f"{', '.join(sorted(there)[:6]) or 'no folder'}); what fits: images/ and masks/ with equal stems "
            "(test_images/ beside them), or annotations/trimaps/; or VOC's JPEGImages, SegmentationClass and ImageSets"
        )
    train, test = sorted(layout.train), sorted(layout.test)
    if ids == "name":
        train, test = ([replace(one, id=one.image.name) for one in split] for split in (train, test))
    return Layout(train, test, layout.odd)


def _read_voc(lists: Path) -> Layout:
    root = lists.parent.parent
    images, masks = (
        {path.stem: path for path in (root / folder).glob("*") if _is_image(path)}
        for folder in ("JPEGImages", "SegmentationClass")
    )
    train: dict[str, Sample] = {}
    test: dict[str, Sample] = {}
    for name, fold in (("train", 1), ("val", 0), ("trainval", 1), ("test", 1)):
        path, split = lists / f"{name}.txt", test if name == "test" else train
        for stem in path.read_text("utf-8-sig", "surrogateescape").split() if path.exists() else []:
            if stem not in images or (name != "test" and stem not in masks):
                raise Refused(f"{path}: names {stem}, which JPEGImages or SegmentationClass lacks")
            split.setdefault(stem, Sample(stem, images[stem], masks.get(stem), fold))
    return Layout([*train.values()], [*test.values()], [])


def _read_folders(source: Path) -> Layout:
    found: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    layout, val = Layout([], [], []), set()
    for path in sorted(Path(place, name) for place, _, names in os.walk(source, followlinks=True) for name in names):
        folder = path.relative_to(source).parent.as_posix()
        words = set(re.split("[/_]", folder.lower()))
        if not _is_image(path) or not words & (MASK_FOLDERS | IMAGE_FOLDERS):
            layout.odd.append(Finding(path.name, "folder not used" if _is_image(path) else "not an image", folder))
            continue
        of_kind = found["test" if "test" in words else "train", "masks" if words & MASK_FOLDERS else "images"]
        if (twin := of_kind.setdefault(path.stem, path)) != path:
            raise Refused(f"{path}: has the same stem as {twin}; ids are stems, so one of them must be renamed")
        if words & VAL_FOLDERS:
            val.add(path.stem)

    for split, samples in (("train", layout.train), ("test", layout.test)):
        masks = found[split, "masks"]
        for stem, path in found[split, "images"].items():
            mask = masks.pop(stem, None) or masks.pop(f"{stem}_mask", None)
            if mask or split == "test":
                samples.append(Sample(stem, path, mask, int(stem not in val)))
            else:
                layout.odd.append(Finding(stem, "no mask", path.relative_to(source).parent.as_posix()))
        layout.odd.extend(Finding(stem, "no image", path.parent.name) for stem, path in masks.items())
    return layout


def _is_image(path: Path) -> bool:
    # "._name.jpg" is what macOS leaves in archives beside "name.jpg"; it holds no image.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
