"""Pictures and masks in folders, of any size and kind, as one npz of equal-sized uint8 arrays.

Block by block they become small npz files beside it, each named by what decides it: a run that was
killed finds those that are done, and memory holds one block. At the end they become stored
members of the npz, which can be mapped: train_images, train_masks, train_ids, train_sizes,
train_groups (near duplicates), train_folds (a given split: val 0, train 1), and for test images,
ids, sizes, and masks where all have one. Sizes are the originals', int32 (N, 2), height and width.
"""

import hashlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import tqdm

from comp import files
from comp.config import Competition, Fit
from comp.data import arrays, cache, npz
from comp.data.arrays import Size
from comp.errors import Refused
from comp.files import lock_folder
from comp.prepare import audit, decode, layouts, mask_coding
from comp.prepare.layouts import Finding

BLOCK = 32 << 20  # bytes of rows that are kept together
DEEP = 64  # pictures that are looked at to see how many of their 16 bits are used
VERSION = 1  # raised when the same files would give other rows


@dataclass(frozen=True)
class _Row:
    """One sample, and how it is to be read."""

    sample: layouts.Sample
    size: Size
    turn: bool
    state: str  # the files' sizes and times of change


@dataclass(frozen=True)
class _Plan:
    """What the rows are, beside their files."""

    size: Size
    fit: Fit
    coding: mask_coding.Coding | None  # None: there are no masks
    bits: int  # of grey pictures deeper than 8


def prepare(competition: Competition, source: Path, path: Path, size: Size) -> None:
    """Make the npz `path` from the pictures and masks below `source`.

    size: height and width of the arrays. Raises Refused for a file that cannot be read, a mask that does
    not fit its picture or the classes, and a `path` that was made otherwise; what is done so far is kept
    for the next run.
    """
    fit, ignore = competition.arrays.fit, competition.arrays.ignore
    if fit == "letterbox" and ignore is None:
        raise Refused('arrays.fit: "letterbox" pads masks with the ignored label: set arrays.ignore = 255')
    if competition.arrays.labels:
        raise Refused("arrays.labels: of arrays made here labels are 0, 1, 2, …; say in source.labels what masks mean")
    train, test, odd, deep = _look(competition, layouts.find_samples(source))
    rows = train + test
    masks = [row.sample.mask for row in rows if row.sample.mask]
    coding = mask_coding.detect_coding(masks, competition.classes, ignore, competition.source.labels)
    plan = _Plan(size, fit, coding, decode.find_depth(deep[:: max(1, len(deep) // DEEP)]) if deep else 16)
    bits = f"; grey pictures of {plan.bits} bits" if deep else ""
    print(f"{source}: {len(train):,} training and {len(test):,} test pictures; {coding.text}{bits}")
    digest = _digest(plan, rows)
    if path.exists():
        if _made(path).get("digest") != digest:
            raise Refused(f"{path}: was made from other files or in another way; move it away to make it anew")
        print(f"{path}: was made of these pictures already; delete it to make it anew")
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    parts = path.with_name(f".{path.stem}.parts")
    need, free = 8 * size[0] * size[1] * len(rows), shutil.disk_usage(path.parent).free
    if need > free:
        raise Refused(f"{path.parent}: needs {need:,} bytes and has {free:,}; make room, or name a smaller --size")
    try:
        with lock_folder(parts):
            members = []
            for name, some in {"train": train, "test": test}.items():
                blocks = _blocks(some, plan, parts, name)
                unknown = [share for block in blocks for share in npz.read_array(npz.read_member(block, "unknown"))]
                for row, share in zip(some, unknown, strict=True):
                    if share:
                        odd.append(Finding(row.sample.id, "unclear mask", f"{share:.2%} of the pixels ignored"))
                members += _members(some, blocks, size, name)
            made = {"source": source.absolute().name, "digest": digest, "size": size, "fit": fit}
            made |= {"bits": plan.bits, "masks": plan.coding.text, "odd": [astuple(finding) for finding in odd]}
            npz.write_npz(path, [*members, _member("prepared", json.dumps(made))])
    except OSError as error:
        raise Refused(f"{error.filename or path}: {error.strerror or error}; what is done so far is kept") from None
    shutil.rmtree(parts)
    print(f"{path}: {path.stat().st_size:,} bytes")


def prepare_hidden_test(competition: Competition, folder: Path) -> Path:
    """In a code competition's kernel: the folder of the npz with the test pictures, which in the end are hidden ones.

    It is `folder` where the npz is the competition's own, or not of `prepare`. One that `prepare` made holds the
    pictures that could be seen then, so that those now among the competition's data are read anew, in the same way.
    Raises Refused.
    """
    path, slug = arrays.find_npz(competition.file, folder), competition.kaggle
    homes = filter(Path.is_dir, (files.KAGGLE_INPUT / "competitions" / slug, files.KAGGLE_INPUT / slug))
    if not slug or (home := next(homes, path.parent)) in path.parents:
        return folder
    if not (made := _made(path)):
        print(f"{path}: holds no hidden pictures; one that kernels/prepare.py made would tell how to read them here")
        return folder
    place = cache.cache_folder(folder) / "hidden"
    if not (new := place / competition.file).exists():
        rows = _look(competition, layouts.find_samples(home, for_test=True))[1]
        plan, parts = _Plan(tuple(made["size"]), made["fit"], None, made.get("bits", 16)), place / "parts"
        with lock_folder(parts):
            npz.write_npz(new, _members(rows, _blocks(rows, plan, parts, "test"), plan.size, "test"))
        print(f"{home}: {len(rows):,} test pictures")
    return place


def stored_findings(path: Path) -> list[Finding]:
    """What was odd about the files when `prepare` made an npz; nothing for any other npz."""
    return _made(path).get("odd", [])


def _made(path: Path) -> dict:
    if "prepared" not in npz.list_keys(path):
        return {}
    try:
        made = json.loads(str(npz.read_array(npz.read_member(path, "prepared"))))
        return made | {"odd": [Finding(*map(str, told)) for told in made["odd"]]}
    except (ValueError, TypeError, KeyError):
        raise Refused(f"{path}: prepared: is not what kernels/prepare.py writes; leave that key out") from None


def _look(competition: Competition, layout: layouts.Layout) -> tuple[list[_Row], list[_Row], list[Finding], list[Path]]:
    """Read all headers: training and test rows, unusual files, grey pictures deeper than 8 bits.

    Raises Refused where a mask is not of its picture's size.
    """
    samples = layout.train + layout.test
    with ThreadPoolExecutor(_workers()) as pool:
        pictures = list(pool.map(lambda sample: decode.read_header(sample.picture), samples))
        masks = list(pool.map(lambda sample: sample.mask and decode.read_header(sample.mask), samples))
    mode = Counter(picture.mode for picture in pictures).most_common(1)[0][0]
    rows, odd, wrong = [], list(layout.odd), []
    for sample, picture, mask, turn in zip(samples, pictures, masks, decode.decide_turns(pictures, masks), strict=True):
        size = picture.upright if turn else picture.size
        if mask and mask.size != size:
            wrong.append(f"{sample.mask}: is {mask.size[0]}×{mask.size[1]}, its picture {size[0]}×{size[1]}")
        if (picture.format, picture.mode) != (picture.named, mode):
            kind = f"{picture.format}, {picture.mode}, named {sample.picture.suffix}"
            odd.append(Finding(sample.id, "unusual file", kind))
        if picture.orientation > 1:
            how = "turned upright" if turn else "not turned, as the masks are not"
            odd.append(Finding(sample.id, "EXIF orientation", f"{how}, orientation {picture.orientation}"))
        stats = [file.stat() for file in (sample.picture, sample.mask) if file]
        if competition.source.ids == "name":
            sample = replace(sample, id=sample.picture.name)
        rows.append(_Row(sample, size, turn, repr([(stat.st_size, stat.st_mtime_ns) for stat in stats])))
    if wrong:
        raise Refused(wrong[0] + (f"; {len(wrong)} masks are of another size" if len(wrong) > 1 else ""))
    deep = [row.sample.picture for row, picture in zip(rows, pictures, strict=True) if picture.mode.startswith("I")]
    return rows[: len(layout.train)], rows[len(layout.train) :], odd, deep


def _blocks(rows: Sequence[_Row], plan: _Plan, parts: Path, name: str) -> list[Path]:
    """Read what is missing of `rows`, as an npz for each block of them: images, masks, unknown as `_read` says."""
    step = max(1, BLOCK // (4 * plan.size[0] * plan.size[1]))
    blocks = [rows[first : first + step] for first in range(0, len(rows), step)]
    paths = [parts / f"{name}-{_digest(plan, block)}.npz" for block in blocks]
    for left in {*parts.glob(f"{name}-*.npz")} - {*paths}:  # of other pictures, or another size
        left.unlink()
    said = time.monotonic()
    with (
        tqdm(total=len(rows), desc=name, unit="picture", disable=None) as bar,
        ThreadPoolExecutor(_workers()) as pool,
    ):
        for done, (path, block) in enumerate(zip(paths, blocks, strict=True), start=1):
            try:
                npz.read_member(path, "unknown")
            except Refused:  # missing, or cut short with the machine
                read = zip(*pool.map(lambda row: _read(row, plan), block), strict=True)
                npz.write_npz(path, map(_member, ("images", "masks", "unknown"), read))
            bar.update(len(block))
            if bar.disable and (time.monotonic() - said > 10 or done == len(blocks)):
                said = time.monotonic()
                print(f"{name}: {min(done * step, len(rows)):,} of {len(rows):,} pictures", flush=True)
    return paths


def _read(row: _Row, plan: _Plan) -> tuple[np.ndarray, np.ndarray, float]:
    """A picture uint8 (H, W, 3), its mask uint8 (H, W), and the share of the mask's pixels that are near no class."""
    picture = decode.place_image(decode.read_image(row.sample.picture, row.turn, plan.bits), plan.size, plan.fit)
    if row.sample.mask is None:
        return picture, np.zeros(plan.size, np.uint8), 0.0
    mask, unknown = mask_coding.read_mask(row.sample.mask, plan.coding)
    return picture, decode.place_image(Image.fromarray(mask), plan.size, plan.fit, plan.coding.ignore or 0), unknown


def _digest(plan: _Plan, rows: Sequence[_Row]) -> str:
    coding = plan.coding and (plan.coding.kind, sorted(plan.coding.meaning.items()), plan.coding.ignore)
    digest = hashlib.sha256(repr((VERSION, plan.size, plan.fit, coding) + (plan.bits,) * (plan.bits != 16)).encode())
    for row in rows:
        digest.update(repr((row.sample.id, row.sample.fold, row.turn, row.state)).encode())
    return digest.hexdigest()


def _members(rows: Sequence[_Row], blocks: Sequence[Path], size: Size, name: str) -> Iterator[tuple]:
    """The members of the npz that hold these rows, as `npz.write_npz` takes them."""
    if not rows:
        return

    def stored(key: str) -> Iterator[np.ndarray]:
        return (npz.map_member(npz.read_member(block, key)) for block in blocks)

    yield f"{name}_images", (len(rows), *size, 3), np.uint8, stored("images")
    if all(row.sample.mask for row in rows):
        yield f"{name}_masks", (len(rows), *size), np.uint8, stored("masks")
    ids = np.array([row.sample.id for row in rows])
    yield _member(f"{name}_ids", ids)
    yield _member(f"{name}_sizes", np.array([row.size for row in rows], np.int32))
    if name == "train":
        groups = audit.near_groups(np.concatenate([*map(audit.thumbnails, stored("images"))]), ids)
        if (groups != "").any():
            yield _member("train_groups", groups)
        folds = np.array([row.sample.fold for row in rows], np.int16)
        if (folds >= 0).all():
            yield _member("train_folds", folds)


def _member(key: str, values: ArrayLike) -> tuple:
    array = np.asarray(values)
    return key, array.shape, array.dtype, [array]


def _workers() -> int:
    return min(8, os.cpu_count() or 1)
