"""More rows to train on: another npz, and a blend's own labels of the test set."""

import numpy as np
import pytest
from conftest import TINY, draw, inside

from comp import config
from comp.data import folds, npz
from comp.errors import Refused


def settings(place, **arrays):
    images, masks = draw(12, 0)
    np.savez(place / "x.npz", train_images=images, train_masks=masks, train_groups=np.arange(12) // 2)
    competition = {"name": "x", "classes": ["a", "b", "c"], "arrays": {"extra": "more.npz"} | arrays}
    return config.validate_config({"competition": competition, "folds": {"count": 3}}), images, masks


def test_extra_rows_train_in_every_fold_and_validate_in_none(tmp_path):
    loaded, images, masks = settings(tmp_path)
    plain = config.validate_config(
        loaded.model_dump(mode="json") | {"competition": {"name": "x", "classes": ["a", "b", "c"]}}
    )
    alone = folds.load_training_data(plain, tmp_path, tmp_path / "runs")
    dealt = (tmp_path / "runs/x/folds-3-seed0.csv").read_bytes()
    more, labels = draw(5, 9)
    np.savez(tmp_path / "more.npz", train_images=more, train_masks=labels)
    for _ in range(2):  # the second from the cache
        data = folds.load_training_data(loaded, tmp_path, tmp_path / "runs")
        assert data.folds.tolist() == [*alone.folds.tolist(), *[folds.EXTRA] * 5]
        assert (data.split.images[..., 0] == np.concatenate([images, more])).all()
        assert (data.split.masks == np.concatenate([masks, labels])).all()
        assert data.index.counts.shape == (17, 3) and data.split.ids[-1] == "more.npz/4"
        for number in range(3):
            train, valid = data.rows(number)
            assert {12, 13, 14, 15, 16} <= {*train.tolist()} and valid.max() < 12
    assert (tmp_path / "runs/x/folds-3-seed0.csv").read_bytes() == dealt
    more[0] = 7  # a changed file is read anew
    np.savez(tmp_path / "more.npz", train_images=more, train_masks=labels)
    assert (folds.load_training_data(loaded, tmp_path, tmp_path / "runs").split.images[12] == 7).all()


def test_extra_rows_that_do_not_fit_are_refused(tmp_path):
    loaded, images, masks = settings(tmp_path)
    np.savez(tmp_path / "more.npz", train_images=images[3:4], train_masks=masks[3:4])
    with pytest.raises(Refused, match=r"more\.npz: 1 images also validate, such as '0'; leave them out"):
        folds.load_training_data(loaded, tmp_path, tmp_path / "runs")
    np.savez(tmp_path / "more.npz", train_images=images[:, :16], train_masks=masks[:, :16])
    with pytest.raises(Refused, match=r"more\.npz: images of \(16, 48, 1\); the others are \(32, 48, 1\)"):
        folds.load_training_data(loaded, tmp_path, tmp_path / "runs")
    (tmp_path / "more.npz").unlink()
    with pytest.raises(Refused, match=r"more\.npz: no such file"):
        folds.load_training_data(loaded, tmp_path, tmp_path / "runs")


@pytest.mark.slow
def test_a_blend_labels_the_test_set_and_a_run_trains_on_it(trained, monkeypatch, capsys, tmp_path):
    import shutil

    here = shutil.copytree(trained[0], tmp_path / "place")
    words = (*TINY, "--set", "competition.arrays.ignore=255")
    told = inside(monkeypatch, capsys, "ensemble.py", *words, "--pseudo", "0.5", cwd=here)
    assert "tiny-pseudo.npz: " in told and "--set competition.arrays.extra=tiny-pseudo.npz" in told
    path = here / "input/tiny-pseudo.npz"
    masks = npz.read_array(npz.read_member(path, "train_masks"))
    assert {*np.unique(masks).tolist()} <= {0, 1, 2, 255} and 0 < (masks == 255).mean() < 1
    words = (*words, "--set", "competition.arrays.extra=tiny-pseudo.npz", "--run", "pseudo", "--fold", "0")
    told = inside(monkeypatch, capsys, "train_fold.py", *words, cwd=here)
    assert "fold 0 is finished" in told
    without = inside(monkeypatch, capsys, "ensemble.py", *TINY, "--pseudo", "0.5", cwd=here, status=2)
    assert "needs --set competition.arrays.ignore=255" in without
    wrong = inside(monkeypatch, capsys, "ensemble.py", *words[:-2], "--pseudo", "90", cwd=here, status=2)
    assert "--pseudo 90: a probability between 0 and 1 would fit" in wrong
