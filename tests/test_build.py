"""Pictures and masks in folders become arrays: layouts, mask codings, odd files, sizes, interrupted runs."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comp import config
from comp.data import arrays, npz
from comp.errors import Refused
from comp.prepare import build, decode, layouts, mask_coding

RANDOM = np.random.default_rng(0)


def competition(classes=("background", "thing"), **section) -> config.Competition:
    return config.validate_config({"competition": {"name": "own", "classes": classes, "arrays": section}}).competition


def picture(path: Path, size=(20, 30), mode="RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = RANDOM.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size[::-1]).convert(mode).save(path, **options)
    return path


def mask(path: Path, values, mode: str | None = None, palette: list[int] | None = None) -> Path:
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
        picture(folder / f"images/p{k}.jpg", size)
        mask(folder / f"masks/p{k}.png", halves(low, high, size))
        picture(folder / f"test_images/t{k}.jpg", (10 + k, 12))
    return folder


def made(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def make(folder: Path, out: Path, own: config.Competition, size=(16, 16), given=None) -> dict[str, np.ndarray]:
    own = own.model_copy(update={"source": config.Source(labels=given or {})})
    build.prepare(own, folder, out, size)
    return made(out)


# Layouts


def test_voc_lists_decide_split_and_fold(tmp_path):
    for stem in "abcde":
        picture(tmp_path / f"VOC2007/JPEGImages/{stem}.jpg")
    for stem in "abc":
        mask(tmp_path / f"VOC2007/SegmentationClass/{stem}.png", halves(0, 1))
    lists = tmp_path / "VOC2007/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    for name, stems in {"train": "b", "val": "ca", "trainval": "abc", "test": "d"}.items():
        (lists / f"{name}.txt").write_text("\n".join(stems) + "\n")
    layout = layouts.find_samples(tmp_path)
    assert [(sample.id, sample.fold) for sample in layout.train] == [("a", 0), ("b", 1), ("c", 0)]
    assert [sample.id for sample in layout.test] == ["d"]
    assert [(odd.id, odd.finding) for odd in layout.odd] == [("e", "not listed")]
    (lists / "val.txt").write_text("c\nmissing\n")
    with pytest.raises(Refused, match=r"val\.txt: names missing"):
        layouts.find_samples(tmp_path)


def test_files_that_do_not_belong_are_named(tmp_path):
    picture(tmp_path / "images/a.jpg"), picture(tmp_path / "images/lonely.jpg")
    (
        mask(tmp_path / "annotations/trimaps/a.png", halves(1, 2)),
        mask(tmp_path / "annotations/trimaps/b.png", halves(1, 2)),
    )
    for name in ("images/a.mat", "images/Thumbs.db", "annotations/trimaps/._a.png"):
        (tmp_path / name).write_bytes(b"odd")
    layout = layouts.find_samples(tmp_path)
    assert [sample.id for sample in layout.train] == ["a"]
    assert {(odd.id, odd.finding) for odd in layout.odd} == {
        ("a.mat", "not a picture"),
        ("Thumbs.db", "not a picture"),
        ("._a.png", "not a picture"),
        ("lonely", "no mask"),
        ("b", "no picture"),
    }


@pytest.mark.parametrize(
    ("picture_at", "mask_at"),
    [
        ("images/x.jpg", "masks/x.png"),
        ("train-org-img/x.jpg", "train-label-img/x_lab.png"),
        ("train/x.jpg", "trainannot/x.png"),
        ("all/x.png", "all/x_mask.png"),
        ("cells/images/x.tif", "cells/ground truth/x-seg.gif"),
    ],
)
def test_pairs_by_folder_or_suffix(tmp_path, picture_at, mask_at):
    picture(tmp_path / picture_at), mask(tmp_path / mask_at, halves(0, 1))
    (sample,) = layouts.find_samples(tmp_path).train
    assert (sample.id, sample.picture, sample.mask) == ("x", tmp_path / picture_at, tmp_path / mask_at)


def test_folders_behind_links_are_read_once(tmp_path):
    pairs(tmp_path / "elsewhere")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("images", "masks", "test_images"):
        (source / name).symlink_to(tmp_path / "elsewhere" / name)
    (source / "again").symlink_to(source)
    layout = layouts.find_samples(source)
    assert [len(layout.train), len(layout.test), layout.odd] == [4, 4, []]


def test_ids_can_be_the_files_names(tmp_path):
    own = competition().model_copy(update={"source": config.Source(ids="name")})
    build.prepare(own, pairs(tmp_path / "source"), tmp_path / "own.npz", (16, 16))
    npz = made(tmp_path / "own.npz")
    assert npz["train_ids"].tolist()[:2] == ["p0.jpg", "p1.jpg"] and npz["test_ids"][0] == "t0.jpg"


def test_folders_named_val_are_a_given_fold(tmp_path):
    for split, stem in (("train", "a"), ("val", "b"), ("test", "c")):
        picture(tmp_path / split / f"images/{stem}.jpg"), mask(tmp_path / split / f"masks/{stem}.png", halves(0, 255))
    out = make(tmp_path, tmp_path / "own.npz", competition())
    assert out["train_folds"].tolist() == [1, 0] and out["train_folds"].dtype == np.int16
    assert out["test_masks"].shape == (1, 16, 16)


def test_ambiguous_layouts_are_refused(tmp_path):
    with pytest.raises(Refused, match="no such folder"):
        layouts.find_samples(tmp_path / "nowhere")
    picture(tmp_path / "images/a.jpg")
    with pytest.raises(Refused, match="no picture there has a mask"):
        layouts.find_samples(tmp_path)
    picture(tmp_path / "images/more/a.jpg")
    with pytest.raises(Refused, match="same stem"):
        layouts.find_samples(tmp_path)


# Mask codings


def read(paths: list[Path], classes=("background", "thing"), ignore=None, given=None):
    coding = mask_coding.detect_coding(paths, classes, ignore, given or {})
    return [mask_coding.read_mask(path, coding) for path in paths]


def test_binary_trimap_and_class_numbers(tmp_path):
    ((found, unknown),) = read([mask(tmp_path / "a.png", halves(0, 255))])
    assert (found == halves(0, 1)).all() and unknown == 0
    # The same values are background and void where 1 occurs in another file.
    first, second = read([tmp_path / "a.png", mask(tmp_path / "b.png", halves(0, 1))], ignore=255)
    assert (first[0] == halves(0, 255)).all() and (second[0] == halves(0, 1)).all()
    trimap = halves(1, 2)
    trimap[0] = 3
    ((found, _),) = read([mask(tmp_path / "t.png", trimap)], ignore=255)
    assert (found == np.array([9, 1, 0, 255], np.uint8)[trimap]).all()


def test_grey_levels_in_ascending_order(tmp_path):
    values = np.repeat([[0, 120, 240]], 6, axis=0)
    ((found, _),) = read([mask(tmp_path / "a.png", values)], classes=("a", "b", "c"))
    assert (found[0] == [0, 1, 2]).all()


def test_palette_indices_or_colours(tmp_path):
    red_green, green_red = [0, 0, 0, 255, 0, 0, 0, 255, 0], [0, 0, 0, 0, 255, 0, 255, 0, 0]
    one = mask(tmp_path / "one.png", halves(1, 2), palette=red_green)
    zero = mask(tmp_path / "zero.png", halves(0, 1), palette=red_green)
    (found, _), _ = read([one, zero], classes=("a", "b", "c"))
    assert (found == halves(1, 2)).all()
    # Another palette means that indices differ between files while colours do not.
    other = mask(tmp_path / "other.png", halves(2, 1), palette=green_red)
    (first, _), (second, _), _ = read([one, other, zero], classes=("a", "b", "c"))
    assert (first == second).all() and (first == halves(2, 1)).all()


def test_voc_colours(tmp_path):
    known = {0: 0x000000, 1: 0x800000, 2: 0x008000, 15: 0xC08080, 20: 0x004080, 255: 0xE0E0C0}  # from the VOC devkit
    assert {k: mask_coding.voc_colour(k) for k in known} == known
    rgb = np.array([[[0, 0, 0], [0xC0, 0x80, 0x80], [0xE0, 0xE0, 0xC0]]])
    ((found, _),) = read([mask(tmp_path / "a.png", rgb)], classes=tuple(map(str, range(21))), ignore=255)
    assert found.tolist() == [[0, 15, 255]]


def test_colours_found_or_given(tmp_path):
    rgb = np.zeros((4, 6, 3), np.uint8)
    rgb[:, :2], rgb[:, 2:4] = (60, 16, 152), (226, 169, 41)
    path = mask(tmp_path / "a.png", rgb)
    ((found, _),) = read([path], classes=("a", "b", "c"))
    assert found[0].tolist() == [1, 1, 2, 2, 0, 0]
    given = {"#3c1098": "c", "#e2a929": "a", "0": "ignore"}
    ((found, _),) = read([path], classes=("a", "b", "c"), ignore=9, given=given)
    assert found[0].tolist() == [2, 2, 0, 0, 9, 9]
    with pytest.raises(Refused, match=r'3 colours for 2 classes.*"#3c1098" = "…"'):
        read([path])


def test_anti_aliased_masks_take_the_nearest_code(tmp_path):
    soft = Image.fromarray(halves(0, 255, (30, 40))).rotate(20).resize((37, 29), Image.Resampling.BICUBIC)
    soft.save(tmp_path / "a.png")
    ((found, unknown),) = read([tmp_path / "a.png"], ignore=255)
    grey = np.asarray(soft)
    assert 0 < unknown < 0.25 and unknown == (found == 255).mean()
    assert (
        (found[grey < 40] == 0).all()
        and (found[grey > 215] == 1).all()
        and (found[abs(grey - 128.0) < 60] == 255).all()
    )
    with pytest.raises(Refused, match=r"set arrays\.ignore"):
        read([tmp_path / "a.png"])


def test_jpeg_colours_are_read_by_the_nearest(tmp_path):
    rgb = np.zeros((32, 64, 3), np.uint8)
    rgb[:, 32:] = (200, 30, 30)
    Image.fromarray(rgb).save(tmp_path / "a.jpg", quality=80)
    given = {"#000000": "background", "#c81e1e": "thing"}
    ((found, unknown),) = read([tmp_path / "a.jpg"], ignore=255, given=given)
    assert unknown < 0.05 and (found == halves(0, 1, (32, 64)))[found != 255].all()


@pytest.mark.parametrize(
    ("values", "classes", "given", "message"),
    [
        (halves(0, 7), ("a", "b", "c"), {"0": "a", "1": "b", "2": "c"}, r"a\.png: 50.0% .* of no class, such as 7"),
        (halves(3, 9), ("a", "b"), {}, r'2 values for 2 classes.*"3" = "…"'),
        (halves(0, 255), ("a", "b", "c"), {}, r"if 255 is void, arrays\.ignore = 255"),
        (halves(0, 1), ("a", "b"), {"0": "a", "1": "tree"}, r"source\.labels\.1: no class 'tree'"),
        (halves(0, 1), ("a", "b"), {"0": "ignore"}, r"arrays\.ignore is not set"),
        (halves(0, 1), ("a", "b"), {"red": "a"}, r"'red' is neither a value"),
    ],
)
def test_codings_that_do_not_fit_are_refused(tmp_path, values, classes, given, message):
    with pytest.raises(Refused, match=message):
        read([mask(tmp_path / "a.png", values)], classes=classes, given=given)


# Picture files


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "CMYK", "LA"])
def test_every_kind_of_picture_becomes_rgb(tmp_path, mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    path = picture(tmp_path / "a.jpg", mode=mode, format=kind)
    found = np.asarray(decode.read_image(path, turn=False))
    assert found.shape == (20, 30, 3) and found.dtype == np.uint8
    assert (found == np.asarray(Image.open(path).convert("RGB"))).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.array([[0, 256, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(decode.read_image(tmp_path / "a.png", turn=False))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_twelve_bits_in_sixteen_are_not_taken_for_the_dark(tmp_path):
    paths = [tmp_path / f"{k}.png" for k in range(2)]
    for path, peak in zip(paths, (300, 4000), strict=True):
        Image.fromarray(np.full((2, 2), peak, np.uint16)).save(path)
    assert decode.find_depth(paths) == 12
    assert [np.asarray(decode.read_image(path, False, 12))[0, 0, 0] for path in paths] == [300 >> 4, 4000 >> 4]


def test_files_that_cannot_be_read_are_named(tmp_path):
    folder = pairs(tmp_path / "source")
    broken = folder / "images/p2.jpg"
    broken.write_bytes(broken.read_bytes()[:-100])
    with pytest.raises(Refused, match=r"p2\.jpg: cannot be read as a picture"):
        make(folder, tmp_path / "own.npz", competition())
    broken.write_text("no picture at all")
    with pytest.raises(Refused, match=r"p2\.jpg: cannot be read as a picture"):
        make(folder, tmp_path / "own.npz", competition())
    assert not (tmp_path / "own.npz").exists()


@pytest.mark.parametrize("upright", [True, False])
def test_orientation_follows_the_masks(tmp_path, upright):
    exif = Image.Exif()
    exif[274] = 6  # seen upright when turned clockwise by a quarter
    size = (20, 30)
    for name in ("images/a.png", "test/t.png"):
        picture(tmp_path / name, size, exif=exif)
    mask(tmp_path / "masks/a.png", halves(0, 255, size[::-1] if upright else size))
    out = make(tmp_path, tmp_path / "own.npz", competition(), size=(32, 32))
    expected = size[::-1] if upright else size
    assert tuple(out["train_sizes"][0]) == tuple(out["test_sizes"][0]) == expected
    stored = np.asarray(Image.open(tmp_path / "images/a.png").resize((32, 32), Image.Resampling.BILINEAR))
    difference = abs(out["train_images"][0].astype(int) - (np.rot90(stored, -1) if upright else stored))
    assert difference.mean() < 2


def test_a_mask_of_another_size_is_refused(tmp_path):
    folder = pairs(tmp_path / "source")
    mask(folder / "masks/p1.png", halves(0, 255, (10, 30)))
    with pytest.raises(Refused, match=r"p1\.png: is 10×30, its picture 20×30"):
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
    assert not list((tmp_path / "input").glob(".own.parts*"))


def test_letterbox_anchors_top_left_and_ignores_the_padding(tmp_path):
    folder = pairs(tmp_path / "source", size=(20, 40))
    out = make(folder, tmp_path / "own.npz", competition(fit="letterbox", ignore=255))
    assert arrays.fitted_size((20, 40), (16, 16), "letterbox") == (8, 16)
    assert (out["train_masks"][:, :8] == halves(0, 1, (8, 16))).all() and (out["train_masks"][:, 8:] == 255).all()
    assert (out["train_images"][:, 8:] == 0).all() and (out["train_images"][:, :8] > 0).any()
    with pytest.raises(Refused, match=r"set arrays\.ignore = 255"):
        make(folder, tmp_path / "other.npz", competition(fit="letterbox"))


def test_near_duplicates_become_a_group(tmp_path):
    folder = pairs(tmp_path / "source", size=(64, 64))
    again = Image.open(folder / "images/p1.jpg").resize((50, 50))
    again.save(folder / "images/p3.jpg", quality=70)
    mask(folder / "masks/p3.png", halves(0, 255, (50, 50)))
    assert make(folder, tmp_path / "own.npz", competition())["train_groups"].tolist() == ["", "p1", "", "p1"]


def test_the_same_command_twice_changes_nothing_and_another_is_refused(tmp_path, capsys):
    folder, out = pairs(tmp_path / "source"), tmp_path / "own.npz"
    make(folder, out, competition())
    before = out.read_bytes()
    make(folder, out, competition())
    assert capsys.readouterr().out.endswith("was made of these pictures already; delete it to make it anew\n")
    with pytest.raises(Refused, match="move it away"):
        make(folder, out, competition(), size=(8, 8))
    (folder / "images/p0.jpg").write_bytes((folder / "images/p1.jpg").read_bytes())
    with pytest.raises(Refused, match="move it away"):
        make(folder, out, competition())
    assert out.read_bytes() == before


@pytest.mark.parametrize("killed_after", [0, 1, 5, 6, 7])
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, killed_after):
    folder, own = pairs(tmp_path / "source"), competition()
    monkeypatch.setattr(build, "BLOCK", 2 * 16 * 16 * 4)
    monkeypatch.setattr(build, "_workers", lambda: 1)
    make(folder, tmp_path / "whole.npz", own)
    reads: list[str] = []
    read_picture = decode.read_image

    def dying(path, *how):
        if len(reads) == killed_after:
            raise KeyboardInterrupt
        reads.append(path.stem)
        return read_picture(path, *how)

    monkeypatch.setattr(decode, "read_image", dying)
    with pytest.raises(KeyboardInterrupt):
        make(folder, tmp_path / "own.npz", own)
    assert not (tmp_path / "own.npz").exists()
    killed_after, first = -1, list(reads)
    reads.clear()
    make(folder, tmp_path / "own.npz", own)
    kept = len(first) // 2 * 2
    assert reads == [*(f"p{k}" for k in range(4)), *(f"t{k}" for k in range(4))][kept:]
    assert (tmp_path / "own.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_changed_file_is_read_again_after_an_interruption(tmp_path, monkeypatch):
    folder, own = pairs(tmp_path / "source"), competition()
    monkeypatch.setattr(build, "BLOCK", 2 * 16 * 16 * 4)
    broken = folder / "images/p3.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[:-100])
    with pytest.raises(Refused, match=r"p3\.jpg"):
        make(folder, tmp_path / "own.npz", own)
    assert len(list((tmp_path / ".own.parts").glob("*.npz"))) == 1  # of two pictures
    broken.write_bytes(good)
    picture(folder / "images/p0.jpg")
    out = make(folder, tmp_path / "own.npz", own)
    assert (
        out["train_images"][0]
        == decode.place_image(decode.read_image(folder / "images/p0.jpg", False), (16, 16), "stretch")
    ).all()


def test_a_block_that_a_crash_of_the_machine_cut_short_is_read_again(tmp_path, monkeypatch):
    folder, own = pairs(tmp_path / "source"), competition()
    monkeypatch.setattr(build, "BLOCK", 2 * 16 * 16 * 4)
    whole = make(folder, tmp_path / "whole.npz", own)
    broken = folder / "images/p3.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[:-100])
    with pytest.raises(Refused, match=r"p3\.jpg"):
        make(folder, tmp_path / "own.npz", own)
    (block,) = (tmp_path / ".own.parts").glob("*.npz")
    block.write_bytes(block.read_bytes()[:-100])
    broken.write_bytes(good)
    assert (make(folder, tmp_path / "own.npz", own)["train_images"] == whole["train_images"]).all()


def test_what_was_odd_about_the_files_is_kept(tmp_path):
    folder = pairs(tmp_path / "source")
    picture(folder / "images/p1.jpg", mode="P", format="GIF")
    (folder / "images/notes.mat").write_bytes(b"")
    ramp = np.tile(np.linspace(0, 255, 30).round() // 20 * 20, (20, 1))
    mask(folder / "masks/p2.png", np.where((ramp > 30) & (ramp < 220), np.where(ramp == 100, 100, 0), ramp))
    for k in (0, 1, 3):
        mask(folder / f"masks/p{k}.png", np.arange(600).reshape(20, 30) % 20)
    make(folder, tmp_path / "own.npz", competition(ignore=255))
    found = build.stored_findings(tmp_path / "own.npz")
    assert [(odd.id, odd.finding, odd.detail) for odd in found] == [
        ("notes.mat", "not a picture", "images"),
        ("p1", "unusual file", "GIF, P, named .jpg"),
        ("p2", "unclear mask", "6.67% of the pixels ignored"),
    ]
    with zipfile.ZipFile(tmp_path / "own.npz") as archive:
        assert archive.testzip() is None
