"""Paths with fields find images, pair them with masks, and give ids, groups and folds."""

import unicodedata

import numpy as np
import pytest
from drawn import competition, discs, find, image, prepare, save

from comp.errors import Refused
from comp.prepare import build
from comp.prepare.samples import compile_pattern, fill


@pytest.mark.parametrize(
    ("pattern", "path", "fields"),
    [
        ("train/{id}_sat.jpg", "train/a_b_sat.jpg", {"id": "a_b"}),
        ("{case}/{case}_{day}/s_{n}_*.png", "c1/c1_d2/s_3_266_1.5.png", {"case": "c1", "day": "d2", "n": "3"}),
        ("{case}/{case}_{day}/s_{n}_*.png", "c1/c2_d2/s_3_266_1.5.png", None),
        ("{id}/masks/*.png", "a/masks/b.png", {"id": "a"}),
        ("{id}/masks/*.png", "a/masks/b/c.png", None),
        ("**/{id}.png", "a/b/c.png", {"id": "c"}),
        ("**/{id}.png", "c.png", {"id": "c"}),
        ("./a[1]/{id}.png", "a[1]/x.png", {"id": "x"}),
    ],
)
def test_what_a_pattern_matches(pattern, path, fields):
    found = compile_pattern("source.images", pattern).fullmatch(path)
    assert (found and found.groupdict()) == fields


@pytest.mark.parametrize("pattern", ["{id", "id}", "{}/a.png", "{a b}.png", "{id}}/a.png"])
def test_malformed_patterns_are_refused(pattern):
    with pytest.raises(Refused, match=r"^source\.images"):
        compile_pattern("source.images", pattern)


def test_a_format_names_the_fields_that_there_are():
    assert fill("source.id", "{case}_{n}.png", {"case": "a", "n": "1"}) == "a_1.png"
    with pytest.raises(Refused, match=r"source\.id = '\{id\}': no field \{id\}; there are case, n"):
        fill("source.id", "{id}", {"case": "a", "n": "1"})


def test_suffixes_of_names_pair(tmp_path):
    for k in "ab":
        save(tmp_path / f"train/{k}_sat.jpg", image(0))
        save(tmp_path / f"train/{k}_mask.png", discs(0)[0] * np.uint8(255))
    save(tmp_path / "valid/c_sat.jpg", image(0))
    found = find(tmp_path, images="train/{id}_sat.jpg", masks="train/{id}_mask.png", test="valid/{id}_sat.jpg")
    assert [one.id for one in found.train] == ["a", "b"] and [one.id for one in found.test] == ["c"]
    assert found.train[1].mask_files == [(tmp_path / "train/b_mask.png", None)] and found.test[0].mask is None


def test_folders_give_ids_groups_and_folds(tmp_path):
    source = tmp_path / "own"
    for k, (split, case) in enumerate((("train", "c1"), ("train", "c2"), ("val", "c3"))):
        for n in "12":
            save(source / f"{split}/{case}/{case}_d{k}/scans/slice_{n}_266_1.50.png", image(9 * k + int(n)))
            save(source / f"labels/{case}-{n}.png", discs(k)[0] * np.uint8(1))
    patterns = {"images": "{split}/{case}/{case}_{day}/scans/slice_{n}_*.png", "masks": "labels/{case}-{n}.png"}
    made = {"id": "{case}_{day}_{n}", "group": "{case}", "fold": "{split}"}
    out = prepare(source, competition(**patterns, **made))
    assert out["train_ids"].tolist() == ["c1_d0_1", "c1_d0_2", "c2_d1_1", "c2_d1_2", "c3_d2_1", "c3_d2_2"]
    assert out["train_groups"].tolist() == ["c1", "c1", "c2", "c2", "c3", "c3"]
    assert out["train_folds"].tolist() == [1, 1, 1, 1, 0, 0]
    assert (out["train_masks"][4] == discs(2)[0]).all()
    with pytest.raises(Refused, match=r"source\.fold: the sample 'c1_d0_1' is in 'c1'; 0 to 999 or val"):
        find(source, **patterns, **made | {"fold": "{case}"})


def test_bands_become_channels_in_their_order(tmp_path):
    source = tmp_path / "own"
    for k in "ab":
        for n, band in enumerate(("B02", "B03", "B08")):
            save(source / f"train/{k}/{band}.tif", np.full((16, 16), 10 * n + ord(k) - 97, np.uint8))
        save(source / f"labels/{k}.tif", discs(0)[0] * np.uint8(1))
    patterns = {"images": "train/{id}/{band}.tif", "masks": "labels/{id}.tif"}
    out = prepare(source, competition(bands=["B08", "B02"], **patterns))
    assert out["train_images"][:, 0, 0].tolist() == [[20, 0], [21, 1]]
    with pytest.raises(Refused, match=r'source\.bands = \["B02", "B03", "B08"\]'):
        find(source, **patterns)
    with pytest.raises(Refused, match=r"train/a/B02\.tif: the sample 'a' has no file of the band 'B08'"):
        find(source, bands=["B08", "B02"], test="train/{id}/B02.tif", **patterns)
    (source / "train/b/B08.tif").unlink()
    with pytest.raises(Refused, match="the sample 'b' has no file of the band 'B08'"):
        find(source, bands=["B08", "B02"], **patterns)
    save(source / "train/b/B08.tif", image(0, (8, 8), 0))
    with pytest.raises(Refused, match=r"B02\.tif: is 16×16, .*8×8"):
        prepare(source, competition(bands=["B08", "B02"], **patterns), "other.npz")


def test_slices_come_in_the_order_of_their_numbers_also_in_the_test_set(tmp_path):
    source = tmp_path / "own"
    for n in (1, 2, 9, 10, 11):
        save(source / f"train/k/{n}.png", image(n))
        save(source / f"test/k/{n}.png", image(n))
        save(source / f"labels/k-{n}.png", discs(n)[0] * np.uint8(1))
    patterns = {"images": "train/{case}/{n}.png", "masks": "labels/{case}-{n}.png", "test": "test/{case}/{n}.png"}
    out = prepare(source, competition(id="{case}_{n}", group="{case}", **patterns))
    for part in ("train", "test"):
        assert out[f"{part}_ids"].tolist() == ["k_1", "k_2", "k_9", "k_10", "k_11"]
        assert out[f"{part}_groups"].tolist() == ["k"] * 5


def test_a_csv_tells_groups_and_which_samples_count(tmp_path):
    for k in "abc":
        save(tmp_path / f"images/{k}.png", image(0))
        save(tmp_path / f"masks/{k}.png", discs(0)[0] * np.uint8(1))
    patterns = {"images": "images/{id}.png", "masks": "masks/{id}.png"}
    listed = {"list": {"file": "meta.csv", "id": "chip"}, "group": "{place}", "fold": "{fold}"}
    (tmp_path / "meta.csv").write_text("\ufeffchip,place,fold\na,x,0\nc,y,2\nelsewhere,z,1\n", encoding="utf-8")
    found = find(tmp_path, **patterns, **listed)
    assert [(one.id, one.group, one.fold) for one in found.train] == [("a", "x", 0), ("c", "y", 2)]
    assert [(odd.id, odd.finding) for odd in found.odd] == [("b", "not in the list")]
    (tmp_path / "meta.csv").write_text("chip,place,fold\na,x,0\na,y,1\n")
    with pytest.raises(Refused, match=r"meta\.csv: row 3: the id 'a' is there twice"):
        find(tmp_path, **patterns, **listed)
    with pytest.raises(Refused, match=r"meta\.csv: no column 'id'; there are chip, place, fold"):
        find(tmp_path, **patterns, **listed | {"list": {"file": "meta.csv"}})
    with pytest.raises(Refused, match=r"nowhere\.csv: cannot be read as a CSV: .*No such file"):
        find(tmp_path, **patterns, **listed | {"list": {"file": "nowhere.csv"}})


def test_names_are_compared_as_people_see_them(tmp_path):
    apart = unicodedata.normalize("NFD", "Zürich")
    save(tmp_path / f"images/{apart}.png", image(0))
    save(tmp_path / "masks/Zürich.png", discs(0)[0] * np.uint8(1))
    (tmp_path / "meta.csv").write_text("id,place\nZürich,CH\n")
    patterns = {"images": "images/{id}.png", "masks": "masks/{id}.png", "list": {"file": "meta.csv"}}
    (one,) = find(tmp_path, **patterns, group="{place}").train
    assert (one.id, one.group) == ("Zürich", "CH") and one.mask
    assert [one.id for one in find(tmp_path).train] == ["Zürich"]  # without patterns, too


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"images": "train/{id}.png"}, r"matches nothing; there are dicom/a\.dcm, images/a\.png, masks/a\.png"),
        ({"images": "dicom/{id}.*"}, r"matches only a\.dcm and its like, which a source\.reader could read"),
        ({"images": "{x}/{id}.png"}, r"has the id 'a', as .*more fields in source\.id would tell them apart"),
        ({"images": "images/{id}.png", "masks": "masks/{n}.png"}, "shares no field with 'images/{id}.png'"),
        ({"images": "images/{id}.png", "masks": "more/{id}.*"}, r"a\.tif: and a\.png beside it could both be the mask"),
        (
            {"images": "images/{id}.png", "masks": "more/{id}_{class}.png"},
            "in source.masks is none of rest, thing",
        ),
        ({"images": "images/{id}.png"}, r"images/a\.png: has no mask; source\.masks or source\.table would say"),
        ({"images": "images/{id}.png", "id": "{n}"}, r"source\.id = '\{n\}': no field \{n\}; there are id, name"),
    ],
)
def test_patterns_that_do_not_fit_are_refused(tmp_path, source, problem):
    save(tmp_path / "images/a.png", image(0))
    for path in ("masks/a.png", "more/a.png", "more/a.tif", "more/a_tree.png"):
        save(tmp_path / path, discs(0)[0] * np.uint8(1))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom/a.dcm").write_bytes(b"")
    with pytest.raises(Refused, match=problem):
        find(tmp_path, **source)


def test_images_and_masks_without_the_other_are_counted_and_named(tmp_path, capsys):
    source = tmp_path / "own"
    for k in "abc":
        save(source / f"images/{k}.png", image(ord(k)))
    for k in "bcde":
        save(source / f"masks/{k}.png", discs(0)[0] * np.uint8(1))
    out = prepare(source, competition(images="images/{id}.png", masks="masks/{id}.png"))
    assert out["train_ids"].tolist() == ["b", "c"]
    said = capsys.readouterr().out
    assert "no mask: 1 left out, the first a\n" in said and "no image: 2 left out, the first d\n" in said
    assert [told[:2] for told in build.stored_findings(tmp_path / "own.npz")] == [
        ("a", "no mask"), ("d", "no image"), ("e", "no image"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"masks": "a/{id}.png"}, r"source\.masks: needs source\.images"),
        ({"test": "a/{id}.png"}, r"source\.test: needs source\.images"),
        ({"table": {"file": "a.csv", "runs": "r"}}, r"source\.table: needs source\.images"),
        ({"images": "a", "masks": "b", "table": {"file": "c"}}, "has masks and table, which say the same thing"),
        ({"images": "a", "reader": "b.py"}, "has reader and images, which say the same thing"),
        ({"border": 3, "instances": True}, 'needs instances = true, and "border" as the last'),
        ({"images": "a", "table": {"file": "a", "start": "b"}}, "source.table.*'file', 'id', 'class'"),
        ({"images": "a", "table": {"file": "a", "order": "rows"}}, "'rows'; column or row would fit"),
        ({"range": "percentile"}, "source.range: input should be 'percentiles'"),
    ],
)
def test_keys_that_do_not_fit_are_refused(source, problem):
    with pytest.raises(Refused, match=problem):
        competition(**source)


# Without patterns


def test_two_folders_that_could_hold_the_masks_are_refused(tmp_path):
    """DRIVE: mask/ is the field of view, 1st_manual/ the truth."""
    for k in (21, 22, 23):
        save(tmp_path / f"training/images/{k}_training.tif", image(k))
        for name in ("1st_manual/{}_manual1.gif", "mask/{}_training_mask.gif"):
            save(tmp_path / "training" / name.format(k), discs(k)[0] * np.uint8(255))
        save(tmp_path / f"test/images/{k - 20:02}_test.tif", image(k))
        save(tmp_path / f"test/mask/{k - 20:02}_test_mask.gif", discs(k)[0] * np.uint8(255))
    with pytest.raises(Refused) as refused:
        find(tmp_path)
    for line in ("images/{id}_training.tif", "1st_manual/{id}_manual1.gif", "mask/{id}_training_mask.gif"):
        assert f'"training/{line}"' in str(refused.value)
    patterns = {"images": "training/images/{id}_training.tif", "masks": "training/1st_manual/{id}_manual1.gif"}
    assert [one.id for one in find(tmp_path, **patterns).train] == ["21", "22", "23"]


def test_two_folders_of_images_with_one_stem_are_refused(tmp_path):
    for folder in ("rgb_images", "sar_images", "labels"):
        for k in "ab":
            save(tmp_path / f"train/{folder}/{k}.png", discs(0)[0] * np.uint8(1))
    with pytest.raises(Refused, match=r'source\.images.*"train/rgb_images/\{id\}\.png", .*"train/sar_images'):
        find(tmp_path)


def test_train_and_val_are_no_two_readings(tmp_path):
    for split in ("train", "val"):
        for k in "ab":
            for folder in ("images", "masks"):
                save(tmp_path / f"{split}/{folder}/{split}-{k}.png", discs(0)[0] * np.uint8(1))
    assert [(one.id, one.fold) for one in find(tmp_path).train] == [
        ("train-a", 1), ("train-b", 1), ("val-a", 0), ("val-b", 0),
    ]  # fmt: skip


def test_extra_images_only_train(tmp_path):
    source = tmp_path / "own"
    for folder, names in (("train", "ab"), ("more", "xy")):
        for k, name in enumerate(names):
            save(source / f"{folder}/{name}.png", image(ord(name)))
            save(source / f"{folder}/{name}_mask.png", discs(k)[0] * np.uint8(255))
    patterns = {"images": "train/{id}.png", "masks": "train/{id}_mask.png"}
    patterns |= {"extra": "more/{id}.png", "extra_masks": "more/{id}_mask.png"}
    images = {"images": "train/{id}.png"}
    own = competition(**patterns)
    found = find(source, parts=("train",), **patterns)
    assert [(one.id, one.extra) for one in found.train] == [("a", False), ("b", False), ("x", True), ("y", True)]
    made = prepare(source, own)
    assert made["train_extra"].tolist() == [0, 0, 1, 1] and made["train_masks"].any((1, 2)).all()
    save(source / "more/a.png", image(5))
    save(source / "more/a_mask.png", discs(5)[0] * np.uint8(255))
    with pytest.raises(Refused, match=r"several samples have the id 'a'"):
        find(source, parts=("train",), **patterns)
    assert not any(one.extra for one in find(source, parts=("train",), **images, masks=patterns["masks"]).train)


def test_a_mask_serves_one_image(tmp_path):
    for case in "ab":
        save(tmp_path / f"own/train/{case}/1.png", image(ord(case)))
    save(tmp_path / "own/labels/1.png", discs(0)[0] * np.uint8(255))
    with pytest.raises(Refused, match=r"has the mask of .*, too; more fields in source\.masks"):
        find(tmp_path / "own", images="train/{case}/{n}.png", masks="labels/{n}.png", id="{case}_{n}")


@pytest.mark.parametrize("key", ["group", "fold", "list", "bands", "extra"])
def test_what_would_be_ignored_without_paths_is_refused(key):
    value = {"list": {"file": "x.csv"}, "bands": ["a"]}.get(key, "{id}")
    with pytest.raises(Refused, match=rf"source\.{key}: needs source\.images"):
        competition(**{key: value})
    assert competition(images="{id}.png", **{key: value}).source.images


def test_a_code_competition_says_where_its_hidden_images_are():
    with pytest.raises(Refused, match=r"source\.test: missing"):
        competition({"code_competition": True}, images="train/{id}.png", masks="masks/{id}.png")


def test_damaged_samples_are_skipped_by_id(tmp_path):
    for name in "ab":
        save(tmp_path / f"own/train/{name}.png", image(0))
        save(tmp_path / f"own/masks/{name}.png", discs(0)[0] * np.uint8(255))
    (tmp_path / "own/train/b.png").write_bytes(b"half a file")
    patterns = {"images": "train/{id}.png", "masks": "masks/{id}.png"}
    with pytest.raises(Refused, match=r"b\.png: cannot be read"):
        prepare(tmp_path / "own", competition(**patterns))
    assert prepare(tmp_path / "own", competition(**patterns, skip=["b"]))["train_ids"].tolist() == ["a"]


def pairs(source, names="abcd", folder="train"):
    for k, name in enumerate(names):
        save(source / f"{folder}/{name}.png", image(ord(name)))
        save(source / f"masks/{name}.png", discs(k)[0] * np.uint8(255))


PAIRED = {"images": "train/{id}.png", "masks": "masks/{id}.png"}


def test_keys_without_an_effect_are_refused(tmp_path):
    pairs(tmp_path / "own")
    with pytest.raises(Refused, match=r"source\.fold = 'train': says 1 of all samples"):
        prepare(tmp_path / "own", competition(fold="train", **PAIRED))
    neighbours = {"arrays": {"neighbours": [-1, 0, 1]}}
    with pytest.raises(Refused, match=r"arrays\.neighbours: no two samples are of one group"):
        prepare(tmp_path / "own", competition(neighbours, group="{id}", **PAIRED))


def test_a_split_called_test_does_not_train(tmp_path):
    for split, names in (("train", "ab"), ("val", "c"), ("test", "a")):
        pairs(tmp_path / "own", names, f"images/{split}")
    paths = PAIRED | {"images": "images/{split}/{id}.png", "fold": "{split}"}
    assert [(one.id, one.fold) for one in find(tmp_path / "own", **paths).train] == [("a", 1), ("b", 1), ("c", 0)]


def test_arrays_that_no_disk_holds_are_refused_before_an_image_is_read(tmp_path):
    pairs(tmp_path / "own")
    with pytest.raises(Refused, match=r"4 images of 200000×200000 take .* MB; the disk has"):
        build.prepare(competition(**PAIRED), tmp_path / "own", tmp_path / "own.npz", (200_000, 200_000))
    assert not (tmp_path / "own.npz").exists()


def test_a_code_competition_may_show_no_test_image(tmp_path, capsys):
    pairs(tmp_path / "own")
    code = {"code_competition": True, "kaggle": "own"}
    out = prepare(tmp_path / "own", competition(code, test="test/{id}.png", **PAIRED))
    assert "test_images" not in out and "a kernel reads the hidden test images by it" in capsys.readouterr().out
    with pytest.raises(Refused, match=r"source\.test = .*matches nothing"):
        find(tmp_path / "own", ("test",), test="test/{id}.png", **PAIRED)


@pytest.mark.parametrize(
    "folders", [("images", "masks", "test_images"), ("train/images", "train/masks", "test/images")]
)
def test_test_images_of_the_same_names_are_no_other_reading(tmp_path, folders):
    for k in range(4):
        for folder in folders:
            save(tmp_path / f"own/{folder}/{k}.png", discs(k)[0] * np.uint8(255))
    found = find(tmp_path / "own")
    assert [len(found.train), len(found.test)] == [4, 4]


def test_two_fields_without_a_character_between_are_refused():
    with pytest.raises(Refused, match="nothing tells where the first of two fields ends"):
        compile_pattern("source.images", "train/{case}{n}.png")
    assert compile_pattern("source.images", "{id}{band}.tif", {"band": ["_a", "_b"]}).fullmatch("x_a.tif")


def test_a_first_class_that_overlaps_has_no_files(tmp_path):
    for name in ("thing", "rest"):
        save(tmp_path / f"own/masks/{name}/a.png", discs(0)[0] * np.uint8(255))
    save(tmp_path / "own/train/a.png", image(0))
    paths = {"images": "train/{id}.png", "masks": "masks/{class}/{id}.png"}
    with pytest.raises(Refused, match="'rest', but the first class is none of the others"):
        find(tmp_path / "own", toml={"overlap": True}, **paths)
    assert len(find(tmp_path / "own", **paths).train) == 1  # where they exclude each other, it says what is left anyway
