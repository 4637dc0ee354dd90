"""How fast submission files are written and checked, beside pandas, polars, pycocotools and the usual loop.

    uv run --group peers tests/benchmarks/submission.py

Each pair is measured side by side in this run, one then the other, five times over. Times are medians; a
ratio is the median of five, with the least and the largest behind it. "wall" is the clock on the wall and
holds, for ours only, the fsync that makes a file appear whole; "cpu" is processor time, which a busy machine
changes less. All of it runs in one thread.

pandas needs 20 s for the Mars file and its time grows with the rows, so that it writes `--rows` of the
10,022 and its time is scaled; `--rows 10022` scales nothing."""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pycocotools.mask
import torch

from comp import files
from comp.config import Competition
from comp.submission import runlength
from comp.submission.check import check_submission
from comp.submission.write import open_writer

REPEATS = 5
MARS = (10_022, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=300, help="rows that pandas writes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pixels(Path(folder), args.rows)
        checked(Path(folder))
    runs()


def pixels(folder: Path, rows: int) -> None:
    """The Mars submission, 10,022 × 8192 labels, written in batches, against pandas."""
    heading("pixel CSV, 10,022 × 8192", "pandas")
    ours, theirs = folder / "ours.csv", folder / "pandas.csv"
    for labels in (5, 21, 256):
        array = np.random.default_rng(0).integers(0, labels, MARS, np.uint8)
        frame = pd.DataFrame(array[:rows].reshape(rows, -1))
        frame.insert(0, "id", range(rows))
        compare(
            f"labels 0 to {labels - 1}",
            lambda frame=frame: frame.to_csv(theirs, index=False),
            lambda array=array: write(ours, array),
            scale=len(array) / rows,
        )
        with open(ours, "rb") as file:
            assert file.read(theirs.stat().st_size) == theirs.read_bytes()
    data = ours.read_bytes()
    compare("  the same bytes alone, ready-made", lambda: store(theirs, data), lambda: write(ours, array))
    columns = {"id": range(rows)} | {str(i): array[:rows].reshape(rows, -1)[:, i] for i in range(array[0].size)}
    wide = polars.DataFrame(columns)
    compare(
        "labels 0 to 255, polars instead",
        lambda: wide.write_csv(theirs),
        lambda: write(ours, array),
        scale=len(array) / rows,
    )


def checked(folder: Path) -> None:
    """The same file in labels 0 to 4, written and checked once more, for time and memory."""
    path, array = folder / "mars.csv", np.random.default_rng(0).integers(0, 5, MARS, np.uint8)
    before = peak()
    write(path, array)
    times = [seconds(lambda: check_submission(path, competition(5), range(MARS[0]), MARS[1:])) for _ in range(REPEATS)]
    wall, cpu = np.median(times, axis=0)
    print(f"\n{path.stat().st_size / 1e6:.0f} MB checked in {wall:.2f} s ({cpu:.2f} s cpu); ", end="")
    print(f"written and checked within {peak() - before:.0f} MB more of memory\n")


def runs() -> None:
    """Run-lengths of smooth masks against the loop over masks."""
    heading("run-lengths, column-major", "loop")
    for name, count, height, width, coarse, blank in (
        ("101×101, 39 % blank", 1000, 101, 101, 40, 0.39),  # as TGS salt
        ("101×101", 1000, 101, 101, 12, 0),
        ("768×768", 30, 768, 768, 256, 0),  # as Airbus
        ("768×768", 30, 768, 768, 48, 0),
    ):
        masks = drawn(count, height, width, coarse) == 1
        masks[np.random.default_rng(0).random(count) < blank] = False
        mean = sum(text.count(" ") + 1 for text in runlength.encode_runs(masks)) // 2 // count
        compare(
            f"{name}, {mean} runs",
            lambda masks=masks: [plain(mask) for mask in masks],
            lambda masks=masks: runlength.encode_runs(masks),
        )
        compare(
            "  pycocotools' own format instead",
            lambda masks=masks: [pycocotools.mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks],
            lambda masks=masks: runlength.encode_runs(masks),
        )
    labels = drawn(500, 64, 128, 16, classes=5)
    compare(
        "64×128, 4 classes of a label map",
        lambda: [[plain(picture == label) for label in range(1, 5)] for picture in labels],
        lambda: [runlength.encode_runs(labels == label) for label in range(1, 5)],
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
    return Competition(name="bench", classes=tuple(map(str, range(classes))))


def write(path: Path, labels: np.ndarray) -> None:
    with open_writer(path, competition(5)) as append:
        for first in range(0, len(labels), 64):
            append(range(first, min(first + 64, len(labels))), labels[first : first + 64])


def store(path: Path, data: bytes) -> None:
    """What a file costs whose text is free: written and renamed as ours is."""
    with files.atomic_write(path) as beside, open(beside, "wb") as file:
        file.write(data)


def heading(what: str, peer: str) -> None:
    print(f"{what:<36}{peer:>10}{'ours':>12}{'wall':>9}{'cpu':>26}")


def compare(name: str, theirs: Callable[[], object], ours: Callable[[], object], scale: float = 1) -> None:
    ours()  # tables are made once
    times = np.array([[seconds(theirs), seconds(ours)] for _ in range(REPEATS)])  # repeat, whose, clock
    times[:, 0] *= scale
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
