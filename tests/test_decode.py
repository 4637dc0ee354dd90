"""Image and mask files of any depth, band and kind, and the rule by which deep values become uint8."""

import cv2
import numpy as np
import pytest
from drawn import competition, discs, image, prepare, save
from PIL import Image

from comp import files
from comp.errors import Refused
from comp.prepare import build, decode, masks

RANDOM = np.random.default_rng(0)
VALUES = RANDOM.integers(0, 4096, (20, 30, 3)).astype(np.uint16)
FLOATS = RANDOM.random((20, 30, 7)).astype(np.float32)


def read_mask(path, classes=("rest", "thing")):
    return masks.read_mask(path, masks.detect_coding([path], classes, None, {}))


@pytest.mark.parametrize("photometric", ["miniswhite", "minisblack"])
def test_bool_tiffs_hold_what_was_written(tmp_path, photometric):
    mask = discs(0)[0]
    path = save(tmp_path / "a.tif", mask, photometric=photometric)
    assert (read_mask(path) == mask).all()
    grey = save(tmp_path / "b.tif", mask * np.uint8(255), photometric=photometric)
    assert (read_mask(grey) == mask).all()


@pytest.mark.parametrize(
    "values",
    [
        discs(0)[0],
        discs(0)[0] * np.uint8(255),
        discs(0)[0] * np.uint16(65535),
        discs(0)[0] * np.int64(1),
        discs(0)[0] * np.float32(1),
        discs(0)[0][..., None] * np.uint8(1),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_binary_masks_of_every_dtype(tmp_path, values, suffix):
    assert (read_mask(save(tmp_path / f"a{suffix}", values)) == discs(0)[0]).all()


def test_the_header_of_a_bool_array_reads_no_pixels(tmp_path, monkeypatch):
    save(tmp_path / "a.npy", discs(0)[0])
    monkeypatch.setattr(np.memmap, "__mul__", None)
    header = decode.read_header(tmp_path / "a.npy")
    assert (header.size, header.channels, header.deep) == (discs(0)[0].shape, 1, False)


@pytest.mark.parametrize("value", [0.9, np.nan, -1])
@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_masks_of_fractions_are_refused(tmp_path, suffix, value):
    path = save(tmp_path / f"a{suffix}", np.where(discs(0)[0], value, 0).astype(np.float32))
    with pytest.raises(Refused, match="holds fractions, NaN or values beyond"):
        read_mask(path)


def test_masks_of_several_bands_are_refused(tmp_path):
    with pytest.raises(Refused, match="a mask of 7 bands of float32; one band would fit"):
        read_mask(save(tmp_path / "a.npy", FLOATS))


@pytest.mark.parametrize("name", ["a.png", "b.png", "c.tif", "d.ppm"])
def test_colours_of_16_bits_keep_their_lower_bits(tmp_path, name):
    """Pillow keeps the upper eight, which of 12 bits in use leaves 0 to 15."""
    path = tmp_path / name
    if name == "c.tif":
        save(path, VALUES)
    else:
        alpha = np.full((20, 30, 1), 65535, np.uint16)
        cv2.imwrite(str(path), np.dstack([VALUES[..., ::-1], alpha] if name == "b.png" else [VALUES[..., ::-1]]))
    assert decode.read_header(path) == decode.Header((20, 30), 3, True)
    assert (decode.read_image(path) == VALUES).all()


@pytest.mark.parametrize(
    ("name", "values", "options"),
    [
        ("first.npy", np.moveaxis(FLOATS, -1, 0), {}),
        ("last.npy", FLOATS, {}),
        ("pages.tif", np.moveaxis(FLOATS, -1, 0), {}),
        ("samples.tif", FLOATS, {"planarconfig": "contig"}),
        ("planes.tif", np.moveaxis(FLOATS, -1, 0), {"planarconfig": "separate"}),
        ("plain.tif", FLOATS, {}),  # as imwrite takes it, 20 pages of 30×7
        ("deflated.tif", FLOATS, {"planarconfig": "contig", "compression": "zlib"}),
    ],
)
def test_bands_of_npy_and_tiff(tmp_path, name, values, options):
    path = save(tmp_path / name, values, **options)
    assert decode.read_header(path) == decode.Header((20, 30), 7, True)
    assert (decode.read_image(path) == FLOATS).all()


def test_a_fourth_band_is_not_taken_for_transparency(tmp_path):
    values = image(0, channels=4)
    infrared = save(tmp_path / "nir.tif", values, photometric="rgb", extrasamples=["unspecified"])
    assert (decode.read_image(infrared) == values).all()
    transparent = save(tmp_path / "alpha.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    assert decode.read_image(transparent).shape == (16, 16, 3)
    deep = save(tmp_path / "deep.tif", values.astype(np.uint16), photometric="rgb", extrasamples=["unassalpha"])
    assert (decode.read_image(deep) == values[..., :3]).all()


def test_compressed_tiffs_need_no_further_package(tmp_path):
    grey, colours = tmp_path / "grey.tif", tmp_path / "colours.tif"
    Image.fromarray(VALUES[..., 0]).save(grey, compression="tiff_lzw")
    cv2.imwrite(str(colours), VALUES[..., ::-1])  # LZW, too
    assert (decode.read_image(grey)[..., 0] == VALUES[..., 0]).all()
    assert (decode.read_image(colours) == VALUES).all()


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("a.npy", np.zeros((20, 30, 40)), "an image of 1 to 16 bands"),
        ("a.npy", np.zeros(5), "an image of 1 to 16 bands"),
        ("a.npy", np.zeros((4, 0)), "an image of 1 to 16 bands"),
        ("a.npy", np.array([["a"]]), "holds <U1; numbers would fit"),
        ("a.tif", np.zeros((40, 20, 30), np.uint16), "an image of 1 to 16 bands"),
        ("a.tif", np.zeros((5, 20, 30, 3), np.uint16), "an image of 1 to 16 bands"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, name, values, problem):
    path = save(tmp_path / name, values)
    for read in (decode.read_header, decode.read_image, decode.read_mask_values):
        with pytest.raises(Refused, match=problem):
            read(path)


@pytest.mark.parametrize("name", ["a.npy", "a.tif", "a.png"])
def test_damaged_files_are_named(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"II*\0 no image")
    for read in (decode.read_header, decode.read_image, decode.read_mask_values):
        with pytest.raises(Refused, match=f"{name}: cannot be read as an image"):
            read(path)


# Scaling


def download(folder, values, suffix=".tif", low=None, high=None):
    """Eight training images of these values, times k, and as many masks; `low` and `high` go into the last."""
    for k in range(8):
        pixels = values * np.asarray((k + 1) / 8).astype(values.dtype if values.dtype.kind == "f" else float)
        pixels = pixels.astype(values.dtype)
        if k == 7:
            pixels[0, 0] = pixels[0, 0] if low is None else low
            pixels[0, 1] = pixels[0, 1] if high is None else high
        save(folder / f"images/{k}{suffix}", pixels)
        save(folder / f"masks/{k}.png", discs(k)[0] * np.uint8(255))
    return folder


PATTERNS = {"images": "images/{id}.*", "masks": "masks/{id}.png", "test": "test/{id}.*"}


@pytest.mark.parametrize("values, wrong, right", [
    (np.arange(256).reshape(16, 16).astype(np.uint8), [0.0, 1.0], [0.0, 255.0]),
    (np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16), [0.0, 65535.0], [0.0, 1.0]),
    (np.linspace(-1000, 1000, 256, dtype=np.float32).reshape(16, 16), [2000.0, 3000.0], [-160.0, 240.0]),
])  # fmt: skip
def test_a_range_that_leaves_nothing_of_the_images_is_refused(tmp_path, values, wrong, right):
    for name in "ab":
        (tmp_path / "own/images").mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / f"own/images/{name}.npy", values)
        save(tmp_path / f"own/masks/{name}.png", discs(0, (16, 16))[0] * np.uint8(255))
    paths = {"images": "images/{id}.npy", "masks": "masks/{id}.png"}
    with pytest.raises(Refused, match=r"source\.range: from .* would leave little of the images: channel 0 holds"):
        prepare(tmp_path / "own", competition(range=wrong, **paths))
    assert len(np.unique(prepare(tmp_path / "own", competition(range=right, **paths))["train_images"])) > 20


def test_a_range_is_for_all_bands_or_for_each(tmp_path):
    values = np.repeat(np.array([0, 500, 1000, 4000], np.int16)[:, None], 16, axis=1).repeat(4, axis=0)
    folder = download(tmp_path / "a", np.stack([values, values * 2], axis=-1), suffix=".npy")
    save(folder / "test/t.npy", np.stack([values, values * 2], axis=-1))
    out = prepare(folder, competition(range=[0.0, 1000.0], **PATTERNS))
    assert out["test_images"].shape == (1, 16, 16, 2)
    assert out["test_images"][0, ::4, 0].tolist() == [[0, 0], [128, 255], [255, 255], [255, 255]]
    out = prepare(folder, competition(range=[[0.0, 1000.0], [0.0, 2000.0]], **PATTERNS), "each.npz")
    assert (out["test_images"][..., 0] == out["test_images"][..., 1]).all()
    with pytest.raises(Refused, match=r"source\.range: 3 ranges; the images have 2 channels"):
        prepare(folder, competition(range=[[0.0, 1.0]] * 3, **PATTERNS), "other.npz")
    with pytest.raises(Refused, match="the first must be the lower one"):
        prepare(folder, competition(range=[5.0, 5.0], **PATTERNS), "other.npz")


def test_percentiles_of_the_training_images_scale_the_hidden_ones(tmp_path, monkeypatch):
    folder = download(tmp_path / "input/own", FLOATS[:16, :16] * 100, suffix=".npy")
    save(folder / "test/t.npy", FLOATS[:16, :16] * 50)
    own = competition({"kaggle": "own"}, range="percentiles", **PATTERNS)
    build.prepare(own, folder, tmp_path / "place/own.npz", (16, 16))
    with np.load(tmp_path / "place/own.npz") as file:
        out = dict(file)
    every = np.concatenate([np.load(folder / f"images/{k}.npy").reshape(-1, 7) for k in range(8)])
    low, high = np.percentile(every.astype(float), (0.5, 99.5), axis=0)
    expected = ((FLOATS[:16, :16] * 50 - low) / (high - low) * 255).round().clip(0, 255)
    assert abs(out["test_images"][0] - expected).max() <= 1
    # Hidden images of other values are scaled as those were.
    save(folder / "test/t.npy", FLOATS[:16, :16] * 10)
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "input")
    with np.load(build.prepare_hidden_test(own, tmp_path / "place") / "own.npz") as file:
        hidden = file["test_images"][0]
    assert abs(hidden - ((FLOATS[:16, :16] * 10 - low) / (high - low) * 255).round().clip(0, 255)).max() <= 1


def test_what_is_not_finite_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "LOOKED_AT", 4)  # every other one, but not the last
    folder = download(tmp_path / "a", FLOATS[:16, :16], suffix=".npy", low=np.nan)
    with pytest.raises(Refused, match="NaN or infinite"):
        prepare(folder, competition(**PATTERNS | {"test": ""}, range=[0.0, 1.0]))
    assert not (tmp_path / "own.npz").exists()


def test_grey_and_colours_mix_other_channels_do_not(tmp_path):
    folder = tmp_path / "a"
    for k, channels in enumerate((0, 3)):
        save(folder / f"images/{k}.png", image(k, channels=channels))
        save(folder / f"masks/{k}.png", discs(k)[0] * np.uint8(255))
    out = prepare(folder, competition(**PATTERNS | {"test": ""}))
    assert (out["train_images"][0] == image(0, channels=0)[..., None]).all() and out["train_images"].shape[3] == 3
    (folder / "images/1.png").unlink()
    grey = prepare(folder, competition(**PATTERNS | {"test": ""}), "grey.npz")
    assert (grey["train_images"][0, ..., 0] == image(0, channels=0)).all() and grey["train_images"].shape[3] == 1
    save(folder / "images/1.npy", image(1, channels=4))
    with pytest.raises(Refused, match=r"1\.npy: 1 has 4 channels, the other images 1"):
        prepare(folder, competition(**PATTERNS | {"test": ""}), "other.npz")
