"""Submission files read back, and refused where Kaggle would refuse them."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import Competition
from comp.data import arrays
from comp.errors import Refused
from comp.submission import runlength, write
from comp.submission.archive import Sizes, check_archive
from comp.submission.write import Key


def check_submission(
    path: str | Path, competition: Competition, ids: Iterable[Any] = (), sizes: Sizes = None, sample: Path | None = None
) -> int:
    """Read a submission back and refuse what Kaggle would; return how many rows it has.

    `ids` are the test ids, `sizes` theirs; what is not given is not checked. With `sample`, the competition's
    sample_submission.csv, header and ids must be the sample's. The order of rows is free. Memory holds one row, and the
    ids. What a function of one's own wrote is held to the sample's header and ids if it is a CSV, else to nothing.
    Raises Refused, naming the row (the first below the header is row 1), its id and the column."""
    layout, ids = competition.submission, list(ids)
    own = bool(layout.function)
    empty, by_object = layout.empty, own or layout.rows == "instance"  # an id may have several rows
    if own and Path(path).suffix != ".csv":
        return len(ids)
    if layout.format == "files":
        return check_archive(Path(path), competition, ids, sizes)
    shapes = [()] * len(ids) if sizes is None else np.broadcast_to(sizes, (len(ids), 2)).tolist()
    known = {key: size for one, size in zip(ids, shapes, strict=True) for key in write.row_keys(competition, one, size)}
    header, rows = _read_pairs(path, competition)
    if sample:
        (expected, asked), source = _read_pairs(sample, competition), Path(sample).name
        known = {key: known.get(key, ()) for key, _ in asked}
    elif own:
        expected, source, known = header, "", {}
    else:
        expected = write.make_header(competition, math.prod(shapes[0]) if any(shapes) else len(header) - 1)
        source = f"competition {competition.name}"
    write.check_header(path, header, expected, source)
    seen: set[Key] = set()
    taken: dict[str, list[np.ndarray]] = defaultdict(list)  # of each image its objects' starts and ends
    for row, (key, value) in enumerate(rows, 1):
        try:
            if key in seen and (layout.join or not by_object):
                raise Refused("a second row of this id")
            if known and key not in known:
                raise Refused(f"no such id in {source}; there they look like {', '.join(next(iter(known)))!r:.80}")
            seen.add(key)
            if own:
                continue
            if layout.format == "pixels":
                _check_labels(value, len(header) - 1, len(competition.classes))
            elif "," in value and layout.runs != "json":
                raise Refused(f"more fields than columns, behind {value.partition(',')[0]!r:.80}")
            elif not value and empty:
                raise Refused(f"no value; an empty mask is written {empty!r}")
            elif value != empty:
                pixels = math.prod(known.get(key) or [runlength.UNKNOWN])
                for runs in value.split(layout.join) if layout.join else [value]:
                    edges = runlength.parse_runs(runs, pixels, layout.runs, layout.base)
                    if by_object:
                        taken[key[0]].append(edges)
        except Refused as problem:
            raise Refused(f"{path}: row {row} ({', '.join(key)!r:.80}): {problem}") from None
    for image_id, objects in taken.items():
        edges = np.concatenate(objects)
        starts, ends = edges[edges[:, 0].argsort()].T
        if (starts[1:] < ends[:-1]).any():
            raise Refused(f"{path}: {image_id!r}: a pixel is of two objects")
    there = {key[:1] for key in seen if by_object}
    if missing := [", ".join(key) for key in known if key not in seen and key[:1] not in there]:
        raise Refused(f"{path}: {len(missing)} of {len(known)} rows are missing, the first is {missing[0]!r:.80}")
    if not seen:
        raise Refused(f"{path}: no rows below the header")
    return row


def check_against_input(path: Path, competition: Competition, folder: Path) -> int:
    """`check_submission` against the test images of the input `folder`, unless only a dataset on Kaggle has them."""
    sample = arrays.find_sample_submission(competition, folder)
    if competition.datasets and not (folder / competition.file).exists():
        return check_submission(path, competition, sample=sample)
    return check_submission(path, competition, *arrays.load_test(competition, folder).asked, sample)


def read_header(path: str | Path) -> list[str]:
    """The names of a CSV file's columns. Raises Refused."""
    return next(_read_rows(Path(path), 1))


def _read_pairs(path: str | Path, competition: Competition) -> tuple[list[str], Iterator[tuple[Key, str]]]:
    """A file's header, and of each row its key and its value, in whichever order the columns are."""
    rows = _read_rows(Path(path), len(write.key_columns(competition)))
    places = np.argsort(write.find_order(competition, header := next(rows))).tolist()
    ordered = ([fields[place] for place in places] or fields for fields in rows)
    return header, ((tuple(key), value) for *key, value in ordered)


def _read_rows(path: Path, keys: int) -> Iterator[list[str]]:
    """Yield the fields of the header, then of each row its first `keys` fields and the rest as it stands.

    Rows are split at commas, far quicker than by the csv module, which reads those with a quote. Raises Refused."""
    csv.field_size_limit(1 << 30)
    row = columns = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # Excel begins a file with a mark
            for line in file:
                if not (text := line.rstrip("\r\n")):
                    continue
                if row and '"' not in text:
                    fields = text.split(",", keys)
                    fits = len(fields) > keys
                else:
                    fields = next(csv.reader(chain([line], file), strict=True))
                    columns = columns or len(fields)
                    keys = min(keys, columns - 1)
                    fits = len(fields) == columns
                if not fits:
                    raise csv.Error(f"{len(fields)} columns; the header has {columns}")
                yield [*fields[:keys], ",".join(fields[keys:])] if row else fields
                row += 1
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{path}: {getattr(error, 'strerror', 'not UTF-8')}") from None
    except csv.Error as error:
        raise Refused(f"{path}: {f'row {row}' if row else 'the header'}: {error}") from None
    if not row:
        raise Refused(f"{path}: empty")


def _check_labels(text: str, count: int, classes: int) -> None:
    data = text.encode()
    alternate = len(data) == 2 * count - 1 and data[1::2] == b"," * (count - 1)
    if alternate and not data[::2].translate(None, b"0123456789"[:classes]):
        return  # far quicker than what follows
    labels = text.split(",")
    if len(labels) != count:
        raise Refused(f"{len(labels)} labels; the header has {count}")
    if wrong := set(labels).difference(map(str, range(classes))):
        column, label = next((column, label) for column, label in enumerate(labels) if label in wrong)
        raise Refused(f"column '{column}' is {label!r:.80}; whole numbers from 0 to {classes - 1} fit")
