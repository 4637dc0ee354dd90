"""How time and peak memory grow with samples, picture size, classes, folds and models.

    uv run tests/benchmarks/scaling.py                  # a table, and scaling.png

The arrays are stored and sparse, so that 40 GB need no disk. Each measurement has a process of its own, so that
its peak memory is its own; imports are left out of the seconds. "grows as" is the exponent between the first and
the last row: 1 is linear, 0 is flat."""

import argparse
import contextlib
import io
import itertools
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

import matplotlib.pyplot as plt
import numpy as np
import torch

from comp import config
from comp.data import arrays

# By what grows: the work, its values, and what stays.
CURVES = {
    "test pictures": ("predict", "pictures", [512, 1024, 2048, 4096]),
    "side of a picture": ("predict", "side", [64, 128, 256, 512]),
    "classes": ("predict", "classes", [2, 8, 32, 128]),
    "folds": ("predict", "folds", [1, 2, 4, 8]),
    "models in a blend": ("predict", "models", [1, 2, 4, 8]),
    "training pictures": ("train", "pictures", [512, 1024, 2048, 4096]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("scaling.png"))
    parser.add_argument("measure", nargs="?", choices=["first_batch", "predict", "train"])
    parser.add_argument("arguments", nargs="*", help="name=number")
    args = parser.parse_args()
    if args.measure:
        work = {"first_batch": first_batch, "predict": predict, "train": train}[args.measure]
        given = dict(word.split("=") for word in args.arguments)
        print(json.dumps(work(**{name: int(value) for name, value in given.items()})))
        return
    found = measured("first_batch", gigabytes=40)
    print(f"first batch of a stored npz of 40 GB: {found['seconds']:.2f} s, {found['peak']:.0f} MB\n")
    print(f"{'':36}{'seconds':>9}{'grows as':>10}{'peak MB':>9}{'grows as':>10}")
    figure, axes = plt.subplots(2, len(CURVES), figsize=(3 * len(CURVES), 5), sharey="row", layout="constrained")
    for (name, (work, key, values)), column in zip(CURVES.items(), axes.T, strict=True):
        rows = [measured(work, **{key: value}) for value in values]
        for value, row in zip(values, rows, strict=True):
            grown = [exponent(values, rows, unit) if value == values[-1] else "" for unit in ("seconds", "peak")]
            line = f"{row['seconds']:9.2f}{grown[0]:>10}{row['peak']:9.0f}{grown[1]:>10}"
            print(f"{f'{value} {name}':36}{line}", flush=True)
        for axis, unit in zip(column, ("seconds", "peak"), strict=True):
            axis.loglog(values, [row[unit] for row in rows], "o-")
            if unit == "peak":
                axis.set_yscale("linear")
                axis.set_ylim(bottom=0)
            axis.set_xticks(values, [str(value) for value in values])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        column[1].set_xlabel(name)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    figure.savefig(args.out, dpi=120)
    print(args.out)


def measured(work: str, **arguments: int) -> dict[str, float]:
    command = [sys.executable, __file__, work, *(f"{name}={value}" for name, value in arguments.items())]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def exponent(values: list[int], rows: list[dict[str, float]], unit: str) -> str:
    return f"{math.log(rows[-1][unit] / rows[0][unit]) / math.log(values[-1] / values[0]):.2f}"


def first_batch(gigabytes: int) -> dict[str, float]:
    from comp.data import batches

    settings = config.load_config("demo", overrides=["augment.transforms=[]", "batch_size=32"])
    with tempfile.TemporaryDirectory() as folder:
        count = gigabytes * 10**9 // (2 * 64 * 128)
        sparse(Path(folder) / "demo.npz", {"train_images": (count, 64, 128), "train_masks": (count, 64, 128)})
        started = time.perf_counter()
        split = arrays.load_train(settings.competition, Path(folder))
        rows = np.random.default_rng(0).integers(0, count, 4096)  # as a fold's rows lie all over the file
        _, images, _ = next(batches.TrainBatches(split, rows, np.ones(4096), settings, 0, pin=False).epoch(0))
        assert images.shape == (32, 64, 128, 1)
        return {"seconds": time.perf_counter() - started, "peak": peak()}


def predict(pictures: int = 512, side: int = 64, classes: int = 5, folds: int = 1, models: int = 1) -> dict[str, float]:
    """Disk to CSV: `models` runs of `folds` folds each."""
    from comp import device
    from comp.ensemble.decisions import Decisions, label_images
    from comp.ensemble.make_submission import predict_blend
    from comp.model import segmenter as networks
    from comp.submission.write import open_writer
    from comp.train import runs

    settings, chosen = tiny(classes), device.choose_device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for run, number in itertools.product(range(models), range(folds)):
            model, _ = networks.build_segmenter(settings.model, 1, classes, torch.tensor([100.0]), torch.tensor([50.0]))
            path = Path(folder) / str(run) / f"fold-{number}"
            networks.save_model(model, path / runs.MODEL, settings)
            made.append(runs.Fold(path, number, {}))
        sparse(Path(folder) / "demo.npz", {"test_images": (pictures, side, side)})
        test = arrays.load_test(settings.competition, Path(folder))
        started = time.perf_counter()
        blended = predict_blend([made], [1.0], test, None, settings.predict.batch_size, chosen)
        with open_writer(Path(folder) / "s.csv", settings.competition) as write:
            for batch, probabilities in blended:
                write(test.ids[batch], label_images(probabilities, Decisions.neutral(1, classes)).cpu().numpy())
        return {"seconds": time.perf_counter() - started, "peak": peak()}


def train(pictures: int) -> dict[str, float]:
    """One epoch, from arrays that were never seen: hashed, dealt into folds, trained on, validated."""
    from comp import device
    from comp.data.folds import load_training_data
    from comp.train.train_fold import train_fold

    settings = tiny(5)
    with tempfile.TemporaryDirectory() as folder:
        random = np.random.default_rng(0)
        images, masks = (random.integers(0, most, (pictures, 64, 64), np.uint8) for most in (256, 5))
        np.savez(Path(folder) / "demo.npz", train_images=images, train_masks=masks)
        del images, masks
        started, chosen = time.perf_counter(), device.choose_device("cpu")
        data = load_training_data(settings, Path(folder), Path(folder))
        with contextlib.redirect_stdout(io.StringIO()):
            train_fold(data, 0, Path(folder) / "run", device.Machine(chosen))
        return {"seconds": time.perf_counter() - started, "peak": peak()}


def tiny(classes: int) -> config.Config:
    """The smallest network, so that what grows around it shows."""
    small = ["epochs=1", "model.options={encoder_depth=3, decoder_channels=[8, 8, 8]}", 'predict.tta="none"']
    loaded = config.load_config("demo", "default", [*small, "predict.batch_size=16"])
    names = tuple(f"class {number}" for number in range(classes))
    return loaded.model_copy(update={"competition": loaded.competition.model_copy(update={"classes": names})})


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
