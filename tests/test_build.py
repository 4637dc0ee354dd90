"""Images and masks in folders become arrays: layouts, mask codings, odd files, sizes, interrupted runs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp import config, files
from comp.data import arrays, npz
from comp.errors import Refused
from comp.prepare import build, decode, masks
from comp.prepare.find import find_samples
from comp.prepare.samples import Found

RANDOM = np.random.default_rng(0)


def competition(classes=("background", "thing"), **section) -> config.Competition:
    return config.validate_config({"competition": {"name": "own", "classes": classes, "arrays": section}}).competition


def save_image(path: Path, size=(20, 30), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size[::-1]).convert(mode).save(path, **options)
    return path


def save_mask(path: Path, values, mode: str | None = None, palette: list[int] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, np.uint8))
    if palette:
        image.putpalette(palette)
    (image.convert(mode) if mode else image).save(path)
    return path


def halves(low: int, high: int, size=(20, 30)) -> np.ndarray:
    values = np.full(size, low, np.uint8)
    values[:, size[1] // 2 :] = high
    return values


def pairs(folder: Path, count=4, low=0, high=255, size=(20, 30)) -> Path:
    for k in range(count):
        save_image(folder / f"images/p{k}.jpg", size)
        save_mask(folder / f"masks/p{k}.png", halves(low, high, size))
        save_image(folder / f"test_images/t{k}.jpg", (10 + k, 12))
    return folder


def find(folder: Path, parts=("train", "test"), **source) -> Found:
    own = competition().model_copy(update={"source": config.Source(**source)})
    return find_samples(own, folder, folder, parts)


def made(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def make(folder: Path, out: Path, own: config.Competition, size=(16, 16), **source) -> dict[str, np.ndarray]:
    own = own.model_copy(update={"source": config.Source(**source)})
    build.prepare(own, folder, out, size)
    return made(out)


# Layouts


def test_voc_lists_decide_split_and_fold(tmp_path):
    for stem in "abcde":
        save_image(tmp_path / f"VOC2007/JPEGImages/{stem}.jpg")
    for stem in "abc":
        save_mask(tmp_path / f"VOC2007/SegmentationClass/{stem}.png", halves(0, 1))
    lists = tmp_path / "VOC2007/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in {"train": "b", "val": "ca", "trainval": "abc", "test": "d"}.items():
        (lists / f"{name}.txt").write_text("\n".join(stems) + "\n", encoding="utf-8-sig" if name == "val" else "utf-8")
    layout = find(tmp_path)
    assert [(sample.id, sample.fold) for sample in layout.train] == [("a", 0), ("b", 1), ("c", 0)]
    assert [sample.id for sample in layout.test] == ["d"]
    assert layout.odd == []  # VOC's lists name a part of its images
    for stem, place in (("e.1", "JPEGImages"), ("e.2", "JPEGImages")):  # names with a dot stay whole
        save_image(tmp_path / f"VOC2007/{place}/{stem}.jpg")
    (lists / "test.txt").write_text("e.1\ne.2\n")
    assert [sample.id for sample in find(tmp_path).test] == ["e.1", "e.2"]
    (lists / "val.txt").write_bytes(b"c\nmissing\xe9\n")  # of Latin-1
    with pytest.raises(Refused, match=r"val\.txt: names missing"):
        find(tmp_path)


def test_files_that_do_not_belong_are_named(tmp_path):
    save_image(tmp_path / "images/a.jpg"), save_image(tmp_path / "images/lonely.jpg")
    (
        save_mask(tmp_path / "annotations/trimaps/a.png", halves(1, 2)),
        save_mask(tmp_path / "annotations/trimaps/b.png", halves(1, 2)),
    )
    save_image(tmp_path / "logo.png"), save_image(tmp_path / "figures/readme.png")
    for name in ("images/a.mat", "images/Thumbs.db", "annotations/trimaps/._a.png"):
        (tmp_path / name).write_bytes(b"odd")
    layout = find(tmp_path)
    assert [sample.id for sample in layout.train] == ["a"]
    assert {(odd.id, odd.finding) for odd in layout.odd} == {
        (".", "folder not read"),
        ("figures", "folder not read"),
        ("lonely", "no mask"),
        ("b", "no image"),
    }


@pytest.mark.parametrize(
    ("image_at", "mask_at"),
    [
        ("images/x.jpg", "masks/x.png"),
        ("images/x.jpg", "annotations/trimaps/x.png"),
        ("train/images/x.png", "train/masks/x.png"),
        ("train/x.jpg", "train_masks/x_mask.gif"),
        ("images/gas_mask.jpg", "labels/gas_mask.png"),
    ],
)
def test_pairs_by_the_folders_names(tmp_path, image_at, mask_at):
    save_image(tmp_path / image_at), save_mask(tmp_path / mask_at, halves(0, 1))
    (sample,) = find(tmp_path).train
    assert (sample.id, sample.images) == (Path(image_at).stem, (tmp_path / image_at,))
    assert sample.mask_files == [(tmp_path / mask_at, None)]


def test_folders_behind_links_are_read(tmp_path):
    pairs(tmp_path / "elsewhere")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("images", "masks", "test_images"):
        (source / name).symlink_to(tmp_path / "elsewhere" / name)
    layout = find(source)
    assert [len(layout.train), len(layout.test), layout.odd] == [4, 4, []]


def test_ids_can_be_the_files_names(tmp_path):
    own = competition().model_copy(update={"source": config.Source(id="{name}")})
    build.prepare(own, pairs(tmp_path / "source"), tmp_path / "own.npz", (16, 16))
    npz = made(tmp_path / "own.npz")
    assert npz["train_ids"].tolist()[:2] == ["p0.jpg", "p1.jpg"] and npz["test_ids"][0] == "t0.jpg"


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_folders_named_val_are_a_given_fold(tmp_path, val):
    for split, stem in (("train", "a"), (val, "b"), ("test", "c")):
        (
            save_image(tmp_path / split / f"images/{stem}.jpg"),
            save_mask(tmp_path / split / f"masks/{stem}.png", halves(0, 255)),
        )
    out = make(tmp_path, tmp_path / "own.npz", competition())
    assert out["train_folds"].tolist() == [1, 0] and out["train_folds"].dtype == np.int16
    assert out["test_masks"].shape == (1, 16, 16)


def test_ambiguous_layouts_are_refused(tmp_path):
    with pytest.raises(Refused, match="no such folder"):
        find(tmp_path / "nowhere")
    save_image(tmp_path / "images/a.jpg"), save_mask(tmp_path / "ground truth/a.png", halves(0, 1))
    with pytest.raises(Refused, match=r'no image with a mask; .*: "ground truth/\{id\}\.png", "images/\{id\}\.jpg"'):
        find(tmp_path)
    (tmp_path / "ground truth/a.png").unlink()
    save_mask(tmp_path / "masks/a.png", halves(0, 1))
    for other in ("images/more/a.jpg", "val/images/a.jpg", "labels/a.png"):
        save_image(tmp_path / other)
        with pytest.raises(Refused, match=r"several folders could hold|could both be the mask"):
            find(tmp_path)
        (tmp_path / other).unlink()
    with pytest.raises(Refused, match="no test images"):
        find(tmp_path, ("test",))


# Mask codings


def read(paths: list[Path], classes=("background", "thing"), ignore=None, given=None):
    coding = masks.detect_coding(paths, classes, ignore, given or {})
    return [masks.read_mask(path, coding) for path in paths]


def test_binary_trimap_and_class_numbers(tmp_path):
    (found,) = read([save_mask(tmp_path / "a.png", halves(0, 255))])
    assert (found == halves(0, 1)).all() and found.dtype == np.uint8
    # The same values are background and void where 1 occurs in another file.
    first, second = read([tmp_path / "a.png", save_mask(tmp_path / "b.png", halves(0, 1))], ignore=255)
    assert (first == halves(0, 255)).all() and (second == halves(0, 1)).all()
    trimap = halves(1, 2)
    trimap[0] = 3
    (found,) = read(
        [save_mask(tmp_path / "t.png", trimap)], ignore=255, given={"1": "thing", "2": "background", "3": "ignore"}
    )
    assert (found == np.array([9, 1, 0, 255], np.uint8)[trimap]).all()


def test_masks_of_16_bits_and_of_whole_floats(tmp_path):
    # As in TGS salt: 16 bits where there is salt, 8 bits where there is none.
    Image.fromarray(halves(0, 1).astype(np.uint16) * 65535).save(tmp_path / "a.png")
    first, second = read([tmp_path / "a.png", save_mask(tmp_path / "b.png", halves(0, 0))])
    assert (first == halves(0, 1)).all() and not second.any()
    Image.fromarray(halves(0, 1).astype(np.uint16) * 300).save(tmp_path / "c.png")
    (found,) = read([tmp_path / "c.png"], given={"0": "thing", "300": "background"})
    assert (found == halves(1, 0)).all()
    Image.fromarray(halves(0, 2).astype(np.float32)).save(tmp_path / "d.tif")
    (found,) = read([tmp_path / "d.tif"], classes=("a", "b", "c"))
    assert (found == halves(0, 2)).all()


@pytest.mark.parametrize(
    "value",
    [0.5, np.nan, np.inf, -1, 65536],
)
def test_floats_that_are_no_labels_are_refused(tmp_path, value):
    values = np.zeros((4, 6), np.float32)
    values[1, 2] = value
    Image.fromarray(values).save(tmp_path / "a.tif")
    for given in ({}, {"0": "background", "255": "thing"}):
        with pytest.raises(Refused, match=r"a\.tif: holds fractions, NaN or values beyond 65535"):
            read([tmp_path / "a.tif"], given=given)


def test_palette_indices_or_colours(tmp_path):
    red_green, green_red = [0, 0, 0, 255, 0, 0, 0, 255, 0], [0, 0, 0, 0, 255, 0, 255, 0, 0]
    one = save_mask(tmp_path / "one.png", halves(1, 2), palette=red_green)
    zero = save_mask(tmp_path / "zero.png", halves(0, 1), palette=red_green)
    found, _ = read([one, zero], classes=("a", "b", "c"))
    assert (found == halves(1, 2)).all()
    # Another palette means that indices differ between files while colours do not.
    other = save_mask(tmp_path / "other.png", halves(2, 1), palette=green_red)
    given = {"#000000": "a", "#ff0000": "b", "#00ff00": "c"}
    first, second, _ = read([one, other, zero], classes=("a", "b", "c"), given=given)
    assert (first == second).all() and (first == halves(1, 2)).all()
    with pytest.raises(Refused, match=r"other\.png: has another palette than other masks"):
        read([one, other, zero], classes=("a", "b", "c"))


def test_colours_are_given(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :2], rgb[:, 2:4] = (60, 16, 152), (226, 169, 41)
    path = save_mask(tmp_path / "a.png", rgb)
    given = {"#3c1098": "c", "#e2a929": "a", "#000000": "ignore"}
    (found,) = read([path], classes=("a", "b", "c"), ignore=9, given=given)
    assert found[0].tolist() == [2, 2, 0, 0, 9, 9]
    with pytest.raises(Refused, match="2 colours for 2 classes"):  # code 0x0000ff is not the value 255
        read([save_mask(tmp_path / "blue.png", halves(0, 255)[..., None] * np.array([0, 0, 1], np.uint8))])
    for classes in (("a", "b"), ("a", "b", "c")):
        with pytest.raises(Refused, match=rf'3 colours for {len(classes)} classes.*"#3c1098" = "…"'):
            read([path], classes=classes)


@pytest.mark.parametrize("ignore", [None, 255])
def test_anti_aliased_masks_are_refused(tmp_path, ignore):
    soft = Image.fromarray(halves(0, 255, (30, 40))).rotate(20).resize((37, 29), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "a.png")
    with pytest.raises(Refused, match=r"values for 2 classes; say which is which"):
        read([tmp_path / "a.png"], ignore=ignore)
    with pytest.raises(Refused, match=r"a\.png: .*% of the pixels are of no class, such as"):
        read([tmp_path / "a.png"], ignore=ignore, given={"0": "background", "255": "thing"})


@pytest.mark.parametrize(
    ("values", "classes", "given", "message"),
    [
        (halves(0, 7), ("a", "b", "c"), {"0": "a", "1": "b", "2": "c"}, r"a\.png: 50.0% .* of no class, such as 7"),
        (halves(3, 9), ("a", "b"), {}, r'2 values for 2 classes.*"3" = "…"'),
        (halves(1, 2), ("a", "b"), {}, r'2 values for 2 classes.*"1" = "…"'),  # of a trimap, perhaps
        (np.repeat([[0, 120, 240]], 6, axis=0), ("a", "b", "c"), {}, r'3 values for 3 classes.*"120" = "…"'),
        (halves(0, 1), ("a", "b"), {"65536": "a"}, r"'65536'; all are values 0–65535"),
        (halves(0, 255), ("a", "b", "c"), {}, r"if 255 is void, arrays\.ignore = 255"),
        (halves(0, 1), ("a", "b"), {"0": "a", "1": "tree"}, r"source\.labels\.1: no class 'tree'"),
        (halves(0, 1), ("a", "b"), {"0": "ignore"}, r"arrays\.ignore is not set"),
        (halves(0, 1), ("a", "b"), {"0": "a", "#ffffff": "b"}, r"'0'; all are .* or all are colours"),
        (halves(0, 1), ("a", "b"), {"red": "a"}, r"'red'; all are values 0–65535"),
    ],
)
def test_codings_that_do_not_fit_are_refused(tmp_path, values, classes, given, message):
    with pytest.raises(Refused, match=message):
        read([save_mask(tmp_path / "a.png", values)], classes=classes, given=given)


# Image files


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "LA"])
def test_every_kind_of_image_becomes_grey_or_rgb(tmp_path, mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    path = save_image(tmp_path / "a.jpg", mode=mode, format=kind)
    found = np.asarray(decode.read_image(path))
    channels = 1 if mode in ("1", "L", "LA") else 3
    assert found.shape == (20, 30, channels) and found.dtype == np.uint8
    assert (found == np.asarray(Image.open(path).convert("RGB"))[..., :channels]).all()
    assert decode.read_header(path) == decode.Header((20, 30), channels, False)


def test_deep_images_are_scaled_by_percentiles_of_the_training_images(tmp_path, monkeypatch, capsys):
    source = tmp_path / "input/own"
    ramp = np.linspace(300, 4000, 256).reshape(16, 16)
    for k, name in enumerate(("images/a", "images/b", "test_images/c")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((ramp, ramp[::-1], ramp / 4)[k].astype(np.uint16)).save(source / f"{name}.png")
    for name in "ab":
        save_mask(source / f"masks/{name}.png", halves(0, 255, (16, 16)))
    own = competition().model_copy(update={"kaggle": "own"})
    out = make(source, tmp_path / "place/own.npz", own)
    low, high = np.percentile(ramp.astype(np.uint16), [0.5, 99.5])
    expected = ((ramp.astype(np.uint16) - low) / (high - low) * 255).round().clip(0, 255)
    assert abs(out["train_images"][0][..., 0] - expected).max() <= 1
    assert "images are scaled from 3" in capsys.readouterr().out
    # Hidden test images are read as those were, whatever they hold themselves.
    Image.fromarray(np.full((16, 16), 500, np.uint16)).save(source / "test_images/c.png")
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "input")
    hidden = made(build.prepare_hidden_test(own, tmp_path / "place") / "own.npz")
    assert hidden["test_images"].max() == round((500 - low) / (high - low) * 255)


def test_deep_images_beside_others_are_refused(tmp_path):
    source = pairs(tmp_path / "source")
    Image.fromarray(np.full((20, 30), 300, np.uint16)).save(source / "images/p9.png")
    save_mask(source / "masks/p9.png", halves(0, 255))
    with pytest.raises(Refused, match=r"holds uint16, the other images uint8; source\.range = \[low, high\]"):
        make(source, tmp_path / "own.npz", competition())


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder = pairs(tmp_path / "source")
    broken = folder / "images/p2.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(Refused, match=r"p2\.jpg: cannot be read as an image"):
        make(folder, tmp_path / "own.npz", competition())
    broken.write_text("no image at all")
    with pytest.raises(Refused, match=r"p2\.jpg: cannot be read as an image"):
        make(folder, tmp_path / "own.npz", competition())
    assert not (tmp_path / "own.npz").exists()


def test_images_are_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # seen upright when turned clockwise by a quarter
    size = (20, 30)
    for name in ("images/a.png", "test/t.png"):
        save_image(tmp_path / name, size, exif=exif)
    save_mask(tmp_path / "masks/a.png", halves(0, 255, size[::-1]))
    out = make(tmp_path, tmp_path / "own.npz", competition(), size=(32, 32))
    assert tuple(out["train_sizes"][0]) == tuple(out["test_sizes"][0]) == size[::-1]
    stored = np.asarray(Image.open(tmp_path / "images/a.png").resize((32, 32), Image.Resampling.BILINEAR))
    assert abs(out["train_images"][0].astype(int) - np.rot90(stored, -1)).mean() < 2
    save_mask(tmp_path / "masks/a.png", halves(0, 255, size))
    with pytest.raises(Refused, match=r"a\.png: is .*; it fits the image before EXIF turns it: a source\.reader"):
        make(tmp_path, tmp_path / "other.npz", competition())


def test_a_mask_of_another_size_is_refused(tmp_path):
    folder = pairs(tmp_path / "source")
    save_mask(folder / "masks/p1.png", halves(0, 255, (10, 30)))
    with pytest.raises(Refused, match=r"p1\.png: is 10×30, .*20×30"):
        make(folder, tmp_path / "own.npz", competition())


# The npz


def test_pairs_become_mappable_arrays(tmp_path):
    folder, own = pairs(tmp_path / "source"), competition()
    out = make(folder, tmp_path / "input/own.npz", own)
    assert out["train_images"].shape == (4, 16, 16, 3) and out["train_images"].dtype == np.uint8
    assert (out["train_masks"] == halves(0, 1, (16, 16))).all()
    assert out["train_ids"].tolist() == ["p0", "p1", "p2", "p3"]
    assert out["train_sizes"].tolist() == [[20, 30]] * 4
    assert out["test_sizes"].tolist() == [[10 + k, 12] for k in range(4)] and out["test_sizes"].dtype == np.int32
    assert "test_masks" not in out and "train_folds" not in out and "train_groups" not in out
    for key in ("train_images", "train_masks", "test_images"):
        assert npz.read_member(tmp_path / "input/own.npz", key).offset is not None
    train, test = arrays.load_train(own, tmp_path / "input"), arrays.load_test(own, tmp_path / "input")
    assert (train.images == out["train_images"]).all() and (test.sizes == out["test_sizes"]).all()
    assert [path.name for path in (tmp_path / "input").iterdir() if path.is_file()] == ["own.npz"]


def test_near_duplicates_become_a_group(tmp_path):
    folder = pairs(tmp_path / "source", size=(64, 64))
    again = Image.open(folder / "images/p1.jpg").resize((50, 50))
    again.save(folder / "images/p3.jpg", quality=70)
    save_mask(folder / "masks/p3.png", halves(0, 255, (50, 50)))
    assert make(folder, tmp_path / "own.npz", competition())["train_groups"].tolist() == ["", "p1", "", "p1"]


def test_the_same_command_twice_changes_nothing_and_another_is_refused(tmp_path, capsys):
    folder, out = pairs(tmp_path / "source"), tmp_path / "own.npz"
    make(folder, out, competition())
    before = out.read_bytes()
    make(folder, out, competition())
    assert capsys.readouterr().out.endswith("was made of these images already; delete it to make it anew\n")
    with pytest.raises(Refused, match="move it away"):
        make(folder, out, competition(), size=(8, 8))
    (folder / "images/p0.jpg").write_bytes((folder / "images/p1.jpg").read_bytes())
    with pytest.raises(Refused, match="move it away"):
        make(folder, out, competition())
    assert out.read_bytes() == before


@pytest.mark.parametrize("killed_after", [0, 1, 5, 7])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, killed_after):
    folder, own = pairs(tmp_path / "source"), competition()
    monkeypatch.setattr(build, "BLOCK", 2 * 16 * 16 * 3)
    reads: list[str] = []
    read_image = decode.read_image

    def dying(path, *how):
        if len(reads) == killed_after:
            raise KeyboardInterrupt
        reads.append(path.stem)
        return read_image(path, *how)

    with monkeypatch.context() as patched:
        patched.setattr(decode, "read_image", dying)
        with pytest.raises(KeyboardInterrupt):
            make(folder, tmp_path / "input/own.npz", own)
    assert not list((tmp_path / "input").iterdir())
    again = make(folder, tmp_path / "input/own.npz", own)
    monkeypatch.undo()  # blocks of another size
    make(folder, tmp_path / "whole.npz", own)
    assert (tmp_path / "input/own.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert again["train_images"].shape == (4, 16, 16, 3)


def test_what_was_odd_about_the_files_is_kept(tmp_path):
    folder, exif = pairs(tmp_path / "source"), Image.Exif()
    exif[274] = 3
    save_image(folder / "images/p1.jpg", exif=exif)
    save_image(folder / "other/p9.jpg")
    make(folder, tmp_path / "own.npz", competition())
    assert build.stored_findings(tmp_path / "own.npz") == [
        ("other", "folder not read", "1 images", ""),
        ("p1", "EXIF orientation", "turned upright, orientation 3", ""),
    ]
    with zipfile.ZipFile(tmp_path / "own.npz") as archive:
        assert archive.testzip() is None
