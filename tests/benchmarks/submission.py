"""How fast submission files are written and checked, beside pandas and the usual loop.

    python tests/benchmarks/submission.py

Each pair is measured side by side in this run, one then the other, three times over. Times are medians; a
ratio is the median of three, with the least and the largest behind it. "wall" is the clock on the wall and
holds, for ours only, the fsync that makes a file appear whole; "cpu" is processor time, which a busy machine
changes less (all of this runs in one thread).
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from comp import runlength, submission
from comp.config import Competition, Submission

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=800, help="rows of 64×128 pixels that pandas writes, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pixels(Path(folder), args.rows)
        mars(Path(folder))
    runs()


def pixels(folder: Path, rows: int) -> None:
    """Pixel CSV against pandas, equal to the byte."""
    heading(f"pixel CSV, {rows} × 8192", "pandas")
    for labels in (5, 21, 256):
        array = np.random.default_rng(0).integers(0, labels, (rows, 64, 128), np.uint8)
        frame = pd.DataFrame(array.reshape(rows, -1))
        frame.insert(0, "id", range(rows))
        ours, theirs = folder / "ours.csv", folder / "pandas.csv"
        compare(
            f"labels 0 to {labels - 1}",
            lambda frame=frame, theirs=theirs: frame.to_csv(theirs, index=False),
            lambda array=array, ours=ours: write(ours, array),
        )
        assert ours.read_bytes() == theirs.read_bytes()


def mars(folder: Path) -> None:
    """The Mars submission, 10,022 × 8192 labels, written in batches and checked."""
    path, shape = folder / "mars.csv", (10_022, 64, 128)
    array = np.random.default_rng(0).integers(0, 5, shape, np.uint8)
    before = peak()
    written, _ = seconds(lambda: write(path, array))
    checked, _ = seconds(lambda: submission.check(path, competition(5), range(len(array)), shape[1:]))
    size = path.stat().st_size / 1e6
    print(f"\nMars, {size:.0f} MB: written in {written:.2f} s, checked in {checked:.2f} s, ", end="")
    print(f"peak memory {peak() - before:+.0f} MB\n")


def runs() -> None:
    """Run-lengths of smooth masks against the loop over masks."""
    heading("run-lengths, column-major", "loop")
    for name, count, height, width, coarse, blank in (
        ("101×101, 39 % blank (TGS salt)", 2000, 101, 101, 12, 0.39),
        ("101×101, busy", 1000, 101, 101, 4, 0),
        ("768×768, one object (Airbus)", 40, 768, 768, 48, 0),
        ("768×768, busy", 40, 768, 768, 24, 0),
    ):
        masks = drawn(count, height, width, coarse) == 1
        masks[np.random.default_rng(0).random(count) < blank] = False
        compare(name, lambda masks=masks: [plain(mask) for mask in masks], lambda masks=masks: runlength.encode(masks))
    labels = drawn(1000, 64, 128, 8, classes=5)
    compare(
        "64×128, 4 classes of a label map",
        lambda: [[plain(picture == label) for label in range(1, 5)] for picture in labels],
        lambda: [runlength.encode(labels == label) for label in range(1, 5)],
    )


def plain(mask: np.ndarray) -> str:
    """The loop that public notebooks share."""
    flat = np.concatenate([[0], mask.T.flatten(), [0]])
    edges = np.where(flat[1:] != flat[:-1])[0] + 1
    edges[1::2] -= edges[::2]
    return " ".join(str(value) for value in edges)


def drawn(count: int, height: int, width: int, coarse: int, classes: int = 2) -> np.ndarray:
    """Smooth label maps, uint8 (count, height, width); structures are about `coarse` pixels wide."""
    torch.manual_seed(0)
    noise = torch.randn(count, classes, height // coarse + 2, width // coarse + 2)
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")
    return smooth.argmax(1).to(torch.uint8).numpy()


def competition(classes: int) -> Competition:
    names = tuple(map(str, range(min(classes, 255))))
    return Competition(name="bench", classes=names, submission=Submission(format="pixels"))


def write(path: Path, labels: np.ndarray) -> None:
    with submission.writer(path, competition(5)) as append:
        for first in range(0, len(labels), 64):
            append(range(first, min(first + 64, len(labels))), labels[first : first + 64])


def heading(what: str, peer: str) -> None:
    print(f"{what:<36}{peer:>10}{'ours':>12}{'wall':>9}{'cpu':>26}")


def compare(name: str, theirs: Callable[[], object], ours: Callable[[], object]) -> None:
    ours()  # tables are made once
    times = np.array([[seconds(theirs), seconds(ours)] for _ in range(REPEATS)])  # repeat, whose, clock
    their, our = np.median(times[:, :, 0], axis=0) * 1e3
    print(f"{name:<36}{their:>7.0f} ms{our:>9.1f} ms", end="")
    for clock in range(2):
        low, middle, high = np.sort(times[:, 0, clock] / times[:, 1, clock])[[0, REPEATS // 2, -1]]
        print(f"{middle:>8.1f}x {f'({low:.1f} to {high:.1f})':<16}", end="")
    print()


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """On the wall, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
