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
CELL = 16  # pixels of the noise field over which noise changes


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
    field = gaussian_filter(rng.standard_normal((2048, 2048), np.float32), 0.35 * CELL, mode="wrap")
    field *= 0.21 / field.std()
    images, masks = map(np.stack, zip(*(_draw_scene(field, rng) for _ in range(TRAIN + TEST)), strict=True))
    outliers, copies, originals, _ = np.split(rng.permutation(TRAIN), np.cumsum([OUTLIERS, DUPLICATES, DUPLICATES]))
    images[copies], masks[copies] = images[originals], masks[originals]
    masks[outliers] = np.indices((HEIGHT, WIDTH)).sum(axis=0) // 16 % 2  # stripes that no terrain has
    return {
        "train_images": images[:TRAIN],
        "train_masks": masks[:TRAIN],
        "train_ids": np.array([f"train-{number:03d}" for number in range(TRAIN)]),
        "test_images": images[TRAIN:],
        "test_masks": masks[TRAIN:],
        "test_ids": np.array([f"test-{number:03d}" for number in range(TEST)]),
    }


def _draw_scene(field: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image and its mask, uint8 (64, 128); noise is a look at a place of `field` of its own."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]

    def noise(down: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Smooth noise, mostly -0.5 to 0.5, at places given in cells."""
        down, right = (np.rint(cells * CELL).astype(int) + rng.integers(len(field)) for cells in (down, right))
        return field[down % len(field), right % len(field)]

    def octaves(down: np.ndarray, right: np.ndarray) -> np.ndarray:
        return 0.75 * noise(down / 2, right / 2) + 0.25 * noise(down * 2, right * 2)

    horizon = rng.uniform(-8, 30) + 21 * noise(0 * x, x / 28)
    below = np.maximum(y - horizon, 0)
    along, away = (x - WIDTH / 2) / (9 + below / 2), 3 * np.log1p(below / 15)  # cells grow towards the viewer
    rough, loose, sparkle = octaves(away, along), octaves(away, along), noise(away * 2, along * 2)
    rock_from, gravel_from = rng.uniform(-0.04, 0.14), rng.uniform(0.02, 0.17)
    crystal_from = 0.33 if rng.random() < 0.25 else np.inf

    def label(wobble: np.ndarray) -> np.ndarray:
        classes = np.full(wobble.shape, SAND, np.uint8)
        classes[loose + wobble > gravel_from] = GRAVEL
        classes[rough + wobble > rock_from] = ROCK
        classes[(sparkle > crystal_from) & (classes == ROCK) & (below > 4)] = CRYSTAL
        classes[y < horizon + 64 * wobble] = SKY
        return classes

    drawn = label(0 * rough)
    mask = label(noise(y / 6.4, x / 6.4) / 22)  # annotators do not see edges exactly where they are

    fine, facets = noise(y / 1.7, x / 1.7), np.rint(5 * noise(away * 4, along * 4))
    ripples = abs((away * 5 + noise(away, along) * 4) % 2 - 1) - 0.5
    brightness = np.choose(
        drawn,
        [
            rng.uniform(140, 200) - y / 2 + 44 * noise(y / 16, x / 51),
            rng.uniform(130, 165) + 21 * ripples,
            rng.uniform(95, 140) + 14 * facets + 19 * fine,
            rng.uniform(110, 150) + 82 * fine,
            rng.uniform(190, 235) + 19 * facets,
        ],
    )
    light = 0.9 + noise(y / 43, x / 64) / 2 + (x / WIDTH - 0.5) * rng.uniform(-0.3, 0.3)
    image = brightness * light * rng.uniform(0.7, 1.17) + rng.normal(0, 5.3, drawn.shape)
    return image.clip(0, 255).astype(np.uint8), mask
