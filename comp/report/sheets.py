"""Sheets of small pictures: cases with their errors, predictions over time, augmented samples."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from comp.data.arrays import TrainSplit
from comp.report.figures import FAINT, INK, escape_dollars, save_figure
from comp.report.tables import format_number, shorten

CELL = 280  # pixels: the larger side of one picture
WIDEST = 1600  # pixels: of a sheet, whose pictures are smaller where they are many
GAP = 6  # pixels between pictures
LINE = 22  # pixels of a line of text
DPI = 100
IGNORED = 255  # white
# A light grey for class 0, usually the background, then Okabe and Ito's colours (2008).
FIRST = ("#c4c8ce", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

# A picture uint8 (H, W, C) under the colours of its labels, uint8 (H, W); one of them may be missing.
Cell = tuple[np.ndarray | None, np.ndarray | None]
Row = tuple[str, dict[str, Cell]]  # a caption, and cells under their headings


def choose_cases(scores: Sequence[float] | np.ndarray) -> tuple[list[int], list[str]]:
    """Indices and labels of the three worst, three median cases and the best, in that order.

    Fewer where there are fewer. A score that is not finite, as of a picture without a class to score,
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


def class_colours(n: int) -> np.ndarray:
    """Colours of the classes 0 … n-1 as uint8 (n, 3), n at most 255, all distinct; fewer are a prefix of more."""
    k = np.arange(255 - len(FIRST))
    # Steps of the golden ratio spread any number of hues evenly; four levels, from dark to pale, tell close hues apart.
    hues = np.stack([k * 0.618034 % 1, 0.9 - 0.15 * (k % 4), 0.55 + 0.13 * (k % 4)], axis=1)
    colours = np.vstack([[to_rgb(colour) for colour in FIRST], hsv_to_rgb(hues)])
    return (colours[:n] * 255).round().astype(np.uint8)


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
    """Draw rows of images, pixel by pixel, which keeps masks sharp, and a legend of the classes' colours."""
    rows = list(rows)
    columns = max(len(cells) for _, cells in rows)
    side = min(CELL, WIDEST // columns - GAP)
    fitted = [(caption, {key: _fitted(cell, side, unscored) for key, cell in cells.items()}) for caption, cells in rows]
    height, width = np.max([cell.shape[:2] for _, cells in fitted for cell in cells.values()], axis=0).tolist()
    total = max(columns * (width + GAP) + GAP, 420)
    legend = [*zip((shorten(name, 28) for name in classes), class_colours(len(classes)) / 255, strict=True)]
    if unscored and (label := min(unscored)) < len(classes):  # one is enough: all are drawn alike
        legend[label] = (f"{legend[label][0]} (not scored)", "white")
    elif unscored:
        legend.append(("not scored", "white"))
    across = max(1, total // (8 * max(len(name) for name, _ in legend) + 40))
    row_height = 2 * LINE + height + 2 * GAP
    tall = len(fitted) * row_height + LINE * (1 + -(-len(legend) // across))
    figure = Figure(figsize=(total / DPI, tall / DPI), dpi=DPI)

    def write(x: float, y: float, text: str, colour: str) -> None:
        figure.text(x / total, y / tall, escape_dollars(text), va="center", fontsize=10, color=colour)

    for r, (caption, cells) in enumerate(fitted):
        top = tall - r * row_height  # pixels, counted from below as matplotlib does
        write(GAP, top - LINE / 2, shorten(caption, total // 8), INK)
        for k, (heading, cell) in enumerate(cells.items()):
            x = GAP + k * (width + GAP)
            write(x, top - 1.5 * LINE, shorten(heading, max(width // 8, 8)), FAINT)
            figure.figimage(cell, x, top - 2 * LINE - len(cell), origin="upper")
    boxes = [Patch(facecolor=colour, edgecolor="gray", label=escape_dollars(name)) for name, colour in legend]
    tight = {"handlelength": 1, "handleheight": 1, "handletextpad": 0.5, "columnspacing": 1, "borderaxespad": 0}
    figure.legend(handles=boxes, loc="lower left", ncols=across, fontsize=10, labelcolor=INK, frameon=False, **tight)
    save_figure(figure, path)


def _coloured(mask: np.ndarray, unscored: Collection[int]) -> np.ndarray:
    """uint8 (H, W) labels as uint8 (H, W, 3); 255, too, is drawn as not scored."""
    table = np.vstack([class_colours(255), np.full((1, 3), IGNORED, np.uint8)])
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
