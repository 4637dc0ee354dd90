"""Soft targets: what annotators marked on average is learned, though each batch has labels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from drawn import competition, image, prepare, save

from comp import config
from comp.data import arrays, batches
from comp.errors import Refused
from comp.model import losses

FILES = {"images": "images/{id}.png", "masks": "masks/{id}_*", "soft": True}


def split_of(soft, ignored=None):
    masks = (soft > 127).astype(np.uint8)
    if ignored is not None:
        masks[ignored] = 255
    images, ids = np.zeros((*soft.shape, 1), np.uint8), np.arange(len(soft)).astype(str)
    return arrays.TrainSplit(images, masks, ids, None, None, soft=soft)


def test_labels_are_drawn_as_often_as_annotators_saw_the_class():
    soft = np.random.default_rng(0).choice(np.array([0, 64, 128, 191, 255], np.uint8), (2, 8, 8))
    split = split_of(soft, np.s_[:, 0, 0])
    samples = batches._Samples(split, config.load_config("demo", "quick", ["augment.transforms=[]"]))
    drawn = np.stack([samples._sample(epoch, place, 0)[1] for epoch in range(200) for place in range(20)])
    assert drawn.dtype == np.uint8 and (drawn[:, 0, 0] == 255).all()
    seen = drawn.reshape(len(drawn), -1)[:, 1:]
    assert np.abs(seen.mean(0) - soft[0].ravel()[1:] / 255).max() < 0.04
    assert (samples._sample(3, 1, 0)[1] == samples._sample(3, 1, 0)[1]).all()  # a run that goes on draws the same
    one = drawn[0].ravel()[1:]
    lowest = soft[0].ravel()[1:][one == 1].min(initial=255)
    assert (one == (soft[0].ravel()[1:] >= lowest)).all()  # what fewer saw is never there without what more saw


def test_what_is_drawn_has_nothing_to_do_with_how_an_image_is_turned():
    soft = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    recipe = config.load_config("demo", "quick", ['augment.transforms=[{name="D4", p=1.0}]'])
    split = split_of(soft)
    split.images[0, 3, 1] = 255
    samples = batches._Samples(split, recipe)
    turned = {}
    for place in range(400):
        image_seen, mask = samples._sample(0, place, 0)
        turned.setdefault(int(image_seen.argmax()), []).append(int(mask.sum()))
    assert len(turned) == 8
    for shares in turned.values():  # of each turn the thresholds lie all over
        assert min(shares) < 70 and max(shares) > 185 and 90 < np.mean(shares) < 165


@pytest.mark.parametrize("name", ["cross_entropy", "bce_dice"])
def test_losses_of_drawn_labels_are_on_average_the_soft_targets(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    soft = torch.randint(0, 256, (2, 6, 6), generator=generator)
    drawn = [(soft > threshold).long() for threshold in range(255)]
    if name == "cross_entropy":
        loss = torch.stack([losses.cross_entropy(logits, labels, torch.ones(2).double()) for labels in drawn]).mean()
        share = torch.stack([1 - soft / 255.0, soft / 255.0], 1).double()
        expected = F.cross_entropy(logits, share)
    else:  # its first part
        margin = logits[:, 1] - logits[:, 0]
        loss = torch.stack([F.binary_cross_entropy_with_logits(margin, labels.double()) for labels in drawn]).mean()
        expected = F.binary_cross_entropy_with_logits(margin, soft.double() / 255)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(one, logits)[0] for one in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("high", [1, 255])
def test_files_of_several_annotators_become_a_mean(tmp_path, high):
    marks = np.zeros((4, 16, 16), np.uint8)
    marks[:, 2:6], marks[:3, 6:8], marks[:2, 8:10], marks[:1, 10:12] = 1, 1, 1, 1
    for number in range(2):
        save(tmp_path / f"d/images/{number}.png", image(number))
        for k, one in enumerate(marks):
            save(tmp_path / f"d/masks/{number}_{k}.png", one * np.uint8(high))
    made = prepare(tmp_path / "d", competition(**FILES))
    assert made["train_soft"].dtype == np.uint8 and made["train_soft"].shape == (2, 16, 16)
    assert made["train_soft"][0, :, 0].tolist() == [0] * 2 + [255] * 4 + [191] * 2 + [128] * 2 + [64] * 2 + [0] * 4
    assert made["train_masks"][0, :, 0].tolist() == [0] * 2 + [1] * 6 + [0] * 8  # half of them is not most
    loaded = arrays.load_train(competition(**FILES), tmp_path)
    np.testing.assert_array_equal(loaded.soft, made["train_soft"])
    np.savez(tmp_path / "own.npz", **{key: made[key] for key in made if key != "train_soft"})
    with pytest.raises(Refused, match="no array 'train_soft'"):  # not hard labels without a word
        arrays.load_train(competition(**FILES), tmp_path)


def test_a_mean_is_read_as_it_lies(tmp_path):
    shares = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    save(tmp_path / "d/images/a.png", image(0))
    save(tmp_path / "d/masks/a_mean.npy", shares)
    save(tmp_path / "d/images/b.png", image(1))
    save(tmp_path / "d/masks/b_mean.png", np.arange(256, dtype=np.uint8).reshape(16, 16))
    made = prepare(tmp_path / "d", competition(**FILES))
    assert (made["train_soft"] == np.arange(256).reshape(16, 16)).all() and len(made["train_soft"]) == 2
    assert (made["train_masks"] == (made["train_soft"] > 127)).all()


def test_what_is_no_share_is_refused(tmp_path):
    save(tmp_path / "d/images/a.png", image(0))
    for wrong in (1.5, np.nan):
        save(tmp_path / "d/masks/a_0.npy", np.full((16, 16), wrong, np.float32))
        with pytest.raises(Refused, match=r"a_0\.npy: holds .*; shares from 0 to 1, or to 255, would fit"):
            prepare(tmp_path / "d", competition(**FILES))
    for wrong in (np.full((16, 16), 3, np.uint8), image(1)):  # a count of annotators, and colours
        (tmp_path / "d/masks/a_0.npy").unlink(missing_ok=True)
        save(tmp_path / "d/masks/a_0.png", wrong)
        with pytest.raises(Refused, match=r"a_0\.png: holds .*; shares from 0 to 1, or to 255, would fit"):
            prepare(tmp_path / "d", competition(**FILES))
    with pytest.raises(Refused, match=r"source\.soft: two classes"):
        competition({"arrays": {"ignore": 255}}, **FILES)
    for more in ({"instances": True}, {"labels": {"1": "thing"}}):
        with pytest.raises(
            Refused, match=r"source\.soft: two classes, of files or a reader, without labels or ignore would fit"
        ):
            competition(**FILES, **more)
    with pytest.raises(Refused, match=r"source\.soft: two classes"):
        competition({"classes": ["a", "b", "c"]}, **FILES)


def test_soft_targets_are_used_where_the_source_says_so(tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (4, 8, 8)).astype(np.uint8)
    np.savez(tmp_path / "own.npz", train_images=masks, train_masks=masks, train_soft=255 - masks)
    loaded = [
        arrays.load_train(competition({"arrays": {"file": "own.npz"}}, soft=soft), tmp_path).soft
        for soft in (False, True)
    ]
    assert loaded[0] is None and (loaded[1] == 255 - masks).all()


def test_a_half_done_run_does_not_change_to_soft_targets():
    hard, soft = (config.Config(competition=competition(soft=soft)) for soft in (False, True))
    assert config.first_difference(hard, soft) == "competition.source.soft: False, now True"
