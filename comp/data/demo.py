"""The demo competition: drawn terrain with the size and the traps of a real one.

Five classes on gray images of 64×128: sky, sand, rock, gravel and, rare, crystal. Some training images occur twice; a
dozen outliers share one silly mask. The labels of the test images are known, for a leaderboard score of its own."""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from comp.data.npz import cache_folder
from comp.files import atomic_write

NAME = "demo.npz"
HEIGHT, WIDTH = 64, 128
TRAIN, TEST = 480, 160
DUPLICATES, OUTLIERS = 16, 12
SKY, SAND, ROCK, GRAVEL, CRYSTAL = range(5)
# Of each class in grey levels: how bright it is, and what fine noise, relief and ripples add.
BRIGHTNESS, GRAIN = np.array([170, 146, 122, 130, 205]), np.array([4, 5, 9, 26, 10])
RELIEF, RIPPLES = np.array([0, 4, 20, 3, 10]), np.array([0, 11, 0, 0, 0])


def ensure_demo(folder: Path) -> Path:
    """The path of demo.npz in `folder`, or in its cache folder if it cannot be written; made on first use."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    path = (folder if folder.is_dir() and os.access(folder, os.W_OK) else cache_folder(folder)) / NAME
    if not path.is_file():
        with atomic_write(path) as beside:
            np.savez(beside, **draw_demo())  # not compressed, so that it can be mapped
    return path


def draw_demo() -> dict[str, np.ndarray]:
    """All arrays of the demo by key: images uint8 (N, 64, 128), masks uint8 (N, 64, 128), ids str (N,)."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.standard_normal((1024, 1024)), sigma, mode="wrap") for sigma in (0.7, 3, 6, 9, 25)]
    fields = [field / field.std() for field in fields]
    images, masks = map(np.stack, zip(*(_draw_scene(fields, rng) for _ in range(TRAIN + TEST)), strict=True))
    outliers, copies, originals, _ = np.split(rng.permutation(TRAIN), np.cumsum([OUTLIERS, DUPLICATES, DUPLICATES]))
    images[copies], masks[copies] = images[originals], masks[originals]
    masks[outliers] = np.indices((HEIGHT, WIDTH)).sum(axis=0) // 16 % 2  # stripes that no terrain has
    ids = np.array([f"{part}-{k:03d}" for part, count in (("train", TRAIN), ("test", TEST)) for k in range(count)])
    parts, drawn = {"train": slice(TRAIN), "test": slice(TRAIN, None)}, {"images": images, "masks": masks, "ids": ids}
    return {f"{part}_{key}": values[rows] for part, rows in parts.items() for key, values in drawn.items()}


def _draw_scene(fields: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask, uint8 (64, 128), of looks across fields of noise, from fine to wide."""

    def look(field: np.ndarray, down: np.ndarray | int, right: np.ndarray) -> np.ndarray:
        top, left = rng.integers(len(field), size=2)
        return field[(top + down) % len(field), (left + right) % len(field)]

    y, x = np.indices((HEIGHT, WIDTH))
    horizon = rng.uniform(-8, 30) + 9 * look(fields[4], 0, x)
    below = np.maximum(y - horizon, 0)
    # What is far is small, and lies close together.
    down, right = (75 * np.log1p(below / 15)).astype(int), ((x - WIDTH / 2) * (2 - below / HEIGHT)).astype(int)
    spots, relief, rough, loose = (look(fields[k], down, right) for k in (1, 2, 3, 3))
    labels = np.full((HEIGHT, WIDTH), SAND, np.uint8)
    labels[loose > rng.uniform(-0.1, 0.8)] = GRAVEL
    labels[rough > rng.uniform(0, 0.8)] = ROCK
    labels[(spots > 2) & (labels == ROCK)] = CRYSTAL
    labels[y < horizon] = SKY
    image = BRIGHTNESS[labels] + RELIEF[labels] * relief + RIPPLES[labels] * np.sin(down / 2 + 3 * loose)
    image += GRAIN[labels] * look(fields[0], y, x)
    image = image * rng.uniform(0.7, 1.17) * (0.9 + y / 400) + rng.normal(0, 5, y.shape)
    dy, dx = rng.integers(-1, 2, 2)  # annotators do not see edges exactly where they are
    return image.clip(0, 255).astype(np.uint8), labels[(y + dy).clip(0, HEIGHT - 1), (x + dx).clip(0, WIDTH - 1)]
