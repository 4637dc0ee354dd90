"""Which files below a folder are pictures, which are their masks, and which split each belongs to.

Two layouts are known. PASCAL VOC has lists: ImageSets/Segmentation/{train,val,test}.txt name the
stems in JPEGImages and SegmentationClass. Everything else is told by the words in the folders'
names ("train-label-img", "annotations/trimaps", "test_images", "val/masks") and paired by stem,
with or without a suffix such as "_mask". Files that belong nowhere are named, not lost.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from comp.audit import Finding
from comp.errors import Refused

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
MASK_WORD = re.compile(r"mask|(?<!un)label|trimap|annot|truth|segmentation|^(lab|gt|seg|target)s?$", re.I)
MASK_SUFFIX = re.compile(r"[-_. ](masks?|labels?|lab|trimap|gt|truth|seg|segmentation|annotation|matte|target)$", re.I)


@dataclass(frozen=True)
class Sample:
    """One picture, with its mask where it has one."""

    id: str  # the picture's stem
    picture: Path
    mask: Path | None
    fold: int = -1  # the fold in which a given split validates it: val 0, train 1; -1: no split is given


@dataclass(frozen=True)
class Layout:
    """What a folder holds; `odd` names every file that was left out, and why."""

    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    odd: tuple[Finding, ...]


def find(source: Path) -> Layout:
    """Find the samples below `source`, ordered by id. Raises Refused, naming what is missing or ambiguous."""
    if not source.is_dir():
        raise Refused(f"{source}: no such folder")
    lists = sorted(path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}ImageSets/Segmentation"))
    if len(lists) > 1:
        years = ", ".join(path.parts[-3] for path in lists)
        raise Refused(f"{source}: holds several VOC years ({years}); name one of them as --source")
    layout = _voc(lists[0]) if lists else _folders(source)
    if not layout.train:
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
    given = bool(named["train"] and named["val"])
    folds = {"train": 1, "val": 0} if given else {"train": -1, "val": -1, "trainval": -1}

    def sample(stem: str, of: str, fold: int) -> Sample:
        if stem not in pictures:
            raise Refused(f"{lists / of}.txt: names {stem}, but {root / 'JPEGImages'} has no such picture")
        if of != "test" and stem not in masks:
            raise Refused(f"{lists / of}.txt: names {stem}, but {root / 'SegmentationClass'} has no such mask")
        return Sample(stem, pictures[stem], masks.get(stem), fold)

    train = {stem: sample(stem, of, fold) for of, fold in folds.items() for stem in named[of]}
    for stem in named["test"]:
        if stem in train:
            raise Refused(f"{lists}: {stem} is in the test list and in a training list")
    test = {stem: sample(stem, "test", -1) for stem in named["test"]}
    unlisted = sorted((pictures.keys() | masks.keys()) - train.keys() - test.keys())
    odd += [Finding(stem, "not listed", "in no list of ImageSets/Segmentation") for stem in unlisted]
    return Layout(_ordered(train), _ordered(test), tuple(odd))


def _read_list(path: Path) -> list[str]:
    # Some VOC lists carry a second column (-1, 0, 1); the stem is the first.
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()] if path.exists() else []


def _folders(source: Path) -> Layout:
    pictures: dict[str, dict[str, Path]] = defaultdict(dict)
    masks: dict[str, dict[str, Path]] = defaultdict(dict)
    odd = []
    for path in _walk(source):
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

    fold = {"train": 1, "val": 0} if masks["val"] and masks["train"] else {"train": -1, "val": -1}
    train: dict[str, Sample] = {}
    for split in ("train", "val"):
        paired = _pair(pictures[split], masks[split])
        for stem, path in pictures[split].items():
            if stem in train:
                raise Refused(f"{path}: has the same stem as {train[stem].picture}; ids are stems, so rename one")
            if stem in paired:
                train[stem] = Sample(stem, path, paired[stem], fold[split])
            else:
                odd.append(Finding(stem, "no mask", path.relative_to(source).as_posix()))
        odd += _unpaired(masks[split], paired, source)
    paired = _pair(pictures["test"], masks["test"])
    odd += _unpaired(masks["test"], paired, source)
    test = {stem: Sample(stem, path, paired.get(stem)) for stem, path in pictures["test"].items()}
    return Layout(_ordered(train), _ordered(test), tuple(odd))


def _walk(source: Path) -> Iterable[Path]:
    for folder, below, names in os.walk(source):
        below.sort()
        yield from (Path(folder, name) for name in sorted(names))


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


def _unpaired(masks: dict[str, Path], paired: dict[str, Path], source: Path) -> list[Finding]:
    used = set(paired.values())
    return [Finding(p.stem, "no picture", p.relative_to(source).as_posix()) for p in masks.values() if p not in used]


def _ordered(samples: dict[str, Sample]) -> tuple[Sample, ...]:
    return tuple(samples[stem] for stem in sorted(samples))
