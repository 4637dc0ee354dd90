"""Figures and what was copied within them; a file with all copies of a figure in one row."""

import csv
import json

import numpy as np
from PIL import Image
from skimage.measure import label

from comp.submission.runlength import encode_runs


def read_samples(folder, part):
    for path in sorted((folder / f"{part}_images").rglob("*.png")):
        image, id = np.asarray(Image.open(path).convert("RGB")), path.stem
        mask, copies = np.zeros(image.shape[:2], np.uint8), folder / f"train_masks/{id}.npy"
        if path.parent.name == "forged":
            for k, copy in enumerate(np.atleast_3d(np.load(copies).T).T, 1):
                mask[copy > 0] = k
        # A figure and its forgery have one name, and belong together.
        yield (f"{id}-{path.parent.name}", image, mask, id) if part == "train" else (id, image, None, None)


def write_submission(path, predictions):
    with open(path, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["case_id", "annotation"])
        for id, labels in predictions:
            found = label(labels, connectivity=2)
            texts = encode_runs(np.array([found == k for k in range(1, found.max() + 1)])) if found.any() else []
            runs = [json.dumps([*map(int, text.split())]) for text in texts]
            rows.writerow([id, ";".join(runs) or "authentic"])
