"""Masks of several layers: overlapping classes as bits, objects by number, borders between them."""

import numpy as np
import pytest
from drawn import competition, discs, find, image, prepare, save
from PIL import Image

from comp.data import arrays
from comp.data.folds import load_training_data
from comp.errors import Refused
from comp.prepare import audit, build

CLASSES = {"classes": ["rest", "bowel", "stomach"]}


def download(folder, *masks, name="masks/{}/{}.png", values=255):
    """One image, and a file for each mask, bool (H, W), or (class, mask)."""
    save(folder / "images/a.png", image(0, masks[0][1].shape if isinstance(masks[0], tuple) else masks[0].shape))
    for k, mask in enumerate(masks):
        place, mask = mask if isinstance(mask, tuple) else (str(k), mask)
        save(folder / name.format(place, "a"), mask * np.uint8(values))
    return folder


def rows(first, last, size=(16, 16)):
    mask = np.zeros(size, bool)
    mask[first:last] = True
    return mask


SOURCE = {"images": "images/{id}.png", "masks": "masks/{class}/{id}.png"}
OBJECTS = {"images": "images/{id}.png", "masks": "masks/*/{id}.png", "instances": True}


def test_a_file_for_each_class(tmp_path):
    folder = download(tmp_path / "own", ("bowel", rows(0, 4)), ("2", rows(4, 8)), ("rest", rows(8, 16)))
    (mask,) = prepare(folder, competition(CLASSES, **SOURCE))["train_masks"]
    assert (mask == rows(0, 4) + 2 * rows(4, 8)).all()


def test_names_of_files_are_taken_apart_by_the_classes_that_there_are(tmp_path):
    folder = tmp_path / "own"
    save(folder / "images/a_b.png", image(0))
    save(folder / "masks/a_b_large_bowel.png", rows(0, 4) * np.uint8(255))
    toml = {"classes": ["rest", "bowel", "large_bowel"]}
    own = competition(toml, images="images/{id}.png", masks="masks/{id}_{class}.png")
    assert (prepare(folder, own)["train_masks"] == 2 * rows(0, 4)).all()


def test_overlapping_classes_are_bits(tmp_path):
    folder = download(tmp_path / "own", ("bowel", rows(0, 8)), ("stomach", rows(4, 12)))
    with pytest.raises(Refused, match="64 pixels are stomach here and bowel in another layer; overlap = true"):
        prepare(folder, competition(CLASSES, **SOURCE))
    own = competition(CLASSES | {"overlap": True}, **SOURCE)
    (mask,) = prepare(folder, own)["train_masks"]
    assert (mask == rows(0, 8) + 2 * rows(4, 12)).all() and mask.max() == 3
    train = arrays.load_train(own, tmp_path)
    index = arrays.build_index(train, own)
    assert index.counts.tolist() == [[64, 128, 128]]
    text = audit.write_audit(tmp_path / "audit", own, train, index, None, [])
    assert "ignored" not in text and "bowel" in text


def test_labels_of_one_file_are_bits_too(tmp_path):
    folder = tmp_path / "own"
    save(folder / "images/a.png", image(0))
    save(folder / "masks/a.png", (rows(0, 4) + 2 * rows(4, 8)).astype(np.uint8) + 250 * rows(15, 16).astype(np.uint8))
    given = {"labels": {"0": "rest", "1": "bowel", "2": "stomach", "250": "ignore"}}
    toml = {"classes": ["rest", "stomach", "tree", "bowel"], "overlap": True, "arrays": {"ignore": 255}}
    own = competition(toml, images="images/{id}.png", masks="masks/{id}.png", **given)
    (mask,) = prepare(folder, own)["train_masks"]
    assert (mask == 4 * rows(0, 4) + rows(4, 8) + 255 * rows(15, 16)).all()
    assert arrays.build_index(arrays.load_train(own, tmp_path), own).counts.tolist() == [[112, 64, 0, 64]]


def test_eight_overlapping_classes_and_no_more(tmp_path):
    names = [f"c{k}" for k in range(10)]
    folder = download(tmp_path / "own", *((f"c{k}", rows(0, 2 * k)) for k in range(1, 9)))
    own = competition({"classes": names[:9], "overlap": True}, **SOURCE)
    (mask,) = prepare(folder, own)["train_masks"]
    assert np.unpackbits(mask[:, 0, None], axis=1)[:, ::-1].sum(axis=0).tolist() == [2 * k for k in range(1, 9)]
    for toml, most in (({"classes": names}, 8), ({"classes": names[:9], "arrays": {"ignore": 255}}, 7)):
        with pytest.raises(Refused, match=rf"competition\.overlap: .*; {most} would fit"):
            competition(toml | {"overlap": True}, **SOURCE)


def test_bits_of_no_class_are_refused_and_a_file_of_one_label_a_pixel(tmp_path):
    own = competition(CLASSES | {"overlap": True})
    np.savez(tmp_path / "own.npz", train_images=image(0)[None], train_masks=np.full((1, 16, 16), 4, np.uint8))
    with pytest.raises(Refused, match="has label 4; 0 to 3 would fit"):
        arrays.build_index(arrays.load_train(own, tmp_path), own)
    from comp import config

    whole = config.validate_config({"competition": own.model_dump(mode="json")})
    with pytest.raises(Refused, match="a pixel has one label there, and classes overlap"):
        load_training_data(whole, tmp_path, tmp_path)


def test_objects_are_numbered_and_the_first_keeps_what_two_share(tmp_path):
    folder = download(tmp_path / "own", rows(0, 6), rows(5, 9), rows(12, 14))
    out = prepare(folder, competition(**OBJECTS))
    assert out["train_instances"][0, :, 0].tolist() == [1] * 6 + [2] * 3 + [0] * 3 + [3] * 2 + [0] * 2
    assert out["train_instances"].dtype == np.uint16 and (out["train_masks"] == (out["train_instances"] > 0)).all()
    assert [found[:3] for found in build.stored_findings(tmp_path / "own.npz")] == [
        ("a", "objects overlap", "16 pixels are of two objects; the first has them")
    ]
    joined = prepare(folder, competition(**OBJECTS | {"instances": False}), "joined.npz")
    assert "train_instances" not in joined and (joined["train_masks"] == out["train_masks"]).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_values_of_one_file_number_its_objects(tmp_path, dtype):
    folder = tmp_path / "own"
    for k, step in (("a", 1), ("b", 83)):
        save(folder / f"images/{k}.png", image(ord(k)))
        numbers = np.zeros((16, 16), dtype)
        numbers[:4], numbers[4:7, 3:] = step * 3, step
        save(folder / f"masks/{k}.tif", numbers)
    own = competition(images="images/{id}.png", masks="masks/{id}.tif", instances=True)
    out = prepare(folder, own)
    expected = np.zeros((16, 16), int)
    expected[:4], expected[4:7, 3:] = 2, 1
    assert (out["train_instances"] == expected).all() and (out["train_masks"] == (expected > 0)).all()


def test_a_border_is_where_two_objects_meet(tmp_path):
    folder = download(tmp_path / "own", rows(0, 4), rows(4, 8), rows(9, 11), rows(13, 16))
    toml = {"classes": ["rest", "cell", "border"]}
    (mask,) = prepare(folder, competition(toml, border=3, **OBJECTS))["train_masks"]
    # The lines on both sides where two touch; the line between where one lies between; nothing where two do.
    assert mask[:, 0].tolist() == [1, 1, 1, 2, 2, 1, 1, 1, 2, 1, 1, 0, 0, 1, 1, 1]
    (wide,) = prepare(folder, competition(toml, border=5, **OBJECTS), "wide.npz")["train_masks"]
    assert wide[:, 0].tolist() == [1, 1, 2, 2, 2, 2, 1, 2, 2, 2, 1, 2, 2, 1, 1, 1]
    (none,) = prepare(folder, competition(**OBJECTS), "none.npz")["train_masks"]
    assert none.max() == 1


def test_more_objects_than_can_be_numbered_are_refused(tmp_path):
    folder = tmp_path / "own"
    save(folder / "images/a.png", image(0, (300, 300)))
    save(folder / "masks/a.tif", np.arange(90_000, dtype=np.float32).reshape(300, 300) % 65_536)
    with pytest.raises(Refused, match="a: more than 65534 objects"):
        prepare(folder, competition(images="images/{id}.png", masks="masks/{id}.tif", instances=True))


def test_a_layer_of_another_size_or_of_many_values_is_refused(tmp_path):
    folder = download(tmp_path / "own", rows(0, 4), rows(4, 8))
    save(folder / "masks/0/a.png", rows(0, 4, (8, 16)) * np.uint8(255))
    with pytest.raises(Refused, match=r"masks/0/a\.png: is 8×16, .*16×16"):
        prepare(folder, competition(**OBJECTS))
    save(folder / "masks/0/a.png", image(1, channels=0))
    with pytest.raises(Refused, match=r"the masks hold \d+ values for 2 classes"):
        prepare(folder, competition(**OBJECTS))


def test_a_file_of_a_class_is_binary(tmp_path):
    folder = download(tmp_path / "own", ("bowel", rows(0, 4)), ("stomach", rows(4, 8)), values=7)
    with pytest.raises(Refused, match="the masks hold 2 values for 2 classes"):
        prepare(folder, competition(CLASSES, **SOURCE))


def test_masks_of_a_test_set_are_read_alike(tmp_path):
    folder = download(tmp_path / "own", ("bowel", rows(0, 8)), ("stomach", rows(4, 12)))
    for place in ("images", "masks/bowel"):
        save(folder / f"test/{place}/t.png", rows(2, 3) * np.uint8(255))
    test = {"test": "test/images/{id}.png", "test_masks": "test/masks/{class}/{id}.png"}
    out = prepare(folder, competition(CLASSES | {"overlap": True}, **SOURCE | test))
    assert (out["test_masks"] == rows(2, 3)).all()
    assert find(folder, toml=CLASSES, **SOURCE | test).test[0].mask_files[0][1] == 1


def test_another_palette_means_other_things_and_is_refused(tmp_path):
    folder = tmp_path / "own"
    for k in range(70):  # the odd one is not among those that are looked at first
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        save(folder / f"images/{k:02}.png", image(k))
        mask = Image.fromarray(discs(k)[0].astype(np.uint8), "P")
        mask.putpalette([255, 0, 0, 0, 0, 0] if k == 69 else [0, 0, 0, 255, 0, 0])
        mask.save(folder / f"masks/{k:02}.png")
    with pytest.raises(Refused, match=r"69\.png: has another palette than other masks"):
        prepare(folder, competition(images="images/{id}.png", masks="masks/{id}.png"))


def test_labels_that_nothing_would_read_are_refused(tmp_path):
    save(tmp_path / "own/images/a.png", image(0))
    save(tmp_path / "own/masks/thing/a.png", discs(0)[0] * np.uint8(255))
    own = competition(images="images/{id}.png", masks="masks/{class}/{id}.png", labels={"0": "thing", "255": "rest"})
    with pytest.raises(Refused, match=r"source\.labels: no file's values say its classes"):
        prepare(tmp_path / "own", own)
