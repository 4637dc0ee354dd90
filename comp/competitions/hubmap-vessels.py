"""Vessels of kidneys, drawn as polygons; the file wants a confidence of each, for which its size stands.

The score is Open Images' average precision, at an IoU of 0.6, with vessels ordered by grades of size."""

import base64
import json
import zlib

import cv2
import numpy as np
from PIL import Image

GRADES = 500  # twenty for each time that a size doubles


def read_samples(folder, part):
    with open(folder / "polygons.jsonl", encoding="utf-8") as file:
        drawn = {one["id"]: one["annotations"] for one in map(json.loads, file)}
    paths = sorted((folder / part).glob("*.tif"))
    for path in (path for path in paths if part == "test" or path.stem in drawn):  # most training tiles have no labels
        image = np.asarray(Image.open(path).convert("RGB"))
        mask = np.zeros(image.shape[:2], np.uint16)
        for number, one in enumerate(drawn.get(path.stem, ()), 1):
            if one["type"] == "blood_vessel":
                cv2.fillPoly(mask, [np.array(line) for line in one["coordinates"]], number)
        yield path.stem, image, mask if part == "train" else None, None


def score_image(truth, prediction):
    """Of each grade how many vessels are hits, and how many there are; then the number of true ones."""
    found, grades = find_vessels(prediction)
    n = len(grades) + 1
    shared = np.bincount((truth * np.int64(n) + found).ravel(), minlength=n * (int(truth.max()) + 1)).reshape(-1, n)
    ious = shared / np.maximum(shared.sum(1, keepdims=True) + shared.sum(0) - shared, 1)
    hits = (ious[1:, 1:] >= 0.6).any(0)  # above a half, a vessel has one match at most
    return np.append([np.bincount(some, minlength=GRADES) for some in (grades[hits], grades)], shared[1:].any(1).sum())


def combine_counts(counts):
    hits, seen = counts[:-1].reshape(2, GRADES)[:, ::-1].cumsum(1)  # from the largest on
    precision = np.maximum.accumulate((hits / np.maximum(seen, 1))[::-1])[::-1]
    return np.diff(hits, prepend=0) @ precision / max(counts[-1], 1)


def find_vessels(labels):
    """Numbers from 1 of the vessels in labels, both (H, W), and the grade of each, (n,)."""
    count, numbers = cv2.connectedComponents(labels)
    return numbers, (20 * np.log2(np.bincount(numbers.ravel(), minlength=count)[1:])).astype(int)


def write_submission(path, predictions):
    from pycocotools.mask import encode  # of the image; here pip install pycocotools

    with open(path, "w", encoding="utf-8") as file:
        print("id,height,width,prediction_string", file=file)
        for id, labels in predictions:
            numbers, grades = find_vessels(labels)
            said = []
            for k, grade in enumerate(grades, 1):
                runs = encode(np.asfortranarray(numbers == k, np.uint8))["counts"]
                said += ["0", f"{grade / GRADES:.4f}", base64.b64encode(zlib.compress(runs, 9)).decode()]
            print(id, *labels.shape, " ".join(said), sep=",", file=file)
