"""Submission files read back, and refused where Kaggle would refuse them."""

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import Competition
from comp.data import arrays
from comp.errors import Refused
from comp.submission import runlength, write
from comp.submission.write import Key


def check_submission(
    path: str | Path,
    competition: Competition,
    ids: Iterable[Any] = (),
    sizes: np.ndarray | tuple[int, ...] | None = None,
    sample: str | Path | None = None,
) -> int:
    """Read a submission back and refuse what Kaggle would; return how many rows it has.

    `ids` are the test ids, `sizes` their (N, 2) heights and widths or one (height, width); what is not
    given is not checked. With `sample`, the competition's sample_submission.csv, header and ids must be
    the sample's. The order of rows is free. Memory holds one row, and the ids. Raises Refused, naming
    the row (the first below the header is row 1), its id and the column."""
    keys, ids, empty = len(write.key_columns(competition)), list(ids), competition.submission.empty
    pixels = np.broadcast_to(runlength.UNKNOWN if sizes is None else np.prod(sizes, axis=-1), len(ids)).tolist()
    pairs = zip(ids, pixels, strict=True)
    areas = {key: area for image_id, area in pairs for key in write.row_keys(competition, image_id)}
    rows = _read_rows(Path(path), keys)
    header = next(rows)
    if sample is None:
        known = ids and sizes is not None
        expected = write.make_header(competition, pixels[0] if known else len(header) - 1)
        source = f"competition {competition.name}"
    else:
        sample_rows = _read_rows(Path(sample), keys)
        expected, source = next(sample_rows), Path(sample).name
    order = write.find_order(competition, expected)

    places = np.argsort(order).tolist()  # of the key's fields and the value; none, where they are in their order

    def parts(fields: list[str]) -> tuple[Key, str]:
        *key, value = [fields[place] for place in places] or fields
        return tuple(key), value

    if sample is not None:
        areas = {key: areas.get(key, runlength.UNKNOWN) for key, _ in map(parts, sample_rows)}
    write.check_header(path, header, expected, source)
    seen: set[Key] = set()
    for row, (key, value) in enumerate(map(parts, rows), 1):
        try:
            if key in seen:
                raise Refused("a second row of this id")
            if areas and key not in areas:
                raise Refused(f"no such id in {source}; there they look like {', '.join(next(iter(areas)))!r:.80}")
            seen.add(key)
            if competition.submission.format == "pixels":
                _check_labels(value, len(header) - 1, len(competition.classes))
            else:
                if "," in value:
                    raise Refused(f"more fields than columns, behind {value.partition(',')[0]!r:.80}")
                if not value and empty:
                    raise Refused(f"no value; an empty mask is written {empty!r}")
                if value != empty:
                    runlength.parse_runs(value, areas.get(key, runlength.UNKNOWN))
        except Refused as problem:
            raise Refused(f"{path}: row {row} ({', '.join(key)!r:.80}): {problem}") from None
    if missing := [key for key in areas if key not in seen]:
        raise Refused(
            f"{path}: {len(missing)} of {len(areas)} rows are missing, the first is {', '.join(missing[0])!r:.80}"
        )
    if not seen:
        raise Refused(f"{path}: no rows below the header")
    return len(seen)


def check_against_input(path: Path, competition: Competition, folder: Path) -> int:
    """`check_submission` against the test images of the input `folder`, unless only a dataset on Kaggle has them."""
    sample = arrays.find_sample_submission(competition, folder)
    if competition.datasets and not (folder / competition.file).exists():
        return check_submission(path, competition, sample=sample)
    test = arrays.load_test(competition, folder)
    return check_submission(path, competition, test.ids, test.shapes, sample)


def read_header(path: str | Path) -> list[str]:
    """The names of a CSV file's columns. Raises Refused."""
    return next(_read_rows(Path(path), 1))


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
                    fits = len(fields) == columns
                if not fits:
                    raise csv.Error(f"{len(fields)} columns; the header has {columns}")
                yield [*fields[:keys], ",".join(fields[keys:])] if row else fields
                row += 1
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused(f"{path}: not UTF-8") from None
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
