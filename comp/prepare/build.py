"""A competition's download as one npz of equal-sized uint8 arrays.

Its members are stored, so that they can be mapped: train_images, train_masks; where asked for train_instances (objects
numbered from 1, uint16) or train_soft (255 times annotators' share, uint8); train_ids, train_sizes (the originals',
int32 (N, 2)), train_groups (of the TOML, a window's image, or near duplicates), train_folds (a given split),
train_extra (1: it only trains); of test images ids, sizes, groups, places of windows, and masks where all have one."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import trange

from comp import files
from comp.config import Competition
from comp.data import arrays, npz
from comp.errors import Refused
from comp.prepare import decode, masks
from comp.prepare.find import find_samples
from comp.prepare.samples import Finding, Sample, cut_windows, read_windows
from comp.prepare.table import find_order

BLOCK = 32 << 20  # bytes of rows that are in memory at a time
WHOLE, OVERLAP = 0.0, 0.25  # of a window that is in the next one: to train on, and to predict
VERSION = 6  # raised when the same files would give other rows


def prepare(competition: Competition, source: Path, path: Path, size: arrays.Size) -> None:
    """Make the npz `path` of the images and masks below `source`. Raises Refused, also where it was made otherwise."""
    own, ignore = competition.source, competition.arrays.ignore
    if competition.arrays.labels:
        raise Refused("arrays.labels: of arrays made here labels are 0, 1, 2, …; say in source.labels what masks mean")
    with TemporaryDirectory(prefix="comp-") as spool:
        found = find_samples(competition, source, Path(spool))
        groups = [sample.group for sample in found.train if sample.group]
        if competition.arrays.neighbours and len({*groups}) == len(groups):
            raise Refused("arrays.neighbours: no two samples are of one group; source.group says whose slices they are")
        samples, channels, deep, odd = _inspect(found.train + found.test)
        images = samples[: len(found.train)]
        train, test = cut_windows(images, own.cut, WHOLE), cut_windows(samples[len(images) :], own.cut, OVERLAP)
        count, beside = len(train) + len(test), 2 * own.instances or int(own.soft)  # bytes beside image and mask
        needed = prod(size) * (count * (channels + 1) + len(train) * beside)
        if needed > (free := files.free_bytes(path)):
            what = f"{count:,} images of {size[0]}×{size[1]} take {needed / 1e6:,.0f} MB"
            raise Refused(f"{path}: {what}; the disk has {free / 1e6:,.0f} MB free")
        scaling = decode.find_scaling(own.range, [one.images for one in images], channels, deep)
        rows = _Rows(size, channels, scaling)
        order, proof = find_order(competition, images, rows.original) if own.table else ("column", "")
        reader = masks.make_reader(competition, samples, size, order)
        what = f"{len(images):,} training and {len(samples) - len(images):,} test images"
        what += f", cut into {len(train):,} and {len(test):,} windows" if own.cut else ""
        codings = [coding for coding in (reader.coding, reader.binary) if coding]
        texts = "; ".join(filter(None, [str(scaling), proof, *(coding.text for coding in codings)]))
        print(f"{source}: {what}, as {size[0]}×{size[1]}; {texts}")
        told = [VERSION, size, ignore, channels, asdict(scaling), order, own.instances, own.border, own.cut]
        told += [own.table.get("starts"), competition.overlap] + ["soft"] * own.soft
        told.append(json.dumps([*map(asdict, samples)], default=npz.file_state))  # another text once a file changes
        digest = npz.digest(told, b"".join(coding.table.tobytes() for coding in codings))
        if path.exists():
            if _read_facts(path).get("digest") != digest:
                raise Refused(f"{path}: was made from other files or in another way; move it away to make it anew")
            print(f"{path}: was made of these images already; delete it to make it anew")
            return

        def members() -> Iterator[tuple]:
            yield from rows.members("train", train, reader)
            yield from rows.members("test", test, reader)
            facts: dict = {"version": VERSION, "digest": digest, "size": size, "cut": own.cut, "channels": channels}
            facts |= {"scaling": asdict(scaling), "odd": found.odd + odd + sorted(rows.odd | reader.odd)}  # all is read
            yield _member("prepared", np.array(json.dumps(facts)))

        npz.write_npz(path, members())
    print(f"{path}: {path.stat().st_size:,} bytes")


def prepare_hidden_test(competition: Competition, folder: Path) -> Path:
    """In a code competition's kernel: the folder of an npz of its test images, which in the end are hidden ones.

    They are read in the way of `prepare`. Where there are no competition's data, it is `folder`. Raises Refused."""
    path, slug = arrays.find_npz(competition.file, folder), competition.kaggle
    homes = filter(Path.is_dir, (files.KAGGLE_INPUT / "competitions" / slug, files.KAGGLE_INPUT / slug))
    if not slug or (home := next(homes, path.parent)) in path.parents:
        return folder
    check_hidden_test(competition, folder)
    facts = _read_facts(path)
    place = npz.cache_folder(folder) / "hidden"
    rows = _Rows(tuple(facts["size"]), facts["channels"], decode.Scaling(**facts["scaling"]))
    with TemporaryDirectory(prefix="comp-") as spool:
        found = find_samples(competition, home, Path(spool), parts=("test",))
        samples = cut_windows(_inspect(found.test, rows.channels)[0], tuple(facts["cut"]), OVERLAP)
        npz.write_npz(place / competition.file, rows.members("test", samples))
    for id, finding, detail, _ in sorted(rows.odd)[:5]:
        print(f"{id}: {finding}: {detail}")
    print(f"{home}: {len(samples):,} test images")
    return place


def check_hidden_test(competition: Competition, folder: Path) -> None:
    """Refuse an npz that tells no kernel how to read a code competition's hidden images, before anything is trained."""
    if competition.code_competition and not _read_facts(path := arrays.find_npz(competition.file, folder)):
        fits = "make it with kernels/prepare.py, of what the TOML's section `source` says"
        raise Refused(f"{path}: a kernel could not read the hidden test images as these arrays were read; {fits}")


def stored_findings(path: Path) -> list[Finding]:
    """What was odd about the files when `prepare` made an npz; nothing for any other npz."""
    return [Finding(*told) for told in _read_facts(path).get("odd", [])]


def _read_facts(path: Path) -> dict:
    """What `prepare` noted in an npz that it made; {} in any other."""
    if "prepared" not in npz.list_keys(path):
        return {}
    facts = json.loads(str(npz.read_array(npz.read_member(path, "prepared"))))
    if facts.get("version") != VERSION:
        raise Refused(f"{path}: was made by another version; delete it, and make it anew with kernels/prepare.py")
    return facts


def _inspect(samples: Sequence[Sample], channels: int | None = None) -> tuple[list[Sample], int, bool, list[Finding]]:
    """From all headers: the samples with their sizes, the channels of all, whether all are deep, and what is odd.
    Of images that are grey and coloured, channels are 3. Raises Refused, also where they are not `channels`."""
    with ThreadPoolExecutor() as pool:
        headers = list(pool.map(lambda one: [decode.read_header(path) for path in one.images], samples))
        sizes = list(pool.map(lambda one: [decode.read_header(path, True).size for path, _ in one.mask_files], samples))
    sized, odd = [], []
    counts = [sum(header.channels for header in bands) for bands in headers]
    grey_or_colours = {*counts} <= {1, 3} and all(len(bands) == 1 for bands in headers)
    fits = channels or (max(counts) if grey_or_colours else counts[0])
    for sample, count, bands, mask_sizes in zip(samples, counts, headers, sizes, strict=True):
        size, orientation = bands[0].size, bands[0].orientation
        sized.append(replace(sample, size=size))
        if (count != fits and not (grey_or_colours and (count, fits) == (1, 3))) or count > decode.MOST_BANDS:
            others = f"the other images {fits}; 1 to {decode.MOST_BANDS}, the same for all, would fit"
            raise Refused(f"{sample.images[0]}: {sample.id} has {count} channels, {others}")
        if orientation > 1:
            odd.append(Finding(sample.id, "EXIF orientation", f"turned upright, orientation {orientation}"))
        paths = [*sample.images, *(path for path, _ in sample.mask_files)]
        for path, (height, width) in zip(paths, [header.size for header in bands] + mask_sizes, strict=True):
            if (height, width) != size:
                turned = orientation >= decode.SIDEWAYS and (width, height) == size
                hint = "; it fits the image before EXIF turns it: a source.reader could read that" if turned else ""
                raise Refused(f"{path}: is {height}×{width}, {sample.images[0]} {size[0]}×{size[1]}{hint}")
    return sized, fits, all(header.deep for bands in headers for header in bands), odd


@dataclass(frozen=True)
class _Rows:
    """How samples become the rows of an npz."""

    size: arrays.Size
    channels: int
    scaling: decode.Scaling
    odd: set[Finding] = field(default_factory=set)  # what was lost while reading

    def original(self, sample: Sample, strict: bool = True) -> np.ndarray:
        """The image as uint8 (H, W, C), of its own size. Strict: values that are not finite are refused."""
        bands, band = [], 0
        for path in sample.images:
            pixels, lost = self.scaling.apply(decode.read_image(path), band, path, strict)
            if lost:
                self.odd.add(Finding(sample.id if strict else f"test/{sample.id}", "values cut off", lost))
            bands.append(pixels)
            band += pixels.shape[2]
        image = np.concatenate(bands, axis=-1) if len(bands) > 1 else bands[0]
        return np.repeat(image, 3, axis=-1) if image.shape[2] < self.channels else image

    def members(self, part: str, samples: Sequence[Sample], reader: masks.MaskReader | None = None) -> Iterator[tuple]:
        """The members of the npz that hold these samples, as `npz.write_npz` takes them; without a reader no masks."""
        if not samples:
            return
        from comp.prepare import audit  # six seconds, which refusals need not wait for

        shape = (len(samples), *self.size)
        thumbs = np.empty((len(samples), audit.SIDE, audit.SIDE), np.float32)
        window = read_windows(lambda sample: (self.original(sample, part == "train"),))

        def read_image(k: int) -> np.ndarray:
            image = decode.resize_image(window(samples[k])[0], self.size)
            thumbs[k] = audit.thumbnails(image[None])[0]
            return image

        yield _stream(f"{part}_images", read_image, (*shape, self.channels))
        if reader and all(sample.mask is not None for sample in samples):
            yield _stream(f"{part}_masks", lambda k: reader.read(samples[k])[0], shape)
            source = reader.competition.source
            if part == "train" and (source.instances or source.soft):  # read again, since they come behind all masks
                key, dtype = ("instances", np.uint16) if source.instances else ("soft", np.uint8)
                yield _stream(f"{part}_{key}", lambda k: reader.read(samples[k])[1], shape, dtype)
        ids = np.array([sample.id for sample in samples])
        yield _member(f"{part}_ids", ids)
        yield _member(f"{part}_sizes", np.array([sample.size for sample in samples], np.int32))
        if part == "test" and samples[0].whole:
            places = [one.place + one.whole.size for one in samples if one.whole]
            yield _member("test_places", np.array(places, np.int32))
        groups = np.array([sample.group for sample in samples])
        if part == "train" and not (groups != "").any():
            groups = audit.near_groups(thumbs, ids)
        if (groups != "").any():
            yield _member(f"{part}_groups", groups)
        if any(sample.extra for sample in samples):
            yield _member("train_extra", np.array([sample.extra for sample in samples], np.uint8))
        if part == "train" and len({sample.fold for sample in samples}) > 1:
            yield _member("train_folds", np.array([sample.fold for sample in samples], np.int16))


def _stream(key: str, read: Callable[[int], np.ndarray], shape: tuple[int, ...], dtype: type = np.uint8) -> tuple:
    """A member whose rows `read` gives by their number, block by block, while it is written."""

    def blocks() -> Iterator[np.ndarray]:
        step = max(1, BLOCK // (prod(shape[1:]) * np.dtype(dtype).itemsize))
        with ThreadPoolExecutor() as pool:
            for first in trange(0, shape[0], step, desc=key, unit="block", disable=None):
                yield np.stack([*pool.map(read, range(first, min(first + step, shape[0])))])

    return key, shape, dtype, blocks()


def _member(key: str, array: np.ndarray) -> tuple:
    return key, array.shape, array.dtype, [array]
