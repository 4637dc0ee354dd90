"""Images and masks in folders, of any size and kind, as one npz of equal-sized uint8 arrays.

Its members are stored, so that they can be mapped: train_images, train_masks, train_ids, train_sizes,
train_groups (near duplicates), train_folds (a given split: val 0, train 1), and for test images,
ids, sizes, and masks where all have one. Sizes are the originals', int32 (N, 2), height and width.
Samples are read while they are written, block by block, and the npz appears whole or not at all.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from tqdm import tqdm

from comp import files
from comp.config import Competition
from comp.data import arrays, convert, npz
from comp.data.arrays import Size
from comp.errors import Refused
from comp.prepare import audit, decode, layouts, mask_coding
from comp.prepare.finding import Finding
from comp.prepare.layouts import Sample

BLOCK = 32 << 20  # bytes of rows that are in memory at a time
VERSION = 2  # raised when the same files would give other rows


def prepare(competition: Competition, source: Path, path: Path, size: Size) -> None:
    """Make the npz `path` from the images and masks below `source`.

    size: height and width of the arrays. Raises Refused for a file that cannot be read, a mask that does
    not fit its image or the classes, and a `path` that was made otherwise.
    """
    own, fit, ignore = competition.source, competition.arrays.fit, competition.arrays.ignore
    if fit == "letterbox" and ignore is None:
        raise Refused('arrays.fit: "letterbox" pads masks with the ignored label: set arrays.ignore = 255')
    if competition.arrays.labels:
        raise Refused("arrays.labels: of arrays made here labels are 0, 1, 2, …; say in source.labels what masks mean")
    layout = layouts.find_samples(source, own.ids)
    samples = layout.train + layout.test
    sizes, odd = _inspect(samples, own.obey_exif)
    masks = [sample.mask for sample in samples if sample.mask]
    coding = mask_coding.detect_coding(masks, competition.classes, ignore, own.labels)
    print(f"{source}: {len(layout.train):,} training and {len(layout.test):,} test images; {coding.text}")
    rows = [
        (one.id, one.fold, *(convert.file_state(file) for file in (one.image, one.mask) if file)) for one in samples
    ]
    meaning = [coding.kind, sorted(coding.meaning.items()), ignore]
    digest = convert.digest([VERSION, size, fit, own.obey_exif, own.bits, meaning, rows])
    if path.exists():
        if _facts(path).get("digest") != digest:
            raise Refused(f"{path}: was made from other files or in another way; move it away to make it anew")
        print(f"{path}: was made of these images already; delete it to make it anew")
        return

    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = 4 * size[0] * size[1] * len(samples), shutil.disk_usage(path.parent).free
    if need > free:
        raise Refused(f"{path.parent}: needs {need:,} bytes and has {free:,}; make room, or name a smaller --size")
    facts = {"source": source.absolute().name, "digest": digest, "size": size, "masks": coding.text}
    facts["odd"] = [astuple(finding) for finding in layout.odd + odd]
    train, test = sizes[: len(layout.train)], sizes[len(layout.train) :]
    members = chain(
        _members("train", layout.train, train, competition, size, coding),
        _members("test", layout.test, test, competition, size, coding),
        [_member("prepared", json.dumps(facts))],
    )
    try:
        npz.write_npz(path, members)
    except OSError as error:
        raise Refused(f"{error.filename or path}: {error.strerror or error}") from None
    print(f"{path}: {path.stat().st_size:,} bytes")


def prepare_hidden_test(competition: Competition, folder: Path) -> Path:
    """In a code competition's kernel: the folder of the npz with the test images, which in the end are hidden ones.

    It is `folder` where the npz is the competition's own, or not of `prepare`. One that `prepare` made holds the
    images that could be seen then, so that those now among the competition's data are read anew, in the same way.
    Raises Refused.
    """
    path, slug = arrays.find_npz(competition.file, folder), competition.kaggle
    homes = filter(Path.is_dir, (files.KAGGLE_INPUT / "competitions" / slug, files.KAGGLE_INPUT / slug))
    if not slug or (home := next(homes, path.parent)) in path.parents:
        return folder
    if not (facts := _facts(path)):
        print(f"{path}: holds no hidden images; one that kernels/prepare.py made would tell how to read them here")
        return folder
    place = convert.cache_folder(folder) / "hidden"
    if not (new := place / competition.file).exists():
        samples = layouts.find_samples(home, competition.source.ids, for_test=True).test
        sizes, _ = _inspect(samples, competition.source.obey_exif)
        npz.write_npz(new, _members("test", samples, sizes, competition, tuple(facts["size"])))
        print(f"{home}: {len(samples):,} test images")
    return place


def stored_findings(path: Path) -> list[Finding]:
    """What was odd about the files when `prepare` made an npz; nothing for any other npz."""
    return [Finding(*told) for told in _facts(path).get("odd", [])]


def _facts(path: Path) -> dict:
    """What `prepare` noted in an npz that it made; {} in any other."""
    there = "prepared" in npz.list_keys(path)
    return json.loads(str(npz.read_array(npz.read_member(path, "prepared")))) if there else {}


def _inspect(samples: Sequence[Sample], obey_exif: bool) -> tuple[list[Size], list[Finding]]:
    """Read all headers: the images' sizes, and unusual files. Refused where a mask is not of its image's size."""
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(lambda sample: decode.read_header(sample.image), samples))
        masks = list(pool.map(lambda sample: sample.mask and decode.read_header(sample.mask), samples))
    mode = Counter(header.mode for header in headers).most_common(1)[0][0]
    sizes, odd, wrong = [], [], []
    for sample, header, mask in zip(samples, headers, masks, strict=True):
        height, width = size = header.upright if obey_exif else header.size
        sizes.append(size)
        if mask and mask.size != size:
            stored = "; it fits the image as stored: set source.obey_exif = false" * (mask.size == header.size)
            wrong.append(f"{sample.mask}: is {mask.size[0]}×{mask.size[1]}, its image {height}×{width}{stored}")
        if (header.format, header.mode) != (header.named, mode):
            kind = f"{header.format}, {header.mode}, named {sample.image.suffix}"
            odd.append(Finding(sample.id, "unusual file", kind))
        if header.orientation > 1:
            how = "turned upright" if obey_exif else "not turned"
            odd.append(Finding(sample.id, "EXIF orientation", f"{how}, orientation {header.orientation}"))
    if wrong:
        raise Refused(wrong[0] + (f"; {len(wrong)} masks are of another size" if len(wrong) > 1 else ""))
    return sizes, odd


def _members(
    name: str,
    samples: Sequence[Sample],
    sizes: Sequence[Size],
    competition: Competition,
    size: Size,
    coding: mask_coding.Coding | None = None,
) -> Iterator[tuple]:
    """The members of the npz that hold these samples, as `npz.write_npz` takes them; without a coding no masks."""
    if not samples:
        return
    fit, fill = competition.arrays.fit, competition.arrays.ignore or 0
    thumbnails = []

    def read_image(path: Path) -> np.ndarray:
        return decode.place_image(decode.read_image(path, competition.source), size, fit)

    def images() -> Iterator[np.ndarray]:
        for block in _blocks(f"{name}_images", read_image, [sample.image for sample in samples], size):
            thumbnails.append(audit.thumbnails(block))
            yield block

    yield f"{name}_images", (len(samples), *size, 3), np.uint8, images()
    masks = [sample.mask for sample in samples if sample.mask]
    if coding and len(masks) == len(samples):

        def read_mask(path: Path) -> np.ndarray:
            return decode.place_image(Image.fromarray(mask_coding.read_mask(path, coding)), size, fit, fill)

        yield f"{name}_masks", (len(samples), *size), np.uint8, _blocks(f"{name}_masks", read_mask, masks, size)
    ids = np.array([sample.id for sample in samples])
    yield _member(f"{name}_ids", ids)
    yield _member(f"{name}_sizes", np.array(sizes, np.int32))
    if name == "train":
        groups = audit.near_groups(np.concatenate(thumbnails), ids)
        if (groups != "").any():
            yield _member("train_groups", groups)
        folds = np.array([sample.fold for sample in samples], np.int16)
        if len(np.unique(folds)) > 1:
            yield _member("train_folds", folds)


def _blocks(name: str, read: Callable[[Path], np.ndarray], paths: Sequence[Path], size: Size) -> Iterator[np.ndarray]:
    step = max(1, BLOCK // (3 * size[0] * size[1]))
    with ThreadPoolExecutor() as pool, tqdm(total=len(paths), desc=name, unit="image", disable=None) as bar:
        for first in range(0, len(paths), step):
            block = np.stack([*pool.map(read, paths[first : first + step])])
            bar.update(len(block))
            yield block


def _member(key: str, values: ArrayLike) -> tuple:
    array = np.asarray(values)
    return key, array.shape, array.dtype, [array]
