"""Sheets of small pictures: cases with their errors, predictions over time, augmented samples."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from comp.drawing import DPI, FAINT, INK, colours, number, plain, save, short

CELL = 320  # pixels: the larger side of one picture
GAP = 6  # pixels between pictures
IGNORED = (255, 255, 255)
NOTE = "sheet"  # the text chunk in which a sheet's PNG says what lies where


@dataclass(frozen=True)
class Sheet:
    """A sheet read back from its PNG, so that it can be laid out anew on a page of another width."""

    columns: list[str]
    rows: list[tuple[str, list[np.ndarray]]]  # caption, and a uint8 (h, w, 3) picture per column
    legend: list[tuple[str, str]]  # class and its colour, such as "#e69f00"


def read(path: str | Path) -> Sheet | None:
    """The parts of a sheet's PNG; None where the file does not say what they are."""
    with Image.open(path) as picture:
        note, pixels = picture.info.get(NOTE), np.asarray(picture.convert("RGB"))
    if note is None:
        return None
    parts = json.loads(note)
    rows = [(row["caption"], [pixels[y : y + h, x : x + w] for x, y, w, h in row["boxes"]]) for row in parts["rows"]]
    return Sheet(parts["columns"], rows, [tuple(entry) for entry in parts["legend"]])


def choose(scores: Sequence[float]) -> tuple[list[int], list[str]]:
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


def examples(
    images: np.ndarray,
    truths: np.ndarray,
    predictions: np.ndarray,
    names: Sequence[str],
    scores: Sequence[float],
    classes: Sequence[str],
    path: str | Path,
    *,
    ignore: int | None = None,
) -> None:
    """Draw a row a case: picture, truth, prediction, and where they differ in the predicted colour.

    images: uint8 (n, H, W, C); truths, predictions: uint8 (n, H, W); names and scores: n each.
    Pixels whose truth is `ignore` are white and never differ; that may be a class's own label.
    """
    rows = []
    for image, truth, prediction, name, score in zip(images, truths, predictions, names, scores, strict=True):
        differ = (truth != prediction) & (True if ignore is None else truth != ignore)
        picture, predicted = _shown(image), _coloured(prediction, ignore)
        bright = max(np.percentile(picture, 99), 1)  # a dark picture stays legible when it is dimmed
        grey = np.minimum(picture.mean(-1, keepdims=True) * (90 / bright), 90)
        wrong = np.where(_fitted(differ)[..., None], predicted, grey).astype(np.uint8)
        caption = f"{short(name, 60)} · {number(score)} · {100 * differ.mean():.1f} % of the pixels differ"
        rows.append((caption, [picture, _coloured(truth, ignore), predicted, wrong]))
    _sheet(rows, ["picture", "truth", "prediction", "where they differ"], classes, path, ignore)


def filmstrip(
    images: np.ndarray,
    truths: np.ndarray,
    frames: dict[str, np.ndarray],
    names: Sequence[str],
    classes: Sequence[str],
    path: str | Path,
    *,
    ignore: int | None = None,
) -> None:
    """Draw what the same few pictures were predicted as while training went on, beside their truth.

    images: uint8 (n, H, W, C); truths: uint8 (n, H, W); frames: a heading such as "epoch 3" to
    that moment's predictions, uint8 (n, H, W), in the order in which they are shown.
    """
    rows = []
    for i, name in enumerate(names):
        masks = [frame[i] for frame in frames.values()] + [truths[i]]
        rows.append((name, [_shown(images[i])] + [_coloured(mask, ignore) for mask in masks]))
    _sheet(rows, ["picture", *frames, "truth"], classes, path, ignore)


def samples(
    images: np.ndarray,
    masks: np.ndarray,
    augmented: np.ndarray,
    augmented_masks: np.ndarray,
    names: Sequence[str],
    classes: Sequence[str],
    path: str | Path,
    *,
    ignore: int | None = None,
) -> None:
    """Draw augmented samples beside their originals, under the colours of their masks.

    images: uint8 (n, H, W, C); masks: uint8 (n, H, W); augmented: uint8 (n, k, H, W, C), k draws of
    each; augmented_masks: uint8 (n, k, H, W).
    """
    rows = []
    for i, name in enumerate(names):
        draws = zip(augmented[i], augmented_masks[i], strict=True)
        cells = [_shown(images[i]), _overlay(images[i], masks[i], ignore)]
        rows.append((name, cells + [_overlay(*draw, ignore) for draw in draws]))
    columns = ["original", "with its mask"] + [f"augmented {k + 1}" for k in range(augmented.shape[1])]
    _sheet(rows, columns, classes, path, ignore)


def _sheet(
    rows: list[tuple[str, list[np.ndarray]]],
    columns: list[str],
    classes: Sequence[str],
    path: str | Path,
    ignore: int | None,
) -> None:
    """Place uint8 (h, w, 3) cells pixel by pixel, which keeps masks sharp, and write around them."""
    height, width = np.max([cell.shape[:2] for _, cells in rows for cell in cells], axis=0).tolist()
    head, caption, entry = 34, 24, 19
    total = max(len(columns) * (width + GAP) + GAP, 420)
    legend = _legend(classes, ignore)
    labels = [short(label, 28) for label, _ in legend]
    across = max(1, min(len(labels), (total - 10) // (8 * max(map(len, labels)) + 40)))
    foot = 20 + entry * -(-len(labels) // across)
    canvas = np.full((head + len(rows) * (caption + height + GAP) + foot, total, 3), 255, np.uint8)
    figure = Figure(figsize=(total / DPI, len(canvas) / DPI), dpi=DPI)
    noted = []

    def write(x: float, y: float, text: str, **style) -> None:
        figure.text(x / total, 1 - y / len(canvas), plain(text), va="center", fontsize=9, **style)

    for k, column in enumerate(columns):
        write(GAP + k * (width + GAP) + width / 2, head / 2, column, ha="center", color=FAINT)
    for r, (text, cells) in enumerate(rows):
        top = head + r * (caption + height + GAP) + caption
        write(GAP, top - caption / 2, short(text, max(total // 8, 20)), color=INK)
        boxes = [(GAP + k * (width + GAP), top, *cell.shape[1::-1]) for k, cell in enumerate(cells)]
        for (x, y, w, h), cell in zip(boxes, cells, strict=True):
            canvas[y : y + h, x : x + w] = cell
        noted.append({"caption": text, "boxes": boxes})
    figure.figimage(canvas)
    handles = [Patch(facecolor=fill, edgecolor=FAINT, linewidth=0.5) for _, fill in legend]
    style = {"ncols": across, "frameon": False, "fontsize": 9, "handlelength": 1.2, "borderaxespad": 0.2}
    drawn = figure.legend(handles, ["x"] * len(handles), loc="lower left", labelspacing=0.4, **style)
    for text, label in zip(drawn.get_texts(), labels, strict=True):
        text.set(text=plain(label), color=INK)  # set late: a legend leaves out labels that begin with "_"
    save(figure, path, {NOTE: json.dumps({"columns": columns, "rows": noted, "legend": legend})})


def _legend(classes: Sequence[str], ignore: int | None) -> list[tuple[str, str]]:
    entries = [(name, f"#{bytes(colour).hex()}") for name, colour in zip(classes, colours(len(classes)), strict=True)]
    white = f"#{bytes(IGNORED).hex()}"
    if ignore is None:
        return entries
    if ignore < len(entries):
        entries[ignore] = (f"{classes[ignore]} (not scored)", white)
        return entries
    return [*entries, ("not scored", white)]


def _shown(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, C) as uint8 (h, w, 3) at the size of a cell, of the first three channels or the first."""
    image = image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)
    return _fitted(image)


def _fitted(array: np.ndarray) -> np.ndarray:
    """A picture or a mask at the size of a cell: small ones enlarged by a whole factor, large ones shrunk."""
    height, width = array.shape[:2]
    factor = CELL // max(height, width)
    if factor:
        return array.repeat(factor, 0).repeat(factor, 1)
    size = (max(1, width * CELL // max(height, width)), max(1, height * CELL // max(height, width)))
    method = Image.Resampling.BOX if array.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(array).resize(size, method))


def _coloured(mask: np.ndarray, ignore: int | None) -> np.ndarray:
    """uint8 (H, W) labels as uint8 (h, w, 3) at the size of a cell; 255 is drawn as the ignored label."""
    table = np.vstack([colours(255), np.array([IGNORED], np.uint8)])
    if ignore is not None:
        table[ignore] = IGNORED
    return table[_fitted(mask)]


def _overlay(image: np.ndarray, mask: np.ndarray, ignore: int | None) -> np.ndarray:
    strength = np.where(_fitted(mask) == 0, 0, 0.45)[..., None]  # class 0 keeps the picture
    return (_shown(image) * (1 - strength) + _coloured(mask, ignore) * strength).astype(np.uint8)
