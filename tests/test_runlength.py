import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from comp.errors import Refused
from comp.submission import runlength
from comp.submission.runlength import decode_runs

ORDERS = st.sampled_from(["column", "row"])
MASKS = arrays.arrays(bool, st.tuples(st.integers(0, 5), st.integers(1, 9), st.integers(1, 9)))


def plain(mask, order):
    """The loop that public notebooks share."""
    pixels = np.concatenate([[0], (mask.T if order == "column" else mask).flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(value) for value in runs)


@given(MASKS, ORDERS)
def test_encodes_as_the_plain_loop(masks, order):
    assert runlength.encode_runs(masks, order) == [plain(mask, order) for mask in masks]


@given(MASKS, ORDERS)
def test_decode_undoes_encode(masks, order):
    for mask, text in zip(masks, runlength.encode_runs(masks, order), strict=True):
        assert np.array_equal(decode_runs(text, mask.shape, order), mask)


@pytest.mark.parametrize("shape", [(7, 1100, 1000), (3, 1, 70_000), (3, 70_000, 1), (300, 101, 101)])
@pytest.mark.parametrize("order", ["column", "row"])
def test_large_masks_many_digits_and_several_chunks(shape, order):
    masks = np.random.default_rng(0).random(shape) < 0.02
    masks[1] = True
    masks[-1] = False
    texts = runlength.encode_runs(masks, order)
    assert texts == [plain(mask, order) for mask in masks]
    assert np.array_equal(decode_runs(texts[0], shape[1:], order), masks[0])


def test_every_number_is_written_in_full():
    width = 10_000_001  # each length of digits, zeros inside and at the end
    mask = np.zeros((1, 1, width), bool)
    starts = np.array([1, 9, 11, 99, 101, 1000, 1010, 9999, 10_000, 100_000, 1_000_000, 1_001_000, 10_000_001])
    mask[0, 0, starts - 1] = True
    assert runlength.encode_runs(mask, "row") == [plain(mask[0], "row")]
    mask[:] = True
    assert runlength.encode_runs(mask, "row") == [f"1 {width}"]


def test_any_label_but_0_is_set():
    mask = np.array([[[0, 1, 2], [255, 0, 0]]], np.uint8)
    assert runlength.encode_runs(mask, "row") == ["2 3"]
    assert runlength.encode_runs(mask, "column") == ["2 2 5 1"]


def test_encodes_views_that_are_not_contiguous():
    masks = np.random.default_rng(0).random((4, 9, 12)) < 0.5
    for view in (masks[::2], masks[:, ::-1], masks.transpose(0, 2, 1), masks[:, 1:5, 2:7]):
        for order in ("column", "row"):
            assert runlength.encode_runs(view, order) == [plain(mask, order) for mask in view]


def relative(mask):
    """SIIM's own writer: how many pixels are skipped, how many are set, and so on."""
    text, skipped, length = [], 0, 0
    for pixel in [*mask.T.flatten(), False]:
        if pixel:
            length += 1
        elif length:
            text += [skipped, length]
            skipped, length = 1, 0
        else:
            skipped += 1
    return " ".join(map(str, text))


@given(MASKS)
def test_relative_starts(masks):
    for mask in masks:
        assert np.array_equal(decode_runs(relative(mask), mask.shape, "column", relative=True), mask)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0 7", "7 is no number"),
        ("5 2", "outside the image"),
        ("0 2 -1 2", "-1 is no number"),
        ("3 0", "shorter than one"),
        ("1", "odd number"),
    ],
)
def test_relative_runs_that_do_not_fit(text, problem):
    with pytest.raises(Refused, match=problem):
        decode_runs(text, (2, 3), relative=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("1 2 5", "an odd number of run-length values, 3"),
        ("0 2", "run 1, '0 2', starts before pixel 1"),
        ("-4 2", "run 1, '-4 2', starts before pixel 1"),
        ("1 1 3 0", "run 2, '3 0', is shorter than one pixel"),
        ("4 1 2 1", "run 2, '2 1', starts before the end of"),
        ("4 1 4 1", "starts before the end of"),
        ("1 3 3 2", "run 2, '3 2', starts before the end of the one before it"),
        ("5 3", "run 1, '5 3', ends outside the image of 6 pixels"),
        ("7 1", "outside the image of 6 pixels"),
        ("1 2.0", "'2.0' is not a pixel's number"),
        ("nan", "'nan' is not a pixel's number"),
        ("1 x", "'x' is not a pixel's number"),
        ("1 99999999999999999999", "is not a pixel's number"),
        ("9223372036854775807 9223372036854775807", "outside the image"),
        ("1 " + "9" * 5000, "is not a pixel's number"),
    ],
)
def test_refuses(text, problem):
    with pytest.raises(Refused, match=problem) as refused:
        decode_runs(text, (2, 3))
    assert len(str(refused.value)) < 200


def test_runs_of_an_unknown_image_cannot_end_anywhere():
    with pytest.raises(Refused, match="outside"):
        runlength.parse_runs("9223372036854775807 9223372036854775807")


@given(st.text(alphabet="0123456789 -+._x\t\0é", max_size=30))
def test_any_text_decodes_or_is_refused(text):
    try:
        mask = decode_runs(text, (4, 5))
    except Refused:
        return
    assert mask.shape == (4, 5)
