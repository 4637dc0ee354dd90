"""The demo is the same each time and has a real competition's traps."""

import tempfile

import numpy as np
import pytest

from comp import config, files
from comp.data import arrays, demo, folds

CLASSES = 5


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "kaggle")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An input folder with the demo in it."""
    folder = tmp_path_factory.mktemp("demo") / "input"
    assert demo.ensure_demo(folder) == folder / "demo.npz"
    return folder


@pytest.fixture(scope="module")
def drawn(made):
    with np.load(made / "demo.npz", allow_pickle=False) as members:
        return dict(members)


def test_it_is_drawn_alike_each_time(drawn):
    again = demo.draw_demo()
    assert drawn.keys() == again.keys()
    for key in drawn:
        np.testing.assert_array_equal(drawn[key], again[key])


def test_shapes_and_labels(drawn):
    assert drawn["train_images"].shape == drawn["train_masks"].shape == (480, 64, 128)
    assert drawn["test_images"].shape == drawn["test_masks"].shape == (160, 64, 128)
    assert {drawn[key].dtype for key in drawn if "ids" not in key} == {np.dtype(np.uint8)}
    assert len({*drawn["train_ids"], *drawn["test_ids"]}) == 640
    assert drawn["train_masks"].max() == drawn["test_masks"].max() == CLASSES - 1


def test_crystal_is_rare_and_no_class_is_missing(drawn):
    for part in ("train_masks", "test_masks"):
        shares = np.bincount(drawn[part].ravel(), minlength=CLASSES) / drawn[part].size
        assert 0.001 < shares[demo.CRYSTAL] < 0.01
        assert shares[: demo.CRYSTAL].min() > 0.1


def test_brightness_alone_does_not_tell_the_classes_apart(drawn):
    """The best guess from a pixel's gray level is far from the truth."""
    images, masks = drawn["test_images"].ravel().astype(int), drawn["test_masks"].ravel()
    together = np.bincount(images * CLASSES + masks, minlength=256 * CLASSES).reshape(256, CLASSES)
    assert together.max(axis=1).sum() / masks.size < 0.6


def test_it_loads_as_a_competition_with_its_traps(made):
    demo_config = config.load_config("demo")
    own = demo_config.competition
    train, test = arrays.load_train(own, made), arrays.load_test(own, made)
    assert test.masks is not None and train.images.shape == (480, 64, 128, 1)
    index = arrays.build_index(train, own)
    _, times = np.unique(index.image_hash, return_counts=True)
    assert (times == 2).sum() == demo.DUPLICATES and times.max() == 2
    _, first, times = np.unique(index.mask_hash, return_index=True, return_counts=True)
    assert times.max() == demo.OUTLIERS
    assert own.arrays.exclude_shared_masks < demo.OUTLIERS

    assigned = folds.deal_folds(train, index, demo_config)
    outliers = np.flatnonzero(assigned == folds.EXCLUDED)
    assert (
        len(outliers) == demo.OUTLIERS and (index.mask_hash[outliers] == index.mask_hash[first[times.argmax()]]).all()
    )
    for fold in range(5):
        folds.check_training(index, assigned, fold, own.classes)
        assert (index.counts[assigned == fold] > 0).any(axis=0).all()
        assert abs((assigned == fold).sum() - (480 - demo.OUTLIERS) / 5) < 2


def test_it_is_mapped_without_a_cache(made, tmp_path):
    (tmp_path / "demo.npz").symlink_to(made / "demo.npz")
    arrays.load_train(config.load_config("demo").competition, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["demo.npz"]


def test_it_is_made_once(made, monkeypatch):
    monkeypatch.setattr(demo, "draw_demo", None)
    assert demo.ensure_demo(made) == made / "demo.npz"


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "draw_demo", lambda: {"train_images": np.zeros((2, 3, 4), np.uint8)})
    folder = tmp_path / "input"
    folder.write_text("in the way, also for root")
    path = demo.ensure_demo(folder)
    assert path.is_relative_to(tmp_path / "temporary") and path == demo.ensure_demo(folder)
    assert arrays.find_npz("demo.npz", folder) == path
