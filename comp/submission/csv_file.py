"""Submission files: run-length and pixel CSV, written fast, read back and checked as Kaggle checks.

`config.Submission` says the layout. "pixels": one row a picture, header `id,0,1,…,H*W-1`, labels in C
order, byte for byte what pandas' `DataFrame.to_csv(index=False)` writes. "rle": "start length" pairs,
starts counted from 1, down the columns or along the rows. With `rows = "image"` the mask is label 1;
with "image_class" each label but 0, the background, has a row of its own.

Ids are strings here; numbers are written as `str` writes them.
"""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import numpy as np

from comp import config, files
from comp.data import arrays
from comp.errors import Refused
from comp.submission import runlength

Key = tuple[str, ...]  # what names a row: (id,), or (id, class)
Write = Callable[[Iterable[Any], np.ndarray | Sequence[np.ndarray]], None]

_QUOTED = re.compile(rb'"([^"]*(?:""[^"]*)*)"(,|$)')

PIECE = 1 << 14  # pixels formatted at a time: their temporary arrays stay in the cache
LONGEST_ROW = 1 << 24  # bytes; a file without line breaks must not fill the memory


@contextmanager
def open_writer(path: str | Path, competition: config.Competition) -> Iterator[Write]:
    """Yield `write(ids, labels)`, which appends a batch; the file appears when the block ends, whole.

    `labels` is uint8 (n, H, W), or n arrays (H, W) whose sizes may differ where the format is "rle".
    Memory stays that of one batch. Raises Refused for pixel rows of different sizes and for no row.
    """
    rows = _write_pixels if competition.submission.format == "pixels" else _write_runs
    with files.atomic_write(path) as beside, open(beside, "wb", buffering=1 << 20) as file:
        yield rows(file, competition)
        if not file.tell():
            raise Refused(f"{path}: there is no picture to write")


def check_submission(
    path: str | Path,
    competition: config.Competition,
    ids: Iterable[Any] | None = None,
    sizes: np.ndarray | tuple[int, int] | None = None,
    sample: str | Path | None = None,
) -> int:
    """Read a submission back and refuse what Kaggle would; return how many rows it has.

    `ids` are the test ids, `sizes` their (N, 2) heights and widths or one (height, width); what is not
    given is not checked. With `sample`, the competition's sample_submission.csv, header and ids must be
    the sample's. The order of rows is free. Memory holds one row, and the ids. Raises Refused, naming
    the row (the first below the header is row 1), its id and the column.
    """
    path, layout = Path(path), competition.submission
    names = _key_columns(competition)
    tests = [] if ids is None else list(ids)
    common = int(np.prod(sizes)) if np.ndim(sizes) == 1 else runlength.UNKNOWN  # pixels of a picture
    each = np.prod(sizes, axis=1, dtype=np.int64).tolist() if tests and np.ndim(sizes) == 2 else [common] * len(tests)
    areas = {key: area for name, area in zip(tests, each, strict=True) for key in _keys(competition, name)}
    lines = _lines(path)
    header = _header(path, lines)
    if sample is not None:
        sample = Path(sample)
        sample_lines = _lines(sample)
        expected, source = _header(sample, sample_lines), sample.name
    else:
        pixels = next(iter(areas.values()), common)
        pixels = pixels if pixels < runlength.UNKNOWN else len(header) - 1
        values = map(str, range(pixels)) if layout.format == "pixels" else [layout.value_column]
        expected, source = [*names, *values], f"competition {competition.name}"
    _same_header(path, header, expected, source)
    wanted = areas if sample is None else {key: None for _, key, _ in _rows(sample, sample_lines, len(names))}
    labels = frozenset(str(label).encode() for label in range(len(competition.classes)))
    seen: set[Key] = set()
    for row, key, value in _rows(path, lines, len(names)):
        try:
            if "" in key:
                raise Refused(f"{names[key.index('')]} is blank")
            if key in seen:
                raise Refused("a second row of this id")
            if wanted and key not in wanted:
                raise Refused(f"no such id in {source}; there they look like {_name(next(iter(wanted)))}")
            seen.add(key)
            if layout.format == "pixels":
                _check_labels(value, len(header) - 1, labels)
            else:
                _check_runs(value, layout.empty, areas.get(key, common))
        except Refused as problem:
            raise Refused(f"{path}: row {row} ({_name(key)}): {problem}") from None
    missing = [key for key in wanted if key not in seen]
    if missing:
        raise Refused(f"{path}: {len(missing)} of {len(wanted)} rows are missing, the first is {_name(missing[0])}")
    if not seen:
        raise Refused(f"{path}: no rows below the header")
    return len(seen)


def check_against_input(path: Path, competition: config.Competition, folder: Path) -> int:
    """`check_submission` against the test pictures of the input `folder`, unless only a dataset on Kaggle has them."""
    sample = arrays.find_sample_submission(competition, folder)
    if competition.datasets and not (folder / competition.file).exists():
        return check_submission(path, competition, sample=sample)
    test = arrays.load_test(competition, folder)
    return check_submission(path, competition, test.ids, test.shapes, sample)


# Writing


def _pixel_text(labels: np.ndarray) -> np.ndarray:
    """A comma and a label for each of some labels, uint8 (n,): the characters, uint8."""
    if labels.max(initial=0) < 10:
        return ((labels.astype("<u2") << 8) + np.uint16(ord("0") << 8 | ord(","))).view(np.uint8)
    tokens, widths = _label_pairs()
    odd = labels.size % 2
    pairs = (np.append(labels, np.uint8(0)) if odd else labels).view("<u2")
    places = np.zeros(len(pairs) + 1, np.intp)
    np.cumsum(widths.take(pairs), out=places[1:])
    # A view with an element at every byte: each token is put down whole, and the next one, put down after
    # it, covers its padding. No branch depends on the labels, so that all labels are equally fast.
    text = np.empty(places[-1] + 8, np.uint8)
    np.ndarray(len(text) - 7, np.uint64, text, strides=(1,))[places[:-1]] = tokens.take(pairs)
    return text[: places[-1] - 2 * odd]


@cache
def _label_pairs() -> tuple[np.ndarray, np.ndarray]:
    """By first + 256 * second: ",first,second" in the bytes of a uint64, and how many bytes it has, uint8."""
    one = np.array([f",{label}" for label in range(256)], "S4")
    pairs = np.strings.add(one[np.newaxis, :], one[:, np.newaxis]).ravel()
    return pairs.view(np.uint64), np.strings.str_len(pairs).astype(np.uint8)


def _write_pixels(file: BinaryIO, competition: config.Competition) -> Write:
    shape = None

    def write(ids: Iterable[Any], labels: np.ndarray | Sequence[np.ndarray]) -> None:
        nonlocal shape
        for line, picture in zip(_csv_lines((key, "") for key in ids), labels, strict=True):
            picture = _uint8(picture)
            if shape is None:
                shape = picture.shape
                header = [competition.submission.id_column, *range(picture.size)]
                file.write(_csv_lines([header])[0].encode())
            elif picture.shape != shape:
                raise Refused(f"{line[:-2]!r}: {picture.shape} pixels, after {shape}; pixel rows are of one size")
            flat = picture.ravel()
            texts = [_pixel_text(flat[first : first + PIECE]) for first in range(0, flat.size, PIECE)]
            file.writelines([line[:-2].encode(), *texts, b"\n"])

    return write


def _write_runs(file: BinaryIO, competition: config.Competition) -> Write:
    layout = competition.submission
    classes = range(1, 2 if layout.rows == "image" else len(competition.classes))

    def write(ids: Iterable[Any], labels: np.ndarray | Sequence[np.ndarray]) -> None:
        if not file.tell():
            file.write(_csv_lines([[*_key_columns(competition), layout.value_column]])[0].encode())
        if not isinstance(labels, np.ndarray):
            for key, picture in zip(ids, labels, strict=True):
                write([key], _uint8(picture)[np.newaxis])
            return
        texts = [runlength.encode_runs(_uint8(labels) == label, layout.order) for label in classes]
        rows = (
            (*key, text or layout.empty)
            for name, per_class in zip(ids, zip(*texts, strict=True), strict=True)
            for key, text in zip(_keys(competition, name), per_class, strict=True)
        )
        file.write("".join(_csv_lines(rows)).encode())

    return write


def _uint8(labels: np.ndarray) -> np.ndarray:
    # safe: probabilities or wider integers, given by mistake, are a TypeError and not cut off
    return np.asarray(labels).astype(np.uint8, casting="safe", copy=False)


def _csv_lines(rows: Iterable[Iterable[Any]]) -> list[str]:
    """Rows as pandas writes them: quoted where they must be, ended by a line feed."""
    lines: list[str] = []
    csv.writer(SimpleNamespace(write=lines.append), lineterminator="\n").writerows(rows)
    return lines


def _key_columns(competition: config.Competition) -> list[str]:
    layout = competition.submission
    by_class = layout.format == "rle" and layout.rows == "image_class" and layout.class_column
    return [layout.id_column, layout.class_column] if by_class else [layout.id_column]


def _keys(competition: config.Competition, name: Any) -> list[Key]:
    """What names the rows of one picture, in their order."""
    layout = competition.submission
    if layout.format == "pixels" or layout.rows == "image":
        return [(str(name),)]
    numbers = range(1, len(competition.classes))
    labels = [competition.classes[n] if layout.class_label == "name" else str(n) for n in numbers]
    return [(str(name), label) if layout.class_column else (f"{name}_{label}",) for label in labels]


# Reading


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a CSV file without their ends, blank ones left out. Raises Refused."""
    try:
        with open(path, "rb") as file:
            while line := file.readline(LONGEST_ROW):
                if line.count(b'"') % 2:
                    line = _until_closed(line, file)
                if len(line) >= LONGEST_ROW:
                    raise Refused(f"{path}: a row longer than {LONGEST_ROW >> 20} MiB: {_show(line)}")
                if line := line.rstrip(b"\r\n"):
                    yield line
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None


def _until_closed(line: bytes, file: BinaryIO) -> bytes:
    """The row that a line with an open quote begins: a quoted field may hold line breaks."""
    parts, size, is_open = [line], len(line), True
    while is_open and size < LONGEST_ROW and (more := file.readline(LONGEST_ROW)):
        parts.append(more)
        size += len(more)
        is_open ^= more.count(b'"') % 2 == 1
    return b"".join(parts)


def _rows(path: Path, lines: Iterable[bytes], keys: int) -> Iterator[tuple[int, Key, bytes]]:
    """Row numbers from 1, the fields that name the row, and the rest as it stands. Raises Refused."""
    for row, line in enumerate(lines, 1):
        if b"\r" in line and b"\r" in re.sub(rb'"[^"]*"', b"", line):
            raise Refused(f"{path}: row {row}: a carriage return within the row: {_show(line)}")
        key = []
        for _ in range(keys):
            field, comma, line = _first_field(line)
            if not comma:
                raise Refused(f"{path}: row {row}: not all columns are there: {_show(field)}")
            try:
                key.append(field.decode())
            except UnicodeDecodeError:
                raise Refused(f"{path}: row {row}: not UTF-8: {_show(field)}") from None
        yield row, tuple(key), line


def _first_field(line: bytes) -> tuple[bytes, bytes, bytes]:
    """The first field, the comma behind it and the rest, as bytes.partition(b",") where nothing is quoted."""
    if line.startswith(b'"') and (quoted := _QUOTED.match(line)):
        return quoted[1].replace(b'""', b'"'), quoted[2], line[quoted.end() :]
    return line.partition(b",")


def _header(path: Path, lines: Iterator[bytes]) -> list[str]:
    try:
        return next(csv.reader([next(lines).decode()]))
    except StopIteration:
        raise Refused(f"{path}: empty") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise Refused(f"{path}: the header is no CSV: {error}") from None


def _same_header(path: Path, header: list[str], expected: list[str], source: str) -> None:
    for number, (name, right) in enumerate(zip(header, expected, strict=False), 1):
        if name != right:
            raise Refused(f"{path}: column {number} is {name[:80]!r}; {source} has {right!r} there")
    if len(header) != len(expected):
        raise Refused(f"{path}: {len(header)} columns; {source} has {len(expected)}")


def _name(key: Key) -> str:
    return repr(", ".join(key)[:80])


def _show(text: bytes) -> str:
    return repr(text[:40].decode(errors="replace"))


def _check_labels(text: bytes, count: int, allowed: frozenset[bytes]) -> None:
    digits = b"0123456789"[: len(allowed)]
    alternate = len(text) == 2 * count - 1 and text[1::2] == b"," * (count - 1)
    if alternate and not text[::2].translate(None, digits):
        return  # far quicker than what follows
    labels = text.split(b",")
    if len(labels) != count:
        raise Refused(f"{len(labels)} labels; the header has {count}")
    if allowed.issuperset(labels):
        return
    column, label = next((column, label) for column, label in enumerate(labels) if label not in allowed)
    problem = f"is {_show(label)}" if label else "is blank"
    raise Refused(f"column '{column}' {problem}; whole numbers from 0 to {len(allowed) - 1} fit")


def _check_runs(text: bytes, empty: str, pixels: int) -> None:
    text, comma, _ = _first_field(text)
    if comma:
        raise Refused(f"more fields than columns, behind {_show(text)}")
    if text == empty.encode():
        return
    if not text:
        raise Refused(f"no value; an empty mask is written {empty!r}")
    runlength.parse_runs(text.decode(errors="replace"), pixels)
