"""What is odd about the samples of a competition.

Counts per class; pictures that occur twice, exactly or nearly, within the training samples and
between them and the test samples; masks that many different pictures share; pictures that are
empty, flat, or unusually bright, dark or long. A finding names its sample, and the group it belongs to
where there is one. `comp.prepare.audit_report` makes the table, the list and the sheet of pictures.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from comp.config import Competition
from comp.data.arrays import Index, Split, release_pages
from comp.data.folds import connected
from comp.prepare.layouts import Finding

BLOCK = 8 << 20  # bytes of pictures looked at together
NEAR_BITS = 3  # of 64; four bands of 16 then have one that is equal
CROWD = 1000  # different pictures with an equal band, beyond which it is padding's or the sky's and says nothing
NEAR_CORRELATION = 0.98  # of the thumbnails, without which smooth pictures would all be alike
SHARING = 3  # different pictures under one mask, from which on it is a finding
ODD_Z = 3.5  # modified z-score (Iglewicz and Hoaglin, 1993)
FLAT = 2.0  # standard deviation of a thumbnail, in grey levels
LONG = 1.6  # times the usual ratio of the longer to the shorter side


def audit(
    competition: Competition, train: Split, index: Index, test: Split | None = None, test_index: Index | None = None
) -> Iterator[Finding]:
    """Look at every sample once, in blocks.

    train.sizes, where known, are the originals' sizes: their shapes are looked at too.
    """
    ids, thumbs = train.ids.tolist(), thumbnails(train.images)
    yield from _empty(competition.classes, ids, index.counts)
    yield from _shared_masks(ids, train.masks, index)
    yield from _twins(ids, index)
    yield from _near(ids, thumbs, index.image_hash)
    if test_index is not None:
        yield from _leaks(ids, index, thumbs, test, test_index)
    yield from _odd_light(ids, thumbs)
    if train.sizes is not None:
        yield from _odd_shapes(ids, train.sizes)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey means over 8 by 9 areas, float32 (N, 8, 9), of uint8 (N, H, W, C), in blocks."""
    height, width, channels = images.shape[1:]
    rows, columns = np.arange(8) * height // 8, np.arange(9) * width // 9
    areas = np.outer(np.diff(np.append(rows, height)).clip(1), np.diff(np.append(columns, width)).clip(1))
    out = np.empty((len(images), 8, 9), np.float32)
    step = max(1, BLOCK // (height * width * channels))
    for first in range(0, len(images), step):
        sums = np.add.reduceat(images[first : first + step], rows, axis=1, dtype=np.uint32).sum(axis=-1)
        out[first : first + step] = np.add.reduceat(sums, columns, axis=2) / (areas * channels)
        release_pages(images)
    return out


def near_pairs(thumbs: np.ndarray) -> np.ndarray:
    """Pairs of pictures that look alike, int64 (P, 2), each with the smaller index first.

    Difference hashes (Krawetz, 2013) of 64 bits that differ in at most 3, found through equal bands
    of 16 bits and so without comparing all with all (a band that more than `CROWD` share is passed over);
    then the thumbnails must correlate. Of pictures with equal hashes each is compared with the first only.
    """
    bits = thumbs[:, :, 1:] > thumbs[:, :, :-1]
    # Column by column, so that the padding of letterboxed pictures does not fill a band.
    hashes = np.packbits(bits.transpose(0, 2, 1).reshape(-1, 64), axis=1).view(np.uint64)[:, 0]
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    same = np.stack([first[which], np.arange(len(hashes))], axis=1)
    found = [same[same[:, 0] != same[:, 1]]]
    for band in range(4):
        value = (distinct >> np.uint64(16 * band)) & np.uint64(0xFFFF)
        _, which_value, times = np.unique(value, return_inverse=True, return_counts=True)
        few = np.flatnonzero(times[which_value] <= CROWD)
        order = few[np.argsort(value[few], kind="stable")]
        value = value[order]
        for apart in range(1, len(value)):
            equal = np.flatnonzero(value[apart:] == value[:-apart])
            if not len(equal):
                break
            one, other = order[equal], order[equal + apart]
            close = np.bitwise_count(distinct[one] ^ distinct[other]) <= NEAR_BITS
            found.append(np.stack([first[one[close]], first[other[close]]], axis=1))
    pairs = np.unique(np.sort(np.concatenate(found), axis=1), axis=0)
    flat = thumbs.reshape(len(thumbs), -1)
    centred = flat - flat.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=1))
    product = (centred[pairs[:, 0]] * centred[pairs[:, 1]]).mean(axis=1)
    alike = product > NEAR_CORRELATION * spread[pairs[:, 0]] * spread[pairs[:, 1]]
    return pairs[alike & (spread[pairs] >= FLAT).all(axis=1)]


def near_groups(thumbs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The first id of each sample's chain of near duplicates, str (N,); "" where there is none."""
    first = connected(near_pairs(thumbs), len(ids))
    alone = np.bincount(first, minlength=len(ids))[first] == 1
    return np.where(alone, "", ids[first])


def _plain(mask: np.ndarray) -> bool:
    """Whether a mask, uint8 (H, W), tells nothing of its picture: one label, framed or cut once, as many are."""
    changes = ((mask[1:] != mask[:-1]).any(axis=1).sum(), (mask[:, 1:] != mask[:, :-1]).any(axis=0).sum())
    return min(changes) < 3


def _empty(classes: Sequence[str], ids: list[str], counts: np.ndarray) -> Iterator[Finding]:
    for k in np.flatnonzero(counts[:, 1:].sum(axis=1) == 0):
        yield Finding(ids[k], "empty mask", f"only {classes[0]}" if counts[k, 0] else "every pixel is ignored")


def _shared_masks(ids: list[str], masks: np.ndarray, index: Index) -> Iterator[Finding]:
    for group in _equal(index.mask_hash):
        pictures = len(np.unique(index.image_hash[group]))
        if pictures >= SHARING and not _plain(masks[group[0]]):
            for k in group:
                yield Finding(ids[k], "shared mask", f"{pictures} different pictures share it", ids[group[0]])


def _twins(ids: list[str], index: Index) -> Iterator[Finding]:
    for first, *others in _equal(index.image_hash):
        for k in others:
            which = "the same mask" if index.mask_hash[k] == index.mask_hash[first] else "another mask"
            yield Finding(ids[k], "duplicate", f"of {ids[first]}, with {which}", ids[first])


def _near(ids: list[str], thumbs: np.ndarray, hashes: np.ndarray) -> Iterator[Finding]:
    first = connected(near_pairs(thumbs), len(ids))
    for k in np.flatnonzero(hashes != hashes[first]):
        yield Finding(ids[k], "near duplicate", f"like {ids[first[k]]}", ids[first[k]])


def _leaks(ids: list[str], index: Index, thumbs: np.ndarray, test: Split, test_index: Index) -> Iterator[Finding]:
    test_ids, hashes = test.ids.tolist(), index.image_hash.tolist()
    where = dict(zip(test_index.image_hash.tolist(), test_ids, strict=True))
    for k, hash in enumerate(hashes):
        if hash in where:
            yield Finding(ids[k], "also in test", f"as {where[hash]}", f"test/{where[hash]}")
    pairs = near_pairs(np.concatenate([thumbs, thumbnails(test.images)]))
    for k, other in pairs[(pairs[:, 0] < len(ids)) & (pairs[:, 1] >= len(ids))]:
        if hashes[k] not in where:
            near = test_ids[other - len(ids)]
            yield Finding(ids[k], "nearly in test", f"like {near}", f"test/{near}")


def _odd_light(ids: list[str], thumbs: np.ndarray) -> Iterator[Finding]:
    light = thumbs.mean(axis=(1, 2))
    for k in np.flatnonzero(thumbs.std(axis=(1, 2)) < FLAT):
        yield Finding(ids[k], "flat picture", f"grey {light[k]:.0f} all over")
    off = light - np.median(light)
    # Where nearly all are equal, a difference of a few grey levels is still not odd.
    z = 0.6745 * off / max(float(np.median(abs(off))), 1.0)
    for k in np.flatnonzero(abs(z) > ODD_Z):
        yield Finding(ids[k], "odd brightness", f"mean {light[k]:.0f}, z {z[k]:+.1f}")


def _odd_shapes(ids: list[str], sizes: np.ndarray) -> Iterator[Finding]:
    length = sizes.max(axis=1) / sizes.min(axis=1)
    for k in np.flatnonzero(length > LONG * np.median(length)):
        yield Finding(ids[k], "odd shape", f"{sizes[k, 0]}×{sizes[k, 1]}")


def _equal(hashes: np.ndarray) -> list[np.ndarray]:
    """Indices of the samples that share a hash, for each hash that several have, in their order."""
    order = np.argsort(hashes, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1)
    return sorted((group for group in groups if len(group) > 1), key=lambda group: group[0])
