"""The samples of a download: what they are, and paths with fields, such as "train/{id}_sat.jpg", which find them.

`{field}` is a part of a name, the same wherever it occurs; `*` is anything but a slash, `**/` any folders. An image and
a mask belong together where the fields that both patterns have are equal."""

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from comp.config import Competition, Source
from comp.data.arrays import Size, spread_starts
from comp.data.npz import refuse_damage
from comp.errors import Refused
from comp.prepare.decode import SUFFIXES

Fields = dict[str, str]
Arrays = tuple[np.ndarray, ...]
Layers = dict[tuple[str, ...], list["Layer"]]  # of masks, by the fields that pair them with images
Files = list[tuple[str, Path]]  # the name as people see it, and the path


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
    whole: "Sample | None" = None  # of a window, what it is cut from
    place: Size = (0, 0)  # its top and left there

    @property
    def order(self) -> tuple:
        """What samples are sorted by: ids, in which numbers count as such, so that slice_9 comes before slice_10."""
        return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", self.id))], self.id

    @property
    def mask_files(self) -> list[tuple[Path, int | None]]:
        """The files among the layers of its mask, with their labels."""
        return [(layer.content, layer.label) for layer in self.mask or () if isinstance(layer.content, Path)]


def cut_windows(samples: Iterable[Sample], cut: Size | tuple[()], overlap: float) -> list[Sample]:
    """The samples, or windows as large as `cut` that cover each; a share of one, `overlap` at least, is in the next."""
    if not cut:
        return [*samples]
    windows = []
    for one in samples:
        size, group = (min(one.size[0], cut[0]), min(one.size[1], cut[1])), one.group or one.id
        for y, x in product(*(spread_starts(*sides, overlap) for sides in zip(one.size, cut, strict=True))):
            windows.append(replace(one, id=f"{one.id}@{y},{x}", group=group, size=size, whole=one, place=(y, x)))
    return windows


def read_windows(function: Callable[[Sample], Arrays]) -> Callable[[Sample], Arrays]:
    """The same function, arrays (H, W, …) of a sample, which of windows reads the whole once, one at a time."""
    latest: list[Any] = [None, None]
    lock = Lock()

    def read(sample: Sample) -> Arrays:
        if not sample.whole:
            return function(sample)
        (top, left), (height, width) = sample.place, sample.size
        with lock:
            if latest[0] is not sample.whole:
                latest[:] = None, None  # before the next one is read, since there may be no room for two
                latest[:] = sample.whole, function(sample.whole)
            return tuple(one[top : top + height, left : left + width] for one in latest[1])

    return read


class Found(NamedTuple):
    """The samples of a download, ordered by id; `odd` names what was left out, and why."""

    train: list[Sample]
    test: list[Sample]
    odd: list[Finding]


def list_files(folder: Path) -> Files:
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


SPLITS = {"val": 0, "valid": 0, "validation": 0, "train": 1, "training": 1}  # folds that have no number
OWN = {"band", "class"}  # fields that pair nothing: {band} is one of source.bands, {class} the class of a mask's file


def compile_pattern(key: str, text: str, known: Mapping[str, Iterable[str]] = {}) -> re.Pattern:
    """Compile a pattern; the fields of `known` match one of some words. Raises Refused for one that is malformed."""
    regex = ""
    if re.search(r"\{(?!(?:band|class)\})\w+\}\{(?!(?:band|class)\})\w+\}", text):
        raise Refused(f"{key}: {text!r}: nothing tells where the first of two fields ends; write what is between them")
    for part in re.split(r"(\{[^{}]*\}|\*\*/|\*)", as_seen(text).removeprefix("./")):
        if (name := part[1:-1]).isidentifier() and part == f"{{{name}}}":
            words = "|".join(map(re.escape, sorted(known.get(name, ()), key=len, reverse=True)))
            regex += f"(?P={name})" if f"(?P<{name}>" in regex else f"(?P<{name}>{words or '[^/]+?'})"
        elif "{" in part or "}" in part:
            raise Refused(f"{key}: {part} is no field; a name in braces, such as {{id}}, would fit")
        else:
            regex += {"*": "[^/]*", "**/": "(?:.*/)?"}.get(part, re.escape(part))
    return re.compile(regex)


def _match_images(pattern: re.Pattern, files: Files, said: str) -> list[tuple[Fields, Path]]:
    """The images that a pattern matches, with their fields. Raises Refused where there is none."""
    matched = [(found.groupdict(), path) for name, path in files if (found := pattern.fullmatch(name))]
    if images := [(fields, path) for fields, path in matched if is_image(path)]:
        return images
    shown = ", ".join([*{path.parent: name for name, path in reversed(files)}.values()][::-1][:5])
    only = f"only {matched[0][1].name} and its like, which a source.reader could read" if matched else ""
    raise Refused(f"{said}: matches {only or 'nothing'}; there are {shown or 'no files'}")


def fill(key: str, text: str, fields: Mapping[str, str]) -> str:
    """A text such as "{case}_{n}" with its fields filled in. Raises Refused for a field that is not there."""
    try:
        return re.sub(r"\{(\w+)\}", lambda found: fields[found[1]], text)
    except KeyError as lacking:
        raise Refused(f"{key} = {text!r}: no field {{{lacking.args[0]}}}; there are {', '.join(fields)}") from None


def match_files(competition: Competition, folder: Path, parts: tuple[str, ...], said: Mapping[str, str] = {}) -> Found:
    """The samples that `source` finds by its patterns, `said` in their place. Raises Refused, naming the pattern."""
    own, files = competition.source.model_copy(update=said), list_files(folder)
    found, rows = Found([], [], []), dict[str, Fields]()
    if own.list:
        path, column = folder / own.list.get("file", ""), own.list.get("id", "id")
        for number, row in enumerate(read_table(path, [column]), 2):
            if rows.setdefault(id := as_seen(row[column]), row) is not row:
                raise Refused(f"{path}: row {number}: the id {id!r} is there twice")
    for key, masks_key in (("images", "masks"), ("extra", "extra_masks"), ("test", "test_masks")):
        text, part = getattr(own, key), "test" if key == "test" else "train"
        if part not in parts or not text:
            continue
        try:
            images = _find_images(f"source.{key}", text, own, files)
        except Refused as refused:
            if key != "test" or not competition.code_competition or parts == ("test",):
                raise
            print(f"{refused}; a kernel reads the hidden test images by it")
            continue
        shared, masks = _find_masks(f"source.{masks_key}", getattr(own, masks_key), competition, files, text)
        used: dict[tuple[str, ...], Path] = {}
        for id, (fields, paths) in images.items():
            pair = tuple(fields[name] for name in shared)
            if shared and (twin := used.setdefault(pair, paths[0])) != paths[0]:
                raise Refused(f"{paths[0]}: has the mask of {twin}, too; more fields in source.{masks_key} would help")
            layers = masks.get(pair)
            if own.list and key == "images":  # a list may say more of its samples than is known of others
                if id not in rows:
                    found.odd.append(Finding(id, "not in the list", own.list["file"]))
                    continue
                fields = rows[id] | fields
            if shared and layers is None and part == "train":
                found.odd.append(Finding(id, "no mask", paths[0].parent.relative_to(folder).as_posix()))
                continue
            group = fill("source.group", own.group, fields) if key == "images" or not own.list else ""
            split = fill("source.fold", own.fold, fields) if key == "images" else ""
            fold = int(split) if re.fullmatch("[0-9]{1,3}", split) else SPLITS.get(split.lower() or "train")
            if fold is None:
                fits = f"0 to 999 or {', '.join(SPLITS)} would fit"
                raise Refused(f"source.fold: the sample {id!r} is in {split!r}; {fits}")
            sample = Sample(id, paths, None if layers is None else tuple(layers), fold, group, key == "extra")
            (found.train if part == "train" else found.test).append(sample)
        unused = [Path(layers[0].content) for pair, layers in masks.items() if layers and pair not in used]
        found.odd.extend(Finding(path.stem, "no image", path.parent.name) for path in unused if part == "train")
    return found


def read_table(path: Path, columns: Iterable[str]) -> list[Fields]:
    """The rows of a CSV as text by column. Raises Refused where it cannot be read, or lacks one of the columns."""
    with refuse_damage(path, "a CSV", ""), open(path, encoding="utf-8-sig", newline="") as file:
        csv.field_size_limit(1 << 30)
        table = csv.DictReader(file, strict=True)
        rows, known = [*table], [*(table.fieldnames or ())]
    for column in columns:
        if column not in known:
            raise Refused(f"{path}: no column {column!r}; there are {', '.join(known[:20])}")
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise Refused(f"{path}: row {number} has {'more' if None in row else 'fewer'} fields than the header")
    return rows


def _find_images(key: str, text: str, own: Source, files: Files) -> dict[str, tuple[Fields, tuple[Path, ...]]]:
    """By id, the fields of images and their files, one for each of source.bands."""
    pattern = compile_pattern(key, text, {"band": own.bands})
    found: dict[str, tuple[Fields, dict[str, Path]]] = {}
    matched = _match_images(pattern, files, f"{key} = {text!r}")
    if "band" in pattern.groupindex and not own.bands:
        shown = ", ".join(f'"{name}"' for name in sorted({fields["band"] for fields, _ in matched})[:20])
        raise Refused(f"source.bands: say which {{band}} in which order, as in source.bands = [{shown}]")
    for fields, path in matched:
        band = fields.pop("band", "")
        if key == "source.images" and fields.get(own.fold.strip("{}"), "").lower() == "test":
            continue  # "{split}/{id}.png" finds those, too
        fields.setdefault("name", as_seen(path.name))
        id = fill("source.id", own.id, fields)
        paths = found.setdefault(id, (fields, {}))[1]
        if (twin := paths.setdefault(band, path)) != path:
            raise Refused(f"{path}: has the id {id!r}, as {twin} has; more fields in source.id would tell them apart")
    for id, (_, paths) in found.items():
        if lacking := [band for band in own.bands if band not in paths]:
            raise Refused(f"{next(iter(paths.values()))}: the sample {id!r} has no file of the band {lacking[0]!r}")
    return {id: (fields, tuple(paths[band] for band in own.bands or paths)) for id, (fields, paths) in found.items()}


def _find_masks(key: str, text: str, competition: Competition, files: Files, images: str) -> tuple[list[str], Layers]:
    """The fields that a mask pattern shares with the images' pattern, and by their values the layers that it finds."""
    layers: Layers = defaultdict(list)
    if not text:
        return [], layers
    said, labels = f"{key} = {text!r}", name_labels(competition.classes)
    pattern = compile_pattern(key, text, {"class": labels})
    known = {path for name, path in files if pattern.fullmatch(name)}
    if unknown := {path for _, path in _match_images(compile_pattern(key, text), files, said)} - known:
        raise Refused(f"{min(unknown)}: {{class}} in {key} is none of {', '.join(competition.classes)}")
    shared = sorted(compile_pattern(key, images).groupindex.keys() & pattern.groupindex.keys() - OWN)
    if not shared:
        raise Refused(f"{said}: shares no field with {images!r}, so that nothing pairs them")
    seen: dict[Path, Path] = {}
    for fields, path in _match_images(pattern, files, said):
        if (twin := seen.setdefault(path.with_suffix(""), path)) != path:
            raise Refused(f"{path}: and {twin.name} beside it could both be the mask; {key} must say which")
        label = labels[fields["class"]] if "class" in fields else None
        if label == 0 and competition.overlap:
            raise Refused(f"{path}: is of {competition.classes[0]!r}, but the first class is none of the others")
        of_mask = layers[tuple(fields[name] for name in shared)]
        of_mask += [Layer(path, label)] if label != 0 else []  # a file of the background says what is left anyway
    return shared, layers
