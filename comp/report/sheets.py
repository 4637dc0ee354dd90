"""Sheets of small images: cases with their errors, predictions over time, augmented samples."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from comp.data.arrays import TrainSplit
from comp.report.figures import FAINT, save_figure, styled
from comp.report.tables import format_number, shorten

CELL = 280  # pixels: the larger side of one image
WIDEST = 1600  # pixels: of a sheet, whose images are smaller where they are many
GAP = 6  # pixels between images
LINE = 22  # pixels of a line of text
DPI = 100
IGNORED = (255, 255, 255)
# A light grey for class 0, usually the background, then Okabe and Ito's colours (2008).
FIRST = ("#c4c8ce", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

# An image uint8 (H, W, C) under the colours of its labels, uint8 (H, W); one of them may be missing.
Cell = tuple[np.ndarray | None, np.ndarray | None]
Row = tuple[str, dict[str, Cell]]  # a caption, and cells under their headings


def choose_cases(scores: Sequence[float] | np.ndarray) -> tuple[list[int], list[str]]:
    """Indices and labels of the three worst, three median cases and the best, in that order.

    Fewer where there are fewer. A score that is not finite, as of an image without a class to score,
    is chosen only where all are.
    """
    scores = np.asarray(scores, dtype=float)
    order = np.argsort(scores, kind="stable")
    if np.isfinite(scores).any():
        order = order[np.isfinite(scores[order])]
    n, middle = len(order), len(order) // 2
    labels = dict.fromkeys((middle - 1, middle + 1), "median") | dict.fromkeys((1, 2), "worst")
    labels |= {middle: "median", n - 1: "best", 0: "worst"}  # of few cases these come first
    positions = sorted(p for p in labels if 0 <= p < n)
    return [int(order[p]) for p in positions], [labels[p] for p in positions]


def case_rows(
    split: TrainSplit,
    rows: Sequence[int],
    predictions: Iterable[np.ndarray],
    labels: Sequence[str],
    scores: Sequence[float],
    unscored: Collection[int] = (),
) -> Iterator[Row]:
    """A row a case: image, truth and prediction over it, and where they differ in the predicted colour.

    predictions: uint8 (H, W) for each of the rows; labels: what each is a case of.
    Pixels whose truth is an `unscored` label never differ; it may be a class's own.
    """
    for row, prediction, label, score in zip(rows, predictions, labels, scores, strict=True):
        image, truth = split.images[row], split.masks[row]
        differ = (truth != prediction) & ~np.isin(truth, [*unscored])
        rgb = overlay(image, None)
        bright = max(np.percentile(rgb, 99), 1)  # a dark image stays legible when it is dimmed
        grey = np.minimum(rgb.mean(-1, keepdims=True) * (90 / bright), 90)
        wrong = np.where(differ[..., None], overlay(None, prediction, unscored), grey).astype(np.uint8)
        cells = {"image": (image, None), "truth": (image, truth), "prediction": (image, prediction)}
        name = shorten(f"{label}: {split.ids[row]}", 60)
        caption = f"{name} · {format_number(score)} · {100 * differ.mean():.1f} % of the pixels differ"
        yield caption, cells | {"where they differ": (wrong, None)}


def filmstrip_rows(split: TrainSplit, rows: Sequence[int], frames: dict[str, np.ndarray]) -> Iterator[Row]:
    """What the same few images were predicted as while training went on, and at last their truth.

    frames: a heading such as "epoch 4" to that moment's predictions, uint8 (n, H, W), in the order of time.
    """
    for i, row in enumerate(rows):
        film = {heading: (None, frame[i]) for heading, frame in frames.items()}
        yield split.ids[row], {"image": (split.images[row], None)} | film | {"truth": (None, split.masks[row])}


def sample_rows(split: TrainSplit, rows: Sequence[int], draws: Sequence[Sequence[Cell]]) -> Iterator[Row]:
    """Augmented samples beside their originals, under the colours of their masks.

    draws: for each of the rows its augmented images with their masks, of any size.
    """
    for row, drawn in zip(rows, draws, strict=True):
        image, mask = split.images[row], split.masks[row]
        cells = {f"augmented {k}": draw for k, draw in enumerate(drawn, 1)}
        yield split.ids[row], {"original": (image, None), "with its mask": (image, mask)} | cells


def class_colours(n: int) -> np.ndarray:
    """Colours of the classes 0 … n-1 as uint8 (n, 3), n at most 255, all distinct; fewer are a prefix of more."""
    k = np.arange(255 - len(FIRST))
    # Steps of the golden ratio spread any number of hues evenly; four levels, from dark to pale, tell close hues apart.
    hues = np.stack([k * 0.618034 % 1, 0.9 - 0.15 * (k % 4), 0.55 + 0.13 * (k % 4)], axis=1)
    colours = np.vstack([[to_rgb(colour) for colour in FIRST], hsv_to_rgb(hues)])
    return (colours[:n] * 255).round().astype(np.uint8)


def overlay(image: np.ndarray | None, mask: np.ndarray | None, unscored: Collection[int] = ()) -> np.ndarray:
    """A cell as uint8 (H, W, 3). Label 0 keeps the image; without an image it has a colour, too."""
    colours = _colour_table(unscored)
    if image is None:
        return colours[mask]
    # The first three channels, or the first.
    rgb = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if mask is None:
        return rgb
    return np.where(mask[..., None] == 0, rgb, rgb * 0.5 + colours[mask] * 0.5).astype(np.uint8)


@styled
def draw_sheet(rows: Iterable[Row], classes: Sequence[str], path: str | Path, unscored: Collection[int] = ()) -> None:
    """Draw rows of images, pixel by pixel, which keeps masks sharp, and a legend of the classes' colours."""
    rows = list(rows)
    columns = max(len(cells) for _, cells in rows)
    side = min(CELL, WIDEST // columns - GAP)
    fitted = [(caption, {key: _fitted(cell, side, unscored) for key, cell in cells.items()}) for caption, cells in rows]
    height, width = np.max([cell.shape[:2] for _, cells in fitted for cell in cells.values()], axis=0).tolist()
    total = max(columns * (width + GAP) + GAP, 420)
    legend = [(shorten(name, 28), colour) for name, colour in zip(classes, _colour_table(unscored) / 255, strict=False)]
    legend += [("not scored", "white")] if unscored else []
    across = max(1, total // (8 * max(len(name) for name, _ in legend) + 40))
    row_height = 2 * LINE + height + 2 * GAP
    tall = len(fitted) * row_height + LINE * (1 + -(-len(legend) // across))
    figure = Figure(figsize=(total / DPI, tall / DPI), dpi=DPI)

    for r, (caption, cells) in enumerate(fitted):
        top = tall - r * row_height  # pixels, counted from below as matplotlib does
        style: dict[str, Any] = {"va": "center", "fontsize": 10}
        figure.text(GAP / total, (top - LINE / 2) / tall, shorten(caption, total // 8), **style)
        for k, (heading, cell) in enumerate(cells.items()):
            x = GAP + k * (width + GAP)
            heading = shorten(heading, max(width // 8, 8))
            figure.text(x / total, (top - 1.5 * LINE) / tall, heading, color=FAINT, **style)
            figure.figimage(cell, x, top - 2 * LINE - len(cell))
    boxes = [Patch(facecolor=colour, edgecolor="gray", label=name) for name, colour in legend]
    tight = {"handlelength": 1, "handleheight": 1, "handletextpad": 0.5, "columnspacing": 1, "borderaxespad": 0}
    figure.legend(handles=boxes, loc="lower left", ncols=across, fontsize=10, **tight)
    save_figure(figure, path)


def _colour_table(unscored: Collection[int]) -> np.ndarray:
    """The colour of each label, uint8 (256, 3); 255, too, is drawn as not scored."""
    table = np.vstack([class_colours(255), np.zeros((1, 3), np.uint8)])
    table[[*unscored, 255]] = IGNORED
    return table


def _fitted(cell: Cell, side: int, unscored: Collection[int]) -> np.ndarray:
    """uint8 (h, w, 3) with its larger side at most `side`: small ones enlarged by a whole factor, large ones shrunk."""
    shown = overlay(*cell, unscored)
    height, width = shown.shape[:2]
    if factor := side // max(height, width):
        return shown.repeat(factor, 0).repeat(factor, 1)
    size = (max(1, width * side // max(height, width)), max(1, height * side // max(height, width)))
    return np.asarray(Image.fromarray(shown).resize(size, Image.Resampling.BOX))
