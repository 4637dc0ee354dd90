"""Figures of a run: its curves, several runs' together, the confusion; and sheets of small images, such as its errors.

A history has an epoch a row: epoch, seconds, lr, train_loss, valid_loss, score. A notebook's style stays as it is."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from comp.data.arrays import TrainSplit
from comp.files import atomic_write
from comp.model import metrics
from comp.report.tables import format_number, shorten

FAINT = "#8b949e"
TRAIN, VALID, BEST, STOP = "#7f8fa6", "#0072b2", "#d55e00", "#8b3fa0"
WIDTH, DPI = 5.5, 200  # inches: legible on a phone, and two go side by side on a wide page
CELL, WIDEST = 280, 1600  # pixels: the larger side of one image; of a sheet, whose images are smaller where many
GAP, LINE = 6, 22  # pixels between images, and of a line of text
# A light grey for class 0, usually the background, then Okabe and Ito's colours (2008).
FIRST = ("#c4c8ce", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

# An image uint8 (H, W, C) under the colours of its labels, uint8 (H, W); one of them may be missing.
Cell = tuple[np.ndarray | None, np.ndarray | None]
Row = tuple[str, dict[str, Cell]]  # a caption, and cells under their headings
# A row of the split, its prediction uint8 (H, W), what it is a case of, and its score.
Case = tuple[int, np.ndarray, str, float]

styled = rc_context(fname=Path(__file__).with_suffix(".mplstyle"))


@styled
def draw_curves(history: pd.DataFrame, path: str | Path, *, best_epoch: int, stopped: str | None, title: str) -> None:
    """Draw losses, score and learning rate over epochs; mark `best_epoch`, of `history`, and why it `stopped` early."""
    epoch = history["epoch"]
    figure, (losses, scores) = _figure(title, 5.5, ("loss", ""), ("score", "epoch"))
    losses.plot(epoch, history["train_loss"], ".-", color=TRAIN, label="train")
    losses.plot(epoch, history["valid_loss"], ".-", color=VALID, label="validation")
    highest = history["lr"].max()
    rate, across = 0.97 * history["lr"] / highest, losses.get_xaxis_transform()
    losses.plot(epoch, rate, ":", color=FAINT, label=f"learning rate, up to {highest:.1e}", transform=across)
    scores.plot(epoch, history["score"], ".-", color=VALID)
    best = history["score"][epoch == best_epoch].max()
    scores.plot(best_epoch, best, "o", color=BEST, label=f"best: {format_number(best)} in epoch {best_epoch}")
    if stopped:
        scores.axvline(epoch.max(), color=STOP, linestyle="--", label=f"{stopped}, epoch {epoch.max():.0f}")
    for axes in (losses, scores):
        axes.axvline(best_epoch, color=BEST, linewidth=0.8, alpha=0.6)
        axes.legend(ncols=3, bbox_to_anchor=(0, 1))
    save_figure(figure, path)


@styled
def compare_curves(histories: dict[str, pd.DataFrame], path: str | Path, title: str) -> None:
    """Draw the validation score of several runs, over epochs and over minutes, each one's best marked."""
    figure, panels = _figure(title, 5.5 + 0.1 * len(histories), ("score", "epoch"), ("score", "minutes"))
    for name, history in histories.items():
        best = history["score"].fillna(-1).argmax()
        for axes, x in zip(panels, (history["epoch"], history["seconds"] / 60), strict=True):
            axes.plot(x, history["score"], label=shorten(name), marker="o", markevery=[best], clip_on=False)
    panels[1].set_xlim(left=0)
    panels[0].legend(ncols=3, bbox_to_anchor=(0, 1))
    save_figure(figure, path)


@styled
def draw_confusion(confusion: np.ndarray, margins: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw the confusion in percent of each true class, with each class's IoU.

    confusion: int64 (C, C), [truth, prediction]; margins: int64 (4, C). A class that is never true has an empty row."""
    names = [shorten(name, 22) for name in classes]
    percent = 100 * confusion / np.maximum(margins[1][:, None], 1)  # of overlapping classes more than 100 in a row
    side = np.clip(0.36 * len(names), WIDTH - 2, 11.5)
    figure = Figure(figsize=(side + 2, side + 1), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    size = 8 if len(names) > 9 else 10
    for (i, j), share in np.ndenumerate(percent.round()):
        if share:
            colour = "white" if share > 50 else "black"
            axes.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=size, color=colour)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    labels = [f"{name}  {format_number(iou, 3)}" for name, iou in zip(names, metrics.iou(margins), strict=True)]
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="predicted, % of the true class's pixels", ylabel="truth, and its IoU")
    axes.spines[:].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as a PNG of its own resolution, atomically."""
    with atomic_write(path) as beside:
        figure.savefig(beside, format="png", dpi="figure")


def _figure(title: str, height: float, *labels: tuple[str, str]) -> tuple[Figure, list[Axes]]:
    """A figure with two panels, one below the other; `labels` are those of y and x."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    panels = list(figure.subplots(2, 1))
    for axes, (y, x) in zip(panels, labels, strict=True):
        axes.set(xlabel=x, ylabel=y)
        axes.grid(axis="y")
        axes.locator_params(axis="x", nbins=8, integer=x != "minutes", min_n_ticks=1)
    return figure, panels


def choose_cases(scores: Sequence[float] | np.ndarray) -> tuple[list[int], list[str]]:
    """Indices and labels of the three worst, three median and the best case, or of fewer; a NaN only where all are."""
    n = int(np.isfinite(scores).sum()) or len(scores)
    order, middle = np.argsort(scores, kind="stable"), n // 2  # NaN comes last
    places = sorted({0, 1, 2, middle - 1, middle, middle + 1, n - 1} & {*range(n)})
    worst = max(1, min(3, middle))
    labels = ["worst" if place < worst else "best" if place == n - 1 else "median" for place in places]
    return [int(order[place]) for place in places], labels


def case_rows(
    split: TrainSplit, cases: Iterable[Case], unscored: Collection[int] = (), overlap: bool = False
) -> Iterator[Row]:
    """A row a case: image, truth, prediction, and where the two differ, which they never do at an `unscored` truth."""
    for row, prediction, label, score in cases:
        image, truth = split.images[row], split.masks[row]
        differ = (truth != prediction) & ~np.isin(truth, [*unscored])
        grey = overlay(image, None).mean(-1, keepdims=True)
        grey = np.minimum(grey / max(np.percentile(grey, 99), 1), 1) * 90  # dimmed, but a dark image stays legible
        wrong = np.where(differ[..., None], overlay(None, prediction, unscored, overlap), grey).astype(np.uint8)
        name = shorten(f"{label}: {split.ids[row]}", 60)
        caption = f"{name} · {format_number(score)} · {differ.mean():.1%} of the pixels differ"
        cells = {"image": (image, None), "truth": (image, truth), "prediction": (image, prediction)}
        yield caption, cells | {"where they differ": (wrong, None)}


def series_rows(split: TrainSplit, rows: Iterable[int], columns: Mapping[str, Sequence[Cell]]) -> Iterator[Row]:
    """A row an image: itself, its cells of each column, such as predictions or augmented samples, and its truth."""
    for i, row in enumerate(rows):
        cells = {heading: column[i] for heading, column in columns.items()}
        yield split.ids[row], {"image": (split.images[row], None)} | cells | {"truth": (None, split.masks[row])}


def class_colours(n: int = 256, unscored: Collection[int] = (), overlap: bool = False) -> np.ndarray:
    """Colours of the labels 0 … n-1 as uint8 (n, 3), all distinct but for `unscored` and 255, which are white.

    Where classes overlap, a label has the colour of the last class that it holds."""
    k = np.arange(256 - len(FIRST))
    # Steps of the golden ratio spread any number of hues evenly; four levels, from dark to pale, tell close hues apart.
    hues = np.stack([k * 0.618034 % 1, 0.9 - 0.15 * (k % 4), 0.55 + 0.13 * (k % 4)], axis=1)
    colours = np.vstack([[to_rgb(colour) for colour in FIRST], hsv_to_rgb(hues)])
    colours = colours[[label.bit_length() for label in range(256)]] if overlap else colours
    colours[[*unscored, *([] if overlap else [255])]] = 1
    return (colours[:n] * 255).round().astype(np.uint8)


def overlay(
    image: np.ndarray | None, mask: np.ndarray | None, unscored: Collection[int] = (), overlap: bool = False
) -> np.ndarray:
    """A cell as uint8 (H, W, 3), of its first three channels or its first; labels but 0 colour an image's greys."""
    colours = class_colours(256, unscored, overlap)
    if image is None:
        return colours[mask]
    rgb = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    if mask is None:
        return rgb
    return np.where(mask[..., None] == 0, rgb, (rgb.mean(-1, keepdims=True) + colours[mask]) / 2).astype(np.uint8)


@styled
def draw_sheet(
    rows: Iterable[Row], classes: Sequence[str], path: str | Path, unscored: Collection[int] = (), overlap: bool = False
) -> None:
    """Draw rows of images, pixel by pixel, which keeps masks sharp, and a legend of the classes' colours."""
    rows = list(rows)
    columns = max(len(cells) for _, cells in rows)
    side = min(CELL, WIDEST // columns - GAP)
    fitted = [
        (caption, {key: _fitted(overlay(*cell, unscored, overlap), side) for key, cell in cells.items()})
        for caption, cells in rows
    ]
    height, width = np.max([cell.shape[:2] for _, cells in fitted for cell in cells.values()], axis=0).tolist()
    total = max(columns * (width + GAP) + GAP, 420)
    names = [shorten(name, 28) for name in classes] + ["not scored"] * bool(unscored)
    colours = [*class_colours(len(classes), unscored) / 255, "white"]
    legend = [Patch(facecolor=colours[k], edgecolor="gray", label=name) for k, name in enumerate(names)]
    across = max(1, total // (8 * max(map(len, names)) + 40))
    row_height = 2 * LINE + height + 2 * GAP
    tall = len(fitted) * row_height + LINE * (1 + -(-len(legend) // across))
    figure = Figure(figsize=(total / 100, tall / 100), dpi=100)
    for r, (caption, cells) in enumerate(fitted):
        top = tall - r * row_height  # pixels, counted from below as matplotlib does
        figure.text(GAP / total, (top - LINE / 2) / tall, shorten(caption, total // 8), va="center")
        for k, (heading, cell) in enumerate(cells.items()):
            x = GAP + k * (width + GAP)
            heading = shorten(heading, max(width // 9, 8))  # digits are wide
            figure.text(x / total, (top - 1.5 * LINE) / tall, heading, color=FAINT, va="center")
            figure.figimage(cell, x, top - 2 * LINE - len(cell))
    figure.legend(handles=legend, ncols=across, fontsize=10, handlelength=1, handleheight=1, borderaxespad=0)
    save_figure(figure, path)


def _fitted(cell: np.ndarray, side: int) -> np.ndarray:
    """uint8 (h, w, 3) with its larger side at most `side`: small ones enlarged by a whole factor, large ones shrunk."""
    shown = Image.fromarray(cell)
    scale = side / max(shown.size)
    scale = max(int(scale), min(scale, 1))
    return np.asarray(shown.resize([max(1, round(n * scale)) for n in shown.size], Image.Resampling.BOX))
