"""Run-lengths in a CSV as masks: the same arrays as from mask files, in either order, whose proof is in the masks."""

import csv

import numpy as np
import pytest
from drawn import competition, discs, find, image, prepare, save

from comp.errors import Refused
from comp.prepare.table import read_layers
from comp.submission.runlength import encode_runs

CLASSES = ["rest", "Fish", "Flower"]
TALL = (24, 16)  # not square, so that runs across tell the orders apart


def write(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def download(folder, size=TALL, count=12, order="column"):
    """Images whose discs are bright, their mask files, by class and as objects, and tables of them."""
    rows: dict[str, list] = {name: [] for name in ("binary", "class", "joined", "objects")}
    for k in range(count):
        fish, flower, other = masks = discs(k, size)
        if k == 1:
            masks = np.zeros_like(masks)
            fish, flower, other = masks
        save(folder / f"images/{k}.png", np.where(masks.any(axis=0), 250, image(k, size, 0) // 4).astype(np.uint8))
        save(folder / f"any/{k}.png", masks.any(axis=0) * np.uint8(255))
        save(folder / f"labels/{k}.png", (fish + 2 * (flower | other)).astype(np.uint8))
        texts = encode_runs(masks, order)
        for number, (mask, text) in enumerate(zip(masks, texts, strict=True)):
            if k != 1:
                save(folder / f"objects/{k}/{number}.png", mask * np.uint8(255))
                rows["objects"].append((f"{k}.png", text))
        flowers = encode_runs((flower | other)[None], order)[0]
        rows["binary"].append((k, encode_runs(masks.any(axis=0)[None], order)[0]))
        rows["class"] += [(k, "Fish", texts[0] or "-1"), (k, 2, flowers)]
        rows["joined"] += [(f"{k}.png_Fish", texts[0]), (f"{k}.png_Flower", flowers)]
    write(folder / "binary.csv", ("id", "runs"), rows["binary"][:1] + rows["binary"][2:])  # an absent row is empty
    write(folder / "class.csv", ("image", "class", "runs"), rows["class"])
    write(folder / "joined.csv", ("Image_Label", "EncodedPixels"), rows["joined"])
    write(folder / "objects.csv", ("id", "runs"), [*rows["objects"], ("1.png", "")])
    return folder


def submission(order):
    return {"submission": {"format": "rle", "rows": "image_class", "order": order}, "classes": CLASSES}


@pytest.mark.parametrize("order", ["column", "row"])
@pytest.mark.parametrize("size", [TALL, (16, 16)])
def test_a_table_gives_the_masks_that_files_give(tmp_path, capsys, order, size):
    folder = download(tmp_path / "own", size, order=order)
    toml = submission(order)
    images, big = {"images": "images/{id}.png"}, {"size": list(size)}
    files = prepare(folder, competition(toml, masks="labels/{id}.png", **images, **big), "files.npz")
    for name, table in {
        "class": {"id": "image", "class": "class", "runs": "runs"},
        "joined": {"id": "Image_Label", "split": "{id}.png_{class}", "runs": "EncodedPixels"},
    }.items():
        own = competition(toml, table={"file": f"{name}.csv"} | table, **images, **big)
        out = prepare(folder, own, f"{name}.npz")
        assert out.keys() == files.keys()
        assert all((out[key] == files[key]).all() for key in out if key != "prepared")
        assert f"run-lengths count by {order}: in " in capsys.readouterr().out
    two = {"submission": {"format": "rle", "order": order}}
    binary = prepare(folder, competition(two, masks="any/{id}.png", **images, **big), "any.npz")
    own = competition(two, table={"file": "binary.csv", "runs": "runs"}, **images, **big)
    assert (prepare(folder, own)["train_masks"] == binary["train_masks"]).all()
    assert "binary.csv: has no row of 1 of 12 images, the first 1: empty masks" in capsys.readouterr().out


def test_rows_of_one_image_are_objects(tmp_path):
    folder = download(tmp_path / "own")
    images = {"images": "images/{id}.png", "id": "{name}", "size": list(TALL), "instances": True}
    own = competition(table={"file": "objects.csv", "runs": "runs"}, **images)
    out = prepare(folder, own)
    drawn = np.stack([discs(int(id[:-4]), TALL) * (id != "1.png") for id in out["train_ids"]])
    assert (out["train_instances"] == (drawn * np.arange(1, 4)[:, None, None]).max(axis=1)).all()
    assert out["train_instances"].dtype == np.uint16 and (out["train_masks"] == drawn.any(axis=1)).all()
    files = prepare(folder, competition(masks="objects/{id}/*.png", **images), "files.npz")
    kept = out["train_ids"] != "1.png"  # which without a file has no mask
    assert (files["train_instances"] == out["train_instances"][kept]).all()


@pytest.mark.parametrize("size", [TALL, (16, 16)])
def test_a_toml_that_says_another_order_is_refused(tmp_path, size):
    folder = download(tmp_path / "own", size, order="row")
    table = {"file": "binary.csv", "runs": "runs"}
    images = {"images": "images/{id}.png"}
    what = "runs across" if size == TALL else "contrast of the image along edges"
    for toml, order, key in (
        ({"submission": {"format": "rle"}}, {}, "submission.order"),
        ({}, {"order": "column"}, r"source\.table\.order"),
    ):
        with pytest.raises(
            Refused,
            match=rf"{key} is 'column'; set it to 'row': binary\.csv: .*by row: in 11 masks {what}: \d.* by row",
        ):
            prepare(folder, competition(toml, table=table | order, **images))


def test_orders_that_both_look_right_are_refused(tmp_path):
    for k in range(4):
        mask = np.zeros((16, 16), bool)
        mask[4:12, 4:12] = True  # its own transpose
        save(tmp_path / f"own/images/{k}.png", image(k))
    write(tmp_path / "own/train.csv", ("id", "rle"), [(k, encode_runs(mask[None])[0]) for k in range(4)])
    table, images = {"file": "train.csv", "runs": "rle"}, {"images": "images/{id}.png"}
    with pytest.raises(Refused, match=r"in 4 masks .* by row, which proves no order; source\.table\.order"):
        prepare(tmp_path / "own", competition(table=table, **images))
    out = prepare(tmp_path / "own", competition(table=table | {"order": "column"}, **images))
    assert (out["train_masks"] == mask).all()


def test_relative_starts(tmp_path):
    mask = np.zeros((4, 3), bool)
    mask[1:3, 0] = mask[0, 1] = True
    save(tmp_path / "own/images/a.png", np.where(mask, 255, 0).astype(np.uint8))
    write(tmp_path / "own/train.csv", ("id", "rle"), [("a", "1 2 1 1")])
    table, images = {"file": "train.csv", "runs": "rle"}, {"images": "images/{id}.png", "size": [4, 3]}
    with pytest.raises(Refused, match=r'row 2: a, 4×3: run 2, .*; or table\.starts = "relative"\?'):
        prepare(tmp_path / "own", competition(table=table, **images))
    out = prepare(tmp_path / "own", competition(table=table | {"starts": "relative", "order": "column"}, **images))
    assert (out["train_masks"] == mask).all()


@pytest.mark.parametrize(
    ("rows", "table", "problem"),
    [
        ([("a", "1 999")], {}, r"train\.csv: row 2: a, 16×16: run 1, '1 999', ends outside the image of 256 pixels"),
        ([("a", "1 2 3")], {}, "row 2: a, 16×16: an odd number of run-length values"),
        ([("a", "1 2"), ("a", "x")], {}, "row 3: a, 16×16: 'x' is not a pixel's number"),
        ([("a.png", "1 2")], {}, r"ids such as 'a\.png', the images such as 'a'; source\.id makes"),
        ([("a", "1 2")], {"id": "Image"}, "no column 'Image'; there are id, rle"),
        ([("a", "1 2")], {"runs": "runs"}, "no column 'runs'; there are id, rle"),
        ([("a_tree", "1 2")], {"split": "{id}_{class}"}, "row 2: 'a_tree' is not '{id}_{class}' with one of the"),
        ([("a", "1 2")], {"class": "rle"}, "row 2: no class '1 2'; there are thing"),
        ([("a_rest", "1 2")], {"split": "{id}_{class}"}, "row 2: no class 'rest'; there are thing"),
        ([("a", "1 2")], {"split": "{n}_{class}"}, r'source\.table\.split: "\{id\}_\{class\}" would fit'),
        ([("a", "1 2")], {"file": "other.csv"}, r"other\.csv: cannot be read as a CSV: .*No such file"),
        ([("a", "1 2")], {"file": ""}, r"source\.table\.file: missing"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, rows, table, problem):
    save(tmp_path / "own/images/a.png", image(0))
    write(tmp_path / "own/train.csv", ("id", "rle"), rows)
    table = {"file": "train.csv", "runs": "rle"} | table
    with pytest.raises(Refused, match=problem):
        prepare(tmp_path / "own", competition(table=table, images="images/{id}.png"))
    assert not (tmp_path / "own.npz").exists()


def test_rows_without_an_image_are_named(tmp_path, capsys):
    save(tmp_path / "images/a.png", image(0))
    write(tmp_path / "train.csv", ("id", "rle"), [("a", ""), ("b", "1 2"), ("b", "5 2")])
    found = find(tmp_path, images="images/{id}.png", table={"file": "train.csv", "runs": "rle"})
    assert [one.id for one in found.train] == ["a"] and found.train[0].mask == ()
    assert "no image: 1 left out, the first b" in capsys.readouterr().out


def test_a_table_leaves_the_masks_of_extra_images_alone(tmp_path):
    folder = tmp_path / "own"
    mask = np.zeros((24, 16), bool)
    mask[4:20, 2:6] = True
    save(folder / "images/a.png", image(0, (24, 16)))
    save(folder / "more/x.png", image(1, (24, 16)))
    save(folder / "more/x_mask.png", mask * np.uint8(255))
    write(folder / "train.csv", ("id", "rle"), [("a", encode_runs(mask[None])[0])])
    more = {"extra": "more/{id}.png", "extra_masks": "more/{id}_mask.png"}
    table = {"file": "train.csv", "runs": "rle", "order": "column"}
    made = prepare(folder, competition(table=table, images="images/{id}.png", size=[24, 16], **more))
    assert made["train_ids"].tolist() == ["a", "x"] and (made["train_masks"] == mask).all()


def test_a_table_of_several_classes_says_which(tmp_path):
    save(tmp_path / "own/images/a.png", image(0))
    write(tmp_path / "own/train.csv", ("id", "kind", "rle"), [("a", "", "1 2")])
    table, toml = {"file": "train.csv", "runs": "rle"}, {"classes": ["rest", "one", "two"]}
    with pytest.raises(Refused, match=r"source\.table\.class: missing"):
        prepare(tmp_path / "own", competition(toml, table=table, images="images/{id}.png"))
    with pytest.raises(Refused, match="row 2: no class ''"):
        prepare(tmp_path / "own", competition(toml, table=table | {"class": "kind"}, images="images/{id}.png"))


@pytest.mark.parametrize("rows", [[("a", "1 2"), ("b", "")], [("a", "1 2"), ("B", "5 2")]])
def test_a_table_that_says_which_masks_are_empty_lacks_no_image(tmp_path, rows):
    for name in "abc":
        save(tmp_path / f"own/images/{name}.png", image(ord(name)))
    write(tmp_path / "own/train.csv", ("id", "rle"), rows)
    table, images = {"file": "train.csv", "runs": "rle", "order": "column"}, {"images": "images/{id}.png"}
    with pytest.raises(Refused, match=r"train\.csv: has no row of \d of 3 images, .*cut short"):
        prepare(tmp_path / "own", competition(table=table, **images))


@pytest.mark.parametrize("rows, says", [
    ("a\n", "row 2 has fewer fields than the header"), ("a,1 2\nb\n", "row 3 has fewer fields than the header"),
    ("a,1 2,,\nb,3 4\n", "row 2 has more fields than the header"), ("a,1 2,x\n", "more fields than the header"),
])  # fmt: skip
def test_a_row_that_does_not_fit_the_header_is_refused(tmp_path, rows, says):
    save(tmp_path / "own/images/a.png", image(0))
    (tmp_path / "own/train.csv").write_text(f"id,rle\n{rows}")
    table, images = {"file": "train.csv", "runs": "rle", "order": "column"}, {"images": "images/{id}.png"}
    with pytest.raises(Refused, match=rf"train\.csv: .*{says}"):
        prepare(tmp_path / "own", competition(table=table, **images))


def test_a_class_that_is_called_border_is_one_where_none_is_made(tmp_path):
    folder, classes = download(tmp_path / "own"), ["rest", "cell", "border"]
    own = competition({"classes": classes}, images="images/{id}.png", table={"file": "binary.csv", "runs": "runs"})
    with pytest.raises(Refused, match="which class of cell, border"):
        read_layers(own, folder)
