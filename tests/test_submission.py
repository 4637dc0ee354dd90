import csv
import re

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from comp.config import Competition, Submission, load_config
from comp.data.arrays import Split
from comp.ensemble.decisions import Decisions
from comp.ensemble.make_submission import write_submission
from comp.errors import Refused
from comp.submission import archive, runlength
from comp.submission.check import check_submission, read_header
from comp.submission.write import open_writer

# Printable text, quotes, commas and line feeds too. How a lone carriage return is written differs with
# the version of Python.
IDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1), unique=True, max_size=6)


def competition(classes=3, **layout):
    names = ("background", *(f"class {label}" for label in range(1, classes)))
    return Competition(name="test", classes=names, submission=Submission(**layout))


def write(path, competition, ids, labels):
    with open_writer(path, competition) as append:
        append(ids, labels)
    return path


# Writing


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from([3, 10, 12, 100, 256]), st.one_of(IDS, st.lists(st.integers(), max_size=6)))
def test_pixels_equal_pandas_to_the_byte(tmp_path_factory, data, classes, ids):
    ids = ids or ["a"]
    height, width = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    labels = data.draw(arrays.arrays(np.uint8, (len(ids), height, width), elements=st.integers(0, classes - 1)))
    folder = tmp_path_factory.mktemp("pixels")
    frame = pd.DataFrame(labels.reshape(len(ids), -1))
    frame.insert(0, "id", ids)
    frame.to_csv(folder / "pandas.csv", index=False)
    ours = write(folder / "ours.csv", competition(min(classes, 255)), ids, labels)
    assert ours.read_bytes() == (folder / "pandas.csv").read_bytes()


def test_large_images_of_an_odd_number_of_pixels(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (2, 251, 203), np.uint8)
    labels[1] %= 10
    rows = write(tmp_path / "s.csv", competition(255), ["a", "b"], labels).read_text().splitlines()
    assert rows[0] == "id," + ",".join(map(str, range(251 * 203)))
    assert rows[1:] == [f"{id}," + ",".join(map(str, row.ravel())) for id, row in zip("ab", labels, strict=True)]


def test_every_pair_of_labels_equals_pandas(tmp_path):
    labels = np.stack(np.meshgrid(np.arange(256), np.arange(256)), axis=-1).astype(np.uint8)  # (256, 256, 2)
    frame = pd.DataFrame(labels.reshape(256, -1))
    frame.insert(0, "id", range(256))
    frame.to_csv(tmp_path / "pandas.csv", index=False)
    ours = write(tmp_path / "ours.csv", competition(255), range(256), labels)
    assert ours.read_bytes() == (tmp_path / "pandas.csv").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data(), IDS, st.sampled_from(["", "-", "1 0"]))
def test_runs_equal_pandas_to_the_byte(tmp_path_factory, data, ids, empty):
    ids = ids or ["a"]
    labels = data.draw(arrays.arrays(np.uint8, (len(ids), 3, 4), elements=st.integers(0, 1)))
    folder = tmp_path_factory.mktemp("runs")
    texts = [text or empty for text in runlength.encode_runs(labels)]
    pd.DataFrame({"id": ids, "rle_mask": texts}).to_csv(folder / "pandas.csv", index=False)
    ours = write(folder / "ours.csv", competition(2, format="rle", empty=empty), ids, labels)
    assert ours.read_bytes() == (folder / "pandas.csv").read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data(), IDS, st.sampled_from(["pixels", "rle"]), st.sampled_from(["", "class"]))
def test_what_is_written_passes_the_check(tmp_path_factory, data, ids, format, class_column):
    ids = ids or ["a"]
    layout = competition(13, format=format, rows="image_class", class_column=class_column, class_label="name")
    labels = data.draw(arrays.arrays(np.uint8, (len(ids), 2, 3), elements=st.integers(0, 12)))
    path = write(tmp_path_factory.mktemp("both") / "s.csv", layout, ids, labels)
    rows = check_submission(path, layout, ids, (2, 3))
    assert rows == len(ids) * (1 if format == "pixels" else 12)
    assert check_submission(path, layout, ids[::-1], [(2, 3)] * len(ids), sample=path) == rows


def test_batches_follow_one_another(tmp_path):
    labels = np.random.default_rng(0).integers(0, 3, (7, 4, 5), np.uint8)
    for layout in (competition(), competition(format="rle", rows="image_class")):
        whole = write(tmp_path / "whole.csv", layout, range(7), labels).read_bytes()
        with open_writer(tmp_path / "parts.csv", layout) as append:
            append([0, 1, 2], labels[:3])
            append([], labels[:0])
            append(iter([3, 4, 5, 6]), list(labels[3:]))
        assert (tmp_path / "parts.csv").read_bytes() == whole


def rows_of(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


LABELS = np.array([[[0, 1, 1], [0, 0, 2]]], np.uint8)


@pytest.mark.parametrize(
    ("layout", "rows"),
    [
        ({"id_column": "img", "value_column": "px"}, [["img", "px"], ["a", "3 1 5 1"]]),
        ({"order": "row"}, [["id", "rle_mask"], ["a", "2 2"]]),
        ({"rows": "image_class", "empty": "-"}, [["id", "rle_mask"], ["a_1", "3 1 5 1"], ["a_2", "6 1"], ["a_3", "-"]]),
        (
            {"rows": "image_class", "class_column": "class", "class_label": "name", "empty": "1 0"},
            [
                ["id", "class", "rle_mask"],
                ["a", "class 1", "3 1 5 1"],
                ["a", "class 2", "6 1"],
                ["a", "class 3", "1 0"],
            ],
        ),
    ],
)
def test_run_length_layouts(tmp_path, layout, rows):
    path = write(tmp_path / "s.csv", competition(4, format="rle", **layout), ["a"], LABELS)
    assert rows_of(path) == rows


def test_images_of_different_sizes(tmp_path):
    layout = competition(2, format="rle")
    images = [np.ones((2, 3), np.uint8), np.zeros((1, 1), np.uint8), np.ones((50, 40), np.uint8)]
    path = write(tmp_path / "s.csv", layout, ["a", "b", "c"], images)
    assert rows_of(path)[1:] == [["a", "1 6"], ["b", ""], ["c", "1 2000"]]
    sizes = np.array([image.shape for image in images])
    assert check_submission(path, layout, ["a", "b", "c"], sizes) == 3
    with pytest.raises(Refused, match=r"row 3 \('c'\): run 1, '1 2000', ends outside the image of 6 pixels"):
        check_submission(path, layout, ["c", "b", "a"], sizes)


def test_nothing_appears_of_a_file_that_was_not_finished(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), open_writer(path, competition()) as append:
        append([1], LABELS)
        raise KeyboardInterrupt
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.csv"]


def test_refuses_pixel_rows_of_two_sizes(tmp_path):
    with pytest.raises(Refused, match=r"'b': \(3, 2\) pixels, after \(2, 3\)"):
        write(tmp_path / "s.csv", competition(), ["a", "b"], [np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)])


@pytest.mark.parametrize("format", ["pixels", "rle"])
@pytest.mark.parametrize("labels", [np.full((1, 2, 2), 0.7, np.float32), np.full((1, 2, 2), 300)])
def test_labels_that_are_no_uint8_are_an_error(tmp_path, format, labels):
    for batch in (labels, list(labels)):
        with pytest.raises(TypeError, match="uint8"):
            write(tmp_path / "s.csv", competition(format=format), [1], batch)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["pixels", "rle"])
def test_as_many_ids_as_images(tmp_path, format):
    for ids in (["a", "b"], []):
        with pytest.raises(ValueError, match=r"shorter|longer"):
            write(tmp_path / "s.csv", competition(format=format), ids, LABELS)


# Checking


def check(tmp_path, text, layout, **known):
    path = tmp_path / "s.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return check_submission(path, layout, **known)


PIXELS = competition(3)
ELEVEN = competition(11)
RUNS = competition(2, format="rle")
DASH = competition(2, format="rle", empty="-")
BY_CLASS = competition(3, format="rle", rows="image_class", class_column="class")
KNOWN = {"ids": ["a", "b"], "sizes": (1, 3)}


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (PIXELS, "id,0,1,2\na,0,1,2\nb,0,0,0\n"),
        (PIXELS, "id,0,1,2\nb,0,1,2\na,0,0,0"),
        (PIXELS, "id,0,1,2\r\na,0,1,2\r\n\r\nb,0,0,0\r\n"),
        (PIXELS, "id,0,1,2\ra,0,1,2\rb,0,0,0\r"),
        (PIXELS, '"id","0","1","2"\n"a",0,1,2\n"b",0,0,0\n'),
        (ELEVEN, "id,0,1,2\na,10,1,2\nb,0,10,10\n"),
        (RUNS, "id,rle_mask\na,\nb,1 3\n"),
        (RUNS, 'id,rle_mask\na,""\nb,"1 1 2 2"\n'),
        (DASH, "id,rle_mask\nb,1 1 3 1\na,-\n"),
        (BY_CLASS, "id,class,rle_mask\na,1,\na,2,\nb,2,1 1\nb,1,2 2\n"),
    ],
)
def test_accepts(tmp_path, layout, text):
    assert check(tmp_path, text, layout, **KNOWN) >= 2
    check(tmp_path, text, layout)
    (tmp_path / "sample_submission.csv").write_text(text)
    check(tmp_path, text, layout, sample=tmp_path / "sample_submission.csv")


@pytest.mark.parametrize(
    ("layout", "text", "problem"),
    [
        (PIXELS, "", "s.csv: empty"),
        (PIXELS, "id,0,1\na,0,0\nb,0,0\n", "3 columns; competition test has 4"),
        (PIXELS, "id,0,1,2,3\na,0,0,0,0\n", "5 columns; competition test has 4"),
        (PIXELS, "ID,0,1,2\na,0,0,0\n", "column 1 is 'ID'; competition test has 'id' there"),
        (PIXELS, "id,0,2,1\na,0,0,0\n", "column 3 is '2'; competition test has '1' there"),
        (PIXELS, "id,0,1,2\n", "2 of 2 rows are missing, the first is 'a'"),
        (PIXELS, "id,0,1,2\na,0,1,2\n", "1 of 2 rows are missing, the first is 'b'"),
        (PIXELS, "id,0,1,2\na,0,1,2\na,0,1,2\n", r"row 2 \('a'\): a second row of this id"),
        (PIXELS, "id,0,1,2\na.png,0,1,2\n", r"row 1 \('a.png'\): no such id in competition test; .* like 'a'"),
        (PIXELS, "id,0,1,2\n,0,1,2\n", r"row 1 \(''\): no such id"),
        (PIXELS, "id,0,1,2\na,0,1,3\n", r"row 1 \('a'\): column '2' is '3'; whole numbers from 0 to 2 fit"),
        (PIXELS, "id,0,1,2\na,0,1,12\n", "column '2' is '12'"),
        (PIXELS, "id,0,1,2\na,0,1.0,2\n", "column '1' is '1.0'"),
        (PIXELS, "id,0,1,2\na,-1,1,2\n", "column '0' is '-1'"),
        (PIXELS, "id,0,1,2\na,0,,2\n", "column '1' is ''"),
        (PIXELS, "id,0,1,2\na,,10,\n", "column '0' is ''"),  # as long as a good row
        (PIXELS, "id,0,1,2\na,0,nan,2\n", "column '1' is 'nan'"),
        (PIXELS, "id,0,1,2\na,0,1\n", "2 labels; the header has 3"),
        (PIXELS, "id,0,1,2\na,0,1,2,0\n", "4 labels; the header has 3"),
        (PIXELS, "id,0,1,2\na,0,1;2\n", "2 labels; the header has 3"),  # as long as a good row
        (PIXELS, "id,0,1,2\na\n", "row 1: 1 columns; the header has 4"),
        (PIXELS, b"id,0,1,2\n\xff,0,1,2\n", "s.csv: not UTF-8"),
        (PIXELS, b"\xff,0,1,2\n", "s.csv: not UTF-8"),
        (PIXELS, 'id,0,1,2\na,"0,1",2\n', "row 1: 3 columns; the header has 4"),
        (PIXELS, 'id,0,1,2\na,"0,1",2,0\n', "4 labels; the header has 3"),
        (RUNS, 'id,rle_mask\na,"1 1,3 1"\n', "more fields than columns"),
        (PIXELS, 'id,0,1,2\n"a,0,1,2\nb,0,1,2\n', "row 1: unexpected end of data"),
        (ELEVEN, "id,0,1,2\na,0,1,11\n", "column '2' is '11'; whole numbers from 0 to 10 fit"),
        (ELEVEN, "id,0,1,2\na,0,10\n", "2 labels; the header has 3"),
        (RUNS, "id,rle\na,\n", "column 2 is 'rle'; competition test has 'rle_mask' there"),
        (RUNS, "id,rle_mask\na,1 1 3\n", r"row 1 \('a'\): an odd number of run-length values, 3"),
        (RUNS, "id,rle_mask\na,0 1\n", "starts before pixel 1"),
        (RUNS, "id,rle_mask\na,1 0\n", "shorter than one pixel"),
        (RUNS, "id,rle_mask\na,3 1 1 1\n", "starts before the end of"),
        (RUNS, "id,rle_mask\na,1 2 2 1\n", "starts before the end of"),
        (RUNS, "id,rle_mask\na,2 3\n", "ends outside the image of 3 pixels"),
        (RUNS, "id,rle_mask\na,-\n", "'-' is not a pixel's number"),
        (RUNS, "id,rle_mask\na,1 1,1\n", "more fields than columns"),
        (RUNS, "id,rle_mask\na,1 1\r1 1\n", "row 2: 1 columns; the header has 2"),
        (RUNS, "id,rle_mask\na\n", "row 1: 1 columns; the header has 2"),
        (DASH, "id,rle_mask\na,\n", "no value; an empty mask is written '-'"),
        (BY_CLASS, "id,class,rle_mask\na,1,\na,2,\nb,1,\n", "1 of 4 rows are missing, the first is 'b, 2'"),
        (BY_CLASS, "id,class,rle_mask\na,1,\na,1,\n", r"row 2 \('a, 1'\): a second row"),
        (BY_CLASS, "id,class,rle_mask\na,0,\n", r"row 1 \('a, 0'\): no such id"),
        (BY_CLASS, "id,class,rle_mask\na,,\n", r"row 1 \('a, '\): no such id"),
        (BY_CLASS, "id,class,rle_mask\na,1 1\n", "row 1: 2 columns; the header has 3"),
    ],
)
def test_refuses(tmp_path, layout, text, problem):
    with pytest.raises(Refused, match=problem) as refused:
        check(tmp_path, text, layout, **KNOWN)
    assert str(refused.value).startswith(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_the_sample_decides(tmp_path):
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,rle_mask\n7.png,1 1\n8.png,1 1\n")
    assert check(tmp_path, "id,rle_mask\n8.png,\n7.png,\n", RUNS, sample=sample) == 2
    for text, problem in (
        ("img,rle_mask\n7.png,\n8.png,\n", "column 1 is 'img'; sample_submission.csv has 'id' there"),
        ("id,rle_mask\n7,\n8,\n", r"row 1 \('7'\): no such id in sample_submission.csv; .* like '7.png'"),
        ("id,rle_mask\n7.png,\n", "1 of 2 rows are missing, the first is '8.png'"),
    ):
        with pytest.raises(Refused, match=problem):
            check(tmp_path, text, RUNS, sample=sample)
    with pytest.raises(Refused, match=r"nowhere\.csv: No such file"):
        check(tmp_path, "id,rle_mask\n8.png,\n7.png,\n", RUNS, sample=tmp_path / "nowhere.csv")


@pytest.mark.parametrize("layout", [PIXELS, RUNS, BY_CLASS])
def test_a_byte_order_mark_before_a_header_is_read_over(tmp_path, layout):
    path = write(tmp_path / "plain.csv", layout, ["a", "b"], np.zeros((2, 1, 3), np.uint8))
    sample = tmp_path / "sample_submission.csv"
    for header in (b"id", b'"id"'):  # quoted, it is read in another way
        sample.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"id", header, 1))
        assert check_submission(path, layout, ["a", "b"], (1, 3), sample) >= 2
        assert check_submission(sample, layout, ["a", "b"], (1, 3), path) >= 2


@pytest.mark.parametrize(
    ("layout", "header", "rows"),
    [
        (RUNS, ["rle_mask", "id"], [["2 2", "a"], ["", 'b,"c"']]),
        (
            BY_CLASS,
            ["rle_mask", "class", "id"],
            [["2 1", "1", "a"], ["3 1", "2", "a"], ["", "1", 'b,"c"'], ["", "2", 'b,"c"']],
        ),
        (BY_CLASS, ["class", "id", "rle_mask"], [["1", "a", "2 1"], ["2", "a", "3 1"]]),
    ],
)
def test_the_columns_of_the_sample_are_written_in_its_order(tmp_path, layout, header, rows):
    ids, sample, path = (
        list(dict.fromkeys(row[header.index("id")] for row in rows)),
        tmp_path / "sample.csv",
        tmp_path / "s.csv",
    )
    labels = np.zeros((len(ids), 1, 3), np.uint8)
    labels[0, 0, 1:] = [1, 1] if layout is RUNS else [1, 2]
    with open(sample, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([header, *rows[::-1]])
    with open_writer(path, layout, read_header(sample)) as append:
        append(ids, labels)
    assert rows_of(path) == [header, *rows]
    assert check_submission(path, layout, ids, (1, 3), sample) == len(rows)
    path.write_text(path.read_text().replace("2 ", "9 ", 1))
    with pytest.raises(Refused, match=r"row 1 \('a.*ends outside the image of 3 pixels"):
        check_submission(path, layout, ids, (1, 3), sample)


def test_columns_that_are_not_the_competitions_are_refused_before_all_is_written(tmp_path):
    for layout, header, problem in (
        (RUNS, ["mask", "id"], "column 1 is 'id'; the sample submission has 'mask' there"),
        (PIXELS, ["0", "1", "2", "id"], "column 1 is 'id'; the sample submission has '0' there"),
        (BY_CLASS, ["rle_mask", "id"], "3 columns; the sample submission has 2"),
    ):
        with pytest.raises(Refused, match=problem), open_writer(tmp_path / "s.csv", layout, header) as append:
            append(["a"], np.zeros((1, 1, 3), np.uint8))
            pytest.fail("it was written")


def test_no_rows(tmp_path):
    with pytest.raises(Refused, match="no rows below the header"):
        check(tmp_path, "id,rle_mask\n", RUNS)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.sampled_from([PIXELS, ELEVEN, RUNS, DASH, BY_CLASS]))
def test_a_damaged_file_is_refused_in_one_line_or_valid(tmp_path_factory, data, layout):
    folder = tmp_path_factory.mktemp("damaged")
    labels = np.array([[[0, 1, 1]], [[0, 0, 0]]], np.uint8)
    content = bytearray(write(folder / "good.csv", layout, ["a", "b"], labels).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    try:
        check(folder, bytes(content), layout, **KNOWN)
    except Refused as problem:
        assert "\n" not in str(problem)
        return
    frame = pd.read_csv(folder / "s.csv", dtype=str, keep_default_na=False)
    assert list(frame) == list(pd.read_csv(folder / "good.csv"))
    assert set(frame["id"]) == {"a", "b"}


# Formats of other competitions.


def layout_of(**keys):
    classes = keys.pop("classes", ("none", "a", "b"))
    return Competition(name="x", classes=classes, submission=Submission(**keys))


def drawn_labels(count=3, classes=3, size=(6, 9)):
    labels = np.random.default_rng(0).integers(0, classes, (count, *size)).astype(np.uint8)
    labels[0] = 0
    return labels


@pytest.mark.parametrize("runs", ["absolute", "relative", "alternating", "json"])
@pytest.mark.parametrize("base", [0, 1])
@pytest.mark.parametrize("order", ["column", "row"])
def test_every_dialect_of_run_lengths_survives_write_and_check(tmp_path, runs, base, order):
    own = layout_of(format="rle", runs=runs, base=base, order=order, classes=("none", "a"), empty="-")
    labels = drawn_labels(classes=2)
    with open_writer(tmp_path / "s.csv", own) as write:
        write("xyz", labels)
    assert check_submission(tmp_path / "s.csv", own, "xyz", (6, 9)) == 3
    with open(tmp_path / "s.csv", newline="") as file:
        _, first, *rows = csv.reader(file)
    assert first == ["x", "-"]
    for (_, text), image in zip(rows, labels[1:], strict=True):
        flat = image.ravel() if order == "row" else image.T.ravel()
        values, mask, at = [int(word) for word in re.findall(r"\d+", text)], np.zeros(flat.size, np.uint8), 0
        if runs == "alternating":  # by hand: lengths of 0 and 1 in turn
            mask = np.repeat(np.arange(len(values)) % 2, values)
        for start, length in zip(values[::2], values[1::2], strict=runs != "alternating"):
            if runs == "relative":
                at += start
                mask[at : at + length] = 1
                at += length
            elif runs != "alternating":
                mask[start - base : start - base + length] = 1
        assert (mask == flat).all()


@pytest.mark.parametrize(
    ("keys", "text", "problem"),
    [
        ({"runs": "json"}, '"[1, 2, ""x""]"', "'x' is not a pixel's number"),
        ({"runs": "json"}, "1 2", "no list of numbers in JSON"),
        ({"runs": "alternating"}, "3 4 5", "lengths are 12 pixels together; the image has 54"),
        ({"runs": "alternating"}, "30 24 x", "'x' is not a pixel's number"),
        ({"runs": "alternating"}, "30 27 -3", "-3 is no number of the image's 54 pixels"),
        ({"runs": "relative"}, "50 5", "ends outside the image"),
        ({"base": 0}, "50 5", "run 1, '50 5', ends outside the image"),
        ({"base": 0}, "-1 5", "run 1, '-1 5', starts before pixel 0, the first"),
    ],
)
def test_a_text_of_another_dialect_is_refused(tmp_path, keys, text, problem):
    own = layout_of(format="rle", classes=("none", "a"), **keys)
    (tmp_path / "s.csv").write_text(f"id,rle_mask\nx,{text}\n")
    with pytest.raises(Refused, match=problem):
        check_submission(tmp_path / "s.csv", own, ["x"], (6, 9))


@pytest.mark.parametrize("order", ["row", "column"])
def test_a_row_a_pixel(tmp_path, order):
    own, labels = layout_of(format="pixels", rows="pixel", value_column="label", order=order), drawn_labels()
    with open_writer(tmp_path / "s.csv", own) as write:
        write("xyz", labels)
    lines = (tmp_path / "s.csv").read_text().splitlines()
    at, key, pixel = (11, "1_2", (1, 2)) if order == "row" else (1 * 6 + 2, "1_2", (2, 1))
    assert lines[0] == "id,label" and lines[1 + 54 + at] == f"y_{key},{labels[1][pixel]}"
    assert check_submission(tmp_path / "s.csv", own, "xyz", (6, 9)) == 3 * 54
    (tmp_path / "s.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(Refused, match=r"1 of 162 rows are missing, the first is 'z_(5_8|8_5)'"):
        check_submission(tmp_path / "s.csv", own, "xyz", (6, 9))


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
@pytest.mark.parametrize("file", ["{id}.png", "out/{id}_mask.tif", "{id}.npy", "{id}.bmp", "{id}.h5"])
@pytest.mark.parametrize("values", [(), (0, 255, 128), ("#000000", "#ff00ff", "#00ff00")])
def test_mask_files_survive_write_and_check(tmp_path, suffix, file, values):
    own = layout_of(format="files", file=file, values=values, suffix=suffix)
    labels, path = [*drawn_labels(), drawn_labels(1, size=(4, 5))[0]], tmp_path / f"s{suffix}"
    with open_writer(path, own) as write:
        write("xy", labels[:2])
        write("zw", labels[2:])
    sizes = np.array([one.shape for one in labels])
    assert check_submission(path, own, "xyzw", sizes) == 4
    codes = np.array([tuple(bytes.fromhex(v[1:])) if isinstance(v, str) else v for v in values or range(3)])
    for (name, data), image, id in zip(archive._read_members(path), labels, "xyzw", strict=True):
        assert name == file.replace("{id}", id)
        if name.endswith("h5"):
            stored = pytest.importorskip("h5py").File(data)["mask"][()]
        else:
            stored = np.load(data) if name.endswith("npy") else np.asarray(Image.open(data))
        assert (stored == codes[image]).all()
    others = layout_of(format="files", file=file, values=(0, 7, 9), suffix=suffix)
    for wrong, ids, shapes, problem in [
        (own, "xyzv", sizes, "w.*: of no test image"),
        (own, "xyzwv", [*sizes, (1, 1)], "1 of 5 files are missing"),
        (own, "xyzw", sizes[::-1].copy(), r"is 6×9; its image is 4×5"),
        (others, "xyzw", sizes, "holds other values than"),
    ]:
        with pytest.raises(Refused, match=problem):
            check_submission(path, wrong, wrong and ids, np.array(shapes))
    path.write_bytes(b"PK nothing")
    with pytest.raises(Refused, match="cannot be read"):
        check_submission(path, own, "xyzw", sizes)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["format=rle", "rows=pixel"], "'pixel'; with format 'rle' image or image_class or instance would fit"),
        (["format=files", "rows=instance"], "with format 'files' image would fit"),
        (["format=files", "file={id}.jpg"], "'{id}.jpg' in .zip; \"{id}.png\" in .zip would fit"),
        (["format=files", "file=mask.png"], "'mask.png' in .zip"),
        (["format=files", "suffix=.csv"], "in .csv"),
        (["format=files", 'values=[0, "#000000"]'], "values.1: input should be a valid integer, not '#000000'"),
        (["values=[0]"], "submission.values: 1 values; 2, one for each class"),
    ],
)
def test_layouts_that_do_not_fit_together_are_refused(overrides, problem):
    with pytest.raises(Refused) as refused:
        load_config("tgs-salt", overrides=[f"competition.submission.{one}" for one in overrides])
    assert problem in str(refused.value)


def test_a_function_of_ones_own_writes_the_file(tmp_path):
    (tmp_path / "own.py").write_text(
        "def write_submission(path, predictions):\n"
        "    path.write_text(''.join(f'{id} {labels.shape} {int(labels.sum())}\\n' for id, labels in predictions))\n"
    )
    own = layout_of(function=str(tmp_path / "own.py"), suffix=".txt", classes=("none", "a"))
    assert own.submission.ending == ".txt"
    seen = torch.rand(3, 2, 6, 9, generator=torch.Generator().manual_seed(0))
    sizes = np.array([[6, 9], [12, 18], [3, 5]], np.int32)
    test = Split(np.zeros((3, 6, 9, 1), np.uint8), None, np.array(["x", "y", "z"]), None, sizes)
    blended = ((np.arange(k, k + 1), seen[k : k + 1]) for k in range(3))
    count, scores = write_submission(tmp_path / "s.txt", blended, Decisions.neutral(1, 2), test, own, None)
    lines = (tmp_path / "s.txt").read_text().splitlines()
    assert (count, scores, len(lines)) == (3, None, 3)
    assert lines[0] == f"x (6, 9) {int((seen[0, 1] > seen[0, 0]).sum())}"
    assert [line.split(" ", 1)[1].rpartition(" ")[0] for line in lines] == ["(6, 9)", "(12, 18)", "(3, 5)"]
    (tmp_path / "other.py").write_text("def write_submission(path, predictions):\n    path.write_text('')\n")
    own = layout_of(function=str(tmp_path / "other.py"), suffix=".txt", classes=("none", "a"))
    with pytest.raises(Refused, match="left nothing at the path"):
        write_submission(tmp_path / "t.txt", iter(()), Decisions.neutral(1, 2), test, own, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id,total,more\nx,1,2\ny,3,4\n", None),
        ("id,total,more\nx,1,2\nx,5,6\ny,3,4\n", None),  # a row an object
        ("id,total\nx,1\ny,3\n", "2 columns; sample.csv has 3"),
        ("id,more,total\nx,1,2\ny,3,4\n", "column 2 is 'more'; sample.csv has 'total'"),
        ("id,total,more\nx,1,2\n", "1 of 2 rows are missing, the first is 'y'"),
        ("id,total,more\nx,1,2\ny,3,4\nz,5,6\n", "no such id in sample.csv"),
    ],
)
def test_a_csv_of_ones_own_has_the_header_and_the_ids_of_the_sample(tmp_path, text, problem):
    own, path, sample = layout_of(function="own.py", classes=("none", "a")), tmp_path / "s.csv", tmp_path / "sample.csv"
    path.write_text(text)
    sample.write_text("id,total,more\nx,0,0\ny,0,0\n")
    assert check_submission(path, own, "xyz") == text.count("\n") - 1  # what it holds, not what was predicted
    if problem is None:
        assert check_submission(path, own, "xyz", None, sample) == text.count("\n") - 1
    else:
        with pytest.raises(Refused, match=problem):
            check_submission(path, own, "xyz", None, sample)
