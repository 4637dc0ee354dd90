"""README.md: every command that needs no account runs, with its TOML files; what it says of the packages is so."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, draw, inside
from PIL import Image

from comp import config
from comp.kaggle import sandbox
from comp.prepare.find import find_samples

README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDS_AN_ACCOUNT = ("--on kaggle", "submit.py")
COMMANDS = [
    re.split(r"\s+#", line)[0].removeprefix("pip install uv && ").removeprefix("uv run ")
    for line in (line.strip() for line in README.splitlines() if line.startswith("    "))
    if re.match(r"(pip install uv && )?uv run (kernels/|torchrun )", line)
    and not any(word in line for word in NEEDS_AN_ACCOUNT)
]
QUICK = ["--set", "epochs=1"]  # and little data, so that a command takes seconds


def write_images(folder: Path, names: list[str], suffix: str, arrays: np.ndarray, **about) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(names, arrays, strict=True):
        image = Image.fromarray(array)
        if "palette" in about:
            image.putpalette(about["palette"])
        image.save(folder / f"{name}{suffix}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the README's commands name: mars, salt, pets and VOC-2007, drawn, and its own TOML files."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "input").mkdir()
    images, masks = draw(20, 0, (64, 128))
    masks[::3, :8, :8], masks[1::3, -8:, :8] = 3, 4
    np.savez(
        folder / "input/mars_for_students.npz",
        training_set=np.stack([images, masks], 1).astype(float),
        test_set=images[:3],
    )
    names = [f"n{k:02}" for k in range(20)]
    write_images(folder / "salt/train/images", names, ".png", images)
    write_images(folder / "salt/train/masks", names, ".png", 65535 * (masks == 1).astype(np.uint16))
    write_images(folder / "salt/test/images", ["t0", "t1"], ".png", images[:2])
    for text in re.findall(r"```toml\n(.*?)```", README, re.DOTALL):
        (folder / ("own.toml" if text.startswith("base") else "salt.toml")).write_text(text, encoding="utf-8")
    colours = np.repeat(images[..., None], 3, -1)
    write_images(folder / "DIR/images", names, ".jpg", colours)
    write_images(folder / "DIR/trimaps", names, ".png", 1 + masks % 3)
    write_images(folder / "DIR/test_images", ["t0", "t1"], ".jpg", colours[:2])
    voc = folder / "VOCdevkit/VOC2007"
    write_images(voc / "JPEGImages", [*names, "t0"], ".jpg", colours[[*range(20), 0]])
    write_images(voc / "SegmentationClass", names, ".png", masks, palette=voc_palette())
    lists = {"train": names[:14], "val": names[14:], "test": ["t0"]}
    for name, ids in lists.items():
        path = voc / f"ImageSets/Segmentation/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(ids) + "\n")
    return folder


def voc_palette() -> list[int]:
    """VOC's colours: bit k of a label's three lowest bits goes to bit 7 - k of red, green and blue, and so on."""
    table = np.zeros((256, 3), int)
    for label in range(256):
        for bit in range(8):
            for channel in range(3):
                table[label, channel] |= (label >> (3 * bit + channel) & 1) << (7 - bit)
    return table.ravel().tolist()


@pytest.mark.slow
def test_its_commands_run(place, monkeypatch, capsys):
    """In the README's order, since later ones read what earlier ones leave."""
    assert len(COMMANDS) == 12
    for command in COMMANDS:
        if "sandbox" in command and sandbox.find_unshare()[1]:
            continue
        script, *arguments = shlex.split(command)
        if script == "torchrun":
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            words = [str(ROOT / word) if word.startswith("kernels/") else word for word in arguments]
            subprocess.run([*launcher, *words, "--run", "ranks", *QUICK], cwd=place, check=True, timeout=300)
            continue
        quick = [] if "ensemble" in script or "prepare" in script else QUICK
        if "sandbox" in command:
            quick = [*QUICK, "--run", "rehearsed"]  # the run itself is finished by now
        inside(monkeypatch, capsys, script.removeprefix("kernels/"), *arguments, *quick, "--device", "cpu", cwd=place)


def test_its_reader_and_its_table_are_keys_that_there_are(tmp_path):
    (reader,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "own.py").write_text(reader)
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        np.save(tmp_path / part / "a.npy", np.ones((8, 8, 4), np.uint8))
    kinds = "run-lengths|a mask|slices|slides|a file|colours|anything"
    rows = re.findall(rf"^\| (?:{kinds}).*? \| (.*) \|$", README, re.MULTILINE)
    lines = [line for row in rows for line in re.findall("`(.*?)`", row)]
    assert len(rows) == 7 and len(lines) == 14
    for line in lines:
        (tmp_path / "own.toml").write_text(
            'name = "own"\nclasses = ["rest", "building"]\narrays = { ignore = 255 }\n[source]\n'
            + line
            + ('\nimages = "{id}.png"' if line.split()[0] not in ("images", "reader") else "")
        )
        own = config.load_config(str(tmp_path / "own.toml")).competition
    found = find_samples(own, tmp_path, tmp_path)
    assert [one.id for one in found.train + found.test] == ["a", "a"] and found.train[0].mask and not found.test[0].mask


def test_it_is_short_and_its_pictures_are_there():
    assert len(README.splitlines()) <= 220
    assert all((ROOT / path).is_file() for path in re.findall(r"!\[.*?\]\((.*?)\)", README))


def test_it_says_of_each_package_what_the_package_says_of_itself():
    packages = [path.parent.name for path in (ROOT / "comp").glob("*/__init__.py")]
    said = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))
    assert {name: said.get(name) for name in packages} == {
        name: importlib.import_module(f"comp.{name}").__doc__ for name in packages
    }
