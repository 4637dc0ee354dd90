"""Which files below a folder are images, which are their masks, and which split each belongs to.

Two layouts are known. PASCAL VOC has lists: ImageSets/Segmentation/{train,val,test}.txt name the
stems in JPEGImages and SegmentationClass. In any other, the folders' names say what lies in them
("images", "train/masks", "annotations/trimaps", "test_images"), and a mask has the stem of its
image, with or without "_mask" behind it. Files that belong nowhere are named, not lost.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from comp.errors import Refused
from comp.prepare.finding import Finding

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
# Words of a folder's path, between slashes and underscores. "train_masks" holds masks.
MASK_FOLDERS = {"mask", "masks", "label", "labels", "trimaps", "annotations"}
VAL_FOLDERS = {"val", "valid", "validation"}
IMAGE_FOLDERS = {"image", "images", "train", "test"} | VAL_FOLDERS


@dataclass(frozen=True, order=True)
class Sample:
    """One image, with its mask where it has one; ordered by id."""

    id: str  # the file's stem, or its whole name
    image: Path
    mask: Path | None
    fold: int = 1  # 0 if a given split validates on it


@dataclass(frozen=True)
class Layout:
    """What a folder holds; `odd` names every file that was left out, and why."""

    train: list[Sample]
    test: list[Sample]
    odd: list[Finding]


def find_samples(source: Path, ids: str = "stem", for_test: bool = False) -> Layout:
    """Find the samples below `source`, ordered by stem. Raises Refused, naming what is missing or ambiguous.

    `ids`: "stem" or, with the suffix, "name". `for_test`: test images must be there, and training ones need not.
    """
    if not source.is_dir():
        raise Refused(f"{source}: no such folder")
    lists = sorted(path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}ImageSets/Segmentation"))
    if len(lists) > 1:
        years = ", ".join(path.parts[-3] for path in lists)
        raise Refused(f"{source}: holds several VOC years ({years}); name one of them as --source")
    layout = _voc(lists[0]) if lists else _folders(source)
    if for_test and not layout.test:
        raise Refused(f"{source}: no test images; they lie in test/ or test_images/, or stand in VOC's test list")
    if not for_test and not layout.train:
        there = sorted({f"{path.parent.relative_to(source)}/" for path in _files(source) if _is_image(path)})
        raise Refused(
            f"{source}: no image there has a mask (images lie in {', '.join(there[:6]) or 'no folder'}); what fits: "
            "images/ and masks/ with equal stems (test_images/ beside them), images/ and annotations/trimaps/, "
            "or VOC's JPEGImages, SegmentationClass and ImageSets"
        )
    if ids == "name":
        train, test = ([replace(one, id=one.image.name) for one in part] for part in (layout.train, layout.test))
        return Layout(train, test, layout.odd)
    return layout


def _voc(lists: Path) -> Layout:
    root = lists.parent.parent
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    odd = []
    for folder, found in (("JPEGImages", images), ("SegmentationClass", masks)):
        for path in sorted(root.glob(f"{folder}/*")):
            if _is_image(path):
                found[path.stem] = path
            else:
                odd.append(Finding(path.name, "not an image", folder))
    train: dict[str, Sample] = {}
    test: dict[str, Sample] = {}
    for name, fold in (("train", 1), ("val", 0), ("trainval", 1), ("test", 1)):
        for stem in _read_list(lists / f"{name}.txt"):
            if stem not in images:
                raise Refused(f"{lists / name}.txt: names {stem}, but {root / 'JPEGImages'} has no such image")
            if name != "test" and stem not in masks:
                raise Refused(f"{lists / name}.txt: names {stem}, but {root / 'SegmentationClass'} has no such mask")
            if name == "test" and stem in train:
                raise Refused(f"{lists}: {stem} is in the test list and in a training list")
            (test if name == "test" else train).setdefault(stem, Sample(stem, images[stem], masks.get(stem), fold))
    unlisted = sorted((images.keys() | masks.keys()) - train.keys() - test.keys())
    odd += [Finding(stem, "not listed", "in no list of ImageSets/Segmentation") for stem in unlisted]
    return Layout(sorted(train.values()), sorted(test.values()), odd)


def _read_list(path: Path) -> list[str]:
    # Some VOC lists carry a second column (-1, 0, 1); the stem is the first.
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def _folders(source: Path) -> Layout:
    images: dict[str, dict[str, Path]] = {"train": {}, "test": {}}
    masks: dict[str, dict[str, Path]] = {"train": {}, "test": {}}
    odd, val = [], set()
    for path in sorted(_files(source)):
        folder = path.relative_to(source).parent.as_posix()
        words = set(re.split("[/_]", folder.lower()))
        if not _is_image(path) or not words & (MASK_FOLDERS | IMAGE_FOLDERS):
            odd.append(Finding(path.name, "folder not used" if _is_image(path) else "not an image", folder))
            continue
        of_split = (masks if words & MASK_FOLDERS else images)["test" if "test" in words else "train"]
        if (twin := of_split.setdefault(path.stem, path)) != path:
            raise Refused(f"{path}: has the same stem as {twin}; ids are stems, so one of them must be renamed")
        if words & VAL_FOLDERS:
            val.add(path.stem)

    found: dict[str, list[Sample]] = {"train": [], "test": []}
    for split, samples in found.items():
        for stem, path in images[split].items():
            of_image = [masks[split].pop(name) for name in (stem, f"{stem}_mask") if name in masks[split]]
            if len(of_image) > 1:
                raise Refused(f"{of_image[0]} and {of_image[1]}: two masks of the image {stem}")
            if of_image or split == "test":
                samples.append(Sample(stem, path, of_image[0] if of_image else None, int(stem not in val)))
            else:
                odd.append(Finding(stem, "no mask", path.relative_to(source).as_posix()))
        alone = masks[split].values()
        odd += [Finding(path.stem, "no image", path.relative_to(source).as_posix()) for path in alone]
    return Layout(sorted(found["train"]), sorted(found["test"]), odd)


def _files(source: Path) -> Iterator[Path]:
    """Every file below a folder, those behind links to folders, too; a folder that is met again is passed over."""
    seen = set()
    for place, folders, names in os.walk(source, followlinks=True):
        folders.sort()
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
        else:
            seen.add(real)
            yield from (Path(place, name) for name in names)


def _is_image(path: Path) -> bool:
    # "._name.jpg" is what macOS leaves in archives beside "name.jpg"; it holds no image.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
