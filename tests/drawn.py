"""Small drawn downloads: files of any kind, written by the libraries that competitions' hosts use."""

from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from comp import config
from comp.prepare import build
from comp.prepare.find import find_samples
from comp.prepare.samples import Found


def competition(toml: dict | None = None, **source) -> config.Competition:
    """A competition of two classes, unless `toml` says otherwise, whose source is given by name."""
    values = {"name": "own", "classes": ["rest", "thing"]} | (toml or {}) | {"source": {"size": [16, 16]} | source}
    return config.validate_config({"competition": values}).competition


def find(folder: Path, parts=("train", "test"), toml: dict | None = None, **source) -> Found:
    return find_samples(competition(toml, **source), folder, folder, parts)


def prepare(folder: Path, own: config.Competition, name: str = "own.npz") -> dict[str, np.ndarray]:
    """What `prepare` makes of a download; the npz lies beside its folder."""
    path = folder.parent / name
    build.prepare(own, folder, path, own.source.size)
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def save(path: Path, values: np.ndarray, **options) -> Path:
    """Write an array as the suffix says: npy, TIFF by tifffile, anything else by Pillow."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, values, **options)
    else:
        Image.fromarray(values).save(path, **options)
    return path


def image(number: int, size: tuple[int, int] = (16, 16), channels: int = 3) -> np.ndarray:
    """Noise of its own, uint8 (H, W, C), or (H, W) of no channels."""
    shape = (*size, channels) if channels else size
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def discs(number: int, size: tuple[int, int] = (16, 16), count: int = 3) -> np.ndarray:
    """Masks of small discs, apart from one another, bool (count, H, W)."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[: size[0], : size[1]]
    lanes = np.array_split(np.arange(size[1]), count)
    found = []
    for lane in lanes:
        row, column = rng.integers(2, size[0] - 2), lane[len(lane) // 2]
        found.append((abs(y - row) * 2 + abs(x - column) * 3 <= 4) & np.isin(x, lane[:-1]))
    return np.stack(found)
