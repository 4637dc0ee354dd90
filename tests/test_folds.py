"""Folds are stratified and grouped, the same everywhere, and saved ones are refused once they do not fit."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp import config
from comp.data import arrays, folds
from comp.data.folds import FULL, TrainingData
from comp.errors import Refused

CLASSES = ("ground", "rock", "crystal")
THE_FOLDS = [1, 2, 2, 0, 0, 2, 1, 2, 1, 1, 0, 1, 2, 2, 1, 0, 0, 0, 0, 1]


def index_of(counts, images=None, masks=None, constant=None) -> arrays.Index:
    """An index of samples that share nothing, but for what is given."""
    counts = np.array(counts, np.int64)
    unlike = np.random.default_rng(0).permutation(len(counts)).astype(np.uint64) + np.uint64(10**6)
    images = unlike if images is None else np.array(images, np.uint64)
    masks = unlike + np.uint64(10**6) if masks is None else np.array(masks, np.uint64)
    constant = np.zeros(len(counts), bool) if constant is None else np.array(constant)
    return arrays.Index(counts, images, masks, constant)


def make(index, groups=None, count=5, seed=0, **keys):
    groups = None if groups is None else np.array(groups).astype(str)
    ids = np.array([f"s{k}" for k in range(len(index.counts))])
    own = SimpleNamespace(arrays=config.Arrays(**keys))
    asked = SimpleNamespace(competition=own, folds=config.Folds(count=count, seed=seed))
    return folds.deal_folds(SimpleNamespace(ids=ids, groups=groups, folds=None, extra=None), index, asked)


def mixed(count=200, seed=0):
    """Images of which few contain class 2 and half class 1."""
    generator = np.random.default_rng(seed)
    return (generator.random((count, 3)) < [1, 0.5, 0.1]) * generator.integers(1, 100, (count, 3))


def test_every_fold_has_its_share_of_every_stratum():
    counts = mixed()
    assigned = make(index_of(counts))
    assert assigned.dtype == np.int16 and set(assigned.tolist()) == set(range(5))
    sizes = np.bincount(assigned)
    assert sizes.max() - sizes.min() <= 1
    rare, middle = counts[:, 2] > 0, (counts[:, 2] == 0) & (counts[:, 1] > 0)
    for stratum in (rare, middle, ~rare & ~middle):
        shares = np.bincount(assigned[stratum], minlength=5)
        assert shares.max() - shares.min() <= 1


def test_rarity_is_counted_in_images_not_pixels():
    counts = np.full((40, 2), 1)
    counts[:, 1] = 0
    counts[:4, 1] = 10**6  # most pixels of all, in few images
    assert sorted(make(index_of(counts), count=4)[:4].tolist()) == [0, 1, 2, 3]


def test_duplicates_and_user_groups_stay_together():
    images, masks, constant = np.arange(60), np.arange(60) + 100, np.zeros(60, bool)
    images[[3, 17]] = 3  # one image twice
    masks[[17, 40, 41]] = 117  # one mask on three images
    masks[50:], constant[50:] = 150, True  # empty masks are no sign of kinship
    groups = np.arange(60).astype(str)
    groups[[41, 55]] = "g"
    groups[20:30] = ""  # no group
    assigned = make(index_of(mixed(60), images, masks, constant), groups)
    assert len(set(assigned[[3, 17, 40, 41, 55]].tolist())) == 1
    assert len(set(assigned[50:].tolist())) > 1
    assert len(set(assigned[20:30].tolist())) > 1


@settings(max_examples=100, deadline=None)
@given(data=st.data(), count=st.integers(2, 6), seed=st.integers(-(2**70), 2**70))
def test_no_group_ever_straddles(data, count, seed):
    size = data.draw(st.integers(1, 40))
    few = st.lists(st.integers(0, size), min_size=size, max_size=size)
    images, masks, groups = (np.array(data.draw(few)) for _ in range(3))
    constant = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    constant &= ~np.isin(masks, masks[~constant])  # of equal masks all are constant or none
    index = index_of(mixed(size), images, masks, constant)
    try:
        assigned = make(index, groups, count, seed)
    except Refused as refused:
        assert "independent samples" in str(refused)
        return
    assert set(assigned.tolist()) == set(range(count))
    for values, counted in ((images, images >= 0), (masks, ~constant), (groups, groups >= 0)):
        for value in set(values[counted].tolist()):
            assert len(set(assigned[counted & (values == value)].tolist())) == 1


def test_the_folds_are_these_on_every_machine():
    number = np.arange(20)
    counts = np.stack([number + 1, number % 2, number % 5 == 0], axis=1)
    index = index_of(counts, number * 7919, number * 104729)
    assert make(index, count=3).tolist() == THE_FOLDS
    assert make(index, count=3, seed=1).tolist() != THE_FOLDS


def test_a_rare_class_with_fewer_samples_than_folds():
    counts = np.ones((12, 4), int)
    counts[:, 1:] = 0
    counts[:2, 1] = counts[2:4, 2] = counts[4:8, 3] = 1
    sizes = np.bincount(make(index_of(counts)))
    assert sizes.sum() == 12 and sizes.max() - sizes.min() <= 1
    assert sorted(make(index_of(counts[[0, 1, 2, 3, 4, 5]])).tolist()) == [0, 0, 1, 2, 3, 4]


def test_excluded_ids_are_in_no_fold():
    assigned = make(index_of(mixed(30)), exclude=("s4", "s7"))
    assert np.flatnonzero(assigned == -1).tolist() == [4, 7]
    with pytest.raises(Refused, match=r"competition\.arrays\.exclude: no sample 's30'"):
        make(index_of(mixed(30)), exclude=("s4", "s30"))


def test_a_mask_that_many_different_images_share_is_excluded():
    images, masks, constant = np.arange(60), np.arange(60), np.zeros(60, bool)
    masks[:12] = 500  # twelve images, so eleven others
    masks[12:24], images[12:24] = 501, 12  # one image twelve times
    masks[24:36], constant[24:36] = 502, True  # twelve empty masks
    masks[36:47] = 503  # eleven images, so ten others
    index = index_of(mixed(60), images, masks, constant)
    assert np.flatnonzero(make(index, exclude_shared_masks=11) == -1).tolist() == list(range(12))
    assert np.flatnonzero(make(index, exclude_shared_masks=10) == -1).tolist() == [*range(12), *range(36, 47)]
    assert (make(index) >= 0).all()


def test_fewer_independent_samples_than_folds():
    with pytest.raises(Refused, match=r"folds\.count: 5 folds of 4 independent samples"):
        make(index_of(mixed(6), images=[1, 1, 1, 2, 3, 4]))
    with pytest.raises(Refused, match="2 folds of 0 independent samples"):
        make(index_of(mixed(1)), count=2, exclude=("s0",))


def test_a_sample_of_ignored_pixels_alone_has_a_fold():
    counts = mixed(20)
    counts[3] = 0
    assert make(index_of(counts))[3] >= 0


def test_a_class_that_training_lacks_is_refused():
    counts = np.array([[5, 1, 0], [5, 0, 1], [5, 1, 0], [5, 1, 0]])
    index, assigned = index_of(counts), np.array([0, 1, 0, 1], np.int16)
    folds.check_training(index, assigned, 0, CLASSES)
    with pytest.raises(Refused, match="fold 1: no training sample has class 'crystal'"):
        folds.check_training(index, assigned, 1, CLASSES)
    excluded = np.array([0, -1, 0, 1], np.int16)
    with pytest.raises(Refused, match="fold 0: no image that is used has class 'crystal'; leave it out of classes"):
        folds.check_training(index, excluded, 0, CLASSES)
    for fold in (-1, 2):
        with pytest.raises(Refused, match=f"fold {fold}: there are folds 0 to 1"):
            folds.check_training(index, assigned, fold, CLASSES)


def test_what_helps_where_a_class_is_in_one_fold_alone_is_named():
    counts = np.array([[5, 1, 0], [5, 0, 0], [5, 1, 1], [5, 1, 1], [5, 1, 0], [5, 1, 0]])
    index, assigned = index_of(counts), np.array([0, 1, 2, 2, 3, 1], np.int16)
    says = r"fold 2: .*'crystal', since all with it \(2\) validate here; another fold, train_fold.py"
    with pytest.raises(Refused, match=says + " --fold full, or merging the class with another may work") as refused:
        folds.check_training(index, assigned, 2, CLASSES)
    assert "fewer" not in str(refused.value)
    for fold in (0, 1, 3):
        folds.check_training(index, assigned, fold, CLASSES)
    with pytest.raises(Refused, match=r"\(1\) validate here; another fold, train_fold.py --fold full"):
        folds.check_training(index_of(np.array([[5, 1, 0], [5, 0, 1]])), np.array([0, 1], np.int16), 0, CLASSES)


# Saved folds


def asked(count=5, **keys) -> config.Config:
    about = {"name": "own", "classes": CLASSES, "arrays": keys}
    return config.validate_config({"competition": about, "folds": {"count": count}})


def split_of(count=30, **fields):
    ids = np.array([f"a, {k}" for k in range(count)])
    return SimpleNamespace(**{"ids": ids, "groups": None, "folds": None, "extra": None} | fields)


def test_saved_folds_are_read_back(tmp_path):
    path, index, split = tmp_path / "own" / "folds.csv", index_of(mixed(30)), split_of()
    made = folds.load_or_deal_folds(path, split, index, asked(exclude=["a, 4"]))
    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == "id,fold,content" and len(text.splitlines()) == 31
    assert text.splitlines()[5].startswith('"a, 4",-1,') and len(text.splitlines()[5].split(",")[-1]) == 16
    # What a sample's content is hashed to must not change: folds that were saved long ago are read.
    assert [line[-16:] for line in text.splitlines()[1:3]] == ["7cb7d169f687ac37", "3a8ec12408bb61b1"]
    again = folds.load_or_deal_folds(path, split, index, asked(exclude=["a, 4"]))
    np.testing.assert_array_equal(again, made)
    assert again.dtype == np.int16 and path.read_text(encoding="utf-8") == text


def test_folds_may_be_moved_by_hand(tmp_path):
    path, index = tmp_path / "folds.csv", index_of(mixed(30))
    made = folds.load_or_deal_folds(path, split_of(), index, asked())
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"a, 0",{made[0]},', f'"a, 0",{(made[0] + 1) % 5},'), encoding="utf-8")
    assert folds.load_or_deal_folds(path, split_of(), index, asked())[0] == (made[0] + 1) % 5


def changed(index, **fields):
    values = vars(index) | {key: np.where(np.arange(30) == 7, 1, vars(index)[key]) for key in fields}
    return arrays.Index(**values)


CHANGES = {
    "image": (lambda index: changed(index, image_hash=1), split_of(), {}, "'a, 7'"),
    "mask": (lambda index: changed(index, mask_hash=1), split_of(), {}, "'a, 7'"),
    "group": (None, split_of(groups=np.array([""] * 9 + ["g"] * 21)), {}, "'a, 9'"),
    "id": (None, split_of(ids=np.array([f"a, {k % 29}" for k in range(30)])), {}, "'a, 0'"),
    "excluded": (None, split_of(), {"exclude": ["a, 12"]}, "'a, 12'"),
}


@pytest.mark.parametrize(("change", "split", "keys", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_saved_folds_are_refused_once_they_do_not_fit(tmp_path, change, split, keys, message):
    path, index = tmp_path / "folds.csv", index_of(mixed(30))
    folds.load_or_deal_folds(path, split_of(), index, asked())
    before = path.read_bytes()
    with pytest.raises(
        Refused, match=rf"folds\.csv: sample {message} has another id, .* now; delete folds\.csv to make new folds"
    ):
        folds.load_or_deal_folds(path, split, change(index) if change else index, asked(**keys))
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", [29, 31])
def test_saved_folds_of_fewer_or_more_samples(tmp_path, count):
    path = tmp_path / "folds.csv"
    index = index_of(mixed(31), np.arange(31), np.arange(31))
    first = arrays.Index(*(getattr(index, field)[:30] for field in vars(index)))
    folds.load_or_deal_folds(path, split_of(30), first, asked())
    other = arrays.Index(*(getattr(index, field)[:count] for field in vars(index)))
    with pytest.raises(Refused, match=f"30 samples, now {count}; delete"):
        folds.load_or_deal_folds(path, split_of(count), other, asked())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "cannot be read"),
        (b"id,fold\na,1\n", "cannot be read"),
        (b'id,fold,content\n"a, 0",one,00\n', "cannot be read"),
        (b'id,fold,content\n"a, 0"\n', "cannot be read"),
        (b"id,fold,content\na," + b"9" * 30 + b",00\n", "cannot be read"),
        (b"id,fold,content\n\xff,1,00\n", "cannot be read"),
        (b"id,fold,content\n" + b"a" * 200_000 + b",1,00\n", "1 samples, now 30"),
        (b"id,fold,content\n" + 30 * b"a,1,00,1\n", "sample 'a, 0' has another id"),
    ],
)
def test_a_damaged_file_of_folds(tmp_path, text, message):
    (tmp_path / "folds.csv").write_bytes(text)
    with pytest.raises(Refused, match=rf"folds\.csv: {message}.{{,250}}; delete folds\.csv[^\n]*$"):
        folds.load_or_deal_folds(tmp_path / "folds.csv", split_of(), index_of(mixed(30)), asked())


def test_a_fold_that_does_not_exist_is_refused(tmp_path):
    path, index = tmp_path / "folds.csv", index_of(mixed(30))
    made = folds.load_or_deal_folds(path, split_of(), index, asked())
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(f'"a, 3",{made[3]},', '"a, 3",5,'), encoding="utf-8")
    with pytest.raises(Refused, match=r"folds\.csv: sample 'a, 3' has another .*fold \(0 to 4\)"):
        folds.load_or_deal_folds(path, split_of(), index, asked())


def test_the_outliers_of_mars_are_found(tmp_path):
    source = Path(__file__).parents[2] / "shared/data/mars/mars_for_students.npz"
    if not source.exists():
        pytest.skip("mars_for_students.npz is not here")
    (tmp_path / source.name).symlink_to(source)
    mars = config.load_config("mars")
    split = arrays.load_train(mars.competition, tmp_path)
    index = arrays.build_index(split, mars.competition)
    assigned = folds.load_or_deal_folds(tmp_path / "folds.csv", split, index, mars)
    assert (assigned == folds.EXCLUDED).sum() == 110
    assert sorted(np.bincount(assigned[assigned >= 0]).tolist()) == [500, 501, 501, 501, 502]
    rare = np.bincount(assigned[(assigned >= 0) & (index.counts[:, 4] > 0)])
    assert rare.max() - rare.min() <= 1


def test_a_split_that_comes_with_the_arrays_is_taken(tmp_path):
    came = np.array([0, 1] * 14 + [folds.EXCLUDED, 1], np.int16)
    split = split_of(folds=came)
    index = index_of(np.ones((30, 3)))
    for _ in ("made", "read back"):
        assert np.array_equal(folds.load_or_deal_folds(tmp_path / "folds.csv", split, index, asked(2)), came)
    with pytest.raises(Refused, match=r"train_folds: .* in folds 0, 1; 0 to 4 would fit, or another folds.count"):
        folds.load_or_deal_folds(tmp_path / "other.csv", split, index, asked())


def test_a_given_split_that_has_changed_is_seen(tmp_path):
    came = np.array([0, 1] * 15, np.int16)
    folds.load_or_deal_folds(tmp_path / "folds.csv", split_of(folds=came), index_of(np.ones((30, 3))), asked(2))
    with pytest.raises(Refused, match="sample 'a, 0' has another id, image, mask, group, exclusion or fold"):
        folds.load_or_deal_folds(tmp_path / "folds.csv", split_of(folds=1 - came), index_of(np.ones((30, 3))), asked(2))


@pytest.mark.parametrize(
    ("came", "says"),
    [
        ([1, 2, 3, 4, 5] * 6, "in folds 1, 2, 3, 4, 5; 0 to 4 would fit"),
        ([0, 1, 3, 3, 4] * 6, "in folds 0, 1, 3, 4; 0 to 4 would fit"),
        ([0, 1, 2, 3, -1] * 6, "in folds 0, 1, 2, 3; 0 to 4 would fit"),
    ],
)
def test_a_given_split_with_an_empty_fold_is_refused(came, says):
    with pytest.raises(Refused, match=says):
        folds.deal_folds(split_of(folds=np.array(came, np.int16)), index_of(np.ones((30, 3))), asked(5))


def test_a_given_fold_that_is_excluded_whole_is_refused():
    split, own = split_of(folds=np.array([0, 1, 2] * 10, np.int16)), asked(3)
    gone = own.competition.arrays.model_copy(update={"exclude": tuple(split.ids[2::3].tolist())})
    own = own.model_copy(update={"competition": own.competition.model_copy(update={"arrays": gone})})
    with pytest.raises(Refused, match="the samples that are kept are in folds 0, 1; 0 to 2 would fit"):
        folds.deal_folds(split, index_of(np.ones((30, 3))), own)


def test_extra_samples_train_in_every_fold_and_validate_in_none(tmp_path):
    extra = np.arange(30) >= 24
    split, own, index = split_of(extra=extra), asked(3), index_of(np.ones((30, 3)))
    for _ in ("made", "read back"):
        assigned = folds.load_or_deal_folds(tmp_path / "folds.csv", split, index, own)
        assert (assigned[extra] == folds.EXTRA).all() and sorted(np.unique(assigned[~extra])) == [0, 1, 2]
    data = TrainingData(own, split, index, assigned)
    for fold in range(3):
        train, valid = data.rows(fold)
        assert {*range(24, 30)} <= {*train.tolist()} and not {*range(24, 30)} & {*valid.tolist()}
    assert len(data.rows(FULL)[0]) == 30 and not len(data.rows(FULL)[1])
    with pytest.raises(Refused, match="has another id, image, mask, group, exclusion or fold"):
        folds.load_or_deal_folds(tmp_path / "folds.csv", split_of(), index, own)
    index.image_hash[29] = index.image_hash[0]
    with pytest.raises(Refused, match=r"1 extra samples are like samples that validate.*'a, 29'"):
        folds.deal_folds(split, index, own)
