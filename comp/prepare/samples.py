"""The samples of a download: what they are, and paths with fields, such as "train/{id}_sat.jpg", which find them.

`{field}` is a part of a name, the same wherever it occurs; `*` is anything but a slash, `**/` any folders. An image and
a mask belong together where the fields that both patterns have are equal."""

import csv
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from comp.config import Competition, Source
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


# What a fold is called where it has no number.
SPLITS = {"val": 0, "valid": 0, "validation": 0, "train": 1, "training": 1}
OWN = {"band", "class"}  # fields that pair nothing: {band} is one of source.bands, {class} the class of a mask's file

# Of each kind of samples: the keys of `source` that find images and masks, and the part that they belong to.
KINDS = (("images", "masks", "train"), ("extra", "extra_masks", "train"), ("test", "test_masks", "test"))

Fields = dict[str, str]


@dataclass(frozen=True)
class Pattern:
    """A path with fields, and the key of the TOML that says it."""

    key: str
    text: str
    regex: re.Pattern
    fields: tuple[str, ...]

    def find(self, files: Iterable[tuple[str, Path]]) -> Iterator[tuple[Fields, Path]]:
        """The images that it matches, with their fields. Raises Refused where there is none."""
        files = list(files)
        matched = [(found.groupdict(), path) for name, path in files if (found := self.regex.fullmatch(name))]
        images = [(fields, path) for fields, path in matched if is_image(path)]
        if not images:
            folders = {path.parent: name for name, path in reversed(files)}
            shown = ", ".join([*folders.values()][::-1][:5])
            only = f"only {matched[0][1].name} and its like, which a source.reader could read" if matched else ""
            raise Refused(f"{self.key} = {self.text!r}: matches {only or 'nothing'}; there are {shown or 'no files'}")
        yield from images


def compile_pattern(key: str, text: str, known: Mapping[str, Iterable[str]] = {}) -> Pattern:
    """Compile a pattern; the fields of `known` match one of some words. Raises Refused for one that is malformed."""
    fields, regex = list[str](), ""
    if re.search(r"\{(?!band|class)\w+\}\{(?!band|class)\w+\}", text):
        raise Refused(f"{key}: {text!r}: nothing tells where the first of two fields ends; write what is between them")
    for part in re.split(r"(\{[^{}]*\}|\*\*/|\*)", as_seen(text).removeprefix("./")):
        if part.startswith("{") and part.endswith("}"):
            name = part[1:-1]
            if not name.isidentifier():
                raise Refused(f"{key}: {part} is no field; a name such as {{id}} would fit")
            words = "|".join(map(re.escape, sorted(known.get(name, ()), key=len, reverse=True)))
            regex += f"(?P={name})" if name in fields else f"(?P<{name}>{words or '[^/]+?'})"
            fields += [name] * (name not in fields)
        elif "{" in part or "}" in part:
            raise Refused(f"{key}: {text!r}: a brace is not closed, or not opened")
        else:
            regex += {"*": "[^/]*", "**/": "(?:.*/)?"}.get(part, re.escape(part))
    return Pattern(key, text, re.compile(regex), tuple(fields))


def fill(key: str, text: str, fields: Mapping[str, str]) -> str:
    """A text such as "{case}_{n}" with its fields filled in. Raises Refused for a field that is not there."""

    def value(found: re.Match) -> str:
        if found[1] not in fields:
            raise Refused(f"{key} = {text!r}: no field {found[0]}; there are {', '.join(fields)}")
        return fields[found[1]]

    return re.sub(r"\{(\w+)\}", value, text)


def find_by_patterns(competition: Competition, folder: Path, parts: tuple[str, ...]) -> Found:
    """The samples that `source` finds by its patterns. Raises Refused, naming the pattern."""
    own, files = competition.source, list_files(folder)
    rows = read_list(own, folder) if own.list else None
    found = Found([], [], [])
    for key, masks_key, part in KINDS:
        text, masks_text = getattr(own, key), getattr(own, masks_key)
        if part not in parts or not text:
            continue
        try:
            images, fields_of = _find_images(f"source.{key}", text, own, files)
        except Refused as refused:
            if key != "test" or not competition.code_competition or parts == ("test",):
                raise
            print(f"{refused}; a kernel reads the hidden test images by it")
            continue
        masks = _Masks(f"source.{masks_key}", masks_text, competition, files, text) if masks_text else None
        for id, paths in images.items():
            fields = fields_of[id]
            layers = masks.of(fields, paths[0]) if masks else None
            if rows is not None and key == "images":  # a list may say more of its samples than is known of others
                if id not in rows:
                    found.odd.append(Finding(id, "not in the list", own.list["file"]))
                    continue
                fields = rows[id] | fields
            if masks and layers is None and part == "train":
                found.odd.append(Finding(id, "no mask", paths[0].parent.relative_to(folder).as_posix()))
                continue
            group = fill("source.group", own.group, fields) if key == "images" or not own.list else ""
            fold = _read_fold(fill("source.fold", own.fold, fields), id) if key == "images" else 1
            sample = Sample(id, paths, layers, fold, group, key == "extra")
            (found.train if part == "train" else found.test).append(sample)
        found.odd.extend(masks.left() if masks and part == "train" else [])
    return found


def read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """A CSV as text. Raises Refused where it cannot be read, or lacks one of the columns."""
    try:
        csv.field_size_limit(1 << 30)
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", engine="python")
    except FileNotFoundError:
        raise Refused(f"{path}: no such file") from None
    except (ValueError, UnicodeError, OSError) as error:  # pandas' own errors are ValueErrors
        raise Refused(f"{path}: cannot be read as a CSV: {str(error).splitlines()[0]}") from None
    for column in columns:
        if column not in table:
            raise Refused(f"{path}: no column {column!r}; there are {', '.join(map(str, table.columns[:20]))}")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes what stands too far left for names of the rows
        raise Refused(f"{path}: its rows have more fields than the header")
    if (short := table.isna().any(axis=1).to_numpy()).any():  # a blank field is ""
        raise Refused(f"{path}: row {short.argmax() + 2} has fewer fields than the header")
    return table


def read_list(own: Source, folder: Path) -> dict[str, Fields]:
    """The columns of `source.list` by id. Raises Refused where an id is there twice."""
    path, column = folder / own.list.get("file", ""), own.list.get("id", "id")
    table = read_table(path, [column])
    ids = table[column].map(as_seen)
    if (twice := ids.duplicated()).any():
        raise Refused(f"{path}: row {twice.idxmax() + 2}: the id {ids[twice.idxmax()]!r} is there twice")
    return dict(zip(ids, table.to_dict("records"), strict=True))


def _find_images(
    key: str, text: str, own: Source, files: list[tuple[str, Path]]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, Fields]]:
    """Image files by id, a file for each of source.bands, and their fields."""
    pattern = compile_pattern(key, text, {"band": own.bands})
    if own.bands and "band" not in pattern.fields:
        raise Refused(f"{key} = {text!r}: has no field {{band}}, and source.bands names {len(own.bands)}")
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    fields_of: dict[str, Fields] = {}
    for fields, path in pattern.find(files):
        band = fields.pop("band", "")
        if band and not own.bands:
            there = sorted({fields["band"] for fields, _ in pattern.find(files)})
            shown = ", ".join(f'"{name}"' for name in there[:20])
            raise Refused(f"source.bands: say which {{band}} in which order, as in source.bands = [{shown}]")
        if key == "source.images" and fields.get(own.fold.strip("{}"), "").lower() == "test":
            continue  # "{split}/{id}.png" finds those, too
        fields.setdefault("name", as_seen(path.name))
        id = fill("source.id", own.id, fields)
        if (twin := found[id].setdefault(band, path)) != path:
            raise Refused(f"{path}: has the id {id!r}, as {twin} has; more fields in source.id would tell them apart")
        fields_of.setdefault(id, fields)
    for id, paths in found.items():
        if lacking := [band for band in own.bands if band not in paths]:
            raise Refused(f"{next(iter(paths.values()))}: the sample {id!r} has no file of the band {lacking[0]!r}")
    return {id: tuple(paths[band] for band in own.bands or paths) for id, paths in found.items()}, fields_of


class _Masks:
    """The files that a mask pattern finds, by the fields that it shares with the images' pattern."""

    def __init__(self, key: str, text: str, competition: Competition, files: list[tuple[str, Path]], images: str):
        every, labels = compile_pattern(key, text), name_labels(competition.classes)
        self.pattern = compile_pattern(key, text, {"class": labels})
        known = {path for name, path in files if self.pattern.regex.fullmatch(name)}
        if unknown := {path for _, path in every.find(files)} - known:
            raise Refused(f"{min(unknown)}: {{class}} in {key} is none of {', '.join(competition.classes)}")
        self.shared = sorted({*compile_pattern(key, images).fields} & {*self.pattern.fields} - OWN)
        if not self.shared:
            raise Refused(f"{key} = {text!r}: shares no field with {images!r}, so that nothing pairs them")
        self.layers: dict[tuple[str, ...], list[Layer]] = defaultdict(list)
        seen: dict[Path, Path] = {}
        for fields, path in self.pattern.find(files):
            if (twin := seen.setdefault(path.with_suffix(""), path)) != path:
                raise Refused(f"{path}: and {twin.name} beside it could both be the mask; {key} must say which")
            label = labels[fields["class"]] if "class" in fields else None
            if label == 0 and competition.overlap:
                raise Refused(f"{path}: is of {competition.classes[0]!r}, but the first class is none of the others")
            layers = self.layers[tuple(fields[name] for name in self.shared)]
            layers += [Layer(path, label)] if label != 0 else []  # a file of the background says what is left anyway
        self.used: dict[tuple[str, ...], Path] = {}

    def of(self, fields: Fields, path: Path) -> tuple[Layer, ...] | None:
        """The layers of an image's mask, of which none may mark anything; None where it has no file."""
        key = tuple(fields[name] for name in self.shared)
        if (twin := self.used.setdefault(key, path)) != path:
            raise Refused(f"{path}: has the mask of {twin}, too; more fields in {self.pattern.key} would tell which")
        return tuple(self.layers[key]) if key in self.layers else None

    def left(self) -> list[Finding]:
        unused = (Path(layers[0].content) for key, layers in self.layers.items() if key not in self.used and layers)
        return [Finding(path.stem, "no image", path.parent.name) for path in unused]


def _read_fold(text: str, id: str) -> int:
    if not text:
        return 1
    if text.isdecimal() and len(text) < 4:
        return int(text)
    if text.lower() not in SPLITS:
        raise Refused(f"source.fold: the sample {id!r} is in {text!r}; 0 to 999 or {', '.join(SPLITS)} would fit")
    return SPLITS[text.lower()]
