"""The competitions that ship: drawn downloads under their own file names become arrays, and hidden images, too."""

import base64
import csv
import io
import json
import zipfile
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import image, save
from PIL import Image

from comp import config, files
from comp.data import arrays
from comp.model import metrics
from comp.prepare import build
from comp.submission.check import check_submission
from comp.submission.runlength import encode_runs
from comp.submission.write import open_writer

SIZE = (24, 32)
NASA = "nasa_rwanda_field_boundary_competition"
PLANET = [f"2021_{month}/B0{band}" for month in ("03", "04", "08", "11") for band in range(1, 5)]
# Of each competition: the names of images' files (a list where there are several bands), the ids that the submission
# has, the groups where they matter, and a hidden image with its id.
LAYOUTS = {
    "tgs-salt": (
        {"000e218f21": "train/images/000e218f21.png", "003c477d7c": "train/images/003c477d7c.png"},
        ("0005bb9630", "test/images/0005bb9630.png"),
    ),
    "dsb2018": (
        {f"{k}@0,0": f"stage1_train/{k}/images/{k}.png" for k in ("00071198d0", "0121d6759c")},
        ("0287e7ee5b", "stage1_test/0287e7ee5b/images/0287e7ee5b.png"),
    ),
    "carvana": (
        {"00087a6bd4dc_01.jpg": "train/00087a6bd4dc_01.jpg", "00087a6bd4dc_02.jpg": "train/00087a6bd4dc_02.jpg"},
        ("0004d4463b50_01.jpg", "test/0004d4463b50_01.jpg"),
    ),
    "airbus": (
        {"00003e153.jpg": "train_v2/00003e153.jpg", "000155de5.jpg": "train_v2/000155de5.jpg"},
        ("00002bd58.jpg", "test_v2/00002bd58.jpg"),
    ),
    "sartorius": (
        {k: f"train/{k}.png" for k in ("0030fd0e6378", "0140b3c8f445")},
        ("7ae19de7bc2a", "test/7ae19de7bc2a.png"),
    ),
    "deepglobe": (
        {"119": "train/119_sat.jpg", "10452": "train/10452_sat.jpg"},
        ("100877", "valid/100877_sat.jpg"),
    ),
    "severstal": (
        {"0002cc93b.jpg": "train_images/0002cc93b.jpg", "00031f466.jpg": "train_images/00031f466.jpg"},
        ("0000f269f.jpg", "test_images/0000f269f.jpg"),
    ),
    "clouds": (
        {"0011165.jpg": "train_images/0011165.jpg", "002be4f.jpg": "train_images/002be4f.jpg"},
        ("002f507.jpg", "test_images/002f507.jpg"),
    ),
    "on-cloud-n": (
        {k: [f"train_features/{k}/{band}.tif" for band in ("B02", "B03", "B04", "B08")] for k in ("adwp", "adwu")},
        None,
    ),
    "uw-madison": (
        {
            "case123_day20_slice_0001": "train/case123/case123_day20/scans/slice_0001_266_266_1.50_1.50.png",
            "case123_day20_slice_0002": "train/case123/case123_day20/scans/slice_0002_266_266_1.50_1.50.png",
        },
        ("case3_day4_slice_0001", "test/case3/case3_day4/scans/slice_0001_266_266_1.50_1.50.png"),
    ),
    "hubmap-organs": (
        {"10044": "train_images/10044.tiff", "10274": "train_images/10274.tiff"},
        ("10078", "test_images/10078.tiff"),
    ),
    "contrails": (
        {
            "1000216489776414077": [f"validation/1000216489776414077/band_{k:02}.npy" for k in range(8, 17)],
            "1704010292581573769": [f"train/1704010292581573769/band_{k:02}.npy" for k in range(8, 17)],
        },
        ("1002653297254493116", [f"test/1002653297254493116/band_{k:02}.npy" for k in range(8, 17)]),
    ),
    "sennet": (
        {f"{k}_{n}": f"train/{k}/images/{n}.tif" for k, n in (("kidney_1_dense", "0000"), ("kidney_2", "0110"))},
        ("kidney_5_0000", "test/kidney_5/images/0000.tif"),
    ),
    "kelp": (
        {"AA498489": "train_satellite/AA498489_satellite.tif", "AG629689": "train_satellite/AG629689_satellite.tif"},
        ("AI624241", "test_satellite/AI624241_satellite.tif"),
    ),
    "skin": (
        {f"{k}_segmentation": f"Train/Train/Image/{k}.jpg" for k in ("ISIC_0000000", "ISIC_0000001")},
        ("ISIC_0012169_segmentation", "Test/Test/Image/ISIC_0012169.jpg"),
    ),
    "nasa-harvest": (
        {f"Tile{k}": [f"x/{NASA}_source_train/{NASA}_source_train_{k}_{b}.tif" for b in PLANET] for k in ("00", "07")},
        ("Tile11", [f"x/{NASA}_source_test/{NASA}_source_test_11_{b}.tif" for b in PLANET]),
    ),
    "siim": (
        {k: f"dicom-images-train/{k}.1/{k}.2/{k}.dcm" for k in ("1.2.276.8323329.1000", "1.2.276.8323329.10001")},
        ("1.2.276.8323329.580", "dicom-images-test/1.1/1.2/1.2.276.8323329.580.dcm"),
    ),
    "landslide4sense": (
        {k: f"TrainData/img/image_{k}.h5" for k in ("1", "10")},
        ("1", "TestData/img/image_1.h5"),
    ),
    "hubmap-kidney": (
        {"0486052bb@0,0": "train/0486052bb.tiff", "26dc41664@0,0": "train/26dc41664.tiff"},
        ("b9a3865fc", "test/b9a3865fc.tiff"),
    ),
    "vesuvius-ink": (
        {f"{k}@0,0": [f"train/{k}/surface_volume/{n:02}.tif" for n in range(65)] for k in "12"},
        ("a", [f"test/a/surface_volume/{n:02}.tif" for n in range(65)]),
    ),
    "xview2": (
        {k: [f"train/images/{k}_{when}_disaster.png" for when in ("pre", "post")] for k in ("nepal_01", "x_00000002")},
        ("00000", [f"test/images/test_{when}_00000.png" for when in ("pre", "post")]),
    ),
    "cags": (
        {k: f"cags.{k.partition('-')[0]}.tfrecord" for k in ("dev-00000", "train-00000")},
        ("test-00000", "cags.test.tfrecord"),
    ),
    "recodai": (
        {"10138-forged": "train_images/forged/10138.png", "10147-forged": "train_images/forged/10147.png"},
        ("45", "test_images/45.png"),
    ),
    "hubmap-vessels": (
        {k: f"train/{k}.tif" for k in ("0006ff2aa7cd", "00168d1b7522")},
        ("72e40acccadf", "test/72e40acccadf.tif"),
    ),
    "dfc2025": (
        {k: f"train/sar_images/{k}.tif" for k in ("TrainArea_0001", "TrainArea_0002")},
        ("ValArea_001", "val/sar_images/ValArea_001.tif"),
    ),
}  # fmt: skip
GROUPS = {
    "carvana": ["00087a6bd4dc"] * 2,
    "dsb2018": ["0121d6759c", "00071198d0"],
    "on-cloud-n": ["Chifunfu", "Lagos"],
    "uw-madison": ["case123"] * 2,
    "sennet": ["kidney_1_dense", "kidney_2"],
    "hubmap-kidney": ["26dc41664", "0486052bb"],  # by number
    "vesuvius-ink": ["1", "2"],
    "recodai": ["10138", "10147"],
}
CHANNELS = {"on-cloud-n": 4, "kelp": 7, "uw-madison": 1, "sennet": 1, "dfc2025": 1, "sartorius": 1}
CHANNELS |= {"nasa-harvest": 16, "siim": 1, "landslide4sense": 14, "vesuvius-ink": 16, "xview2": 6}
# Rows of one image; the halves of an object are two where there is a border.
ROWS = {"image": 1, "instance": 1, "pixel": SIZE[0] * SIZE[1]}


def draw(name, number, bright):
    """The values of one image's file, brighter where `bright` is."""
    base = np.where(bright, 200, 40) + image(number, SIZE, 0) // 8
    if name == "contrails":
        return np.repeat(243 + base[..., None] / np.float32(5), 8, axis=-1)
    if name in ("on-cloud-n", "uw-madison", "sennet", "nasa-harvest", "vesuvius-ink"):
        return base.astype(np.uint16) * 100
    if name == "siim":
        return base.astype(np.uint8)
    if name == "landslide4sense":
        return np.repeat(base[..., None] / np.float32(100), 14, axis=-1)
    if name == "xview2":
        return np.repeat(base[..., None], 3, axis=-1).astype(np.uint8)
    if name == "kelp":
        return np.repeat(base[..., None], 7, axis=-1).astype(np.int16) * 40 - 500
    return base.astype(np.uint8) if name in CHANNELS else np.repeat(base[..., None], 3, axis=-1).astype(np.uint8)


def save_images(folder, name, paths, number, bright):
    for path in [paths] if isinstance(paths, str) else paths:
        options = {"planarconfig": "contig"} if name == "kelp" else {}
        target = folder / path
        if own := {".dcm": save_dicom, ".h5": save_h5, ".tfrecord": save_record}.get(target.suffix):
            target.parent.mkdir(parents=True, exist_ok=True)
            own(target, draw(name, number, bright))
            continue
        save(target if target.suffix != ".tiff" else target.with_suffix(".tif"), draw(name, number, bright), **options)
        if target.suffix == ".tiff":
            target.with_suffix(".tif").rename(target)


def save_dicom(path, pixels):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = pydicom.uid.SecondaryCaptureImageStorage, path.stem
    file.set_pixel_data(pixels, "MONOCHROME2", 8)
    file.save_as(path, enforce_file_format=True)


def save_h5(path, values, key="img"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.importorskip("h5py").File(path, "w") as file:
        file[key] = values


def save_record(path, pixels, mask=None):
    """A TFRecord of one tf.train.Example, by the rules of its format: https://protobuf.dev/programming-guides/encoding."""

    def message(number, data):
        size, length = len(data), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + data

    def png(values):
        data = io.BytesIO()
        Image.fromarray(values).save(data, "PNG")
        return data.getvalue()

    values = {"mask": png(np.zeros(SIZE, np.uint8) if mask is None else mask), "image": png(pixels)}
    features = {key: message(1, message(1, value)) for key, value in values.items()}
    features["label"] = message(3, message(1, b"\1"))  # a list of int64
    entries = [message(1, message(1, key.encode()) + message(2, value)) for key, value in features.items()]
    example = message(1, b"".join(entries))
    path.write_bytes(len(example).to_bytes(8, "little") + b"head" + example + b"tail")


def table(folder, file, *rows):
    with open(folder / file, "w", newline="") as opened:
        csv.writer(opened).writerows(rows)


def save_masks(folder, name, ids, masks):
    """Masks bool (N, classes - 1, H, W) as this competition has them."""
    order = "row" if name in ("uw-madison", "sartorius") else "column"
    texts = [encode_runs(mask, order) for mask in masks]
    any_class = masks.any(axis=1)
    match name:
        case "tgs-salt":
            for id, mask in zip(ids, any_class, strict=True):
                save(folder / f"train/masks/{id}.png", mask * np.uint16(65535))
        case "dsb2018":
            for id, mask in zip(ids, any_class, strict=True):
                for k in range(2):  # left and right, an object each
                    half = mask & (np.arange(SIZE[1]) // (SIZE[1] // 2) == k)
                    save(folder / f"stage1_train/{id.partition('@')[0]}/masks/{k}.png", half * np.uint8(255))
        case "carvana":
            for id, mask in zip(ids, any_class, strict=True):
                save(folder / f"train_masks/{id[:-4]}_mask.gif", mask * np.uint8(255))
        case "airbus":
            rows = [(id, text[0]) for id, text in zip(ids, texts, strict=True)]
            table(folder, "train_ship_segmentations_v2.csv", ("ImageId", "EncodedPixels"), *rows)
        case "sartorius":
            halves = [[mask & (np.arange(SIZE[1]) // (SIZE[1] // 2) == k) for k in range(2)] for mask in any_class]
            rows = [
                (id, t, "astro") for id, two in zip(ids, halves, strict=True) for t in encode_runs(np.array(two), order)
            ]
            table(folder, "train.csv", ("id", "annotation", "cell_type"), *rows)
        case "deepglobe":
            colours = np.array([[0, 255, 255], [255, 255, 0], [255, 0, 255], [0, 255, 0], [0, 0, 255], [255] * 3])
            for id, labels in zip(ids, exclusive(masks), strict=True):
                save(folder / f"train/{id}_mask.png", colours[labels].astype(np.uint8))
        case "severstal":
            rows = [(id, k, t) for id, text in zip(ids, texts, strict=True) for k, t in enumerate(text, 1) if t]
            table(folder, "train.csv", ("ImageId", "ClassId", "EncodedPixels"), *rows)
        case "clouds":
            names = ("Fish", "Flower", "Gravel", "Sugar")
            rows = [
                (f"{id}_{n}", t) for id, text in zip(ids, texts, strict=True) for n, t in zip(names, text, strict=True)
            ]
            table(folder, "train.csv", ("Image_Label", "EncodedPixels"), *rows)
        case "on-cloud-n":
            for id, mask in zip(ids, any_class, strict=True):
                save(folder / f"train_labels/{id}.tif", mask.astype(np.uint8))
            rows = [(id, place, "2020-01-01") for id, place in zip(ids, GROUPS[name], strict=True)]
            table(folder, "train_metadata.csv", ("chip_id", "location", "datetime"), *rows)
        case "uw-madison":
            names = ("large_bowel", "small_bowel", "stomach")
            rows = [(id, n, t) for id, text in zip(ids, texts, strict=True) for n, t in zip(names, text, strict=True)]
            table(folder, "train.csv", ("id", "class", "segmentation"), *rows)
        case "hubmap-organs":
            rows = [(id, "lung", text[0]) for id, text in zip(ids, texts, strict=True)]
            table(folder, "train.csv", ("id", "organ", "rle"), *rows)
        case "contrails":
            for (id, paths), mask in zip(LAYOUTS[name][0].items(), any_class, strict=True):
                place = (folder / paths[0]).parent
                assert place.name == id
                save(place / "human_pixel_masks.npy", mask[..., None].astype(np.int32))
                if "train" in paths[0]:  # three of four annotators saw it
                    save(place / "human_individual_masks.npy", mask[..., None, None] * np.array([1, 0, 1, 1], np.int32))
        case "sennet":
            for id, mask in zip(ids, any_class, strict=True):
                kidney, _, n = id.rpartition("_")
                save(folder / f"train/{kidney}/labels/{n}.tif", mask * np.uint8(255))
        case "skin":
            for id, mask in zip(ids, any_class, strict=True):
                save(folder / f"Train/Train/Mask/{id}.png", mask * np.uint8(255))
        case "nasa-harvest":
            for id, mask in zip(ids, any_class, strict=True):
                place = folder / f"x/{NASA}_labels_train/{NASA}_labels_train_{id[4:]}"
                save(place / "raster_labels.tif", mask.astype(np.float32))
        case "siim":
            rows = [(id, f" {to_relative(text[0])}") for id, text in zip(ids, texts, strict=True)]
            table(folder, "train-rle.csv", ("ImageId", " EncodedPixels"), *rows)
        case "landslide4sense":
            for id, mask in zip(ids, any_class, strict=True):
                save_h5(folder / f"TrainData/mask/mask_{id}.h5", mask.astype(np.uint8), "mask")
        case "hubmap-kidney":
            rows = [(id.partition("@")[0], text[0]) for id, text in zip(ids, texts, strict=True)]
            table(folder, "train.csv", ("id", "encoding"), *rows)
        case "vesuvius-ink":
            for id, mask in zip(ids, any_class, strict=True):
                save(folder / f"train/{id[0]}/inklabels.png", mask * np.uint8(255))
        case "xview2":
            for id, labels in zip(ids, exclusive(masks), strict=True):
                save(folder / f"train/targets/{id}_post_disaster_target.png", labels.astype(np.uint8))
        case "cags":  # images and masks lie in one file
            for k, (id, mask) in enumerate(zip(ids, any_class, strict=True)):
                path = folder / f"cags.{id.partition('-')[0]}.tfrecord"
                save_record(path, draw(name, k, mask), mask * np.uint8(255))
        case "recodai":
            for id, mask in zip(ids, any_class, strict=True):
                halves = [mask & (np.arange(SIZE[1]) // (SIZE[1] // 2) == k) for k in range(2)]
                save(folder / f"train_masks/{id.partition('-')[0]}.npy", np.array(halves, np.uint8))
        case "hubmap-vessels":  # a glomerulus over everything is no vessel, and a tile without a line is not labelled
            save_images(folder, name, "train/unlabelled.tif", 5, masks[0, 0])
            lines = []
            for id, mask in zip(ids, any_class, strict=True):
                (top, left), (bottom, right) = (edge(np.argwhere(mask), axis=0).tolist() for edge in (np.min, np.max))
                corners = [[left, top], [right, top], [right, bottom], [left, bottom]]
                frame = [[0, 0], [SIZE[1] - 1, 0], [SIZE[1] - 1, SIZE[0] - 1], [0, SIZE[0] - 1]]
                kinds = {"glomerulus": frame, "blood_vessel": corners}
                drawn = [{"type": kind, "coordinates": [line]} for kind, line in kinds.items()]
                lines.append(json.dumps({"id": id, "annotations": drawn}))
            (folder / "polygons.jsonl").write_text("\n".join(lines) + "\n")
        case "kelp":
            for id, mask in zip(ids, any_class, strict=True):
                save(folder / f"train_kelp/{id}_kelp.tif", mask.astype(np.uint8))
        case "dfc2025":
            for id, labels in zip(ids, exclusive(masks), strict=True):
                save(folder / f"train/labels/{id}.tif", (labels + 1).astype(np.uint8))
                save(folder / f"train/rgb_images/{id}.tif", image(1, SIZE))


def to_relative(text):
    """Run-lengths whose starts count from the end of the run before, from 0."""
    values, end, said = [*map(int, text.split())], 1, []
    for start, length in zip(values[::2], values[1::2], strict=True):
        said += [start - end, length]
        end = start + length
    return " ".join(map(str, said))


def exclusive(masks):
    """Labels (N, H, W) of masks (N, classes - 1, H, W) that do not overlap."""
    return (masks * np.arange(1, masks.shape[1] + 1)[:, None, None]).max(axis=1)


@pytest.mark.parametrize("name", [*LAYOUTS])
def test_a_drawn_download_becomes_arrays_and_so_do_hidden_images(tmp_path, monkeypatch, name):
    shipped = config.load_config(name, overrides=["competition.kaggle=slug"]).competition
    own = shipped.model_copy(update={"source": shipped.source.model_copy(update={"size": SIZE})})
    samples, hidden = LAYOUTS[name]
    border = len(own.classes) - 1 if own.source.border else 255  # where the two halves of an object meet
    folder, classes = tmp_path / "input/slug", len(own.classes) - bool(own.source.border)
    masks = np.zeros((len(samples), classes - 1, *SIZE), bool)
    for k in range(len(samples)):
        for c in range(classes - 1):
            overlap = 4 if own.overlap else 0
            width = (SIZE[1] - overlap) // (classes - 1)
            masks[k, c, 2 + k : 20 + c % 3, 1 + c * width : (c + 1) * width + overlap] = True
    for k, paths in enumerate(samples.values()):
        save_images(folder, name, paths, k, masks[k].any(axis=0))
    save_masks(folder, name, samples, masks)
    if hidden:
        save_images(folder, name, hidden[1], 9, masks[0].any(axis=0))

    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "input")
    build.prepare(own, folder, tmp_path / "place" / own.file, SIZE)
    train = arrays.load_train(own, tmp_path / "place")
    order = [[*samples].index(id) for id in train.ids.tolist()]
    bits = (masks.astype(np.uint8) << np.arange(classes - 1)[:, None, None]).sum(axis=1)
    expected = bits if own.overlap else exclusive(masks)
    assert len(train.ids) == len(samples) and ((train.masks == expected[order]) | (train.masks == border)).all()
    middle = {SIZE[1] // 2 - 1, SIZE[1] // 2} if own.source.border else set()
    assert {*np.nonzero(train.masks == border)[2].tolist()} == middle
    assert train.images.shape == (len(samples), *SIZE, CHANNELS.get(name, 3))
    if name == "contrails":
        assert [one.max() for one in train.soft] == [255, 191]  # where one validates, only the host's label is known
    inside = masks[order].any(axis=1)
    last = train.images[..., -1]
    assert last[inside].mean() > 2 * last[~inside].mean()
    assert (train.groups.tolist() if name in GROUPS else None) == GROUPS.get(name)
    assert arrays.build_index(train, own).counts[:, 1:].all()
    if hidden:
        test = arrays.load_test(own, tmp_path / "place")
        anew = arrays.load_test(own, build.prepare_hidden_test(own, tmp_path / "place"))
        assert test.asked[0].tolist() == anew.asked[0].tolist() == [hidden[0]] and (test.images == anew.images).all()
        # The truth of two training images, as if it were predicted for that test image: an accepted file, a full score.
        path, labels = tmp_path / f"submission{own.submission.ending}", train.masks[:1]
        if own.submission.function:
            write_own = files.load_function(own.submission.function, "write_submission(path, predictions)")
            write_own(path, zip(test.asked[0].tolist(), labels, strict=True))
            check_own_file(name, path, labels[0])
        else:
            with open_writer(path, own) as write:
                write(test.asked[0], labels)
        rows = check_submission(path, own, *test.asked)
        assert rows == ROWS.get(own.submission.rows, len(own.written)) + bool(own.source.border)
        truth = torch.from_numpy(train.masks.copy())
        rows = np.arange(len(truth))
        # Objects are found in the truth, as in the prediction: halves that touch are one.
        tally = metrics.Tally(replace(train, instances=None), rows, own)
        tally.add(rows, truth, truth)
        assert metrics.score(tally.margins, own.metric, tally.counts) == pytest.approx(1)


def check_own_file(name, path, labels):
    """What a function of the competition's own wrote for one image, which `check_submission` does not look into."""
    if name == "cags":
        lengths = [*map(int, path.read_text().split())]
        assert path.read_text().count("\n") == 1 and len(lengths) % 2 and len(lengths) > 3
        values = np.repeat(np.arange(len(lengths)) % 2, lengths)
        assert (values.reshape(SIZE) == labels).all()
        return
    if name == "hubmap-vessels":
        (row,) = csv.DictReader(path.open())
        (number, confidence, text) = row.pop("prediction_string").split()
        assert (
            row == {"id": "72e40acccadf", "height": "24", "width": "32"} and number == "0" and 0 < float(confidence) < 1
        )
        runs = {"size": SIZE, "counts": zlib.decompress(base64.b64decode(text))}
        assert (pytest.importorskip("pycocotools.mask").decode(runs) == labels).all()
        return
    with zipfile.ZipFile(path) as archive:
        there = {member: io.BytesIO(archive.read(member)) for member in archive.namelist()}
    found = {member: np.asarray(Image.open(data)) for member, data in there.items()}
    assert (found["test_damage_00000_prediction.png"] == labels).all() and len(found) == 2
    assert (found["test_localization_00000_prediction.png"] == (labels > 0)).all()


@pytest.mark.parametrize(
    ("labels", "line"),
    [([[0, 0], [0, 0]], "4"), ([[1, 1], [1, 1]], "0 4"), ([[0, 1], [1, 0]], "1 2 1"), ([[1, 0], [0, 1]], "0 1 2 1")],
)
def test_lengths_of_ground_and_animal_fill_the_image(tmp_path, labels, line):
    write = files.load_function(config.load_config("cags").competition.submission.function, "write_submission(…)")
    write(tmp_path / "s.txt", [("a", np.array(labels, np.uint8))] * 2)
    assert (tmp_path / "s.txt").read_text() == f"{line}\n{line}\n"


def test_every_competition_that_ships_is_drawn_here_or_elsewhere():
    assert {*config.shipped_names("competitions")} == {*LAYOUTS, "demo", "mars", "pets", "voc2007"}
