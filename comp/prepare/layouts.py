"""Which files below a folder are images and which are their masks, where the TOML does not say it.

Two layouts are known. PASCAL VOC has lists: ImageSets/Segmentation/{train,val,test}.txt name the
stems in JPEGImages and SegmentationClass. In any other, the folders' names say what lies in them
("images", "train/masks", "annotations/trimaps", "test_images"), and a mask has the stem of its
image, with or without "_mask" behind it. Files that belong nowhere are named, not lost; where two
folders could hold the masks, neither is taken.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from comp.config import Competition
from comp.errors import Refused
from comp.prepare.patterns import SPLITS, fill
from comp.prepare.samples import Finding, Found, Layer, Sample, as_seen, is_image, list_files

# Words of a folder's path, between slashes and underscores. "train_masks" holds masks.
MASK_FOLDERS = {"mask", "masks", "label", "labels", "trimaps", "annotations"}
VAL_FOLDERS = {word for word, fold in SPLITS.items() if fold == 0}
IMAGE_FOLDERS = {"image", "images", "train", "test"} | VAL_FOLDERS


def find_in_folders(competition: Competition, source: Path, parts: tuple[str, ...]) -> Found:
    """Find the samples below `source` without patterns. Raises Refused where the first part's are not there."""
    files = list_files(source)
    lists = sorted(path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}ImageSets/Segmentation"))
    if len(lists) > 1:
        years = ", ".join(path.parts[-3] for path in lists)
        raise Refused(f"{source}: holds several VOC years ({years}); name one of them as --source")
    found = _read_voc(competition, lists[0]) if lists else _read_folders(competition, files, parts)
    if not (found.train if "train" in parts else found.test):
        there = {f"{one.detail}/" for one in found.odd if one.finding in ("folder not used", "no mask")}
        raise Refused(
            f"{source}: no {'image with a mask' if 'train' in parts else 'test images'} (images lie in "
            f"{', '.join(sorted(there)[:6]) or 'no folder'}); what fits: images/ and masks/ with equal stems "
            "(test_images/ beside them), or annotations/trimaps/; or VOC's JPEGImages, SegmentationClass and "
            'ImageSets; or source.images = "…/{id}.png" and source.masks in the TOML'
        )
    return found


def _read_voc(competition: Competition, lists: Path) -> Found:
    root = lists.parent.parent
    images, masks = (
        {as_seen(path.stem): path for path in (root / folder).glob("*") if is_image(path)}
        for folder in ("JPEGImages", "SegmentationClass")
    )
    train: dict[str, Sample] = {}
    test: dict[str, Sample] = {}
    for name, fold in (("train", 1), ("val", 0), ("trainval", 1), ("test", 1)):
        path, split = lists / f"{name}.txt", test if name == "test" else train
        text = as_seen(path.read_text("utf-8-sig", "surrogateescape")) if path.exists() else ""
        for stem in text.split():
            if stem not in images or (name != "test" and stem not in masks):
                raise Refused(f"{path}: names {stem}, which JPEGImages or SegmentationClass lacks")
            split.setdefault(stem, _sample(competition, images[stem], masks.get(stem), fold))
    return Found([*train.values()], [*test.values()], [])


@dataclass
class _Folder:
    """The images in one folder, by stem."""

    name: str
    files: dict[str, Path]

    @property
    def words(self) -> set[str]:
        return set(re.split("[/_]", self.name.lower()))

    @property
    def end(self) -> str:
        """What all stems end in, from an underscore or hyphen on: "_training" of 21_training and 22_training."""
        first, last = min(ends := [stem[::-1] for stem in self.files]), max(ends)
        end = "".join(a for k, a in enumerate(first) if first[: k + 1] == last[: k + 1])[::-1]
        return end[match.start() :] if len(self.files) > 1 and (match := re.search("[_-]", end)) else ""

    @property
    def ids(self) -> set[str]:
        return {stem.removesuffix(self.end) for stem in self.files}

    def line(self, key: str) -> str:
        """The line of the TOML that would name its files."""
        suffixes = {path.suffix for path in self.files.values()}
        return f'source.{key} = "{self.name}/{{id}}{self.end}{suffixes.pop() if len(suffixes) == 1 else ".*"}"'


def _read_folders(competition: Competition, files: list[tuple[str, Path]], parts: tuple[str, ...]) -> Found:
    folders: dict[str, _Folder] = {}
    found = Found([], [], [])
    for name, path in files:
        place = name.rpartition("/")[0] or "."
        folder = _Folder(place, {})
        if is_image(path):
            folder = folders.setdefault(place, folder)
            if (twin := folder.files.setdefault(as_seen(path.stem), path)) != path:
                raise Refused(f"{path}: has the same stem as {twin}; which is meant? {folder.line('images')} …")
        if not is_image(path) or not folder.words & (MASK_FOLDERS | IMAGE_FOLDERS):
            found.odd.append(Finding(path.name, "folder not used" if is_image(path) else "not an image", place))

    kinds: dict[tuple[str, str], list[_Folder]] = defaultdict(list)
    for folder in folders.values():
        split = "test" if "test" in folder.words else "train"
        known = folder.words & (MASK_FOLDERS | IMAGE_FOLDERS)
        kinds[split, "masks" if folder.words & MASK_FOLDERS else "images" if known else "unknown"].append(folder)
    if "train" in parts:
        _refuse_ambiguity(kinds["train", "images"], kinds["train", "masks"], kinds["train", "unknown"])
    for split, samples in (("train", found.train), ("test", found.test)):
        masks = {stem: path for folder in kinds[split, "masks"] for stem, path in folder.files.items()}
        for folder in kinds[split, "images"]:
            for stem, path in folder.files.items():
                mask = masks.pop(stem, None) or masks.pop(f"{stem}_mask", None)
                if mask or split == "test":
                    samples.append(_sample(competition, path, mask, int(not folder.words & VAL_FOLDERS)))
                else:
                    found.odd.append(Finding(stem, "no mask", folder.name))
        found.odd.extend(Finding(stem, "no image", path.parent.name) for stem, path in masks.items())
    return found


def _refuse_ambiguity(images: list[_Folder], masks: list[_Folder], unknown: list[_Folder]) -> None:
    """Refuse two folders of images with one stem, and two that could both hold an image's masks."""
    for one, other in combinations(images, 2):
        if same := one.files.keys() & other.files.keys():
            raise Refused(
                f"{other.files[min(same)]}: has the same stem as {one.files[min(same)]}; say in the TOML which is "
                f"meant: {one.line('images')}, or {other.line('images')}"
            )
    for folder in images:
        could = [one for one in masks + unknown if len(one.ids & folder.ids) * 2 > len(folder.ids)]
        if len(could) > 1 and any(one in masks for one in could):
            lines = ", or ".join(one.line("masks") for one in could)
            what = f"{folder.name}/: {len(could)} folders could hold its masks; say in the TOML which one does"
            raise Refused(f"{what}: {folder.line('images')} with {lines}")


def _sample(competition: Competition, image: Path, mask: Path | None, fold: int) -> Sample:
    fields = {"id": as_seen(image.stem), "name": as_seen(image.name)}
    id = fill("source.id", competition.source.id, fields)
    return Sample(id, (image,), (Layer(mask),) if mask else None, fold)
