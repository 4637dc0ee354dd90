"""Figures of papers, authentic and forged; a forgery has a layer for each region that was copied."""

import numpy as np
from PIL import Image


def read_samples(folder, part):
    for path in sorted((folder / f"{part}_images").rglob("*.png")):
        image, id, kind = np.asarray(Image.open(path).convert("RGB")), path.stem, path.parent.name
        mask = np.zeros(image.shape[:2], np.uint8)
        if kind == "forged":
            for k, layer in enumerate(np.atleast_3d(np.load(folder / f"train_masks/{id}.npy").T).T, 1):
                mask[layer > 0] = k
        # A figure and its forgery have one name, and belong together.
        yield (f"{id}-{kind}", image, mask, id) if part == "train" else (id, image, None, None)
