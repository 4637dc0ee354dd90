"""Figures of a run: its curves, several runs' curves together, and the confusion.

All is drawn through matplotlib's object interface and in a style of its own, so that a notebook's stay as they are.
A history is a frame with an epoch a row and the columns epoch, seconds, lr, train_loss, valid_loss, score.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from comp.files import atomic_write
from comp.model import metrics
from comp.report.tables import format_number, shorten

FAINT = "#8b949e"
TRAIN, VALID, BEST, STOP = "#7f8fa6", "#0072b2", "#d55e00", "#8b3fa0"
MOST = 32  # classes in a confusion
WIDTH, DPI = 5.5, 200  # inches: legible on a phone, and two go side by side on a wide page

styled = rc_context(fname=Path(__file__).with_suffix(".mplstyle"))


@styled
def draw_curves(history: pd.DataFrame, path: str | Path, *, best_epoch: int, stopped: str | None, title: str) -> None:
    """Draw losses, score and learning rate over epochs; mark the best epoch and an early stop.

    A value that is not finite leaves a gap; a training loss that is not finite is marked.
    best_epoch is counted as in `history`; stopped says why training ended early, or is None.
    """
    epoch = history["epoch"]
    figure, (losses, scores) = _figure(title, 5.5, ("loss", ""), ("score", "epoch"))
    style: dict[str, Any] = {"marker": "o", "markersize": 3 if len(epoch) < 40 else 0}
    losses.plot(epoch, history["train_loss"], color=TRAIN, label="train", **style)
    losses.plot(epoch, history["valid_loss"], color=VALID, label="validation", **style)
    scores.plot(epoch, history["score"], color=VALID, **style)
    if len(broken := epoch[~np.isfinite(history["train_loss"])]):
        floor: dict[str, Any] = {"transform": losses.get_xaxis_transform(), "color": BEST}
        losses.plot(broken, np.full(len(broken), 0.04), "x", label="not finite", **floor)
    rate = losses.twinx()
    rate.plot(epoch, history["lr"], color=FAINT, linewidth=0.8, label=f"learning rate, up to {history['lr'].max():.1e}")
    rate.set_ylim(bottom=0)
    rate.set_axis_off()
    for axes in (losses, scores):
        axes.axvline(best_epoch, color=BEST, linewidth=0.8, alpha=0.6)
    for best in history.loc[epoch == best_epoch, "score"]:
        if np.isfinite(best):
            scores.plot(best_epoch, best, "o", color=BEST, label=f"best: {best:.4f} in epoch {best_epoch}")
    if stopped:
        ended = f"{shorten(stopped)}, epoch {epoch.iloc[-1]:.0f}"
        scores.axvline(epoch.iloc[-1], color=STOP, linestyle="--", label=ended)
    _legend(losses, *rate.get_lines())
    _legend(scores)
    save_figure(figure, path)


@styled
def compare_curves(histories: dict[str, pd.DataFrame], path: str | Path, title: str) -> None:
    """Draw the validation score of several runs, over epochs and over minutes, each one's best marked."""
    figure, panels = _figure(title, 5.5 + 0.1 * len(histories), ("score", "epoch"), ("score", "minutes"))
    for k, (name, history) in enumerate(histories.items()):
        best = history["score"].fillna(-1).argmax()
        dashes = ("-", "--", ":")[k // 8 % 3]  # after eight runs their colours return
        for axes, x in zip(panels, (history["epoch"], history["seconds"] / 60), strict=True):
            axes.plot(x, history["score"], dashes, label=shorten(name), marker="o", markevery=[best], clip_on=False)
    panels[1].set_xlim(left=0)
    _legend(panels[0])
    save_figure(figure, path)


@styled
def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw the confusion in percent of each true class, with each class's IoU; of many classes the worst.

    confusion: int64 (C, C), [truth, prediction]. A class that is never true has an empty row.
    """
    from sklearn.metrics import ConfusionMatrixDisplay

    ious = metrics.iou(confusion)
    if len(confusion) > MOST:  # too many to read: the worst ones, and all others as one
        order = np.argsort(np.nan_to_num(ious, nan=2.0), kind="stable")
        worst, others = np.sort(order[: MOST - 1]), order[MOST - 1 :]
        member = np.vstack([np.eye(len(ious))[worst], np.isin(np.arange(len(ious)), others)])  # (MOST, C)
        confusion, ious = member @ confusion @ member.T, np.append(ious[worst], np.nan)
        classes = [*(classes[i] for i in worst), f"{len(others)} others"]
    n = len(confusion)
    percent = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    names = [shorten(name, 22) for name in classes]
    side = np.clip(0.36 * n, WIDTH - 2, 11.5)
    figure = Figure(figsize=(side + 2, side + 1), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    text = {"fontsize": 8 if n > 9 else 10}
    display = ConfusionMatrixDisplay(percent, display_labels=names).plot(
        ax=axes, cmap="Blues", values_format=".0f", colorbar=False, im_kw={"vmin": 0, "vmax": 100}, text_kw=text
    )
    for cell in display.text_.flat:
        cell.set_visible(cell.get_text() != "0")
    axes.set_xticks(range(n), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), [f"{name}  {format_number(iou, 3)}" for name, iou in zip(names, ious, strict=True)])
    axes.set(xlabel="predicted, % of the true class's pixels", ylabel="truth, and its IoU")
    axes.spines[:].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as an RGB PNG that knows its resolution, whole or not at all."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    with atomic_write(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG", compress_level=4, dpi=(figure.dpi, figure.dpi))


def _figure(title: str, height: float, *labels: tuple[str, str]) -> tuple[Figure, list[Axes]]:
    """A figure with two panels, one below the other; `labels` are those of y and x."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    panels = list(figure.subplots(2, 1))
    for axes, (y, x) in zip(panels, labels, strict=True):
        axes.set(xlabel=x, ylabel=y)
        axes.grid(axis="y")
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=x != "minutes", min_n_ticks=1))
    return figure, panels


def _legend(axes: Axes, *others: Any) -> None:
    """A legend above the axes, where it hides no line."""
    lines = [*axes.get_legend_handles_labels()[0], *others]
    axes.legend(handles=lines, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
