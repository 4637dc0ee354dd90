"""Cats and dogs in TFRecord files; in the file a line for each image: by row, lengths of ground and animal in turn."""

import io
import re
from functools import partial

import numpy as np
from PIL import Image

# How a feature of a tf.train.Example begins: its name, then the lengths of the three messages around its bytes.
FEATURE = rb"\n.%s\x12" + rb"\n".join([rb"[\x80-\xff]*[\0-\x7f]"] * 3)


def read_samples(folder, part):
    for split in ("train", "dev") if part == "train" else ("test",):
        with open(folder / f"cags.{split}.tfrecord", "rb") as file:
            for k, length in enumerate(iter(partial(file.read, 8), b"")):
                record = file.read(int.from_bytes(length, "little") + 8)  # with its checksums
                mask = np.asarray(read_image(record, b"mask").convert("L")) >= 128 if part == "train" else None
                yield f"{split}-{k:05}", np.asarray(read_image(record, b"image").convert("RGB")), mask, None


def read_image(record, name):
    return Image.open(io.BytesIO(re.split(FEATURE % name, record, maxsplit=1, flags=re.DOTALL)[1]))


def write_submission(path, predictions):
    with open(path, "w", encoding="utf-8") as file:
        for _, labels in predictions:
            edges = np.flatnonzero(np.diff(labels.ravel(), prepend=0, append=1 - labels[-1, -1]))
            print(*np.diff(edges, prepend=0), file=file)
