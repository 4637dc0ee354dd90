"""What is odd about the samples of a competition.

Images that occur twice, exactly or nearly, within the training samples and between them and the test
samples; masks that many different images share; empty masks and flat images. A finding names its sample,
and the group it belongs to where there is one. `comp.prepare.audit_report` makes the table, the list and the sheet.
"""

from collections.abc import Iterator

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from comp.config import Competition
from comp.data.arrays import Index, Split, TrainSplit, release_pages
from comp.prepare.finding import Finding

SIDE = 16  # areas along a thumbnail's side; with 8, different images of plain ground are near duplicates
NEAR_CORRELATION = 0.98  # of the thumbnails
SHARING = 3  # different images under one mask, from which on it is a finding
FLAT = 2.0  # standard deviation of a thumbnail, in grey levels


def audit(
    competition: Competition,
    train: TrainSplit,
    index: Index,
    test: Split | None = None,
    test_index: Index | None = None,
) -> Iterator[Finding]:
    """Look at every sample once. The id of a test sample is "test/…"."""
    ids, thumbs = train.ids.tolist(), thumbnails(train.images)
    for k in np.flatnonzero(index.counts[:, 1:].sum(axis=1) == 0):
        what = f"only {competition.classes[0]}" if index.counts[k, 0] else "every pixel is ignored"
        yield Finding(ids[k], "empty mask", what)
    yield from _shared_masks(ids, train.masks, index)
    for k in np.flatnonzero(thumbs.std(axis=(1, 2)) < FLAT):
        yield Finding(ids[k], "flat image", f"grey {thumbs[k].mean():.0f} all over")
    hashes = index.image_hash
    if test is not None and test_index is not None:
        ids += [f"test/{id}" for id in test.ids]
        thumbs, hashes = np.concatenate([thumbs, thumbnails(test.images)]), np.append(hashes, test_index.image_hash)
    yield from _duplicates(ids, thumbs, hashes, index.mask_hash)


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey means over SIDE by SIDE areas, float32 (N, SIDE, SIDE), of uint8 (N, H, W, C)."""
    out = np.empty((len(images), SIDE, SIDE), np.float32)
    for k, image in enumerate(images):
        out[k] = cv2.resize(image.mean(axis=-1, dtype=np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if k % 256 == 0:
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
    first = _first_in_chain(near_graph(thumbs))
    return np.where(np.bincount(first)[first] == 1, "", ids[first])


def _first_in_chain(graph: csr_array) -> np.ndarray:
    return _first_with(connected_components(graph, directed=False)[1])


def _first_with(values: np.ndarray) -> np.ndarray:
    """For each sample the first that has the same value, int (N,)."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which]


def _shared_masks(ids: list[str], masks: np.ndarray, index: Index) -> Iterator[Finding]:
    first = _first_with(index.mask_hash)
    images = pd.Series(index.image_hash).groupby(first).transform("nunique")
    for k in np.flatnonzero(images >= SHARING):
        mask = masks[first[k]]
        changes = (mask[1:] != mask[:-1]).any(axis=1).sum(), (mask[:, 1:] != mask[:, :-1]).any(axis=0).sum()
        if min(changes) >= 3:  # one label, framed or cut once, tells nothing of its image, and many are so
            yield Finding(ids[k], "shared mask", f"{images[k]} different images share it", ids[first[k]])


def _duplicates(ids: list[str], thumbs: np.ndarray, hashes: np.ndarray, mask_hash: np.ndarray) -> Iterator[Finding]:
    """Images like an earlier training image; the training samples, to which mask_hash belongs, are first in `ids`."""
    own, known = np.arange(len(ids)), len(mask_hash)
    twin, near = _first_with(hashes), _first_in_chain(near_graph(thumbs))
    first = np.where((twin != own) & (twin < known), twin, near)
    for k in np.flatnonzero((first != own) & (first < known)):
        kind, detail = "near duplicate", f"of {ids[first[k]]}"
        if hashes[k] == hashes[first[k]]:
            kind = "duplicate"
            if k < known:
                detail += ", with the same mask" if mask_hash[k] == mask_hash[first[k]] else ", with another mask"
        yield Finding(ids[k], kind if k < known else f"{kind} in test", detail, ids[first[k]])
