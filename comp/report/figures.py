"""Figures of a run: its curves, several runs' curves together, and the confusion. A notebook's style stays as it is.

A history is a frame with an epoch a row and the columns epoch, seconds, lr, train_loss, valid_loss, score."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from comp.files import atomic_write
from comp.model import metrics
from comp.report.tables import format_number, shorten

FAINT = "#8b949e"
TRAIN, VALID, BEST, STOP = "#7f8fa6", "#0072b2", "#d55e00", "#8b3fa0"
WIDTH, DPI = 5.5, 200  # inches: legible on a phone, and two go side by side on a wide page

styled = rc_context(fname=Path(__file__).with_suffix(".mplstyle"))


@styled
def draw_curves(history: pd.DataFrame, path: str | Path, *, best_epoch: int, stopped: str | None, title: str) -> None:
    """Draw losses, score and learning rate over epochs; mark the best epoch and an early stop.

    best_epoch is counted as in `history`; stopped says why training ended early, or is None."""
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
def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw the confusion in percent of each true class, with each class's IoU.

    confusion: int64 (C, C), [truth, prediction]. A class that is never true has an empty row."""
    ious = metrics.iou(np.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)]))
    names = [shorten(name, 22) for name in classes]
    percent = 100 * confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
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
    labels = [f"{name}  {format_number(iou, 3)}" for name, iou in zip(names, ious, strict=True)]
    axes.set_yticks(range(len(names)), labels)
    axes.set(xlabel="predicted, % of the true class's pixels", ylabel="truth, and its IoU")
    axes.spines[:].set_visible(False)
    save_figure(figure, path)


@styled
def draw_searches(curves: dict[str, tuple[list[str], list[float], int]], path: str | Path) -> None:
    """Draw the score over the values of each decision, three in a row, with the chosen one marked.

    curves: by what was decided, the values in words, the score of each, and the place of the chosen one."""
    rows = -(-len(curves) // 3)
    figure = Figure(figsize=(WIDTH, 0.3 + 1.6 * rows), dpi=DPI, layout="constrained")
    panels = figure.subplots(rows, 3, squeeze=False).ravel()
    for axes, (name, (values, scores, place)) in zip(panels, curves.items(), strict=False):
        axes.plot(scores, color=VALID)
        axes.plot(place, scores[place], "o", color=BEST)
        shown = sorted({0, place, len(values) - 1})
        axes.set_xticks(shown, [values[k] for k in shown])
        axes.set_title(shorten(name, 24), fontsize=8)
        axes.locator_params(axis="y", nbins=4)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
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
