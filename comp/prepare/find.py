"""The samples of a download: by a reader, by the TOML's paths, or in folders of common names.

Such folders are read by the paths that the TOML would have. PASCAL VOC has ImageSets/Segmentation/{train,val,test}.txt,
which name stems in JPEGImages and SegmentationClass. Where there are two readings, neither is taken."""

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import replace
from itertools import product
from pathlib import Path

from comp.config import Competition
from comp.errors import Refused
from comp.prepare import reader, table
from comp.prepare.samples import SPLITS, Finding, Found, Sample, as_seen, is_image, list_files, match_files

IMAGES = "images", "train/images", "train"
MASKS = ["masks", "labels", "trimaps", "annotations/trimaps"]
MASKS += [f"train{at}{place}" for at in "/_" for place in MASKS[:2]]
TESTS = "test_images", "test/images", "test"


def find_samples(own: Competition, folder: Path, spool: Path, parts: tuple[str, ...] = ("train", "test")) -> Found:
    """Find the samples below `folder`, ordered by id. What a reader yields is kept in the folder `spool`.

    `parts`: "test" alone where only hidden images are read. Refused: no sample, or one to train on without a mask."""
    source = own.source
    if source.reader:
        found = reader.run_reader(own, folder, spool, parts)
    elif source.images or source.test:
        found = match_files(own, folder, parts)
    else:
        found = _find_in_folders(own, folder, parts)
    for part in (found.train, found.test):
        part[:] = sorted((one for one in part if one.id not in source.skip), key=lambda one: one.order)
        if twice := [id for id, times in Counter(one.id for one in part).items() if times > 1]:
            raise Refused(f"{folder}: several samples have the id {twice[0]!r}; more fields in source.id would help")
    if source.table and "train" in parts:
        _join(own, table.read_layers(own, folder), found)
    for kind in ("no mask", "no image", "not in the list"):
        if some := [one.id for one in found.odd if one.finding == kind]:
            print(f"{folder}: {kind}: {len(some):,} left out, the first {some[0]}")
    if not (found.train if "train" in parts else found.test):
        what = "image has a mask" if "train" in parts else "test images; source.test would say where they are"
        raise Refused(f"{folder}: no {what}")
    if source.fold and "train" in parts and len({sample.fold for sample in found.train if not sample.extra}) == 1:
        raise Refused(f"source.fold = {source.fold!r}: says {found.train[0].fold} of all samples, which is no split")
    if unknown := [sample for sample in found.train if sample.mask is None]:
        raise Refused(f"{unknown[0].images[0]}: has no mask; source.masks or source.table would say where it is")
    return found


def _join(own: Competition, layers: dict, found: Found) -> None:
    """Give the training samples the layers that a table has of them, and note its ids that have no image."""
    file = own.source.table["file"]
    known = {sample.id for sample in found.train if sample.mask is None}
    if not known & layers.keys():
        theirs, ours = next(iter(layers), "no rows"), next(iter(known), "no images")
        hint = 'source.id makes these, as in "{name}", the file\'s name'
        raise Refused(f"source.table: {file} has ids such as {theirs!r}, the images such as {ours!r}; {hint}")
    odd = [Finding(id, "no image", file) for id in layers if id not in known and id not in own.source.skip]
    if absent := known - layers.keys():
        line = f"{file}: has no row of {len(absent):,} of {len(known):,} images, the first {min(absent)}"
        if odd or not all(layers.values()):  # then it says of an image that its mask is empty, or ids differ
            raise Refused(f"{line}, and {len(odd):,} rows' ids have no image; cut short? source.skip leaves images out")
        print(f"{line}: empty masks")
    found.odd.extend(odd)
    for k, one in enumerate(found.train):
        if one.mask is None:
            found.train[k] = replace(one, mask=tuple(layers.get(one.id, ())))


def _find_in_folders(competition: Competition, source: Path, parts: tuple[str, ...]) -> Found:
    """Find the samples below `source` without patterns. Raises Refused where the first part's are not there."""
    lists = sorted(path for depth in ("", "*/", "*/*/") for path in source.glob(f"{depth}ImageSets/Segmentation"))
    if len(lists) > 1:
        years = ", ".join(path.parts[-3] for path in lists)
        raise Refused(f"{source}: holds several VOC years ({years}); name one of them as --source")
    if lists:
        return _read_voc(competition, lists[0])
    stems: dict[str, dict[str, str]] = defaultdict(dict)  # of images, with their suffixes, by folder
    for name, path in list_files(source):
        if is_image(path):
            stems[name.rpartition("/")[0]][as_seen(path.stem)] = path.suffix
    said = _find_layout(stems, source)
    if ("images" if "train" in parts else "test") not in said:
        what = "image with a mask" if "train" in parts else "test images"
        lines = ", ".join(_line(place, stems[place]) for place in sorted(stems)[:6])
        fits = "images/ and masks/ would fit, or source.images, source.masks and source.test in the TOML"
        raise Refused(f"{source}: no {what}; {fits}: {lines or 'there is no image'}")
    print(f"{source}: " + ", ".join(f'source.{key} = "{value}"' for key, value in said.items()))
    found = match_files(competition, source, parts, said)
    read = [path for one in found.train + found.test for path in (*one.images, *dict(one.mask_files))]
    for place in sorted(stems.keys() - {as_seen(path.parent.relative_to(source).as_posix()) for path in read}):
        found.odd.append(Finding(place or ".", "folder not read", f"{len(stems[place])} images"))
    return found


def _find_layout(stems: dict[str, dict[str, str]], source: Path) -> dict[str, str]:
    """The keys of `source` that folders of common names stand for. Raises Refused where there are two readings."""
    tests = [place for place in TESTS if place in stems]
    said = {"test": f"{tests[0]}/{{id}}.*"} if tests else {}
    if tests and (masks := tests[0].replace("images", "masks")) in stems.keys() - {tests[0]}:
        said["test_masks"] = f"{masks}/{{id}}.*"
    pairs = [
        (images, masks, end)
        for images, masks, end in product(IMAGES, MASKS, ("", "_mask"))
        if images in stems and {stem + end for stem in stems[images]} & stems.get(masks, {}).keys()
    ]
    for images, masks, end in pairs[:1]:
        ids, twins = _ids(stems[images]), {masks, *(other for _, other, _ in pairs)}
        others = stems.keys() - {images, *tests, *(place.replace("images", "masks") for place in tests)}
        twins |= {place for place in others if len(ids & _ids(stems[place])) * 2 > len(ids)}
        if len(twins) > 1 or {one for one, *_ in pairs} != {images}:
            lines = ", ".join(_line(place, stems[place]) for place in sorted(twins | {one for one, *_ in pairs}))
            what = "several folders could hold the images or their masks; say in the TOML which are"
            raise Refused(f"{source}: {what} source.images and source.masks: {lines}")
        if {images.replace("train", split) for split in SPLITS} & stems.keys() != {images}:
            images, masks = (place.replace("train", "{split}") for place in (images, masks))
            said["fold"] = "{split}"
        said |= {"images": f"{images}/{{id}}.*", "masks": f"{masks}/{{id}}{end}.*"}
    return said


def _end(stems: Collection[str]) -> str:
    """What all stems end in, from an underscore or hyphen on: "_manual1" of 21_manual1 and 22_manual1."""
    one = next(iter(stems))
    ends = (one[k:] for k, letter in enumerate(one) if letter in "_-" and len(stems) > 1)
    return next((end for end in ends if all(stem.endswith(end) for stem in stems)), "")


def _ids(stems: Collection[str]) -> set[str]:
    end = _end(stems)
    return {stem.removesuffix(end) for stem in stems}


def _line(place: str, stems: dict[str, str]) -> str:
    """The pattern of a folder's images, in quotes."""
    suffix = ".*" if len({*stems.values()}) > 1 else next(iter(stems.values()))
    return f'"{place}{"/" * bool(place)}{{id}}{_end(stems)}{suffix}"'


def _read_voc(competition: Competition, lists: Path) -> Found:
    images, masks = "JPEGImages/{id}.jpg", "SegmentationClass/{id}.png"
    said = {"images": images, "masks": masks, "test": images, "test_masks": masks}
    found = match_files(competition, lists.parents[1], ("train", "test"), said)
    listed: dict[str, dict[str, Sample]] = {}
    for name in ("trainval", "train", "val", "test"):
        path, samples = lists / f"{name}.txt", found.test if name == "test" else found.train
        known = {as_seen(one.images[0].stem): one for one in samples}
        named = as_seen(path.read_text("utf-8-sig", "surrogateescape")).split() if path.exists() else []
        if lacking := [stem for stem in named if stem not in known]:
            raise Refused(f"{path}: names {lacking[0]}, which JPEGImages or SegmentationClass lacks")
        listed[name] = {stem: replace(known[stem], fold=int(name != "val")) for stem in named}
    return Found([*(listed["trainval"] | listed["val"] | listed["train"]).values()], [*listed["test"].values()], [])
