"""What is odd about the samples of a competition.

Images that occur twice, exactly or nearly, within the training samples and between them and the test
samples; masks that many different images share; images that are empty, flat, or unusually bright,
dark or long. A finding names its sample, and the group it belongs to where there is one.
`comp.prepare.audit_report` makes the table, the list and the sheet of images.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from comp.config import Competition
from comp.data.arrays import Index, Split, TrainSplit, release_pages
from comp.prepare.finding import Finding

BLOCK = 8 << 20  # bytes of images that are looked at together
SIDE = 16  # areas along a thumbnail's side; with 8, different images of plain ground are near duplicates
NEAR_CORRELATION = 0.98  # of the thumbnails
SHARING = 3  # different images under one mask, from which on it is a finding
ODD_Z = 3.5  # modified z-score (Iglewicz and Hoaglin, 1993)
FLAT = 2.0  # standard deviation of a thumbnail, in grey levels
LONG = 1.6  # times the usual ratio of the longer to the shorter side


def audit(
    competition: Competition,
    train: TrainSplit,
    index: Index,
    test: Split | None = None,
    test_index: Index | None = None,
) -> Iterator[Finding]:
    """Look at every sample once, in blocks.

    train.sizes, where known, are the originals' sizes: their shapes are looked at too.
    """
    ids, thumbs = train.ids.tolist(), thumbnails(train.images)
    both = thumbs if test is None else np.concatenate([thumbs, thumbnails(test.images)])
    graph = near_graph(both)[: len(ids)]
    yield from _empty(competition.classes, ids, index.counts)
    yield from _shared_masks(ids, train.masks, index)
    yield from _twins(ids, index)
    yield from _near(ids, graph[:, : len(ids)], index.image_hash)
    if test is not None and test_index is not None:
        yield from _leaks(ids, test.ids.tolist(), graph[:, len(ids) :], index, test_index)
    yield from _odd_light(ids, thumbs)
    if train.sizes is not None:
        yield from _odd_shapes(ids, train.sizes)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey means over SIDE by SIDE areas, float32 (N, SIDE, SIDE), of uint8 (N, H, W, C), in blocks."""
    height, width, channels = images.shape[1:]
    rows, columns = np.arange(SIDE) * height // SIDE, np.arange(SIDE) * width // SIDE
    areas = np.outer(np.diff(np.append(rows, height)).clip(1), np.diff(np.append(columns, width)).clip(1))
    out = np.empty((len(images), SIDE, SIDE), np.float32)
    step = max(1, BLOCK // (height * width * channels))
    for first in range(0, len(images), step):
        sums = np.add.reduceat(images[first : first + step], rows, axis=1, dtype=np.uint32).sum(axis=-1)
        out[first : first + step] = np.add.reduceat(sums, columns, axis=2) / (areas * channels)
        release_pages(images)
    return out


def near_graph(thumbs: np.ndarray) -> csr_array:
    """Which images look alike: a symmetric graph (N, N) of thumbnails that correlate; flat ones never do."""
    flat = thumbs.reshape(len(thumbs), -1).astype(float)
    varied = np.flatnonzero(flat.std(axis=1) >= FLAT)
    if not len(varied):
        return csr_array((len(thumbs), len(thumbs)))
    centred = flat[varied] - flat[varied].mean(axis=1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    # Between unit vectors of correlation r the distance is sqrt(2 - 2r).
    near = NearestNeighbors(radius=np.sqrt(2 - 2 * NEAR_CORRELATION)).fit(unit).radius_neighbors_graph().tocoo()
    return coo_array((near.data, (varied[near.row], varied[near.col])), shape=(len(thumbs), len(thumbs))).tocsr()


def near_groups(thumbs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The first id of each sample's chain of near duplicates, str (N,); "" where there is none."""
    first = _first_of_chain(near_graph(thumbs))
    return np.where(np.bincount(first)[first] == 1, "", ids[first])


def _first_of_chain(graph: csr_array) -> np.ndarray:
    chain = connected_components(graph, directed=False)[1]
    return np.unique(chain, return_index=True)[1][chain]


def _plain(mask: np.ndarray) -> bool:
    """Whether a mask, uint8 (H, W), tells nothing of its image: one label, framed or cut once, as many are."""
    changes = ((mask[1:] != mask[:-1]).any(axis=1).sum(), (mask[:, 1:] != mask[:, :-1]).any(axis=0).sum())
    return min(changes) < 3


def _empty(classes: Sequence[str], ids: list[str], counts: np.ndarray) -> Iterator[Finding]:
    for k in np.flatnonzero(counts[:, 1:].sum(axis=1) == 0):
        yield Finding(ids[k], "empty mask", f"only {classes[0]}" if counts[k, 0] else "every pixel is ignored")


def _shared_masks(ids: list[str], masks: np.ndarray, index: Index) -> Iterator[Finding]:
    for group in _equal(index.mask_hash):
        images = len(np.unique(index.image_hash[group]))
        if images >= SHARING and not _plain(masks[group[0]]):
            for k in group:
                yield Finding(ids[k], "shared mask", f"{images} different images share it", ids[group[0]])


def _twins(ids: list[str], index: Index) -> Iterator[Finding]:
    for first, *others in _equal(index.image_hash):
        for k in others:
            which = "the same mask" if index.mask_hash[k] == index.mask_hash[first] else "another mask"
            yield Finding(ids[k], "duplicate", f"of {ids[first]}, with {which}", ids[first])


def _near(ids: list[str], graph: csr_array, hashes: np.ndarray) -> Iterator[Finding]:
    first = _first_of_chain(graph)
    for k in np.flatnonzero(hashes != hashes[first]):
        yield Finding(ids[k], "near duplicate", f"like {ids[first[k]]}", ids[first[k]])


def _leaks(ids: list[str], test_ids: list[str], graph: csr_array, index: Index, test_index: Index) -> Iterator[Finding]:
    hashes = index.image_hash.tolist()
    where = dict(zip(test_index.image_hash.tolist(), test_ids, strict=True))
    for k, hash in enumerate(hashes):
        if hash in where:
            yield Finding(ids[k], "also in test", f"as {where[hash]}", f"test/{where[hash]}")
    for k, other in dict(zip(*graph.nonzero(), strict=True)).items():
        if hashes[k] not in where:
            yield Finding(ids[k], "nearly in test", f"like {test_ids[other]}", f"test/{test_ids[other]}")


def _odd_light(ids: list[str], thumbs: np.ndarray) -> Iterator[Finding]:
    light = thumbs.mean(axis=(1, 2))
    for k in np.flatnonzero(thumbs.std(axis=(1, 2)) < FLAT):
        yield Finding(ids[k], "flat image", f"grey {light[k]:.0f} all over")
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
