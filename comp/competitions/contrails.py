"""Contrails' records: three of nine bands, at the time that was labelled, as the hosts' ash colours."""

import numpy as np

RANGES = np.array([[-4, 2], [-4, 5], [243, 303]])  # kelvin, of what becomes red, green and blue
LABELLED = 4  # of eight times


def read_samples(folder, part):
    for split in ("train", "validation") if part == "train" else ("test",):
        for place in sorted((folder / split).iterdir()):
            b11, b14, b15 = (np.load(place / f"band_{k}.npy")[..., LABELLED] for k in (11, 14, 15))
            colours = np.stack([b15 - b14, b14 - b11, b14], axis=-1)
            image = (colours - RANGES[:, 0]) / np.ptp(RANGES, axis=1) * 255
            mask, each = None, place / "human_individual_masks.npy"
            if part == "train":  # the hosts' own label is what more than half of the annotators saw
                mask = np.load(each if each.exists() else place / "human_pixel_masks.npy").mean(-1, np.float32)
            yield place.name, image.round().clip(0, 255).astype(np.uint8), mask, None
