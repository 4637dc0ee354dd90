"""Which files below a folder are pictures, which are their masks, and which split each belongs to.

Two layouts are known. PASCAL VOC has lists: ImageSets/Segmentation/{train,val,test}.txt name the
stems in JPEGImages and SegmentationClass. Everything else is told by the words in the folders'
names ("train-label-img", "annotations/trimaps", "test_images", "val/masks") and paired by stem,
with or without a suffix such as "_mask". Files that belong nowhere are named, not lost.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from comp.errors import Refused

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MASK_WORD = re.compile(r"mask|(?<!un)label|trimap|annot|truth|segmentation|^(lab|gt|seg|target)s?$", re.I)
MASK_SUFFIX = re.compile(r"[-_. ](masks?|labels?|lab|trimap|gt|truth|seg|segmentation|annotation|matte|target)$", re.I)


@dataclass(frozen=True)
class Finding:
    """One odd thing about one sample or file."""

    id: str
    finding: str  # its kind
    detail: str
    group: str = ""  # the first sample of those that belong together, "test/…" for a test sample


@dataclass(frozen=True, order=True)
class Sample:
    """One picture, with its mask where it has one; ordered by id."""

    id: str  # the file's stem; `pictures` may make it the whole name
    picture: Path
    mask: Path | None
    fold: int = -1  # the fold in which a given split validates it: val 0, train 1; -1: no split is given


@dataclass(frozen=True)
class Layout:
    """What a folder holds; `odd` names every file that was left out, and why."""

    train: list[Sample]
    test: list[Sample]
    odd: list[Finding]


def find_samples(source: Path, for_test: bool = False) -> Layout:
    """Find the samples below `source`, ordered by id. Raises Refused, naming what is missing or ambiguous.

    `for_test`: it is test pictures that must be there, and not training ones.
    """
    if not source.is_dir():
        raise Refused(f"{source}: no such folder")
    lists = sorted(path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}ImageSets/Segmentation"))
    if len(lists) > 1:
        years = ", ".join(path.parts[-3] for path in lists)
        raise Refused(f"{source}: holds several VOC years ({years}); name one of them as --source")
    layout = _voc(lists[0]) if lists else _folders(source)
    if for_test and not layout.test:
        raise Refused(f"{source}: no test pictures; they lie in a folder named test…, or stand in VOC's test list")
    if not for_test and not layout.train:
        raise Refused(
            f"{source}: no picture there has a mask; what fits: images/ and masks/ with equal stems (test_images/ "
            "beside them), images/ and annotations/trimaps/, or VOC's JPEGImages, SegmentationClass and ImageSets"
        )
    return layout


def _voc(lists: Path) -> Layout:
    root = lists.parent.parent
    pictures, masks, odd = {}, {}, []
    for name, found in (("JPEGImages", pictures), ("SegmentationClass", masks)):
        for path in sorted(root.glob(f"{name}/*")):
            if _is_picture(path):
                found[path.stem] = path
            else:
                odd.append(Finding(path.name, "not a picture", name))
    named = {name: _read_list(lists / f"{name}.txt") for name in ("train", "val", "trainval", "test")}
    folds = {"train": 1, "val": 0, "test": -1} if named["train"] and named["val"] else dict.fromkeys(named, -1)
    train: dict[str, Sample] = {}
    test: dict[str, Sample] = {}
    for of, fold in folds.items():
        for stem in named[of]:
            if stem not in pictures:
                raise Refused(f"{lists / of}.txt: names {stem}, but {root / 'JPEGImages'} has no such picture")
            if of != "test" and stem not in masks:
                raise Refused(f"{lists / of}.txt: names {stem}, but {root / 'SegmentationClass'} has no such mask")
            if of == "test" and stem in train:
                raise Refused(f"{lists}: {stem} is in the test list and in a training list")
            (test if of == "test" else train)[stem] = Sample(stem, pictures[stem], masks.get(stem), fold)
    unlisted = sorted((pictures.keys() | masks.keys()) - train.keys() - test.keys())
    odd += [Finding(stem, "not listed", "in no list of ImageSets/Segmentation") for stem in unlisted]
    return Layout(sorted(train.values()), sorted(test.values()), odd)


def _read_list(path: Path) -> list[str]:
    # Some VOC lists carry a second column (-1, 0, 1); the stem is the first.
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def _folders(source: Path) -> Layout:
    pictures: dict[str, dict[str, Path]] = defaultdict(dict)
    masks: dict[str, dict[str, Path]] = defaultdict(dict)
    odd = []
    for path in sorted(_files(source)):
        folder = path.relative_to(source).parent.as_posix()
        if not _is_picture(path):
            odd.append(Finding(path.name, "not a picture", folder))
            continue
        words = re.split(r"[^a-zA-Z0-9]+", folder)
        kind = masks if any(map(MASK_WORD.search, words)) or MASK_SUFFIX.search(path.stem) else pictures
        split = next((name for name in ("test", "val") if any(w.lower().startswith(name) for w in words)), "train")
        twin = kind[split].setdefault(path.stem, path)
        if twin != path:
            raise Refused(f"{path}: has the same stem as {twin}; ids are stems, so one of them must be renamed")

    fold = {"train": 1, "val": 0} if masks["val"] and masks["train"] else {}
    train: dict[str, Sample] = {}
    test: dict[str, Sample] = {}
    for split in ("train", "val", "test"):
        samples, paired = test if split == "test" else train, _pair(pictures[split], masks[split])
        for stem, path in pictures[split].items():
            if stem in samples:
                raise Refused(f"{path}: has the same stem as {samples[stem].picture}; ids are stems, so rename one")
            if stem in paired or split == "test":
                samples[stem] = Sample(stem, path, paired.get(stem), fold.get(split, -1))
            else:
                odd.append(Finding(stem, "no mask", path.relative_to(source).as_posix()))
        alone = sorted({*masks[split].values()} - {*paired.values()})
        odd += [Finding(path.stem, "no picture", path.relative_to(source).as_posix()) for path in alone]
    return Layout(sorted(train.values()), sorted(test.values()), odd)


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


def _is_picture(path: Path) -> bool:
    # "._name.jpg" is what macOS leaves in archives beside "name.jpg"; it holds no picture.
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _pair(pictures: dict[str, Path], masks: dict[str, Path]) -> dict[str, Path]:
    paired: dict[str, Path] = {}
    for stem, path in masks.items():
        name = stem if stem in pictures else MASK_SUFFIX.sub("", stem)
        if name in paired:
            raise Refused(f"{path} and {paired[name]}: two masks of the picture {name}")
        if name in pictures:
            paired[name] = path
    return paired
