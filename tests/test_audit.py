"""What the audit finds, that it finds no more, and the table, list and sheet it leaves."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from comp import config
from comp.data import arrays
from comp.prepare import audit, build
from comp.prepare.audit import SIDE
from comp.prepare.samples import Finding
from comp.report import figures

MARS = Path(__file__).parents[2] / "shared/data/mars/mars_for_students.npz"
PREPARE = Path(__file__).parents[1] / "kernels/prepare.py"
CLASSES = ("ground", "rock", "tree")


def competition(**section) -> config.Competition:
    values = {"competition": {"name": "own", "classes": CLASSES, "arrays": {"ignore": 255} | section}}
    return config.validate_config(values).competition


def smooth(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    coarse = rng.integers(30, 220, (4, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def split(count=12, height=24, width=36, seed=0, prefix="a") -> arrays.Split:
    """Different smooth images whose masks are different diagonals."""
    rng = np.random.default_rng(seed)
    images = np.stack([smooth(rng, height, width) for _ in range(count)]).astype(float)
    light = 110 + 4 * (np.arange(count) % 7) - images.mean(axis=(1, 2, 3))
    images = (images + light[:, None, None, None]).clip(0, 255).astype(np.uint8)
    y, x = np.mgrid[:height, :width]
    masks = np.stack([((x * (1 + k // 27) + y + k) // 9 % 3).astype(np.uint8) for k in range(count)])
    ids = np.array([f"{prefix}{k:02d}" for k in range(count)])
    return arrays.Split(images, masks, ids, None, None)


def found(train: arrays.Split, test: arrays.Split | None = None) -> list[tuple[str, str, str]]:
    own = competition()
    rows = audit.audit(own, train, arrays.build_index(train, own), test)
    return [(row.id, row.finding, row.group) for row in rows]


def test_ordinary_samples_give_no_finding():
    assert found(split(), split(seed=1, prefix="t")) == []


def test_empty_and_ignored_masks():
    train = split()
    train.masks[3], train.masks[5] = 0, 255
    rows = audit.audit(competition(), train, arrays.build_index(train, competition()))
    assert [(row.id, row.detail) for row in rows] == [("a03", "only ground"), ("a05", "every pixel is ignored")]


def test_masks_shared_by_different_images():
    train = split(16)
    train.masks[[2, 7, 9]] = train.masks[2]
    # One class all over, framed or cut once, says nothing of its image.
    train.masks[10:13] = 1
    train.masks[10:13, 0], train.masks[10:13, :, 0] = 255, 255
    train.masks[13:], train.masks[13:, 12:] = 0, 2
    assert found(train) == [(f"a{k:02d}", "shared mask", "a02") for k in (2, 7, 9)]


def test_the_same_image_is_not_a_shared_mask():
    train = split()
    train.images[[2, 7, 9]], train.masks[[2, 7, 9]] = train.images[2], train.masks[2]
    assert found(train) == [("a07", "duplicate", "a02"), ("a09", "duplicate", "a02")]


def test_exact_duplicates_say_whether_the_mask_differs():
    train = split()
    train.images[[4, 8]] = train.images[1]
    train.masks[8] = train.masks[1]
    rows = audit.audit(competition(), train, arrays.build_index(train, competition()))
    assert [(row.id, row.detail) for row in rows] == [
        ("a04", "of a01, with another mask"),
        ("a08", "of a01, with the same mask"),
    ]


def test_near_duplicates_within_train_and_to_test():
    train, test = split(), split(seed=1, prefix="t")
    noise = np.random.default_rng(2).integers(-3, 4, train.images[0].shape)
    train.images[6] = (train.images[1] * 0.8 + noise + 12).clip(0, 255).astype(np.uint8)
    test.images[4] = (train.images[9] + noise).clip(0, 255).astype(np.uint8)
    test.images[5] = train.images[10]
    assert found(train, test) == [
        ("a06", "near duplicate", "a01"),
        ("test/t04", "near duplicate in test", "a09"),
        ("test/t05", "duplicate in test", "a10"),
    ]


def test_flat_images():
    train = split()
    train.images[3] = 120
    assert found(train) == [("a03", "flat image", "")]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_near_images_are_those_of_a_full_comparison(seed, copies):
    rng = np.random.default_rng(seed)
    thumbs = rng.integers(0, 256, (80, SIDE, SIDE)).astype(np.float32)
    for _ in range(copies):
        one, other = rng.integers(0, 80, 2)
        thumbs[other] = thumbs[one] + rng.normal(0, rng.choice([0.5, 4, 12]), (SIDE, SIDE))
    thumbs[rng.integers(0, 80, 3)] = 77  # flat ones are like none
    with np.errstate(invalid="ignore"):
        alike = np.corrcoef(thumbs.reshape(80, -1)) > audit.NEAR_CORRELATION
    np.fill_diagonal(alike, False)
    assert (audit.near_graph(thumbs).toarray().astype(bool) == alike).all()


def test_flat_images_have_no_near_ones():
    thumbs = np.full((3, SIDE, SIDE), 77, np.float32)
    assert audit.near_graph(thumbs).nnz == 0
    assert audit.near_groups(thumbs, np.array(list("abc"))).tolist() == ["", "", ""]


def test_a_chain_of_near_duplicates_is_one_group():
    thumbs = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE)).astype(np.float32)
    thumbs[3], thumbs[5] = thumbs[1] + 2, thumbs[1] * 0.9
    assert audit.near_groups(thumbs, np.array(list("abcdef"))).tolist() == ["", "b", "", "b", "", "b"]


@pytest.mark.parametrize("shape", [(3, 64, 128, 1), (300, 16, 32, 3), (2, 31, 257, 5)])
def test_thumbnails_are_area_means(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    # Every pixel is split so finely that the areas' edges fall between the parts.
    fine = images.mean(axis=-1).repeat(SIDE, axis=1).repeat(SIDE, axis=2)
    expected = fine.reshape(len(images), SIDE, shape[1], SIDE, shape[2]).mean(axis=(2, 4))
    assert np.allclose(audit.thumbnails(images), expected, atol=1e-2)


def test_images_smaller_than_a_thumbnail_are_compared():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 1, 2), dtype=np.uint8)
    images[2] = images[0]
    assert audit.near_groups(audit.thumbnails(images), np.array(list("abc"))).tolist() == ["a", "", "a"]


def test_table_list_and_sheet(tmp_path):
    train, test = split(), split(seed=1, prefix="t")
    train.masks[3] = 0
    train.masks[train.masks == 2] = 255
    sizes = np.full((12, 2), 50, np.int32)
    train = arrays.Split(train.images, train.masks, train.ids, None, sizes)
    own = competition()
    index = arrays.build_index(train, own)
    rows = [
        Finding("odd$file, 2.mat", "not an image", 'of "c", with\nanother line'),
        *audit.audit(own, train, index, test),
    ]
    text = audit.write_audit(tmp_path / "audit", own, train, index, test, rows)
    assert (tmp_path / "audit/audit.txt").read_text() == text + "\n"
    assert "own: 12 training images of 24×36×3, 12 test images" in text
    assert [line.split()[0] for line in text.splitlines()[3:7]] == ["ground", "rock", "tree", "(ignored)"]
    assert "in no image" in text and "50×50" in text and "empty mask                1   a03" in text
    assert max(map(len, text.splitlines())) <= 110
    with open(tmp_path / "audit/audit.csv", newline="") as file:
        assert list(csv.reader(file)) == [["id", "finding", "detail", "group"], *map(list, rows)]
    veiled = figures.overlay(train.images[0], train.masks[0])  # as every image of it lies under its mask
    with Image.open(tmp_path / "audit/audit.png") as sheet:
        factor = 260 // 36
        at = slice(44, 44 + 24 * factor, factor), slice(6, 6 + 36 * factor, factor)
        assert (np.asarray(sheet.convert("RGB"))[at] == veiled).all()


@pytest.mark.slow
def test_prepare_from_the_command_line(tmp_path):
    rng = np.random.default_rng(0)
    for k in range(4):
        for folder in ("images", "masks", "test_images"):
            (tmp_path / "source" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(smooth(rng, 40, 50)).save(tmp_path / f"source/images/{k}.jpg")
        Image.fromarray(smooth(rng, 30, 50)).save(tmp_path / f"source/test_images/t{k}.jpg")
        Image.fromarray(np.tri(40, 50, k, dtype=np.uint8) * 255).save(tmp_path / f"source/masks/{k}_mask.png")
    (tmp_path / "source/stray").mkdir()
    Image.fromarray(smooth(rng, 30, 50)).save(tmp_path / "source/stray/9.jpg")
    (tmp_path / "own.toml").write_text('name = "own"\nclasses = ["no", "yes"]\n')
    command = [sys.executable, PREPARE, "--competition", "own.toml"]
    made = subprocess.run(
        [*command, "--source", "source", "--size", "32x48"], cwd=tmp_path, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr
    assert "own: 4 training images of 32×48×3, 4 test images" in made.stdout and "folder not read" in made.stdout
    assert sorted(path.name for path in (tmp_path / "runs/own/audit").iterdir()) == [
        "audit.csv",
        "audit.png",
        "audit.txt",
    ]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.stdout.splitlines()[0] in made.stdout and "folder not read" in again.stdout
    assert build.stored_findings(tmp_path / "input/own.npz")[0].id == "stray"


@pytest.mark.skipif(not MARS.exists(), reason="needs ../shared/data/mars")
def test_mars_has_110_outliers(tmp_path):
    (tmp_path / MARS.name).symlink_to(MARS)
    mars = config.load_config("mars").competition
    train = arrays.load_train(mars, tmp_path)
    rows = audit.audit(mars, train, arrays.build_index(train, mars))
    assert sum(row.finding == "shared mask" for row in rows) == 110


def test_noise_is_not_flat_however_large_the_image(tmp_path):
    noise = np.random.default_rng(0).normal(120, 18, (6, 160, 160)).clip(0, 255).astype(np.uint8)
    noise[3:] = 120
    own, masks = config.Competition(name="noise", classes=("a", "b")), np.zeros((6, 160, 160), np.uint8)
    np.savez(tmp_path / "noise.npz", train_images=noise, train_masks=masks)
    train = arrays.load_train(own, tmp_path)
    flat = [one.id for one in audit.audit(own, train, arrays.build_index(train, own)) if one.finding == "flat image"]
    assert flat == ["3", "4", "5"]
