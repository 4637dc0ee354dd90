"""Thousands of damaged and hostile inputs, the same ones every time: each works, or is refused in one line.

Each campaign runs in a process of its own, whose memory and time are bounded, and which ends at once where it writes
outside its folder, unpickles, or starts a process: data must not be able to bring that about."""

import ast
import contextlib
import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import traceback
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from conftest import ROOT
from PIL import Image

from comp import cli, config, device
from comp.data import arrays, augment, batches, folds
from comp.errors import Refused
from comp.kaggle import packing
from comp.model import losses, segmenter
from comp.prepare import build
from comp.submission import runlength
from comp.submission.check import check_submission
from comp.submission.write import open_writer
from comp.train import runs, schedule
from comp.train.step import make_optimizer

pytestmark = pytest.mark.slow

MEMORY = 3 << 30  # bytes that an input may cost
SECONDS = 20  # that an input may take

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["pytest", "pandas", "albumentations", "segmentation_models_pytorch", "comp.train.runs", "comp.prepare.audit"]
)


class Harm:
    """Leaves a folder where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("/tmp/comp-was-unpickled",)


def one_of(chance, values):
    return values[chance.randrange(len(values))]


def damage(chance, data: bytes) -> bytes:
    """Some bits or bytes flipped, cut out, doubled or put in; or only the beginning."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case 1:
                data[at : at + 1] = one_of(chance, [b"\0", b"\xff", b"\n", b'"', b",", b"9", b"-", b"[", b"="])
            case 2:
                del data[at : at + one_of(chance, [1, 4, 50])]
            case 3:
                data[at:at] = data[at : at + 20] * chance.randint(1, 3)
            case 4:
                del data[at:]
    return bytes(data)


# npz

SIDES = [
    0, 1, 2, 3, 4, 5, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, -1, -(2**63),
]  # fmt: skip
DTYPES = [
    "|u1", "|b1", "<f4", ">f8", "<f2", "<f16", "<i8", ">u2", "|O", "<U1", "<U99999999", "|S3", "|S0", "<M8[s]", "|V4",
    "<c8", "u1,u1", "O,O", "nonsense", "", "(3,)u1", "<U0", "|u8", "[('a','O')]",
]  # fmt: skip
NAMES = [
    "train_images", "train_masks", "train_ids", "train_groups", "train_folds", "train_sizes", "test_images",
    "test_ids", "test_sizes", "../outside", "/outside", "a\nb", "", "x" * 300, "\x1b[2J", "C:\\outside",
]  # fmt: skip


def header(shape, descr="|u1", fortran=False, version=(1, 0)):
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape!r}, }}".encode()
    text += b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text


def npy(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


def plain_members(chance):
    members = {
        "train_images": np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
        "train_masks": np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 3,
        "test_images": np.zeros((2, 4, 5, 3), np.uint8),
    }
    more = {
        "train_ids": np.array(["a", "b", "c"]),
        "train_groups": np.array(["", "g", "g"]),
        "train_folds": np.array([0, 1, 0]),
        "train_sizes": np.full((3, 2), 9),
        "test_ids": np.array([7, 8]),
        "test_sizes": np.full((2, 2), 9),
    }
    return members | {key: more[key] for key in more if chance.random() < 0.4}


def odd_values(chance, count):
    """An array as ids, groups, folds, sizes or pictures that no one should have made."""
    texts = ["", "a", "\n", "\0", "é" * 500, "../x", "a,b", '"']
    match chance.randrange(7):
        case 0:
            return np.array([one_of(chance, texts) for _ in range(count)])
        case 1:
            return np.array([b"\xff\xfe", b"", b"a"])[:count]
        case 2:
            return np.array([one_of(chance, [-(2**63), -1, 0, 1, 2**63 - 1]) for _ in range(count)])
        case 3:
            return np.array([[one_of(chance, [-1, 0, 1, 65535, 2**40]) for _ in range(2)] for _ in range(count)])
        case 4:
            return np.array([Harm()] * count, dtype=object)
        case 5:
            return np.full((count, 4, 5), one_of(chance, [np.nan, np.inf, -1.0, 0.5, 1e300, 256.0]))
    return np.zeros((count, *[chance.randrange(4) for _ in range(chance.randrange(6))]), np.uint8)


def an_npz(chance):
    members = {key: npy(value) for key, value in plain_members(chance).items()}
    key = one_of(chance, list(members))
    compression = one_of(chance, [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    match chance.randrange(6):
        case 0:
            members[one_of(chance, NAMES[:9])] = npy(odd_values(chance, chance.choice([2, 3])))
        case 1:
            shape = tuple(one_of(chance, SIDES) for _ in range(chance.randrange(7)))
            members[key] = header(shape, one_of(chance, DTYPES), chance.random() < 0.2) + b"ab"
        case 2:
            for _ in range(3):
                members[one_of(chance, NAMES)] = members[one_of(chance, list(members))]
        case 3:
            text = members[key][:128]
            members[key] = damage(chance, text) + members[key][128:]
        case 4:
            members[key] = header((3, 4, 5), version=one_of(chance, [(2, 0), (3, 0), (9, 9)])) + bytes(60)
    file = io.BytesIO()
    warnings.simplefilter("ignore", UserWarning)  # of a second member of one name
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
            if chance.random() < 0.05:
                archive.writestr(f"{name}.npy", data[: chance.randrange(len(data))])  # a second one of that name
        for info in archive.filelist:
            if chance.random() < 0.01:
                info.flag_bits ^= 1 << chance.randrange(16)
            if chance.random() < 0.01:
                info.header_offset = one_of(chance, [0, 10**6, 2**40])
            if chance.random() < 0.01:
                info.compress_size = one_of(chance, [0, 1, 2**40])
    data = file.getvalue()
    Path("input/own.npz").write_bytes(damage(chance, data) if chance.random() < 0.15 else data)


def use_npz(chance):
    an_npz(chance)
    settings = config.validate_config(
        {"competition": {"name": "own", "classes": ["a", "b", "c"]}, "folds": {"count": 2}}
    )
    problem = None
    try:
        split = arrays.load_train(settings.competition, Path("input"))
        index = arrays.build_index(split, settings.competition)
        assert split.images.dtype == np.uint8 and len(split.images) == len(split.ids) == len(index.counts)
        Path("folds.csv").unlink(missing_ok=True)
        folds.load_or_deal_folds(Path("folds.csv"), split, index, settings)
    except Refused as refused:
        problem = refused  # the test pictures are looked at all the same
    test = arrays.load_test(settings.competition, Path("input"))
    assert test.images.dtype == np.uint8 and len(test.images) == len(test.ids)
    if problem:
        raise problem


# TOML and --set

ODD = [
    "1e308", "-1e308", "1e-320", "inf", "nan", "-0.0", "0", "-1", "1", "2.5", "1" + "0" * 30, "9" * 400, "9" * 5000,
    "true", '""', "''", "[]", "{}", "[[]]", "[1, 'a']", "{a = 1}", "{'' = {}}", "1979-05-27T07:32:00Z", "07:32:00",
    '"\\n"', '"\\u0000"', '"../up"', '"/outside"', '"a b"', "plain", "'''a\nb'''", "[" * 2000, "{a=" * 500,
    '"' + "x" * 100_000 + '"', "\ud800", "0x7fffffffffffffff", str(2**63), str(2**31),
    str([f"c{i}" for i in range(255)]), str([f"c{i}" for i in range(256)]), str(["a"] * 3), str(["", "a"]),
    "{cross_entropy = 1e308, dice = -1e308}", "{dice = 0}", "[{name = 'HorizontalFlip', p = 1e308}]",
    "[{name = 'Compose'}]", "[{name = '__class__'}]", "[{name = 'Lambda'}]", "[{}]", "[{name = 3}]", "{widths = [0]}",
    "{widths = [4, 1e308]}", "{widths = [-4]}", "{widths = [100000000000]}", "{widths = []}",
    "{block = 'residual', dropout = 9.0}", "'none'", "'PlainUnet'", "'Unet'", "'tu-resnet18'", "'sgd'", "'cosine'",
    "'plateau'", "'d4'", "'per_image'", "'rle'", "'imagenet'",
]  # fmt: skip


def _keys(section, prefix=""):
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, config.Section):
            yield from _keys(field.annotation, f"{prefix}{name}.")


KEYS = [*_keys(config.Config)]
ODD_KEYS = [
    "", ".", "..", "epochs.", ".epochs", "epochs.more", "__class__", "a\nb", "\ud800", "x" * 1000, "model", "base",
    "'q'",
]  # fmt: skip


def override(chance):
    key = one_of(chance, KEYS) if chance.random() < 0.9 else one_of(chance, ODD_KEYS)
    return f"{key}{'=' if chance.random() < 0.97 else ''}{one_of(chance, ODD)}"


def odd_config(chance):
    """A configuration of odd values: TOML files, or overrides of what ships."""
    if chance.random() < 0.7:
        overrides = [override(chance) for _ in range(chance.randint(1, 2))]
        return config.load_config(one_of(chance, ["demo", "mars", "pets"]), None, overrides)
    for kind, name in (("competitions", "mars"), ("recipes", "mars-b-unet")):
        text = (config.SHIPPED / kind / f"{name}.toml").read_bytes()
        if chance.random() < 0.5:
            text += f"\n{override(chance)}\n".encode(errors="replace")
        Path(f"{kind}.toml").write_bytes(damage(chance, text) if chance.random() < 0.7 else text)
    return config.load_config("competitions.toml", "recipes.toml")


def use_config(chance):
    loaded = None
    while loaded is None:  # most are refused; those that load go further
        try:
            loaded = odd_config(chance)
        except Refused:
            if chance.random() < 0.3:
                raise
    # What loads can be written down and read back, and everything that is made of it is made or refused.
    assert config.validate_config(json.loads(loaded.model_dump_json())) == loaded
    assert config.first_difference(loaded, loaded) is None
    assert all(0 <= schedule.learning_rate(loaded.schedule, progress) <= 1 for progress in (0.0, 0.01, 0.5, 1.0))
    classes = loaded.competition.classes
    logits, counts = torch.zeros(1, len(classes), 4, 4, requires_grad=True), np.arange(1, len(classes) + 1)
    loss = losses.build_loss(loaded.loss, classes, counts, loaded.competition.arrays.ignore)
    loss(logits, torch.zeros(1, 4, 4, dtype=torch.uint8)).backward()
    batches.plan_epoch(
        np.arange(9), batches.draws_per_image(np.ones((9, len(classes))), loaded.oversample, classes), 2, 0, 0
    )
    pictures = torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8, dtype=torch.uint8)
    augment.mix_batch(*pictures, loaded.augment, np.random.default_rng(0))
    moving = augment.build_transforms(loaded.augment.transforms)
    network = torch.nn.Linear(3, 3)
    network.net = torch.nn.Linear(1, 1)
    network.net.encoder = torch.nn.Linear(1, 1)
    if loaded.model.architecture == "PlainUnet":
        local = loaded.model.model_copy(update={"encoder_weights": "none"})
        network, _ = segmenter.build_segmenter(local, 1, len(classes), torch.zeros(1), torch.ones(1))
    optimizer = make_optimizer(loaded.optimizer, network)
    sum(parameter.sum() for parameter in network.parameters()).backward()
    optimizer.step()
    (name,) = cli.run_names(cli.parser("").parse_args([]), loaded)
    assert (Path("runs") / loaded.competition.name / name).resolve().parent.parent == Path("runs").resolve()
    if moving:
        moving(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), 1)


# The check of a submission

CELLS = [
    "", "a", "b", "0", "1", "2", "3", "10", "-1", "1 1", "1 12", "12 1", "0 1", "1 1 1", "2 1 1 1",
    "1 99999999999999999999", "nan", "1_0 1", "１ 1", "+1 1", "1e3 1", '"1 1"', '"a,b"', '"', '""', '"a\nb"', "a\rb",
    "\0", "é", "\ufeff", " a", "a ", "x" * 200_000, "9" * 5000 + " 1", "1 1 " * 20_000, ",", ",,,",
]  # fmt: skip
LAYOUTS = [
    {"format": "rle"},
    {"format": "rle", "empty": "-", "order": "row"},
    {"format": "rle", "rows": "image_class", "class_column": "class", "class_label": "name"},
    {"format": "rle", "rows": "image_class"},
    {"format": "pixels"},
]


def use_csv(chance):
    layout = one_of(chance, LAYOUTS)
    competition = config.Competition(name="own", classes=("a", "b", "c"), submission=config.Submission(**layout))
    with open_writer("own.csv", competition) as write:
        write(["a", "b"], np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 3)
    lines = Path("own.csv").read_text().splitlines()
    Path("sample.csv").write_text("\n".join(lines))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        cells = lines[at].split(",")
        place = chance.randrange(len(cells))
        match chance.randrange(6):
            case 0 | 1:
                cells[place] = one_of(chance, CELLS)
            case 2:
                del cells[place]
            case 3:
                cells[place:place] = [one_of(chance, CELLS)] * one_of(chance, [1, 1, 1000])
            case 4:
                lines[at:at] = [lines[at]] * chance.randint(1, 3)
            case 5:
                cells = []
        lines[at] = ",".join(cells)
    text = one_of(chance, ["\n", "\n", "\r\n", "\r"]).join(lines).encode(errors="surrogatepass")
    file = one_of(chance, ["own.csv", "own.csv", "own.csv", "sample.csv"])
    Path(file).write_bytes(damage(chance, text) if chance.random() < 0.3 else text)
    given = {"ids": ["a", "b"]} if chance.random() < 0.8 else {}
    sizes = {"sizes": (3, 4)} if chance.random() < 0.8 else {}
    sample = {"sample": "sample.csv"} if file == "sample.csv" or chance.random() < 0.3 else {}
    found = check_submission("own.csv", competition, **given, **sizes, **sample)
    assert found > 0


def use_runs(chance):
    words = [
        one_of(chance, [*CELLS, "1", "3", "5", "7", str(2**63), str(-(2**63)), str(2**64)])
        for _ in range(chance.randint(0, 6))
    ]
    shape = (chance.randint(1, 5), chance.randint(1, 5))
    order = one_of(chance, ["column", "row"])
    mask = runlength.decode_runs(one_of(chance, [" ", " ", "  ", ","]).join(words), shape, order)
    assert (
        mask.shape == shape
        and runlength.decode_runs(runlength.encode_runs(mask[None], order)[0], shape, order).tolist() == mask.tolist()
    )


# Models and checkpoints

CPU = device.Device(torch.device("cpu"), torch.float32, "a test")


def _network(widths=(4,)):
    return segmenter.build_segmenter(
        config.Model(architecture="PlainUnet", options={"widths": list(widths)}), 1, 3, torch.zeros(1), torch.ones(1)
    )[0]


def odd_safetensors(chance, path):
    """Change the header of a good file so that it lies, or anything in it."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    about, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    key = one_of(chance, [key for key in about if key != "__metadata__"])
    sides = [0, 1, 2**31, 2**62, 2**64, -1]
    match chance.randrange(10):
        case 0:
            about[key]["shape"] = [one_of(chance, sides) for _ in range(chance.randrange(6))]
        case 1:
            about[key]["dtype"] = one_of(
                chance, ["F64", "BF16", "I8", "BOOL", "F8_E4M3", "F4", "U64", "C64", "X", "", 3]
            )
        case 2:
            about[key]["data_offsets"] = [one_of(chance, sides), one_of(chance, [*sides, len(body)])]
        case 3:
            about[one_of(chance, ["mean", "optimizer/x/y", "optimizer/999/exp_avg", "optimizer/0", "model/x", ""])] = (
                about.pop(key)
            )
        case 4 | 5:
            text = one_of(chance, list(about["__metadata__"]))
            values = json.loads(about["__metadata__"][text]) if text != "checksum" else {"a": 1}
            section, name = _somewhere(chance, values)
            section[name] = one_of(chance, [None, "x", -1, 0, 1e308, 2**70, [], {}, [1] * 300, "9" * 400, True, [[]]])
            about["__metadata__"][text] = json.dumps(values)
        case 6:
            about["__metadata__"] = one_of(
                chance,
                [
                    {},
                    {"config": "[" * 100_000},
                    {"config": "{"},
                    {"config": "null"},
                    {"facts": "[]"},
                    {"config": "NaN"},
                ],
            )
        case 7:
            path.write_bytes(damage(chance, data))
            return
        case 8:
            torch.save({"a": Harm()}, path)  # a pickle, as most weights are
            return
        case 9:
            size_claimed = one_of(chance, [0, 1, 2**31, 2**63, 2**64 - 1])
            path.write_bytes(struct.pack("<Q", size_claimed) + data[8:])
            return
    text = json.dumps(about).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def _somewhere(chance, values):
    """A random dict or list inside nested values, and a key of it."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = one_of(chance, keys)
        if not isinstance(values[key], dict | list) or not values[key] or chance.random() < 0.2:
            return values, key
        values = values[key]


def use_model(chance):
    loaded = config.load_config(
        "demo",
        None,
        ['competition.classes=["a","b","c"]', "model.architecture=PlainUnet", "model.options={widths=[4]}"],
    )
    segmenter.save_model(_network(), Path("model.safetensors"), loaded)
    odd_safetensors(chance, Path("model.safetensors"))
    model = segmenter.load_model(Path("model.safetensors"), CPU)[0]
    assert model(torch.zeros(1, model.mean.numel(), 32, 32, dtype=torch.uint8)).shape[2:] == (32, 32)


def use_checkpoint(chance):
    network = _network()
    optimizer = make_optimizer(config.Optimizer(), network)
    sum(p.sum() for p in network.parameters()).backward()
    optimizer.step()
    path = Path("checkpoint.safetensors")
    runs.save_checkpoint(path, {"model": network}, optimizer, {"epoch": 1})
    odd_safetensors(chance, path)
    assert runs.load_checkpoint(path, {"model": network}, optimizer) == {"epoch": 1}
    optimizer.step()


# What a run left, and arguments


def use_folder(chance):
    """A finished fold, its configuration and the folds, damaged."""
    loaded = config.load_config("demo", None, ["folds.count=2"])
    folder = Path("runs/fold-0")
    folder.mkdir(parents=True, exist_ok=True)
    dealt, hashes = Path("runs/folds.csv"), np.arange(2, dtype=np.uint64)
    split = arrays.Split(np.zeros((2, 4, 4, 1), np.uint8), None, np.array(["a", "b"]), None, None)
    index = arrays.Index(np.ones((2, 5), int), hashes, hashes, np.zeros(2, bool))
    dealt.unlink(missing_ok=True)
    folds.load_or_deal_folds(dealt, split, index, loaded)
    good = {
        "runs/config.json": loaded.model_dump_json(),
        "runs/fold-0/metrics.json": json.dumps({"fold": 0, "folds": 2, "train_images": 1, "score": 0.5}),
        "runs/folds.csv": dealt.read_text(),
    }
    for name, text in good.items():
        Path(name).write_bytes(damage(chance, text.encode()) if chance.random() < 0.7 else text.encode())
    for use in (lambda: runs.read_fold(folder), lambda: runs.check_configuration(Path("runs"), loaded)):
        with contextlib.suppress(Refused):
            use()
    folds.load_or_deal_folds(dealt, split, index, loaded)


# A download

PATTERNS = [
    "images/{id}.*", "images/{id}{n}.*", "{id}/*.png", "**/{id}.*", "images/{band}.*", "masks/{id}.*", "*", "{id}",
    "masks/{class}.*", "masks/{id}*.*", "{a}/{id}.{b}", "{id", "", "/{id}", "../{id}.png", "images/{id}_{class}.*",
]  # fmt: skip
SUFFIXES = [".png", ".png", ".png", ".tif", ".npy", ".jpg", ".gif", ".bmp", ".ppm", ".tif", ".npy", ".txt"]
KINDS = [np.uint8, np.uint8, np.uint8, np.uint16, np.float32, np.bool_, np.int16, np.int64]


def odd_source(chance):
    """Most keys as they fit, some at random."""
    sound = {"images": "images/{id}.*", "masks": "masks/{id}.*", "test": "test/{id}.*"}
    if chance.random() < 0.4:
        table = {"file": "a.csv", "id": "id", "runs": "runs", "order": one_of(chance, ["row", "column"])}
        more = {"starts": "relative"} if chance.random() < 0.7 else {"split": "{id}_{class}"}
        sound = {"images": "images/{id}.*", "table": table | (more if chance.random() < 0.3 else {})}
    odd = {
        "images": one_of(chance, PATTERNS), "masks": one_of(chance, PATTERNS), "test": one_of(chance, PATTERNS),
        "id": one_of(chance, ["{name}", "{n}", "x"]), "group": one_of(chance, ["{id}", "{x}", "{"]), "fold": "{id}",
        "bands": ["a", "b"], "instances": True, "border": chance.randrange(9), "labels": {"1": "b", "0": "a"},
        "range": one_of(chance, ["percentiles", [0.0, 9.0], [[0.0, 1.0]] * 3, [1.0, 1.0]]), "reader": "none.py",
        "list": {"file": "a.csv", "id": "id"},
    }  # fmt: skip
    return sound | {key: odd[key] for key in chance.sample([*odd], one_of(chance, [0, 0, 1, 2]))}


def use_download(chance):
    place = Path("download")
    shutil.rmtree(place, ignore_errors=True)
    random = np.random.default_rng(chance.randrange(2**32))
    suffix, kind = one_of(chance, SUFFIXES), one_of(chance, KINDS)
    for folder in ("images", "masks", "test", one_of(chance, ["labels", "other", "images/more"])):
        (place / folder).mkdir(parents=True, exist_ok=True)
        for name in ("a", "b", one_of(chance, ["c", "a_b", "\u00e9", "e\u0301"])):
            deep, shape = folder != "masks", (4, 5)
            if deep and chance.random() < 0.3:
                shape = one_of(chance, [(4, 5, 3), (5, 4), (7, 4, 5), (0, 5)])
            values = random.integers(0, one_of(chance, [2, 300, 70000]) if deep else 2, shape).astype(kind)
            own = suffix if chance.random() < 0.9 else one_of(chance, SUFFIXES)
            for written in (values, values.astype(np.uint8)):  # where the format does not take the other
                file = io.BytesIO()
                with contextlib.suppress(Exception):
                    if own == ".npy":
                        np.save(file, written)
                    elif own == ".tif":
                        tifffile.imwrite(file, written)
                    else:
                        Image.fromarray(written).save(file, own[1:].replace("jpg", "jpeg"))
                    break
            data = file.getvalue()
            (place / folder / f"{name}{own}").write_bytes(damage(chance, data) if chance.random() < 0.05 else data)
    runs = one_of(chance, ["1 2 5 3", "", "-1", "2 1", "1 99", "3 2 1 1", "x"])
    table = f"id,runs\na,{runs}\nb,1 1\nb,4 2\n{one_of(chance, ['a_b', 'c', ''])},3 4\n".encode()
    (place / "a.csv").write_bytes(damage(chance, table) if chance.random() < 0.3 else table)
    about = {"name": "own", "classes": one_of(chance, [["a", "b"], ["a", "b"], ["a", "b", "border"]])}
    about |= {"overlap": True} if chance.random() < 0.2 else {}
    own = config.validate_config({"competition": about | {"source": odd_source(chance)}}).competition
    tempfile.tempdir = os.getcwd()  # nothing may be written elsewhere
    Path("made.npz").unlink(missing_ok=True)
    build.prepare(own, place, Path("made.npz"), (4, 5))
    own = own.model_copy(update={"arrays": config.Arrays(file="made.npz")})
    train = arrays.load_train(own, Path())
    assert arrays.build_index(train, own).counts.sum() >= train.masks.size


WORDS = [
    "--competition", "--recipe", "--run", "--set", "--fold", "--on", "--input", "--tta", "--time-budget", "--", "-",
    "", "=", "--=", "--set=", "mars", "own.toml", "../own.toml", "/kaggle/input/x.toml", "/kaggle/../own.toml",
    "\0.toml", "\ud800", "a\nb", "x" * 5000, "/" * 5000, "~/.kaggle/kaggle.json", "secret.json",
    "model.encoder_weights=secret.json", "model.encoder_weights='../secret.safetensors'", "0", "0,1", "all", "-1",
    "1e9", "99999999999999999999", "²", "10m", "1h", ".s", "1.1.1s", "nan", "'", '"', "\\",
]  # fmt: skip


def use_arguments(chance):
    Path("own.toml").write_bytes(damage(chance, b'epochs = 3\nbase = "default"\n[model]\nencoder_weights = "none"\n'))
    Path("secret.json").write_text("KGAT_secret")
    words = [one_of(chance, WORDS) for _ in range(chance.randint(1, 6))]
    with contextlib.suppress(Refused):
        packed, carried = packing._carry_tomls(words)
        assert all(name.startswith("given/") and ".." not in name and name.count("/") == 2 for name in carried)
        assert b"KGAT_secret" not in b"".join(carried.values())
        assert packing._carry_tomls(packed)[0] == packed or carried
    with contextlib.suppress(Refused):
        assert all(0 <= number < 5 for number in cli.fold_numbers(one_of(chance, WORDS), 5))
    with contextlib.suppress(cli.argparse.ArgumentTypeError):
        assert cli.duration(one_of(chance, WORDS)) > 0
    arguments = cli.parser("").parse_args(["--run", one_of(chance, [word for word in WORDS if word[:1] != "-"])])
    (name,) = cli.run_names(arguments, config.load_config("demo"))
    assert (Path("runs") / name).resolve().parent == Path("runs").resolve()


CAMPAIGNS = {
    use_npz: 700,
    use_config: 700,
    use_csv: 500,
    use_runs: 300,
    use_model: 200,
    use_checkpoint: 200,
    use_folder: 200,
    use_download: 500,
    use_arguments: 300,
}


@pytest.mark.parametrize("use", CAMPAIGNS, ids=lambda use: use.__name__)
def test_everything_works_or_is_refused(tmp_path, use):
    process = SERVER.Process(target=campaign, args=(use.__name__, CAMPAIGNS[use], str(tmp_path)))
    process.start()
    process.join(120)
    report = (tmp_path / "report.txt").read_text() if (tmp_path / "report.txt").exists() else ""
    print(report)
    assert process.exitcode == 0, report
    assert not os.path.exists("/tmp/comp-was-unpickled")


def campaign(name, count, folder):
    """Use so many inputs in a process whose memory and time are bounded, and write what came of it to report.txt."""
    report = open(os.path.join(folder, "report.txt"), "w", buffering=1)
    os.makedirs(place := os.path.join(folder, "place", "input"))
    os.chdir(os.path.dirname(place))
    use = globals()[name]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    signal.signal(signal.SIGALRM, too_slow)
    sys.addaudithook(lambda event, arguments: forbid(event, arguments, os.path.dirname(place), report))
    worked, refused, failed = 0, 0, 0
    for number in range(count):
        signal.alarm(SECONDS)
        try:
            use(random.Random(f"{name} {number}"))
            worked += 1
        except Refused as problem:
            refused += 1
            if len(str(problem).splitlines()) != 1 or len(str(problem)) > 1000:
                failed += 1
                print(f"input {number}: {len(str(problem))} characters: {str(problem)[:300]!r}", file=report)
        except BaseException:
            failed += 1
            if failed < 20:
                print(f"input {number}:\n{traceback.format_exc(limit=-6)[-3000:]}", file=report)
    signal.alarm(0)
    print(f"{name}: {count} inputs, {worked} worked, {refused} refused, {failed} failed", file=report)
    sys.exit(failed > 0 or not worked or not refused)


def too_slow(number, frame):
    raise TimeoutError(f"over {SECONDS} s")


def forbid(event, arguments, place, report):
    """End the process where it does what data must never bring about."""
    written = ()
    if event == "open" and isinstance(arguments[0], str | bytes) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
        written = arguments[:1]
    elif event in ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.truncate"):
        written = [path for path in arguments[:2] if isinstance(path, str | bytes)]
    outside = [path for path in written if not os.path.abspath(os.fsdecode(path)).startswith(place)]
    started = event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect")
    if started or outside or event == "pickle.find_class":
        print(f"forbidden: {event} {arguments}", file=report)
        traceback.print_stack(file=report)
        os._exit(3)


# By construction


@pytest.mark.parametrize("path", [*ROOT.glob("comp/**/*.py"), *ROOT.glob("kernels/*.py")], ids=lambda path: path.name)
def test_nothing_unpickles_or_evaluates(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not {"pickle", "shelve", "marshal", "dill", "joblib", "yaml"} & {
            str(name).split(".")[0] for name in names
        }
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "torch.load", "pandas.read_pickle", "os.system")
            pickled = [word.value for word in node.keywords if word.arg == "allow_pickle"]  # without the word: False
            assert all(ast.unparse(value) == "False" for value in pickled)


@pytest.mark.parametrize("name", ["../up", "a/b", "/outside", "", ".", "..", "a\n", "é", "A", "a" * 300])
def test_names_cannot_leave_their_folder(name):
    with pytest.raises(Refused, match=r"competition\.name"):
        config.load_config("demo", None, [f"competition.name={json.dumps(name)}"])
    if name not in ("A", "a" * 300):
        with pytest.raises(Refused):
            cli.run_names(cli.parser("").parse_args(["--run", name or " "]), config.load_config("demo"))
