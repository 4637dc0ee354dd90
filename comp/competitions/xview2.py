"""0.3 of F1 of buildings and 0.7 of the harmonic mean of four levels' F1; two files for each image."""

import zipfile

import cv2
import numpy as np


def score_image(truth, prediction):
    """Hits, predicted and true pixels of buildings, then of each level where there is truly a building."""
    pairs = [(truth > 0, prediction > 0), *((truth == k, (prediction == k) & (truth > 0)) for k in range(1, 5))]
    return [count for true, seen in pairs for count in ((true & seen).sum(), seen.sum(), true.sum())]


def combine_counts(counts):
    hits, seen, true = counts.reshape(-1, 3).T
    f1 = 2 * hits / np.maximum(seen + true, 1)
    return 0.3 * f1[0] + 0.7 * 4 / (1 / (f1[1:] + 1e-6)).sum()


def write_submission(path, predictions):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for id, labels in predictions:
            for kind, values in (("localization", np.minimum(labels, 1)), ("damage", labels)):
                archive.writestr(f"test_{kind}_{id}_prediction.png", cv2.imencode(".png", values)[1].tobytes())
