"""Pictures and masks in folders, of any size and kind, as one npz of equal-sized uint8 arrays.

Rows are appended to part files beside the npz, block by block, with a note of how far they got: a
run that was killed goes on there, and memory holds one block. At the end the parts become stored
members of the npz, which can be mapped: train_images, train_masks, train_ids, train_sizes,
train_groups (near duplicates), train_folds (a given split: val 0, train 1), and for test images,
ids, sizes, and masks where all have one. Sizes are the originals', int32 (N, 2), height and width.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from comp import audit, decode, labels, layouts, npz
from comp.audit import Finding
from comp.config import Competition, Fit
from comp.decode import Size
from comp.errors import Refused
from comp.files import lock, write_json

BLOCK = 32 << 20  # bytes of rows between two notes of progress
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
    coding: labels.Coding


def prepare(competition: Competition, source: Path, path: Path, size: Size) -> None:
    """Make the npz `path` from the pictures and masks below `source`.

    size: height and width of the arrays. Raises Refused for a file that cannot be read, a mask that does
    not fit its picture or the classes, and a `path` that was made otherwise; what is done so far is kept
    for the next run.
    """
    fit, ignore = competition.arrays.fit, competition.arrays.ignore
    if fit == "letterbox" and ignore is None:
        raise Refused('arrays.fit: "letterbox" pads masks with the ignored label: set arrays.ignore = 255')
    layout = layouts.find(source)
    rows, odd = _look(layout)
    masks = [row.sample.mask for row in rows if row.sample.mask]
    plan = _Plan(size, fit, labels.detect(masks, competition.classes, ignore, competition.source.labels))
    print(f"{source}: {len(layout.train):,} training and {len(layout.test):,} test pictures; {plan.coding.text}")
    digests = _digests(plan, rows)
    if path.exists():
        if _made(path).get("digest") != digests[-1]:
            raise Refused(f"{path}: was made from other files or in another way; move it away to make it anew")
        print(f"{path}: holds these pictures already")
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    parts = path.with_name(f".{path.stem}.parts")
    need, free = 8 * size[0] * size[1] * len(rows), shutil.disk_usage(path.parent).free
    if need > free:
        raise Refused(f"{path.parent}: needs {need:,} bytes and has {free:,}; make room, or name a smaller --size")
    try:
        with lock(parts):
            odd += _stream(rows, digests, plan, parts)
            made = {"source": source.absolute().name, "digest": digests[-1], "size": size, "fit": fit}
            made |= {"masks": plan.coding.text, "odd": [astuple(finding) for finding in odd]}
            members = _members(rows, len(layout.train), size, parts)
            members["prepared"] = np.array(json.dumps(made))
            npz.write(path, ((key, array.shape, array.dtype, [array]) for key, array in members.items()))
    except OSError as error:
        raise Refused(f"{error.filename or path}: {error.strerror or error}; what is done so far is kept") from None
    shutil.rmtree(parts)
    print(f"{path}: {path.stat().st_size:,} bytes")


def findings(path: Path) -> list[Finding]:
    """What was odd about the files when `prepare` made an npz; nothing for any other npz."""
    return _made(path).get("odd", [])


def _made(path: Path) -> dict:
    if "prepared" not in npz.keys(path):
        return {}
    try:
        made = json.loads(str(npz.read(npz.member(path, "prepared"))))
        return made | {"odd": [Finding(*map(str, told)) for told in made["odd"]]}
    except (ValueError, TypeError, KeyError):
        raise Refused(f"{path}: prepared: is not what kernels/prepare.py writes; leave that key out") from None


def _look(layout: layouts.Layout) -> tuple[list[_Row], list[Finding]]:
    """Read all headers: which pictures are turned, which files are unusual; masks of a wrong size are refused."""
    samples = layout.train + layout.test
    with ThreadPoolExecutor(_workers()) as pool:
        pictures = list(pool.map(lambda sample: decode.header(sample.picture), samples))
        masks = list(pool.map(lambda sample: sample.mask and decode.header(sample.mask), samples))
    mode = Counter(picture.mode for picture in pictures).most_common(1)[0][0]
    rows, odd, wrong = [], list(layout.odd), []
    for sample, picture, mask, turn in zip(samples, pictures, masks, decode.turned(pictures, masks), strict=True):
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
        rows.append(_Row(sample, size, turn, repr([(stat.st_size, stat.st_mtime_ns) for stat in stats])))
    if wrong:
        raise Refused(wrong[0] + (f"; {len(wrong)} masks are of another size" if len(wrong) > 1 else ""))
    return rows, odd


def _stream(rows: Sequence[_Row], digests: list[str], plan: _Plan, parts: Path) -> list[Finding]:
    """Append what is missing of `rows` to the part files, and give what was odd in reading all of them."""
    note, pixels = parts / "done.json", plan.size[0] * plan.size[1]
    step = max(1, BLOCK // (4 * pixels))
    done, odd = 0, []
    with (
        tqdm(total=len(rows), unit="picture", disable=not sys.stderr.isatty()) as bar,
        ThreadPoolExecutor(_workers()) as pool,
        open(parts / "images", "ab") as images,
        open(parts / "masks", "ab") as masks,
    ):
        if note.exists():
            left = json.loads(note.read_text(encoding="utf-8"))
            there = min(images.tell() // 3, masks.tell()) >= pixels * left["done"]
            if there and digests[left["done"] :][:1] == [left["digest"]]:  # what these files would still give
                done, odd = left["done"], [Finding(*told) for told in left["odd"]]
        images.truncate(3 * pixels * done)
        masks.truncate(pixels * done)
        bar.update(done)
        said = time.monotonic()
        while done < len(rows):
            block = rows[done : done + step]
            for picture, mask, finding in pool.map(lambda row: _read(row, plan), block):
                images.write(picture.data)
                masks.write(mask.data)
                odd += finding
                bar.update()
            for part in (images, masks):
                part.flush()
                os.fsync(part.fileno())
            done += len(block)
            found = [astuple(finding) for finding in odd]
            write_json(note, {"done": done, "digest": digests[done], "odd": found})
            if bar.disable and (time.monotonic() - said > 10 or done == len(rows)):
                said = time.monotonic()
                print(f"{done:,} of {len(rows):,} pictures", flush=True)
    return odd


def _read(row: _Row, plan: _Plan) -> tuple[np.ndarray, np.ndarray, list[Finding]]:
    picture = decode.placed(decode.read(row.sample.picture, row.turn), plan.size, plan.fit)
    if row.sample.mask is None:
        return picture, np.zeros(plan.size, np.uint8), []
    mask, unknown = labels.read(row.sample.mask, plan.coding)
    odd = [Finding(row.sample.id, "unclear mask", f"{unknown:.2%} of the pixels ignored")] if unknown else []
    return picture, decode.placed(Image.fromarray(mask), plan.size, plan.fit, plan.coding.ignore or 0), odd


def _digests(plan: _Plan, rows: Sequence[_Row]) -> list[str]:
    """What decides the first 0, 1, 2 … rows, as a digest for each number of them."""
    coding = (plan.coding.kind, sorted(plan.coding.meaning.items()), plan.coding.ignore)
    digest = hashlib.sha256(repr((VERSION, plan.size, plan.fit, coding)).encode())
    digests = [digest.hexdigest()]
    for row in rows:
        digest.update(repr((row.sample.id, row.sample.fold, row.turn, row.state)).encode())
        digests.append(digest.hexdigest())
    return digests


def _members(rows: Sequence[_Row], train: int, size: Size, parts: Path) -> dict[str, np.ndarray]:
    """All arrays of the npz by key; the first `train` rows are the training samples."""
    shape = (len(rows), *size)
    images = np.memmap(parts / "images", np.uint8, "r", shape=(*shape, 3))
    masks = np.memmap(parts / "masks", np.uint8, "r", shape=shape)
    members = {}
    for name, part in (("train", slice(train)), ("test", slice(train, None))):
        if some := rows[part]:
            members[f"{name}_images"] = images[part]
            members[f"{name}_ids"] = np.array([row.sample.id for row in some])
            members[f"{name}_sizes"] = np.array([row.size for row in some], np.int32)
            if all(row.sample.mask for row in some):
                members[f"{name}_masks"] = masks[part]
    groups = audit.near_groups(audit.thumbnails(images[:train]), members["train_ids"])
    if (groups != "").any():
        members["train_groups"] = groups
    folds = np.array([row.sample.fold for row in rows[:train]], np.int16)
    if (folds >= 0).all():
        members["train_folds"] = folds
    return members


def _workers() -> int:
    return min(8, os.cpu_count() or 1)
