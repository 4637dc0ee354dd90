"""Slices of a group as channels, the same wherever they are read."""

import numpy as np
import pytest
import torch
from conftest import COMPETITION, RECIPE, TINY, inside, lay_out

from comp import config, device
from comp.data import arrays, batches
from comp.errors import Refused
from comp.model import segmenter

SLICED = COMPETITION + "\n[arrays]\nneighbours = [-1, 0, 2]\n"


def test_channels_are_neighbours_of_the_group_and_end_with_it():
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(2, 3)
    images[..., 1] += 100
    near = arrays.Neighbours(images, np.array(["a", "b", "a", "", "b", "a", "", "a"]), [-1, 0, 2])
    assert near.shape == (8, 1, 1, 6)
    first = near[np.arange(8)][:, 0, 0, ::2].tolist()
    assert first == [[0, 0, 5], [1, 1, 4], [0, 2, 7], [3, 3, 3], [1, 4, 4], [2, 5, 7], [6, 6, 6], [5, 7, 7]]
    assert near[2][0, 0].tolist() == [0, 100, 2, 102, 7, 107]
    assert np.array_equal(near[2:4], near[np.array([2, 3])]) and near[np.array([], int)].shape == (0, 1, 1, 6)


def test_a_mapped_file_is_not_copied(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((9, 4, 4, 1), np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert arrays.Neighbours(images, np.full(9, "a"), [-1, 0, 1])._images is images


def sliced(tmp_path, **more):
    groups = np.repeat([f"case {k}" for k in range(8)], 3)
    lay_out(tmp_path, RECIPE, SLICED, train_groups=groups, test_groups=np.array([*"aaabbbb"]), **more)
    return config.load_config(str(tmp_path / "tiny.toml"), str(tmp_path / "recipe.toml"))


def test_training_prediction_and_kernel_see_the_same(tmp_path, monkeypatch, capsys):
    loaded = sliced(tmp_path)
    split = arrays.load_train(loaded.competition, tmp_path / "input")
    assert split.images.shape == (24, 32, 48, 1) and split.inputs.shape == (24, 32, 48, 3)
    plain = loaded.model_copy(update={"augment": config.Augment()})
    ((_, images, _),) = batches.TrainBatches(split, np.arange(5), np.ones(5), plain, 0, pin=False).epoch(0)
    shown = {image.numpy().tobytes() for image in images}
    assert shown == {np.ascontiguousarray(image).tobytes() for image in split.inputs[np.arange(5)]}
    inside(monkeypatch, capsys, "train_fold.py", *TINY, "--fold", "0", cwd=tmp_path)
    inside(monkeypatch, capsys, "ensemble.py", *TINY, "--folds", "0", cwd=tmp_path)
    model, _ = segmenter.load_model(tmp_path / "runs/tiny/recipe/fold-0/model.safetensors", device.choose_device("cpu"))
    assert model(torch.from_numpy(split.inputs[np.array([0])]).permute(0, 3, 1, 2)).shape == (1, 3, 32, 48)


def test_without_groups_nobody_is_a_neighbour(tmp_path):
    lay_out(tmp_path, RECIPE, SLICED)
    loaded = config.load_config(str(tmp_path / "tiny.toml"), str(tmp_path / "recipe.toml"))
    with pytest.raises(Refused, match="no train_groups, which say whose neighbours"):
        arrays.load_train(loaded.competition, tmp_path / "input")


@pytest.mark.parametrize("wrong", ["[1, 2]", "[-1, 0, 0]", "[0.5, 0]"])
def test_neighbours_that_leave_the_image_out_are_refused(tmp_path, wrong):
    (tmp_path / "tiny.toml").write_text(SLICED.replace("[-1, 0, 2]", wrong))
    with pytest.raises(Refused, match=r"arrays\.neighbours"):
        config.load_config(str(tmp_path / "tiny.toml"))
