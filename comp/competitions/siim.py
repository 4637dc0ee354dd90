"""Chest X-rays in DICOM files; of those to train on, the ones that train-rle.csv knows."""

import pandas as pd
import pydicom


def read_samples(folder, part):
    known = {*pd.read_csv(folder / "train-rle.csv")["ImageId"]} if part == "train" else ()
    for path in sorted(folder.rglob("*.dcm")):
        to_train = "train" in path.relative_to(folder).parts[0]
        if to_train == (part == "train") and (not to_train or path.stem in known):
            yield path.stem, pydicom.dcmread(path).pixel_array, None, None
