"""The demo competition: drawn terrain with the size and the traps of a real one.

Five classes on 64×128 gray pictures: sky, sand, rock, gravel and, rare, crystal. Some training pictures
occur twice; a dozen outliers are different pictures with one silly mask. The labels of the test
pictures are known, so that the demo can print its own leaderboard score. Everything is computed in
integers from a hash: the arrays are equal, bit for bit, on every machine.

Lengths along a picture are in 1/256 of a noise cell; noise, thresholds and chances are 0 to 65535.
"""

import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from comp.data.cache import cache_folder
from comp.files import atomic_write

NAME = "demo.npz"
HEIGHT, WIDTH = 64, 128
TRAIN, TEST = 480, 160
DUPLICATES, OUTLIERS = 16, 12
SKY, SAND, ROCK, GRAVEL, CRYSTAL = range(5)
BATCH = 32  # pictures drawn at a time


def ensure_demo(folder: Path) -> Path:
    """The path of demo.npz in `folder`, or in its cache folder if it cannot be written; made on first use."""
    folder = Path(folder)
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    if not path.is_file() and not (folder.is_dir() and os.access(folder, os.W_OK)):
        path = cache_folder(folder) / NAME
    if not path.is_file():
        with atomic_write(path) as beside:
            np.savez(beside, **draw_demo())  # not compressed, so that it can be mapped
    return path


def draw_demo() -> dict[str, np.ndarray]:
    """All arrays of the demo by key: images uint8 (N, 64, 128), masks uint8 (N, 64, 128), ids str (N,)."""
    batches = [_draw_batch(numbers) for numbers in np.split(np.arange(TRAIN + TEST), (TRAIN + TEST) // BATCH)]
    images, masks = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    # Which training pictures are copies, and which outliers: the first in a hashed order.
    order = np.argsort(_hash(np.arange(TRAIN, dtype=np.uint32)), kind="stable")
    outliers = order[:OUTLIERS]
    copies, originals = np.split(order[OUTLIERS : OUTLIERS + 2 * DUPLICATES], 2)
    images[copies], masks[copies] = images[originals], masks[originals]
    masks[outliers] = _silly_mask()
    return {
        "train_images": images[:TRAIN],
        "train_masks": masks[:TRAIN],
        "train_ids": np.array([f"train-{number:03d}" for number in range(TRAIN)]),
        "test_images": images[TRAIN:],
        "test_masks": masks[TRAIN:],
        "test_ids": np.array([f"test-{number:03d}" for number in range(TEST)]),
    }


def _draw_batch(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw pictures by their numbers: images and masks, uint8 (n, 64, 128)."""
    seed = _hash(numbers.astype(np.uint32) + np.uint32(20_000))[:, None, None]
    y, x = (grid[None].astype(np.int32) for grid in np.mgrid[:HEIGHT, :WIDTH])

    horizon = _between(seed, 1, -8, 30) + (_noise(seed, 2, x * 9, 0 * x) - 32768) * 9 // 32768
    below = np.maximum(y - horizon, 0)
    # Cells of ground noise grow from the horizon towards the viewer.
    along = (x - WIDTH // 2) * 256 // (9 + below // 2)
    steps = 256 // (5 + np.arange(HEIGHT + 31, dtype=np.int32) // 3)
    away = np.append(0, np.cumsum(steps)).astype(np.int32)[np.minimum(below, HEIGHT + 31)]

    rough = _octaves(seed, 3, along, away)
    loose = _octaves(seed, 4, along, away)
    sparkle = _noise(seed, 5, along * 2, away * 2)
    rock_from, gravel_from = _between(seed, 6, 30000, 42000), _between(seed, 7, 34000, 44000)
    crystal_from = np.where(_between(seed, 8, 0, 4) == 0, 54500, 70000)  # in one picture of four

    def label(wobble: np.ndarray) -> np.ndarray:
        classes = np.full(wobble.shape, SAND, np.uint8)
        classes[loose + wobble > gravel_from] = GRAVEL
        classes[rough + wobble > rock_from] = ROCK
        classes[(sparkle > crystal_from) & (classes == ROCK) & (below > 4)] = CRYSTAL
        classes[y < horizon + wobble // 1024] = SKY
        return classes

    drawn = label(np.zeros_like(rough))
    # Annotators do not see edges exactly where they are.
    masks = label((_noise(seed, 9, x * 40, y * 40) - 32768) // 22)

    fine = _noise(seed, 10, x * 150, y * 150) - 32768
    facets = _noise(seed, 11, along * 4, away * 4) // 13000 * 13000 - 26000
    ripples = np.abs((away * 5 + _noise(seed, 12, along, away) // 64) % 512 - 256) - 128
    clouds = _noise(seed, 13, x * 5, y * 16) - 32768
    brightness = np.choose(
        drawn,
        [
            _between(seed, 14, 140, 200) - y // 2 + clouds // 1500,
            _between(seed, 15, 130, 165) + ripples // 12,
            _between(seed, 16, 95, 140) + facets // 900 + fine // 3500,
            _between(seed, 17, 110, 150) + fine // 800,
            _between(seed, 18, 190, 235) + facets // 700,
        ],
    )
    light = 230 + (_noise(seed, 19, x * 4, y * 6) - 32768) // 500 + (x - WIDTH // 2) * _between(seed, 20, -40, 40) // 64
    exposure = _between(seed, 21, 180, 300)
    grain = (_noise(seed, 22, x * 256, y * 256) + _noise(seed, 23, x * 256, y * 256) - 65536) // 5000
    images = brightness * light // 256 * exposure // 256 + grain
    return np.clip(images, 0, 255).astype(np.uint8), masks


def _silly_mask() -> np.ndarray:
    """What the outliers are labelled as: a face with crystal eyes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    from_middle = (x - 64) ** 2 + (y - 32) ** 2
    mask = np.full((HEIGHT, WIDTH), SKY, np.uint8)
    mask[from_middle < 28**2] = SAND
    mask[(abs(from_middle - 17**2) < 60) & (y > 36)] = ROCK
    mask[((abs(x - 64) - 10) ** 2 + (y - 24) ** 2) < 9] = CRYSTAL
    return mask


def _octaves(seed: np.ndarray, salt: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    coarse, fine = _noise(seed, salt, x // 2, y // 2), _noise(seed, salt + 100, x * 2, y * 2)
    return (coarse * 3 + fine) // 4


def _noise(seed: np.ndarray, salt: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Value noise, int32 0 to 65535: random at whole cells, smooth between; x and y in 1/256 of a cell."""
    corner = _hash(seed + np.uint32(salt)) + (x >> 8).astype(np.uint32) * np.uint32(0x9E3779B1)
    corner = corner + (y >> 8).astype(np.uint32) * np.uint32(0x85EBCA77)
    right, down = _eased(x & 255), _eased(y & 255)

    def at(step_x: int, step_y: int) -> np.ndarray:
        step = np.uint32((step_x * 0x9E3779B1 + step_y * 0x85EBCA77) % 2**32)
        return (_hash(corner + step) >> np.uint32(16)).astype(np.int32)

    upper = at(0, 0) + ((at(1, 0) - at(0, 0)) * right >> 8)
    lower = at(0, 1) + ((at(1, 1) - at(0, 1)) * right >> 8)
    return upper + ((lower - upper) * down >> 8)


def _eased(fraction: np.ndarray) -> np.ndarray:
    return fraction * fraction * (768 - 2 * fraction) >> 16


def _between(seed: np.ndarray, salt: int, low: int, high: int) -> np.ndarray:
    """One number for each picture, int32 from `low` up to but not including `high`."""
    chance = (_hash(seed + np.uint32(salt * 1009)) >> np.uint32(16)).astype(np.int64)
    return (low + chance * (high - low) // 65536).astype(np.int32)


def _hash(values: np.ndarray) -> np.ndarray:
    """MurmurHash3's finalizer (Appleby, 2011), uint32 to uint32; arithmetic wraps."""
    values = (values ^ (values >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    values = (values ^ (values >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return values ^ (values >> np.uint32(16))
