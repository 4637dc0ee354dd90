"""From an npz file to checked arrays, and what one look at every sample tells of them."""

import hashlib
import math
import mmap
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from comp import files
from comp.config import Arrays, Competition
from comp.data import demo, npz
from comp.errors import Refused

SAMPLE = "sample_submission.csv"  # as Kaggle names it
INDEX_VERSION = 3  # raised when `build_index` changes, so that older caches are not used
Size = tuple[int, int]  # height, width


class Neighbours:
    """What a network sees of images (N, H, W, C) that have neighbours: uint8 (N, H, W, C·k), read when asked for.

    An image's channels are those of its k neighbours, at `offsets` from its own place in its group, in the order of
    the rows; beyond a group's ends its first or last image stands in, and without a group, "", the image itself."""

    def __init__(self, images: np.ndarray, groups: np.ndarray, offsets: Sequence[int]):
        self._images = images
        numbers = number_groups(groups)
        order = np.argsort(numbers, kind="stable")
        first, end = (np.searchsorted(numbers, numbers[order], side, order)[:, None] for side in ("left", "right"))
        near = np.clip(np.arange(len(order))[:, None] + np.array(offsets), first, end - 1)
        self._rows = order[near][np.argsort(order)]  # (N, k), in the order of the rows again
        self.shape = (*images.shape[:3], images.shape[3] * len(offsets))

    def __getitem__(self, rows: Any) -> np.ndarray:
        images = np.moveaxis(self._images[self._rows[rows]], -4, -2)
        return images.reshape(*images.shape[:-2], self.shape[-1])


@dataclass(frozen=True)
class Split:
    """The samples of one part, train or test. Arrays are read-only; images and masks may be mapped."""

    images: np.ndarray  # uint8 (N, H, W, C), not always contiguous
    masks: np.ndarray | None  # uint8 (N, H, W)
    ids: np.ndarray  # str (N,), unique
    groups: np.ndarray | None  # str (N,); "" is no group
    sizes: np.ndarray | None  # int32 (N, 2): original height, width
    folds: np.ndarray | None = None  # int16 (N,): the fold in which each validates, where a split is given
    cache: Path | None = None  # begins the paths of what is cached, by file state and selectors; None: nothing is
    extra: np.ndarray | None = None  # bool (N,): which train in every fold and validate in none
    instances: np.ndarray | None = None  # integers (N, H, W): objects of each image, numbered from 1
    neighbours: tuple[int, ...] = ()  # whose channels a network sees beside an image's own, by place in the group
    places: np.ndarray | None = None  # int32 (N, 4) of windows: top, left, and height and width of their image
    soft: np.ndarray | None = None  # uint8 (N, H, W): 255 times the share of annotators who saw the second class

    @cached_property
    def inputs(self) -> np.ndarray | Neighbours:
        """What a network sees: uint8 (N, H, W, C), or with neighbours (N, H, W, C·k)."""
        if not self.neighbours:
            return self.images
        assert self.groups is not None  # as was checked when they were read
        return Neighbours(self.images, self.groups, self.neighbours)

    @property
    def asked(self) -> tuple[np.ndarray, np.ndarray | tuple[int, ...]]:
        """What a submission must have: ids str (n,); heights and widths, int32 (n, 2), or one pair for all images."""
        if self.places is None:
            return self.ids, self.images.shape[1:3] if self.sizes is None else self.sizes
        names, first = np.unique([id.rpartition("@")[0] for id in self.ids.tolist()], return_index=True)
        return names, self.places[first, 2:]


@dataclass(frozen=True)
class TrainSplit(Split):
    """A split whose masks are known."""

    masks: np.ndarray


@dataclass(frozen=True)
class Index:
    """What one pass over a split finds."""

    counts: np.ndarray  # int64 (N, classes): pixels per class; ignored pixels are counted nowhere
    image_hash: np.ndarray  # uint64 (N,)
    mask_hash: np.ndarray  # uint64 (N,)
    constant: np.ndarray  # bool (N,): the mask is one label throughout, ignored pixels aside, or there is none


def pick_class(labels: Any, k: int, overlap: bool) -> Any:
    """Where labels are of class `k`, bool of their shape; where classes overlap, bit k - 1 says so, and 0 is none."""
    return (labels & (1 << k - 1)) > 0 if overlap and k else labels == k


def number_groups(groups: np.ndarray) -> np.ndarray:
    """A number for each sample, the same for those of one group; without a group, "", one of its own."""
    numbers = np.unique(groups, return_inverse=True)[1]
    return np.where(groups == "", len(groups) + np.arange(len(groups)), numbers)


def first_with(values: np.ndarray) -> np.ndarray:
    """For each sample the first that has the same value, int (N,)."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which]


def spread_starts(side: int, length: int, overlap: float) -> list[int]:
    """Where parts of a side begin that cover it, evenly; of each a share, `overlap` at least, is in the next."""
    spare = max(0, side - length)
    return np.linspace(0, spare, 1 + math.ceil(spare / (length * (1 - overlap)))).round().astype(int).tolist()


def find_npz(file: str, folder: Path) -> Path:
    """Where an npz lies: in `folder`, else by its name below /kaggle/input; the demo's is drawn on first use."""
    path = Path(folder) / file
    if found := path if path.is_file() else next(files.find_below_input(path.name), None):
        return found
    if file == demo.NAME:
        return demo.ensure_demo(folder)
    hint = "put it there, or let kernels/prepare.py make it of the competition's download"
    raise Refused(f"{path}: no such file, and none of that name below {files.KAGGLE_INPUT}; {hint}")


def load_train(competition: Competition, folder: Path) -> TrainSplit:
    """The training samples of a competition. Raises Refused, naming file, key and sample."""
    return TrainSplit(**vars(_load("train", competition, folder)))


def load_test(competition: Competition, folder: Path) -> Split:
    """The test samples; with masks only where the npz has them, as practice competitions do."""
    return _load("test", competition, folder)


def has_test(competition: Competition, folder: Path, train: Split) -> bool:
    """Whether the npz holds the test images that the competition names. Refused: any that a model could not predict."""
    path, selector = find_npz(competition.file, folder), competition.arrays.test_images
    if selector.partition("[")[0] not in npz.list_keys(path):
        return False
    test = npz.Wanted(*_select(path, selector), "images", competition.arrays.scale)
    if test.shape[3] != train.images.shape[3]:
        raise Refused(f"{test}: {test.shape[3]} channels; the training images have {train.images.shape[3]}")
    _check_neighbours(path, competition.arrays, "test")
    return True


def release_pages(array: np.ndarray | None) -> None:
    """Drop a mapped array's pages from this process; they stay readable, and in the system's cache."""
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    if array is not None:
        array.madvise(mmap.MADV_DONTNEED)


def find_sample_submission(competition: Competition, folder: Path) -> Path | None:
    """Where the competition's sample submission lies, if there is one: in `folder`, else below /kaggle/input."""
    own = Path(folder) / (competition.submission.sample or f"{competition.name}-sample_submission.csv")
    if not own.is_file() and competition.kaggle:
        own = Path(folder) / competition.kaggle / SAMPLE  # of a download
    # There it is the competition's own; here, of several competitions, nobody can tell which one it belongs to.
    return own if own.is_file() else next(files.find_below_input(SAMPLE), None)


def build_index(split: Split, competition: Competition) -> Index:
    """Count and hash every sample in one pass, cached, in flat memory. Refused: a label of no class, unless ignored."""
    if split.cache is None:
        return _scan(split, competition)
    asked = [INDEX_VERSION, len(competition.classes), competition.arrays.ignored, competition.overlap]
    stored = split.cache.with_name(f"{split.cache.name}.index-{npz.digest(asked, split.ids.tobytes())}.npz")
    with suppress(Refused):  # it is missing, or cut short
        return Index(*(npz.read_array(npz.read_member(stored, field)) for field in Index.__dataclass_fields__))
    found = _scan(split, competition)
    with suppress(OSError), files.atomic_write(stored) as beside:  # a full disk costs the cache, not the result
        np.savez(beside, **vars(found))
    return found


def _scan(split: Split, competition: Competition) -> Index:
    samples, known, ignore = len(split.images), competition.labels, competition.arrays.ignored
    counts = np.zeros((samples, known), np.int64)
    image_hash, mask_hash = np.zeros(samples, np.uint64), np.zeros(samples, np.uint64)
    step = max(1, npz.BLOCK // math.prod(split.images.shape[1:]))

    def scan(first: int) -> None:
        for row in range(first, min(first + step, samples)):
            image = split.images[row]
            # Blank images, as between the windows of a slide, are no copies of one another.
            image_hash[row] = _hash(image if image.min() < image.max() else np.array(split.ids[row]))
            if split.masks is not None:
                mask_hash[row] = _hash(mask := split.masks[row])
                found = np.bincount(mask.ravel(), minlength=256)
                if ignore is not None:
                    found[ignore] = 0
                counts[row] = found[:known]
                for label in np.flatnonzero(found[known:])[:1] + known:
                    wrong = f"sample {str(split.ids[row])!r} has label {label}; 0 to {known - 1} would fit"
                    fits = "name others as competition.arrays.labels=[0,255] or ignore=255"
                    raise Refused(f"{competition.file}: {wrong}; {fits}")

    # Hashing and numpy release the interpreter's lock, so threads share the work.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(scan, range(0, samples, step)):
            release_pages(split.images)
            release_pages(split.masks)
    constant = (counts > 0).sum(axis=1) <= 1
    if competition.overlap:  # of each class, the pixels whose labels have its bit
        bits = np.arange(known)[:, None] >> np.arange(len(competition.classes) - 1) & 1
        counts = np.column_stack([counts[:, 0], counts @ bits])
    return Index(counts, image_hash, mask_hash, constant)


def _hash(sample: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(np.ascontiguousarray(sample).data, digest_size=8).digest(), "little")


def _load(part: Literal["train", "test"], competition: Competition, folder: Path) -> Split:
    path, arrays, metric = find_npz(competition.file, folder), competition.arrays, competition.metric
    images = npz.Wanted(*_select(path, getattr(arrays, f"{part}_images")), "images", arrays.scale)
    masks, count = None, images.shape[0]
    if selector := arrays.train_masks if part == "train" else _find_optional(path, arrays, "test_masks"):
        labels = {value: label for label, value in enumerate(arrays.labels)}
        if labels and arrays.ignore is not None:
            labels[arrays.ignore] = 255  # which `ignored` says
        masks = npz.Wanted(*_select(path, selector), "masks", labels=labels)
        if masks.shape != images.shape[:3]:
            raise Refused(f"{masks}: masks of shape {masks.shape} do not fit images of shape {images.shape}")
    ids = _read_optional(path, arrays, f"{part}_ids", str, (count,))
    if ids is None:
        ids = np.arange(count).astype(f"U{len(str(count - 1))}")
    unique, times = np.unique(ids, return_counts=True)
    for id in unique[(times > 1) | (unique == "")].tolist()[:1]:
        raise Refused(f"{path}: {part}_ids: the id {id!r} is empty or not unique")
    groups = _read_optional(path, arrays, f"{part}_groups", str, (count,))
    sizes = _read_optional(path, arrays, f"{part}_sizes", np.int32, (count, 2))
    folds = _read_optional(path, arrays, f"{part}_folds", np.int16, (count,))
    _check_neighbours(path, arrays, part)
    extra = _read_optional(path, arrays, f"{part}_extra", np.bool_, (count,))
    instances = soft = None
    if part == "train" and (metric.name.startswith("object_") or (metric.function and competition.source.instances)):
        instances = _map_beside(path, arrays.train_instances, images.shape[:3])
    if part == "train" and competition.source.soft:
        soft = _map_beside(path, arrays.train_soft, images.shape[:3])
    cache = npz.cache_folder(folder)
    prefix = cache / f"{npz.file_state(path)}.{npz.digest([images.key, masks.key if masks else ''])}"
    loaded = images.load(ids, cache), masks.load(ids, cache) if masks else None
    places = _read_optional(path, arrays, f"{part}_places", np.int32, (count, 4))
    return Split(*loaded, ids, groups, sizes, folds, prefix, extra, instances, arrays.neighbours, places, soft)


def _map_beside(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of whole numbers, one for each of the images' pixels."""
    member = npz.read_member(path, key)
    if member.shape != shape or member.dtype.kind not in "iu":
        raise Refused(f"{member}: {member.dtype} of shape {member.shape}; whole numbers of shape {shape} would fit")
    return npz.map_member(member) if member.offset is not None else npz.read_array(member)


def _check_neighbours(path: Path, arrays: Arrays, part: str) -> None:
    if arrays.neighbours and not _find_optional(path, arrays, f"{part}_groups"):
        raise Refused(f"{path}: no {part}_groups, which say whose neighbours competition.arrays.neighbours means")


def _select(path: Path, selector: str) -> tuple[npz.Member, int | None]:
    """The member that a selector means, and its slice of the second axis; None for all of it."""
    if "[" not in selector:
        return npz.read_member(path, selector), None
    if not (sliced := re.fullmatch(r"(.+)\[:, *([0-9]{1,9})\]", selector)):
        raise Refused(f"{path}: {selector!r}: a selector is key or key[:, 0]")
    member, part = npz.read_member(path, sliced[1]), int(sliced[2])
    if len(member.shape) < 2 or part >= member.shape[1]:
        raise Refused(f"{path}: {selector!r}: shape {member.shape} has no such slice")
    return member, part


def _find_optional(path: Path, arrays: Arrays, name: str) -> str:
    """The selector of an array that need not be there: empty where it is the default and the file lacks it."""
    selector = getattr(arrays, name, "")
    return selector if selector != getattr(Arrays(), name, "") or selector in npz.list_keys(path) else ""


def _read_optional(path: Path, arrays: Arrays, name: str, dtype: type, shape: tuple[int, ...]) -> np.ndarray | None:
    """A small array of integers, or of text if `dtype` is str; None where the file has none."""
    if not (key := _find_optional(path, arrays, name)):
        return None
    member = npz.read_member(path, key)
    kinds, fits = {str: "USiu", np.bool_: "biu"}.get(dtype, "iu"), "text or integers" if dtype is str else "integers"
    if member.shape != shape or member.dtype.kind not in kinds:
        raise Refused(f"{member}: {member.dtype} of shape {member.shape}; {fits} of shape {shape} would fit")
    values = npz.read_array(member)
    if dtype is not str:
        return values.astype(dtype)
    # Bytes that are not UTF-8 become surrogates, which are not printable.
    texts = [v.decode(errors="surrogateescape") if isinstance(v, bytes) else str(v) for v in values.tolist()]
    if odd := [text for text in texts if not text.isprintable()]:
        raise Refused(f"{member}: sample {texts.index(odd[0])} has {odd[0]!r}; printable text would fit")
    return np.array(texts)
