"""What is odd about the samples of a competition, as a table, a list and a sheet of images.

Images that occur twice, exactly or nearly, in the test too; masks that many images share; empty masks, flat images."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.neighbors import NearestNeighbors

from comp.config import Competition
from comp.data.arrays import Index, Split, TrainSplit, build_index, first_with, release_pages
from comp.files import write_text
from comp.prepare.samples import Finding
from comp.report import figures
from comp.report.tables import shorten

SIDE = 16  # areas along a thumbnail's side; with 8, different images of plain ground are near duplicates
NEAR_CORRELATION = 0.98  # of the thumbnails
SHARING = 3  # different images under one mask, from which on it is a finding
FLAT = 2.0  # standard deviation of a thumbnail, in grey levels
ACROSS = 6  # images in a row of the sheet
NAMED = 3  # ids that the table names of every kind


def audit(competition: Competition, train: TrainSplit, index: Index, test: Split | None = None) -> Iterator[Finding]:
    """Look at every sample once. The id of a test sample is "test/…"."""
    ids, thumbs, masks = train.ids.tolist(), thumbnails(train.images), train.masks
    for k in np.flatnonzero(index.counts[:, 1:].sum(axis=1) == 0):
        what = f"only {competition.classes[0]}" if index.counts[k, 0] else "every pixel is ignored"
        yield Finding(ids[k], "empty mask", what)
    first = first_with(index.mask_hash)
    images = pd.Series(index.image_hash).groupby(first).transform("nunique")
    for k in np.flatnonzero(images >= SHARING):
        mask = masks[first[k]]
        changes = (mask[1:] != mask[:-1]).any(axis=1).sum(), (mask[:, 1:] != mask[:, :-1]).any(axis=0).sum()
        if min(changes) >= 3:  # one label, framed or cut once, tells nothing of its image, and many are so
            yield Finding(ids[k], "shared mask", f"{images[k]} different images share it", ids[first[k]])
    for k in np.flatnonzero(thumbs.std(axis=(1, 2)) < FLAT):
        if train.images[k].mean(-1).std() < FLAT:  # a thumbnail has no noise
            yield Finding(ids[k], "flat image", f"grey {thumbs[k].mean():.0f} all over")
    hashes, known = index.image_hash, len(ids)
    if test is not None:
        ids += [f"test/{id}" for id in test.ids]
        thumbs = np.concatenate([thumbs, thumbnails(test.images)])
        hashes = np.append(hashes, build_index(test, competition).image_hash)
    own, twin = np.arange(len(ids)), first_with(hashes)
    near = first_with(connected_components(near_graph(thumbs), directed=False)[1])
    first = np.where((twin != own) & (twin < known), twin, near)
    for k in np.flatnonzero((first != own) & (first < known)):  # images like an earlier training image
        kind, detail = "near duplicate", f"of {ids[first[k]]}"
        if hashes[k] == hashes[first[k]]:
            kind = "duplicate"
            if k < known:
                same = index.mask_hash[k] == index.mask_hash[first[k]]
                detail += ", with the same mask" if same else ", with another mask"
        yield Finding(ids[k], kind if k < known else f"{kind} in test", detail, ids[first[k]])


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Grey means over SIDE by SIDE areas, float32 (N, SIDE, SIDE), of uint8 (N, H, W, C)."""
    out = np.empty((len(images), SIDE, SIDE), np.float32)
    for k, image in enumerate(images):
        out[k] = cv2.resize(image.mean(axis=-1, dtype=np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        if k % 256 == 0:
            release_pages(images)
    return out


def near_graph(thumbs: np.ndarray) -> coo_array:
    """Which images look alike: a symmetric graph (N, N) of thumbnails that correlate; flat ones never do."""
    flat = thumbs.reshape(len(thumbs), -1).astype(float)
    varied = np.flatnonzero(flat.std(axis=1) >= FLAT)
    if not len(varied):
        return coo_array((len(thumbs), len(thumbs)))
    centred = flat[varied] - flat[varied].mean(axis=1, keepdims=True)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    # Between unit vectors of correlation r the distance is sqrt(2 - 2r).
    near = NearestNeighbors(radius=np.sqrt(2 - 2 * NEAR_CORRELATION)).fit(unit).radius_neighbors_graph().tocoo()
    return coo_array((near.data, (varied[near.row], varied[near.col])), (len(thumbs), len(thumbs)))


def near_groups(thumbs: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The first id of each sample's chain of near duplicates, str (N,); "" where there is none."""
    first = first_with(connected_components(near_graph(thumbs), directed=False)[1])
    return np.where(np.bincount(first)[first] == 1, "", ids[first])


def write_audit(
    folder: Path, competition: Competition, train: TrainSplit, index: Index, test: Split | None, found: list[Finding]
) -> str:
    """Leave audit.txt (the table), audit.csv (a row a finding), audit.png (a sheet) in a folder; return the table."""
    height, width, channels = train.images.shape[1:]
    heading = f"{competition.name}: {len(train.ids):,} training images of {height}×{width}×{channels}"
    heading += f", {len(test.ids):,} test images" if test is not None else ""
    lines = [heading, "", _class_table(competition, index, height * width), ""]
    for name, split in {"training sizes": train, "test sizes": test}.items():
        if split is not None and split.sizes is not None:
            by_area = split.sizes[np.argsort(split.sizes.prod(axis=1, dtype=np.int64), kind="stable")]
            shown = [f"{height}×{width}" for height, width in by_area[[0, len(by_area) // 2, -1]].tolist()]
            lines.append(f"{name}, height×width, the smallest, the median and the largest: {', '.join(shown)}")
    findings = pd.DataFrame(found, columns=[*Finding._fields])
    for kind, ids in findings.groupby("finding", sort=False)["id"]:
        some = ", ".join(shorten(id, 24) for id in ids[:NAMED]) + (", …" if len(ids) > NAMED else "")
        lines.append(f"{kind:<20}{len(ids):>7,}   {some}")
    text = "\n".join(lines if found else [*lines, "nothing odd"])

    write_text(folder / "audit.txt", text + "\n")
    write_text(folder / "audit.csv", findings.to_csv(index=False))
    unscored = () if competition.arrays.ignored is None else (competition.arrays.ignored,)
    rows = _rows(train, test, findings)
    figures.draw_sheet(rows, competition.classes, folder / "audit.png", unscored, competition.overlap)
    return text


def _class_table(competition: Competition, index: Index, area: int) -> str:
    counts = pd.DataFrame(index.counts, columns=[shorten(name, 23) for name in competition.classes])
    if not competition.overlap and (ignored := area - index.counts.sum(axis=1)).any():
        counts["(ignored)"] = ignored
    pixels, images = counts.sum(), (counts > 0).sum()
    table = pd.DataFrame({"pixels": pixels.map("{:,}".format)})
    table["share"] = (pixels / pixels.sum()).map("{:.2%}".format)
    table["images"] = images.map("{:,}".format)
    table["of all"] = (images / len(counts)).map("{:.1%}".format).where(images > 0, "in no image")
    return table.rename_axis(columns="class").to_string()


def _rows(train: TrainSplit, test: Split | None, findings: pd.DataFrame) -> Iterator[figures.Row]:
    """Some training images, then for each kind of finding some of its; one that is like another follows that one."""
    ids = train.ids.tolist()
    cells: dict[str, figures.Cell] = dict(zip(ids, zip(train.images, train.masks, strict=True), strict=True))
    if test is not None:
        masks = [None] * len(test.ids) if test.masks is None else test.masks
        cells |= {f"test/{id}": (image, mask) for id, image, mask in zip(test.ids, test.images, masks, strict=True)}
    yield "some training images", {id: cells[id] for id in ids[:: -(-len(ids) // ACROSS)]}
    for kind, of_kind in findings.groupby("finding", sort=False):
        named = dict.fromkeys(of_kind[["group", "id"]].to_numpy().ravel().tolist())
        if names := [name for name in named if name in cells]:
            yield f"{kind}: {len(of_kind):,}", {name: cells[name] for name in names[:ACROSS]}
