"""A reader of one's own: what it yields becomes arrays, here and of hidden images; what does not fit is one line."""

import numpy as np
import pytest
from drawn import discs, image, prepare, save

from comp import config, files
from comp.errors import Refused
from comp.kaggle import packing
from comp.prepare import build
from comp.prepare.find import find_samples

READER = '''"""Ash colours of float bands."""
import numpy as np

def read_samples(folder, part):
    for place in sorted((folder / part).iterdir()):
        bands = [np.load(place / f"band_{k}.npy") for k in (11, 14, 15)]
        mask = place / "mask.npy"
        image = np.stack([bands[2] - bands[1], bands[1] - bands[0], bands[1]], axis=-1)
        yield place.name, image, np.load(mask) if mask.exists() else None, place.name[:1]
'''

TOML = """\
name = "own"
kaggle = "own"
classes = ["sky", "contrail"]
[source]
reader = "bands.py"
range = [[-4.0, 2.0], [-4.0, 5.0], [243.0, 303.0]]
size = [16, 16]
"""


def lay_out(place, reader=READER, toml=TOML):
    place.mkdir(parents=True, exist_ok=True)
    (place / "own.toml").write_text(toml)
    (place / "bands.py").write_text(reader)
    return config.load_config(str(place / "own.toml")).competition


def record(folder, number, mask=True):
    for k in (11, 14, 15):
        save(folder / f"band_{k}.npy", 240 + image(number + k, channels=0) / np.float32(4))
    if mask:
        save(folder / "mask.npy", discs(number)[0][..., None].astype(np.int64)[..., 0])


def download(source):
    for k, name in enumerate(("a1", "a2", "b1")):
        record(source / f"train/{name}", k)
    record(source / "test/t1", 9, mask=False)
    return source


def expected(folder):
    first, middle, last = (np.load(folder / f"band_{k}.npy").astype(float) for k in (11, 14, 15))
    scaled = (last - middle + 4) / 6, (middle - first + 4) / 9, (middle - 243) / 60
    return np.stack([(one * 255).round().clip(0, 255) for one in scaled], axis=-1)


def test_what_a_reader_yields_becomes_arrays_here_and_in_the_kernel(tmp_path, monkeypatch):
    own, source = lay_out(tmp_path / "place"), download(tmp_path / "input/own")
    out = prepare(source, own, "../place/own.npz")
    assert out["train_ids"].tolist() == ["a1", "a2", "b1"] and out["train_groups"].tolist() == ["a", "a", "b"]
    assert (out["train_masks"] == [discs(k)[0] for k in range(3)]).all()
    assert abs(out["train_images"][1] - expected(source / "train/a2")).max() <= 1
    assert abs(out["test_images"][0] - expected(source / "test/t1")).max() <= 1
    record(source / "test/h1", 77, mask=False)
    monkeypatch.setattr(files, "KAGGLE_INPUT", tmp_path / "input")
    with np.load(build.prepare_hidden_test(own, tmp_path / "place") / "own.npz") as hidden:
        assert hidden["test_ids"].tolist() == ["h1", "t1"]
        assert abs(hidden["test_images"][0] - expected(source / "test/h1")).max() <= 1


def test_the_same_data_again_change_nothing_and_others_are_refused(tmp_path, capsys):
    own, source = lay_out(tmp_path / "place"), download(tmp_path / "data")
    prepare(source, own)
    prepare(source, own)
    assert "was made of these images already" in capsys.readouterr().out
    record(source / "train/a1", 50)
    with pytest.raises(Refused, match="move it away"):
        prepare(source, own)


def test_a_table_gives_the_masks_that_a_reader_has_not(tmp_path):
    reader = READER.replace("np.load(mask) if mask.exists() else None", "None")
    toml = TOML + 'table = { file = "train.csv", runs = "rle", order = "column" }\n'
    own, source = lay_out(tmp_path / "place", reader, toml), download(tmp_path / "data")
    (source / "train.csv").write_text("id,rle\na1,1 16\n")
    out = prepare(source, own)
    assert out["train_masks"].sum(axis=(1, 2)).tolist() == [16, 0, 0] and out["train_masks"][0, :, 0].all()


def test_a_mask_of_layers_has_one_for_each_class(tmp_path):
    reader = "import numpy as np\ndef read_samples(folder, part):\n    if part == 'train':\n"
    reader += "        layers = np.zeros((4, 4, 2), bool)\n        layers[:2, :, 0] = layers[1:, :, 1] = True\n"
    reader += "        yield 'a', np.zeros((4, 4), np.uint8), layers, None\n"
    toml = TOML.replace("contrail", 'contrail", "cloud').replace("[source]", "overlap = true\n[source]")
    own = lay_out(tmp_path / "place", reader, toml.replace("range", "# range").replace("[16, 16]", "[4, 4]"))
    (tmp_path / "data").mkdir()
    assert prepare(tmp_path / "data", own)["train_masks"][0, :, 0].tolist() == [1, 3, 2, 2]


IMAGE = "np.zeros((4, 4), np.uint8)"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (f"yield 'a', {IMAGE}, {IMAGE}", r"train sample 0: yields tuple; id, image, mask, group would fit"),
        ("yield 5", "train sample 0: yields int"),
        ("yield 'a', np.zeros((4, 4), object), None, None", r"bands\.py: .*Object arrays cannot be saved"),
        ("yield 'a', 'b', np.zeros((4, 4)), None", r"/a-\w+\.npy: holds <U1; numbers would fit"),
        ("yield 'a', np.zeros((20, 4, 40)), np.zeros((20, 4)), None", r"/a-\w+\.npy: .* shape \(20, 4, 40\)"),
        (f"yield 'a', {IMAGE}, np.zeros((4, 5)), None", r"/a-\w+\.npy: is 4×5, .*/a-\w+\.npy 4×4"),
        (f"yield 'a', {IMAGE}, np.zeros((4, 4, 3)), None", "'a': mask: 3 layers; 1, one for each class, would fit"),
        (f"yield 'a', {IMAGE}, {IMAGE}, None; yield 'a', {IMAGE}, {IMAGE}, None", "several samples have the id 'a'"),
        (f"yield 'a', {IMAGE}, {IMAGE}, None; 1 / 0", "line 3, after train sample 0: ZeroDivisionError: division by"),
        ("open('/nowhere/x')", "line 3: FileNotFoundError"),
        ("return []", "no image has a mask"),
        (f"yield 'a', {IMAGE}, None, None", r"has no mask; source\.masks or source\.table"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, body, problem):
    reader = f"import numpy as np\ndef read_samples(folder, part):\n    {body}\n"
    own = lay_out(tmp_path / "place", reader, TOML.replace("range", "# range"))
    (tmp_path / "data").mkdir()
    with pytest.raises(Refused, match=problem):
        prepare(tmp_path / "data", own)


def test_ids_and_groups_may_be_numbers_and_arrays_lists(tmp_path):
    reader = "def read_samples(folder, part):\n    yield 5, [[1, 2]], [[0, 1]], 7\n    yield 6, [[1, 2]], [[0, 1]], 7\n"
    own = lay_out(tmp_path / "place", reader, TOML.replace("range", "# range"))
    (tmp_path / "data").mkdir()
    (tmp_path / "spool").mkdir()
    found = find_samples(own, tmp_path / "data", tmp_path / "spool", ("train",)).train
    assert [(one.id, one.group) for one in found] == [("5", "7"), ("6", "7")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1", r"bands\.py: has no function read_samples\(folder, part\)"),
        ("def read_samples(", r"bands\.py: line 1: SyntaxError"),
        ("import nothing_of_this_name", r"bands\.py: line 1: ModuleNotFoundError"),
        (None, r"bands\.py: no such file"),
    ],
)
def test_readers_that_are_none_are_refused(tmp_path, text, problem):
    own = lay_out(tmp_path / "place", text or "")
    if text is None:
        (tmp_path / "place/bands.py").unlink()
    (tmp_path / "data").mkdir()
    with pytest.raises(Refused, match=problem):
        find_samples(own, tmp_path / "data", tmp_path)


def test_a_reader_travels_with_its_toml_from_no_other_folder_and_without_a_key(tmp_path):
    lay_out(tmp_path)
    words = ["--competition", str(tmp_path / "own.toml")]
    packed, carried = packing._carry_tomls(words)
    assert packed == ["--competition", "pack:given/0/own.toml"]
    assert carried == {"given/0/own.toml": TOML.encode(), "given/0/bands.py": READER.encode()}
    for name, data in carried.items():  # as the kernel finds them, it reads by them
        (tmp_path / "pack" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pack" / name).write_bytes(data)
    there = config.load_config(str(tmp_path / "pack/given/0/own.toml")).competition
    assert len(find_samples(there, download(tmp_path / "data"), tmp_path).train) == 3
    (tmp_path / "bands.py").unlink()
    with pytest.raises(Refused, match=r"bands\.py: no such file"):
        packing._carry_tomls(words)
    (tmp_path / "bands.py").write_text('KEY = "KGAT_planted0123456789"')
    with pytest.raises(Refused, match=r"bands\.py: holds a Kaggle key or token"):
        packing._carry_tomls(words)
    (tmp_path / "own.toml").write_text(TOML.replace('"bands.py"', '"../bands.py"'))
    with pytest.raises(Refused, match=r"names \.\./bands\.py: only files of its own folder travel"):
        packing._carry_tomls(words)
