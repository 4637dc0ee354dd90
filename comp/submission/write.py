"""Submission files, written fast: CSV, byte for byte what pandas' `DataFrame.to_csv(index=False)` writes.

"pixels": one row an image, header `id,0,1,…,H*W-1`, labels in C order. "rle": run-lengths; with `rows = "image"`
of label 1, with "image_class" each label but 0, the background, has a row of its own, with "instance" each object."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from comp import files
from comp.config import Competition
from comp.data.arrays import pick_class
from comp.errors import Refused
from comp.model.objects import find_objects
from comp.submission import runlength
from comp.submission.archive import open_archive

Key = tuple[str, ...]  # what names a row: (id,), or (id, class)
Write = Callable[[Iterable[Any], np.ndarray | Sequence[np.ndarray]], None]


@contextmanager
def open_writer(
    path: str | Path, competition: Competition, columns: Sequence[str] = (), necks: Sequence[float] = ()
) -> Iterator[Write]:
    """Yield `write(ids, labels)`, which appends a batch; the file appears when the block ends, whole.

    `labels` is uint8 (n, H, W), or n arrays (H, W) whose sizes may differ where the format is "rle". The columns are
    written in the order of `columns`, a sample submission's header, where that is given; `necks` part objects, as
    `find_objects` has them. Memory stays that of one batch. Refused: pixel rows of several sizes, other columns."""
    layout = competition.submission
    if layout.format == "files":
        with open_archive(path, competition) as write_files:
            yield write_files
        return
    order, wide = find_order(competition, columns), layout.format == "pixels" and layout.rows != "pixel"
    shape: tuple[int, ...] = ()

    def write(ids: Iterable[Any], labels: np.ndarray | Sequence[np.ndarray]) -> None:
        nonlocal shape
        if not isinstance(labels, np.ndarray):
            for image_id, image in zip(ids, labels, strict=True):
                write([image_id], np.asarray(image)[np.newaxis])
            return
        # safe: probabilities or wider integers, given by mistake, are a TypeError and not cut off
        labels, ids = labels.astype(np.uint8, casting="safe", copy=False), list(ids)
        if not shape:
            shape = labels.shape[1:]
            header = [*columns] if order else make_header(competition, math.prod(shape))
            check_header(path, header, columns or header, "the sample submission")
            file.write(_csv_text([header]))
        elif labels.shape[1:] != shape and wide:
            raise Refused(f"{str(ids[0])!r}: {labels.shape[1:]} pixels, after {shape}; pixel rows are of one size")
        file.writelines(_wide_rows(ids, labels) if wide else _keyed_rows(competition, ids, labels, order, necks))

    with files.atomic_write(path) as beside, open(beside, "wb", buffering=1 << 20) as file:
        yield write


def _wide_rows(ids: Iterable[Any], labels: np.ndarray) -> Iterator[bytes]:
    for image_id, image in zip(ids, labels, strict=True):
        texts = _pixel_texts(10 if image.max() < 10 else 256).take(image).tobytes()
        yield _csv_text([(image_id, "")]).removesuffix(b",\n")  # of one field alone, an empty id would be quoted
        yield texts.translate(None, b"\0") + b"\n"


@cache
def _pixel_texts(labels: int) -> np.ndarray:
    """For each label below `labels`, a comma and the number, padded with NUL: uint16 (10,) or uint32 (256,)."""
    texts = np.array([f",{label}".encode() for label in range(labels)])
    return texts.view(f"u{texts.itemsize}")  # integers are taken quicker than strings


def _keyed_rows(
    competition: Competition, ids: Iterable[Any], labels: np.ndarray, order: list[int], necks: Sequence[float]
) -> Iterator[bytes]:
    submission = competition.submission
    encode = partial(runlength.encode_runs, order=submission.order)
    written = competition.written[: 1 if submission.rows == "image" else None]
    whole = submission.rows in ("instance", "pixel")
    by_class = [] if whole else [encode(pick_class(labels, k, competition.overlap)) for k in written]
    for image_id, image, *texts in zip(ids, labels, *by_class, strict=True):
        keys = row_keys(competition, image_id, image.shape)
        if submission.rows == "instance":
            found = find_objects(image, competition, necks, math.prod(competition.source.cut or (math.inf,)))
            objects = [found == number for number in np.unique(found[found > 0])]
            # With a column of classes there is a key for each; an object's least label is its class, not a border.
            keys = [keys[written.index(image[one].min()) * (len(keys) > 1)] for one in objects] or keys[:1]
            texts = [encode(one[np.newaxis])[0] for one in objects] or [""]
        texts = [runlength.to_dialect(text, submission, image.size) if text else submission.empty for text in texts]
        if submission.join:
            keys, texts = keys[:1], [submission.join.join(texts)]
        if submission.rows == "pixel":
            texts = list(map(str, (image.T if submission.order == "column" else image).ravel().tolist()))
        rows = ((*key, text) for key, text in zip(keys, texts, strict=True))
        yield _csv_text(([row[k] for k in order] for row in rows) if order else rows)


def _csv_text(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def key_columns(competition: Competition) -> list[str]:
    """Names of the columns that hold a row's key."""
    layout = competition.submission
    by_class = layout.format == "rle" and layout.rows != "image" and layout.class_column
    return [layout.id_column, layout.class_column] if by_class else [layout.id_column]


def make_header(competition: Competition, pixels: int) -> list[str]:
    """Names of all columns; `pixels` is the area of an image, and counts in the format "pixels" alone."""
    layout = competition.submission
    wide = layout.format == "pixels" and layout.rows != "pixel"
    return [*key_columns(competition), *map(str, range(pixels) if wide else [layout.value_column])]


def find_order(competition: Competition, columns: Sequence[str]) -> list[int]:
    """Which of our columns stands where in `columns`; empty where they are not the same, or in the same order."""
    ours = make_header(competition, 0)
    return [ours.index(name) for name in columns] if ours != [*columns] and sorted(ours) == sorted(columns) else []


def check_header(path: str | Path, header: Sequence[str], expected: Sequence[str], source: str) -> None:
    """Raises Refused, naming the column, where a header is not what `source` has."""
    if len(header) != len(expected):
        raise Refused(f"{path}: {len(header)} columns; {source} has {len(expected)}")
    for number, (name, right) in enumerate(zip(header, expected, strict=True), 1):
        if name != right:
            raise Refused(f"{path}: column {number} is {name!r:.80}; {source} has {right!r:.80} there")


def row_keys(competition: Competition, image_id: Any, shape: Sequence[int] = ()) -> list[Key]:
    """The keys of one image's rows, in their order; `shape` (H, W) counts where each pixel has one."""
    layout = competition.submission
    if layout.rows == "pixel":
        columns = layout.order == "column"
        return [(f"{image_id}_{first}_{then}",) for first, then in np.ndindex(*shape[:: -1 if columns else 1])]
    if layout.format == "pixels" or layout.rows == "image" or (layout.rows == "instance" and not layout.class_column):
        return [(str(image_id),)]
    labels = [competition.classes[n] if layout.class_label == "name" else str(n) for n in competition.written]
    return [(str(image_id), label) if layout.class_column else (f"{image_id}_{label}",) for label in labels]
