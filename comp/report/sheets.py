"""Sheets of small pictures: cases with their errors, predictions over time, augmented samples."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from comp.data.arrays import TrainSplit
from comp.report.drawing import FAINT, INK, class_colours, escape_dollars, save_figure
from comp.report.tables import format_number, shorten

CELL = 280  # pixels: the larger side of one picture
WIDEST = 1600  # pixels: of a sheet, whose pictures are smaller where they are many
GAP = 6  # pixels between pictures
LINE = 22  # pixels of a line of text
DPI = 100
IGNORED = (255, 255, 255)

# A picture uint8 (H, W, C) under the colours of its labels, uint8 (H, W); one of them may be missing.
Cell = tuple[np.ndarray | None, np.ndarray | None]
Row = tuple[str, dict[str, Cell]]  # a caption, and cells under their headings


def choose_cases(scores: Sequence[float]) -> tuple[list[int], list[str]]:
    """Indices and labels of the three worst, three median cases and the best, in that order.

    Fewer where there are fewer. A score that is not finite, as of a picture without a class to score,
    is chosen only where all are.
    """
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(scores, kind="stable")
    if np.isfinite(scores).any():
        order = order[np.isfinite(scores[order])]
    n, middle = len(order), len(order) // 2
    wanted = [(0, "worst"), (n - 1, "best"), (middle, "median"), (1, "worst"), (2, "worst")]
    wanted += [(middle - 1, "median"), (middle + 1, "median")]
    label_at: dict[int, str] = {}
    for position, label in wanted:
        if 0 <= position < n:
            label_at.setdefault(position, label)
    positions = sorted(label_at)
    return [int(order[p]) for p in positions], [label_at[p] for p in positions]


def case_rows(
    split: TrainSplit,
    rows: Sequence[int],
    predictions: Iterable[np.ndarray],
    labels: Sequence[str],
    scores: Sequence[float],
    unscored: Collection[int] = (),
) -> Iterator[Row]:
    """A row a case: picture, truth and prediction over it, and where they differ in the predicted colour.

    predictions: uint8 (H, W) for each of the rows; labels: what each is a case of.
    Pixels whose truth is an `unscored` label never differ; it may be a class's own.
    """
    for row, prediction, label, score in zip(rows, predictions, labels, scores, strict=True):
        image, truth = split.images[row], split.masks[row]
        differ = (truth != prediction) & ~np.isin(truth, [*unscored])
        picture = overlay(image, None)
        bright = max(np.percentile(picture, 99), 1)  # a dark picture stays legible when it is dimmed
        grey = np.minimum(picture.mean(-1, keepdims=True) * (90 / bright), 90)
        wrong = np.where(differ[..., None], overlay(None, prediction, unscored), grey).astype(np.uint8)
        cells = {"picture": (image, None), "truth": (image, truth), "prediction": (image, prediction)}
        name = shorten(f"{label}: {split.ids[row]}", 60)
        caption = f"{name} · {format_number(score)} · {100 * differ.mean():.1f} % of the pixels differ"
        yield caption, cells | {"where they differ": (wrong, None)}


def filmstrip_rows(split: TrainSplit, rows: Sequence[int], frames: dict[str, np.ndarray]) -> Iterator[Row]:
    """What the same few pictures were predicted as while training went on, and at last their truth.

    frames: a heading such as "epoch 4" to that moment's predictions, uint8 (n, H, W), in the order in which they
    are shown.
    """
    for i, row in enumerate(rows):
        film = {heading: (None, frame[i]) for heading, frame in frames.items()}
        yield split.ids[row], {"picture": (split.images[row], None)} | film | {"truth": (None, split.masks[row])}


def sample_rows(split: TrainSplit, rows: Sequence[int], draws: Sequence[Sequence[Cell]]) -> Iterator[Row]:
    """Augmented samples beside their originals, under the colours of their masks.

    draws: for each of the rows its augmented pictures with their masks, of any size.
    """
    for row, drawn in zip(rows, draws, strict=True):
        image, mask = split.images[row], split.masks[row]
        cells = {f"augmented {k}": draw for k, draw in enumerate(drawn, 1)}
        yield split.ids[row], {"original": (image, None), "with its mask": (image, mask)} | cells


def overlay(image: np.ndarray | None, mask: np.ndarray | None, unscored: Collection[int] = ()) -> np.ndarray:
    """A cell as uint8 (H, W, 3). Label 0 keeps the picture; without a picture it has a colour, too."""
    if image is None:
        return _coloured(mask, unscored)
    # The first three channels, or the first.
    picture = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if mask is None:
        return picture
    strength = np.where(mask == 0, 0, 0.5)[..., None]
    return (picture * (1 - strength) + _coloured(mask, unscored) * strength).astype(np.uint8)


def draw_sheet(rows: Iterable[Row], classes: Sequence[str], path: str | Path, unscored: Collection[int] = ()) -> None:
    """Draw rows of pictures, pixel by pixel, which keeps masks sharp, and what the colours mean."""
    rows = list(rows)
    columns = max(len(cells) for _, cells in rows)
    side = min(CELL, WIDEST // columns - GAP)
    fitted = [(caption, {key: _fitted(cell, side, unscored) for key, cell in cells.items()}) for caption, cells in rows]
    height, width = np.max([cell.shape[:2] for _, cells in fitted for cell in cells.values()], axis=0).tolist()
    total = max(columns * (width + GAP) + GAP, 420)
    legend = [(shorten(name, 28), colour) for name, colour in zip(classes, class_colours(len(classes)), strict=True)]
    if unscored and (label := min(unscored)) < len(classes):  # of several one is enough: all are drawn alike
        legend[label] = (f"{legend[label][0]} (not scored)", IGNORED)
    elif unscored:
        legend.append(("not scored", IGNORED))
    step = 8 * max(len(name) for name, _ in legend) + 40
    across = max(1, total // step)
    tall = 2 * LINE + height + 2 * GAP
    canvas = np.full((len(fitted) * tall + LINE * (1 + -(-len(legend) // across)), total, 3), 255, np.uint8)
    figure = Figure(figsize=(total / DPI, len(canvas) / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, **style) -> None:
        figure.text(x / total, 1 - y / len(canvas), escape_dollars(text), va="center", fontsize=10, **style)

    for r, (caption, cells) in enumerate(fitted):
        write(GAP, r * tall + LINE / 2, shorten(caption, total // 8), color=INK)
        for k, (heading, cell) in enumerate(cells.items()):
            x, y, (h, w) = GAP + k * (width + GAP), r * tall + 2 * LINE, cell.shape[:2]
            write(x, y - LINE / 2, shorten(heading, max(width // 8, 8)), color=FAINT)
            canvas[y : y + h, x : x + w] = cell
    for k, (name, colour) in enumerate(legend):
        x, y = GAP + k % across * step, len(fitted) * tall + LINE * (k // across) + LINE // 2
        canvas[y : y + 14, x : x + 14] = 128
        canvas[y + 1 : y + 13, x + 1 : x + 13] = colour
        write(x + 20, y + 7, name, color=INK)
    figure.figimage(canvas)
    save_figure(figure, path)


def _coloured(mask: np.ndarray, unscored: Collection[int]) -> np.ndarray:
    """uint8 (H, W) labels as uint8 (H, W, 3); 255, too, is drawn as not scored."""
    table = np.vstack([class_colours(255), np.array([IGNORED], np.uint8)])
    table[[*unscored]] = IGNORED
    return table[mask]


def _fitted(cell: Cell, side: int, unscored: Collection[int]) -> np.ndarray:
    """uint8 (h, w, 3) with its larger side at most `side`: small ones enlarged by a whole factor, large ones shrunk."""
    picture = overlay(*cell, unscored)
    height, width = picture.shape[:2]
    if factor := side // max(height, width):
        return picture.repeat(factor, 0).repeat(factor, 1)
    size = (max(1, width * side // max(height, width)), max(1, height * side // max(height, width)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))
