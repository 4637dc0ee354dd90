"""Arrays come out as checked uint8, mapped or converted once, and every bad one is named."""

import os
import random
import tempfile
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comp import config, files
from comp.config import Arrays, Competition
from comp.data import arrays, npz
from comp.errors import Refused

CLASSES = ("ground", "rock", "sky")


@pytest.fixture(autouse=True)
def nowhere_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "kaggle")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "input"
    path.mkdir()
    return path


def competition(**keys) -> Competition:
    return Competition(name="own", classes=CLASSES, arrays=Arrays(**keys))


def samples(count=7, height=10, width=12, channels=(), seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, height, width, *channels), np.uint8)
    return images, generator.integers(0, len(CLASSES), (count, height, width), np.uint8)


def save(folder, compressed=False, **members):
    (np.savez_compressed if compressed else np.savez)(folder / "own.npz", **members)


def is_mapped(array) -> bool:
    while array is not None:
        if isinstance(array, np.memmap) or type(array).__name__ == "mmap":
            return True
        array = getattr(array, "base", None)
    return False


# Images and masks, as they are stored


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,), (7,)])
def test_stored_uint8_is_mapped_and_nothing_is_written(folder, channels):
    images, masks = samples(channels=channels)
    save(folder, train_images=images, train_masks=masks)
    split = arrays.load_train(competition(), folder)
    np.testing.assert_array_equal(split.images, images.reshape(*images.shape[:3], -1))
    np.testing.assert_array_equal(split.masks, masks)
    assert is_mapped(split.images) and is_mapped(split.masks)
    assert not split.images.flags.writeable and not split.masks.flags.writeable
    assert os.listdir(folder) == ["own.npz"]
    assert split.ids.tolist() == [str(k) for k in range(7)] and split.groups is None and split.sizes is None


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["<f8", ">f8", "<f4", "<f2", "<i8", ">i2", "uint16", "uint8"])
def test_any_number_type_becomes_uint8(folder, monkeypatch, compressed, dtype):
    monkeypatch.setattr(npz, "BLOCK", 1000)
    images, masks = samples(channels=(3,))
    save(folder, compressed, train_images=images.astype(dtype), train_masks=masks.astype(dtype))
    split = arrays.load_train(competition(), folder)
    for array, expected in ((split.images, images), (split.masks, masks)):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == np.uint8 and is_mapped(array) and not array.flags.writeable


@pytest.mark.parametrize("compressed", [False, True])
def test_channels_first_are_refused(folder, compressed):
    images, masks = samples(channels=(3,))
    first = np.moveaxis(images, -1, 1).copy()
    save(folder, compressed, train_images=first, train_masks=masks, test_images=first)
    with pytest.raises(Refused, match=r"do not fit images of shape \(7, 3, "):
        arrays.load_train(competition(), folder)
    save(folder, compressed, train_images=images, train_masks=masks, test_images=first)
    with pytest.raises(Refused, match="channels; the training images have 3"):
        arrays.has_test(competition(), folder, arrays.load_train(competition(), folder))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_slices_of_a_stacked_array(folder, compressed, dtype):
    images, masks = samples()
    save(folder, compressed, training_set=np.stack([images, masks], axis=1).astype(dtype), test_set=images)
    own = competition(train_images="training_set[:, 0]", train_masks="training_set[:,1]", test_images="test_set")
    split = arrays.load_train(own, folder)
    np.testing.assert_array_equal(split.images[..., 0], images)
    np.testing.assert_array_equal(split.masks, masks)
    np.testing.assert_array_equal(arrays.load_test(own, folder).images[..., 0], images)


def test_boolean_masks_and_masks_with_one_channel(folder):
    images, masks = samples()
    save(folder, train_images=images, train_masks=(masks > 0)[..., None])
    np.testing.assert_array_equal(arrays.load_train(competition(), folder).masks, masks > 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("ignore", [None, 7, 1])
def test_masks_of_other_values_than_class_numbers(folder, dtype, ignore):
    masks = np.array([0, 255, 60], dtype)[good_masks]
    expected = good_masks.copy()
    if ignore is not None:
        masks[3, 1], expected[3, 1] = ignore, 255  # which is no class, whatever the masks' value was
    save(folder, train_images=good_images, train_masks=masks)
    own = competition(labels=(0, 255, 60), ignore=ignore)
    split = arrays.load_train(own, folder)
    assert np.array_equal(split.masks, expected) and split.masks.dtype == np.uint8 and is_mapped(split.masks)
    arrays.build_index(split, own)
    masks[4, 2, 3] = 2  # a class's number, but no value of the masks
    save(folder, train_images=good_images, train_masks=masks)
    says = r"train_masks: sample '4' has 2(\.0)?; competition.arrays.labels and ignore say 0, 255, 60"
    with pytest.raises(Refused, match=says):
        arrays.load_train(own, folder)


def test_scale_is_multiplied_and_rounded(folder):
    images, masks = samples()
    save(folder, train_images=(images / 255).astype(np.float32), train_masks=masks.astype(np.int32))
    split = arrays.load_train(competition(scale=255.0), folder)
    np.testing.assert_array_equal(split.images[..., 0], images)
    np.testing.assert_array_equal(split.masks, masks)


def test_conversion_holds_no_float_copy(folder, monkeypatch):
    monkeypatch.setattr(npz, "BLOCK", 1 << 20)
    save(folder, True, train_images=np.zeros((80, 256, 256)), train_masks=np.zeros((80, 256, 256), np.uint8))
    tracemalloc.start()
    split = arrays.load_train(competition(), folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert split.images.shape == (80, 256, 256, 1)
    assert peak < 12 << 20  # as float64 it is 42 MB


def test_a_file_larger_than_memory_opens_with_next_to_nothing_read(folder):
    count, shape = 300_000, (64, 256)  # 4.9 GB each, almost all of it a hole in the file
    with zipfile.ZipFile(folder / "own.npz", "w") as archive:
        for key, fill in (("train_images", 7), ("train_masks", 1)):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
                np.lib.format.write_array_header_1_0(member, header)
                hole = count * shape[0] * shape[1] - 1
                archive.fp.seek(hole, os.SEEK_CUR)
                member._file_size += hole
                member.write(bytes([fill]))
    if os.stat(folder / "own.npz").st_blocks * 512 > 1 << 30:
        pytest.skip("this file system has no sparse files")
    tracemalloc.start()
    split = arrays.load_train(competition(), folder)
    batch = split.images[[0, count // 2, count - 1]], split.masks[[0, count // 2, count - 1]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [int(array.sum()) for array in batch] == [7, 1]
    assert peak < 100 << 20  # most of it are the ids
    assert os.listdir(folder) == ["own.npz"]


# Ids, groups, sizes


def test_ids_groups_and_sizes(folder):
    images, masks = samples(count=3)
    sizes = np.array([[5, 6], [7, 8], [9, 10]])
    save(
        folder,
        train_images=images,
        train_masks=masks,
        train_ids=np.array([b"a", b"b", b"c"]),
        train_groups=np.array([2, 2, 10]),
        test_images=images,
        test_ids=np.array(["ä", "b", "c"], dtype=">U4"),
        test_sizes=sizes,
    )
    train, test = arrays.load_train(competition(), folder), arrays.load_test(competition(), folder)
    assert train.ids.tolist() == ["a", "b", "c"] and train.groups.tolist() == ["2", "2", "10"]
    assert test.ids.tolist() == ["ä", "b", "c"] and test.masks is None
    assert test.sizes.tolist() == sizes.tolist() and test.sizes.dtype == np.int32


def test_test_masks_are_there_where_the_file_has_them(folder):
    images, masks = samples()
    save(folder, test_images=images, test_masks=masks)
    np.testing.assert_array_equal(arrays.load_test(competition(), folder).masks, masks)


# What is refused

good_images, good_masks = samples()


def with_value(array, value, dtype=np.float64):
    changed = array.astype(dtype)
    changed[3].flat[5] = value
    return changed


REFUSED = {
    "no images": ({}, {"train_images": "images"}, "no array 'images'; there are train_images, train_masks"),
    "nan": ({"train_images": with_value(good_images, np.nan)}, {}, "train_images: sample '3' has nan"),
    "infinite": ({"train_images": with_value(good_images, -np.inf)}, {}, "train_images: sample '3' has -inf"),
    "too large": ({"train_images": with_value(good_images, 256, np.int64)}, {}, "sample '3' has 256; images are 0"),
    "negative": ({"train_images": with_value(good_images, -1, np.int8)}, {}, "train_images: sample '"),
    "half label": ({"train_masks": with_value(good_masks, 0.5)}, {}, "sample '3' has 0.5; labels are whole"),
    "nan label": ({"train_masks": with_value(good_masks, np.nan)}, {}, "train_masks: sample '3' has nan"),
    "label 300": ({"train_masks": with_value(good_masks, 300, np.uint16)}, {}, "sample '3' has 300; labels"),
    "0 to 1": ({"train_images": good_images / 255}, {}, r"set competition\.arrays\.scale = 255"),
    "dark 0 to 1": ({"train_images": good_images / 1000}, {}, r"set competition\.arrays\.scale = 255"),
    "scaled out": ({"train_images": good_images}, {"scale": 2.0}, "images are 0 to 255 once multiplied"),
    "complex": ({"train_images": good_images + 1j}, {}, "complex128 cannot be images"),
    "text": ({"train_masks": good_masks.astype(str)}, {}, "cannot be masks; uint8 would fit"),
    "objects": ({"train_images": good_images.astype(object)}, {}, "train_images: an array of object"),
    "no sample": ({"train_images": good_images[:0]}, {}, "holds no sample"),
    "flat": ({"train_images": good_images[0]}, {}, r"images of shape \(10, 12\); \(N, H, W\) or "),
    "5 axes": ({"train_images": good_images[..., None, None]}, {}, "images of shape"),
    "mask channels": ({"train_masks": np.stack([good_masks] * 3, 3)}, {}, r"masks of shape .* \(N, H, W\) would"),
    "fewer masks": ({"train_masks": good_masks[1:]}, {}, r"\(6, 10, 12\) do not fit images of shape \(7, 10, 12, 1\)"),
    "other sizes": ({"train_masks": good_masks[:, 1:]}, {}, "do not fit images of shape"),
    "slice": ({}, {"train_masks": "train_masks[:, 10]"}, r"shape \(7, 10, 12\) has no such slice"),
    "selector": ({}, {"train_masks": "train_masks[0]"}, r"a selector is key or key\[:, 0\]"),
    "named ids": ({}, {"train_ids": "names"}, "no array 'names'; there are"),
    "few ids": ({"train_ids": np.arange(6)}, {}, r"int64 of shape \(6,\); text or integers of shape \(7,\)"),
    "float ids": ({"train_ids": np.arange(7.0)}, {}, "float64 of shape"),
    "same ids": ({"train_ids": np.array([*"abcadef"])}, {}, "the id 'a' is empty or not unique"),
    "empty id": ({"train_ids": np.array([*"abcdef", ""])}, {}, "the id '' is empty or not unique"),
    "control id": ({"train_ids": np.array([*"abcdef", "g\nh"])}, {}, r"sample 6 has 'g\\nh'"),
    "bad bytes": ({"train_ids": np.array([b"%d\xff" % k for k in range(7)])}, {}, r"sample 0 has '0\\udcff'"),
    "surrogate": ({"train_ids": (np.arange(7) + 0xD800).astype(np.uint32).view("<U1")}, {}, r"sample 0 has '\\ud800'"),
    "groups": ({"train_groups": np.zeros((7, 2), int)}, {}, "train_groups: int64 of shape"),
}  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("members", "keys", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line_that_names_it(folder, compressed, members, keys, message):
    members = {"train_images": good_images, "train_masks": good_masks} | members
    save(folder, compressed, **members)
    with pytest.raises(Refused, match=message) as refused:
        arrays.load_train(competition(**keys), folder)
    assert "own.npz" in str(refused.value) and "\n" not in str(refused.value)
    left = folder / ".cache"
    assert not left.exists() or not [file for file in left.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("sizes", [np.ones((7, 3), int), np.ones((7, 2))])
def test_sizes_that_no_picture_has(folder, sizes):
    save(folder, test_images=good_images, test_sizes=sizes)
    with pytest.raises(Refused, match=r"own\.npz: test_sizes: "):
        arrays.load_test(competition(), folder)


def test_a_truncated_file(folder):
    save(folder, train_images=good_images, train_masks=good_masks)
    data = (folder / "own.npz").read_bytes()
    (folder / "own.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(Refused, match="cannot be read as an npz"):
        arrays.load_train(competition(), folder)


def test_a_disk_that_fills_up_leaves_nothing(folder, monkeypatch):
    save(folder, True, train_images=good_images, train_masks=good_masks)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("comp.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        arrays.load_train(competition(), folder)
    assert os.listdir(folder / ".cache") == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), compressed=st.booleans(), floats=st.booleans())
def test_a_damaged_file_loads_or_is_refused(folder, seed, compressed, floats):
    images, masks = samples(count=3, height=4, width=5)
    save(
        folder,
        compressed,
        train_images=images.astype(float) if floats else images,
        train_masks=masks,
        train_ids=[*"abc"],
    )
    data, chance = bytearray((folder / "own.npz").read_bytes()), random.Random(seed)
    for _ in range(chance.randint(1, 4)):
        match chance.randrange(4):
            case 0:
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 1:
                data[chance.randrange(len(data))] = chance.choice(b"\x00\xff0123456789'(,)|uOUVfi<>")
            case 2:
                start = chance.randrange(len(data))
                del data[start : start + chance.choice([1, 2, 8, 100])]
            case 3:
                start = chance.randrange(len(data))
                data[start:start] = chance.randbytes(chance.choice([1, 4, 30]))
    (folder / "own.npz").write_bytes(data)
    try:
        split = arrays.load_train(competition(), folder)
        index = arrays.build_index(split, competition())
    except Refused as refused:
        assert "\n" not in str(refused)
    else:
        assert split.images.dtype == np.uint8 and len(split.images) == len(split.ids) == len(index.counts)


# The cache


def cached(folder):
    return sorted(file.name for file in (folder / ".cache").iterdir())


def test_the_cache_is_used_until_the_file_changes(folder, monkeypatch):
    save(folder, True, train_images=good_images, train_masks=good_masks)
    arrays.build_index(arrays.load_train(competition(), folder), competition())
    before = cached(folder)
    assert len(before) == 3
    with monkeypatch.context() as patch:
        patch.setattr(npz, "iterate_blocks", None)  # a second conversion would fail
        arrays.load_train(competition(), folder)

    save(folder, True, train_images=255 - good_images, train_masks=good_masks)
    status = os.stat(folder / "own.npz")
    os.utime(folder / "own.npz", ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    split = arrays.load_train(competition(), folder)
    np.testing.assert_array_equal(split.images[..., 0], 255 - good_images)
    assert len(cached(folder)) == 2 and not set(cached(folder)) & set(before)


def test_scale_and_slice_have_their_own_cache(folder):
    both = np.stack([good_images // 2, good_masks], axis=1).astype(float)
    save(folder, True, both=both)
    plain = competition(train_images="both[:, 0]", train_masks="both[:, 1]")
    doubled = competition(train_images="both[:, 0]", train_masks="both[:, 1]", scale=2.0)
    a, b = arrays.load_train(plain, folder).images, arrays.load_train(doubled, folder).images
    np.testing.assert_array_equal(a * 2, b)
    assert len(cached(folder)) == 3  # the masks are shared


def test_a_cache_cut_short_is_made_again(folder):
    save(folder, True, train_images=good_images, train_masks=good_masks)
    arrays.load_train(competition(), folder)
    for file in (folder / ".cache").iterdir():
        os.truncate(file, 200)
    np.testing.assert_array_equal(arrays.load_train(competition(), folder).masks, good_masks)


def test_what_a_killed_conversion_left_is_removed(folder):
    save(folder, True, train_images=good_images, train_masks=good_masks)
    (folder / ".cache").mkdir()
    dead, alive = (folder / ".cache" / f".{process}.own.npz.1-2.3.npz" for process in (1234, 1235))
    dead.touch()
    alive.touch()
    os.utime(dead, (0, time.time() - 2 * npz.ABANDONED))
    arrays.load_train(competition(), folder)
    assert not dead.exists() and alive.exists()


def test_a_folder_that_cannot_be_written_has_its_cache_elsewhere(folder, tmp_path):
    save(folder, True, train_images=good_images, train_masks=good_masks)
    (folder / ".cache").write_text("in the way, also for root")
    np.testing.assert_array_equal(arrays.load_train(competition(), folder).masks, good_masks)
    assert len(list((tmp_path / "temporary").rglob("own.npz.*.npz"))) == 2


def test_two_folders_do_not_share_a_cache(tmp_path, folder):
    (tmp_path / "other" / "input").mkdir(parents=True)
    places = {npz.cache_folder(path / "missing") for path in (folder, tmp_path / "other" / "input")}
    assert len(places) == 2 and not (folder / "missing").exists()


# Where the file lies


@pytest.mark.parametrize("layout", ["own-arrays", "competitions/own", "datasets/me/own/deep"])
def test_found_below_kaggle_input(tmp_path, folder, layout):
    place = tmp_path / "kaggle" / layout
    place.mkdir(parents=True)
    save(place, train_images=good_images, train_masks=good_masks)
    assert arrays.find_npz("own.npz", folder) == place / "own.npz"
    assert arrays.find_npz("data/own.npz", folder) == place / "own.npz"


def test_the_input_folder_comes_first(tmp_path, folder):
    (tmp_path / "kaggle").mkdir()
    for place in (folder, tmp_path / "kaggle"):
        (place / "own.npz").touch()
    assert arrays.find_npz("own.npz", folder) == folder / "own.npz"


def test_not_found_says_where_it_looked(folder):
    with pytest.raises(Refused, match=rf"{folder}/own\.npz: no such file, .* below .*kaggle"):
        arrays.find_npz("own.npz", folder)


# The index


@pytest.mark.parametrize("ignore", [None, 255, 1])
@pytest.mark.parametrize("size", [(10, 12), (3, 7), (64, 64)])
def test_counts_are_those_of_bincount(folder, ignore, size):
    images, masks = samples(20, *size)
    masks[4] = 2
    if ignore is not None:
        masks[5, 0], masks[6] = ignore, ignore
        masks[7] = 0
        masks[7, :2] = ignore  # an empty mask under a letterbox's padding
    split = arrays.Split(images[..., None], masks, np.arange(20).astype(str), None, None)
    index = arrays.build_index(split, competition(ignore=ignore))
    expected = np.stack([np.bincount(mask.ravel(), minlength=256)[:3] for mask in masks])
    if ignore == 1:
        expected[:, 1] = 0
    np.testing.assert_array_equal(index.counts, expected)
    assert index.counts.dtype == np.int64
    assert np.flatnonzero(index.constant).tolist() == ([4] if ignore is None else [4, 6, 7])


def test_counts_do_not_overflow(folder):
    masks = np.zeros((1, 300, 700), np.uint8)
    split = arrays.Split(masks[..., None], masks, np.array(["0"]), None, None)
    assert arrays.build_index(split, competition()).counts.tolist() == [[210_000, 0, 0]]


def test_hashes_are_of_content_alone(folder):
    images, masks = samples(channels=(3,))
    images[5], masks[2] = images[1], masks[3]
    ids = np.arange(7).astype(str)
    index = arrays.build_index(arrays.Split(images, masks, ids, None, None), competition())
    assert index.image_hash[5] == index.image_hash[1] and len(set(index.image_hash.tolist())) == 6
    assert index.mask_hash[2] == index.mask_hash[3] and len(set(index.mask_hash.tolist())) == 6
    views = np.moveaxis(np.moveaxis(images, -1, 1).copy(), 1, -1)
    again = arrays.build_index(arrays.Split(views, None, ids, None, None), competition())
    np.testing.assert_array_equal(again.image_hash, index.image_hash)
    assert again.counts.sum() == 0 and again.constant.all()
    # As on every other machine: blake2b of the bytes.
    assert index.image_hash.dtype == np.uint64
    some = arrays.Split(np.arange(8, dtype=np.uint8).reshape(1, 2, 4, 1), None, ids[:1], None, None)
    assert arrays.build_index(some, competition()).image_hash.tolist() == [0x757E83821C951DDF]
    # Blank images are no copies of one another.
    zeros = arrays.Split(np.zeros((3, 2, 4, 1), np.uint8), None, ids[:3], None, None)
    assert len({*arrays.build_index(zeros, competition()).image_hash.tolist()}) == 3


@pytest.mark.parametrize("ignore", [None, 255])
def test_a_label_that_is_no_class_is_refused(folder, ignore):
    masks = good_masks.copy()
    masks[4, 2, 3] = masks[6] = 9
    save(folder, train_images=good_images, train_masks=masks, train_ids=np.array([*"abcdefg"]))
    own = competition(ignore=ignore)
    with pytest.raises(Refused, match=r"own\.npz: sample 'e' has label 9; 0 to 2 would fit"):
        arrays.build_index(arrays.load_train(own, folder), own)


def test_the_index_is_kept_and_made_again_for_other_questions(folder, monkeypatch):
    save(folder, train_images=good_images, train_masks=good_masks, test_images=good_images[::-1], test_masks=good_masks)
    own = competition()
    split = arrays.load_train(own, folder)
    first = arrays.build_index(split, own)
    with monkeypatch.context() as patch:
        patch.setattr(arrays, "_scan", None)
        again = arrays.build_index(arrays.load_train(own, folder), own)
    for field in vars(first):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    test = arrays.build_index(arrays.load_test(own, folder), own)
    np.testing.assert_array_equal(test.image_hash, first.image_hash[::-1])
    assert arrays.build_index(split, competition(ignore=2)).counts[:, 2].sum() == 0
    some = replace(split, images=split.images[:3], masks=split.masks[:3], ids=split.ids[:3])
    assert len(arrays.build_index(some, own).counts) == 3
    (damaged,) = [file for file in (folder / ".cache").iterdir() if file.name.startswith(split.cache.name)][:1]
    damaged.write_bytes(b"not an npz")
    np.testing.assert_array_equal(arrays.build_index(split, own).counts, first.counts)


def test_the_index_survives_a_full_disk(folder, monkeypatch):
    save(folder, train_images=good_images, train_masks=good_masks)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    split = arrays.load_train(competition(), folder)
    assert arrays.build_index(split, competition()).counts.sum() == good_masks.size


def test_released_pages_can_be_read_again(folder):
    save(folder, train_images=good_images, train_masks=good_masks)
    split = arrays.load_train(competition(), folder)
    before = split.images.sum()
    arrays.release_pages(split.images)
    arrays.release_pages(np.zeros(3))
    arrays.release_pages(None)
    assert split.images.sum() == before


def test_mars_as_it_is(tmp_path):
    source = Path(__file__).parents[2] / "shared/data/mars/mars_for_students.npz"
    if not source.exists():
        pytest.skip("mars_for_students.npz is not here")
    (tmp_path / source.name).symlink_to(source)
    mars = config.load_config("mars").competition
    train, test = arrays.load_train(mars, tmp_path), arrays.load_test(mars, tmp_path)
    assert train.images.shape == (2615, 64, 128, 1) and train.masks.shape == (2615, 64, 128)
    assert test.images.shape == (10022, 64, 128, 1) and test.masks is None
    assert arrays.build_index(train, mars).counts.sum() == train.masks.size


def test_test_images_of_other_channels_are_refused_before_training(folder):
    images, masks = samples(channels=(3,))
    save(folder, train_images=images, train_masks=masks)
    train = arrays.load_train(competition(), folder)
    assert not arrays.has_test(competition(), folder, train)
    save(folder, train_images=images, train_masks=masks, test_images=images[:, :5])
    assert arrays.has_test(competition(), folder, train)
    save(folder, train_images=images, train_masks=masks, test_images=images[..., 0])
    with pytest.raises(Refused, match=r"test_images.*1 channels; the training images have 3"):
        arrays.has_test(competition(), folder, train)
