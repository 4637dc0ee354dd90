"""Arrays larger than memory, and an ensemble that grows: seconds to the first batch, and peak memory.

    uv run tests/benchmarks/memory.py

The npz is stored and sparse, so that 40 GB need no disk. Each measurement has a process of its own, so that
its peak memory is its own; imports are left out of the seconds.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", nargs="?", choices=["first_batch", "ensemble"])
    parser.add_argument("numbers", nargs="*", type=int)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps({"first_batch": first_batch, "ensemble": ensemble}[args.measure](*args.numbers)))
        return
    print(f"{'':44}{'seconds':>9}{'peak MB':>9}")
    show("first batch of a stored npz of 40 GB", "first_batch", 40)
    for folds, pictures in ((1, 256), (4, 256), (1, 1024)):
        show(f"ensemble of {folds} folds over {pictures} pictures", "ensemble", folds, pictures)


def show(name: str, *arguments: object) -> None:
    command = [sys.executable, __file__, *map(str, arguments)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    print(f"{name:44}{found['seconds']:9.2f}{found['peak']:9.0f}", flush=True)


def first_batch(gigabytes: int) -> dict[str, float]:
    from comp import arrays, batches, config

    settings = config.load("demo", overrides=["augment.transforms=[]", "batch_size=32"])
    with tempfile.TemporaryDirectory() as folder:
        count = gigabytes * 10**9 // (2 * 64 * 128)
        sparse(Path(folder) / "demo.npz", {"train_images": (count, 64, 128), "train_masks": (count, 64, 128)})
        started = time.perf_counter()
        split = arrays.load_train(settings.competition, Path(folder))
        rows = np.random.default_rng(0).integers(0, count, 4096)  # as a fold's rows lie all over the file
        _, images, _ = next(batches.TrainBatches(split, rows, np.ones(4096), settings, 0, pin=False).epoch(0))
        assert images.shape == (32, 64, 128, 1)
        return {"seconds": time.perf_counter() - started, "peak": peak()}


def ensemble(folds: int, pictures: int) -> dict[str, float]:
    from comp import arrays, config, device, models, runs
    from comp import ensemble as blends

    settings, chosen = config.load("demo"), device.choose("cpu")
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for number in range(folds):
            model, _ = models.build(settings.model, 1, 5, torch.tensor([100.0]), torch.tensor([50.0]))
            path = Path(folder) / f"fold-{number}"
            models.save(model, path / runs.MODEL, settings)
            made.append(runs.Fold(path, number, {}))
        npz = Path(folder) / "demo.npz"
        sparse(npz, {"test_images": (pictures, 64, 128)})
        test = arrays.load_test(settings.competition, Path(folder))
        started = time.perf_counter()
        predict = settings.predict.model_copy(update={"tta": "none"})
        seen = sum(len(rows) for rows, _ in blends.blended([made], [1.0], test, np.arange(pictures), predict, chosen))
        assert seen == pictures
        return {"seconds": time.perf_counter() - started, "peak": peak()}


def sparse(path: Path, members: dict[str, tuple[int, ...]]) -> None:
    """A stored npz of zeros, most of it a hole in the file."""
    with zipfile.ZipFile(path, "w") as archive:
        for key, shape in members.items():
            with archive.open(f"{key}.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                hole = math.prod(shape) - 1
                archive.fp.seek(hole, os.SEEK_CUR)
                file._file_size += hole
                file.write(bytes(1))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
