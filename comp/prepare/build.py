"""Images and masks in folders, of any size and kind, as one npz of equal-sized uint8 arrays.

Its members are stored, so that they can be mapped: train_images, train_masks, train_ids, train_sizes,
train_groups (near duplicates), train_folds (a given split: val 0, train 1), and for test images,
ids, sizes, and masks where all have one. Sizes are the originals', int32 (N, 2), height and width.
Samples are read while they are written, block by block, and the npz appears whole or not at all.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import trange

from comp import files
from comp.config import Competition
from comp.data import arrays, convert, npz
from comp.data.arrays import Size
from comp.errors import Refused
from comp.prepare import audit, decode, layouts, mask_coding
from comp.prepare.layouts import Finding, Sample
from comp.prepare.mask_coding import Coding

BLOCK = 32 << 20  # bytes of rows that are in memory at a time
VERSION = 3  # raised when the same files would give other rows


def prepare(competition: Competition, source: Path, path: Path, size: Size) -> None:
    """Make the npz `path`, with arrays of this size, from the images and masks below `source`.

    Raises Refused for a file that cannot be read, a mask that does not fit its image or the classes, and a
    `path` that was made otherwise.
    """
    own, fit, ignore = competition.source, competition.arrays.fit, competition.arrays.ignore
    if fit == "letterbox" and ignore is None:
        raise Refused('arrays.fit: "letterbox" pads masks with the ignored label: set arrays.ignore = 255')
    if competition.arrays.labels:
        raise Refused("arrays.labels: of arrays made here labels are 0, 1, 2, …; say in source.labels what masks mean")
    layout = layouts.find_samples(source, own.ids)
    samples, bits, odd = _inspect(layout.train + layout.test, own.obey_exif)
    train, test = samples[: len(layout.train)], samples[len(layout.train) :]
    masks = [sample.mask for sample in samples if sample.mask]
    coding = mask_coding.detect_coding(masks, competition.classes, ignore, own.labels)
    depth = f"; grey images of {bits} bits" if bits != decode.DEPTH else ""
    print(f"{source}: {len(train):,} training and {len(test):,} test images; {coding.text}{depth}")
    rows = [(one.id, one.fold, [convert.file_state(file) for file in (one.image, one.mask) if file]) for one in samples]
    digest = convert.digest([VERSION, size, fit, own.obey_exif, bits, coding.kind, rows], coding.table.tobytes())
    if path.exists():
        if _read_facts(path).get("digest") != digest:
            raise Refused(f"{path}: was made from other files or in another way; move it away to make it anew")
        print(f"{path}: was made of these images already; delete it to make it anew")
        return

    facts = {"digest": digest, "size": size, "bits": bits, "odd": layout.odd + odd}
    members = chain(
        _members("train", train, competition, size, bits, coding),
        _members("test", test, competition, size, bits, coding),
        [_member("prepared", json.dumps(facts))],
    )
    npz.write_npz(path, members)
    print(f"{path}: {path.stat().st_size:,} bytes")


def prepare_hidden_test(competition: Competition, folder: Path) -> Path:
    """In a code competition's kernel: the folder of the npz with the test images, which in the end are hidden ones.

    One that `prepare` made holds the images that could be seen then; those that are now among the competition's data
    are read anew, in the same way. Of any other npz it is `folder`. Raises Refused.
    """
    path, slug = arrays.find_npz(competition.file, folder), competition.kaggle
    homes = filter(Path.is_dir, (files.KAGGLE_INPUT / "competitions" / slug, files.KAGGLE_INPUT / slug))
    if not slug or (home := next(homes, path.parent)) in path.parents:
        return folder
    if not (facts := _read_facts(path)):
        print(f"{path}: holds no hidden images; one that kernels/prepare.py made would tell how to read them here")
        return folder
    place = convert.cache_folder(folder) / "hidden"
    if not (new := place / competition.file).exists():
        found = layouts.find_samples(home, competition.source.ids, for_test=True).test
        samples, _, _ = _inspect(found, competition.source.obey_exif)
        npz.write_npz(new, _members("test", samples, competition, tuple(facts["size"]), facts["bits"]))
        print(f"{home}: {len(samples):,} test images")
    return place


def stored_findings(path: Path) -> list[Finding]:
    """What was odd about the files when `prepare` made an npz; nothing for any other npz."""
    return [Finding(*told) for told in _read_facts(path).get("odd", [])]


def _read_facts(path: Path) -> dict:
    """What `prepare` noted in an npz that it made; {} in any other."""
    if "prepared" not in npz.list_keys(path):
        return {}
    try:
        facts = json.loads(str(npz.read_array(npz.read_member(path, "prepared"))))
        return {key: facts[key] for key in ("digest", "size", "bits", "odd")}
    except (ValueError, TypeError, KeyError):
        raise Refused(f"{path}: prepared: not what this kernels/prepare.py writes; make the npz anew") from None


def _inspect(samples: Sequence[Sample], obey_exif: bool) -> tuple[list[Sample], int, list[Finding]]:
    """From all headers: the samples with their sizes, the bits of deep images, and what is odd. Raises Refused."""
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(lambda sample: decode.read_header(sample.image, obey_exif), samples))
        masks = list(pool.map(lambda sample: sample.mask and decode.read_header(sample.mask)[0], samples))
    sized, deep_images, odd = [], [], []
    for sample, (size, orientation, deep), mask in zip(samples, headers, masks, strict=True):
        sized.append(replace(sample, size=size))
        deep_images += [sample.image] if deep else []
        if orientation > 1:
            how = "turned upright" if obey_exif else "not turned"
            odd.append(Finding(sample.id, "EXIF orientation", f"{how}, orientation {orientation}"))
        if mask and mask != size:
            turned = obey_exif and orientation >= decode.SIDEWAYS and mask == size[::-1]
            hint = "; it fits the image as stored: set source.obey_exif = false" if turned else ""
            raise Refused(f"{sample.mask}: is {mask[0]}×{mask[1]}, its image {size[0]}×{size[1]}{hint}")
    return sized, decode.find_depth(deep_images), odd


def _members(
    name: str, samples: Sequence[Sample], competition: Competition, size: Size, bits: int, coding: Coding | None = None
) -> Iterator[tuple]:
    """The members of the npz that hold these samples, as `npz.write_npz` takes them; without a coding no masks."""
    if not samples:
        return
    obey_exif, fit, fill = competition.source.obey_exif, competition.arrays.fit, competition.arrays.ignore or 0
    thumbs = np.empty((len(samples), audit.SIDE, audit.SIDE), np.float32)

    def read_image(k: int) -> np.ndarray:
        image = decode.place_image(decode.read_image(samples[k].image, obey_exif, bits), size, fit)
        thumbs[k] = audit.thumbnails(image[None])[0]
        return image

    yield _stream(f"{name}_images", read_image, (len(samples), *size, 3))
    masks = [sample.mask for sample in samples if sample.mask]
    if coding and len(masks) == len(samples):

        def read_mask(k: int) -> np.ndarray:
            labels = mask_coding.read_mask(masks[k], coding)
            return decode.place_image(Image.fromarray(labels), size, fit, fill)

        yield _stream(f"{name}_masks", read_mask, (len(samples), *size))
    ids = np.array([sample.id for sample in samples])
    yield _member(f"{name}_ids", ids)
    yield _member(f"{name}_sizes", np.array([sample.size for sample in samples], np.int32))
    if name == "train":
        groups = audit.near_groups(thumbs, ids)
        if (groups != "").any():
            yield _member("train_groups", groups)
        folds = np.array([sample.fold for sample in samples], np.int16)
        if len(np.unique(folds)) > 1:
            yield _member("train_folds", folds)


def _stream(key: str, read: Callable[[int], np.ndarray], shape: tuple[int, ...]) -> tuple:
    """A uint8 member, whose rows `read` gives by their number, block by block, while it is written."""

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, BLOCK // prod(shape[1:]))
        with ThreadPoolExecutor() as pool:
            for first in trange(0, shape[0], step, desc=key, unit="block", disable=None):
                yield np.stack([*pool.map(read, range(first, min(first + step, shape[0])))])

    return key, shape, np.uint8, blocks()


def _member(key: str, values: ArrayLike) -> tuple:
    array = np.asarray(values)
    return key, array.shape, array.dtype, [array]
