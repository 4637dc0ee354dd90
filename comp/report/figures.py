"""Figures of a run: its curves, several runs' curves together, and the confusion."""

from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comp.model import metrics
from comp.report.drawing import FAINT, INK, LINES, escape_dollars, save_figure
from comp.report.tables import format_number, shorten

TRAIN, VALID, BEST, STOP = "#7f8fa6", "#0072b2", "#d55e00", "#8b3fa0"
MOST = 32  # classes in a confusion
WIDTH, DPI = 5.5, 200  # inches: legible on a phone, and two go side by side on a wide page

History = Sequence[dict[str, Any]]  # an epoch a row: epoch, seconds, lr, train_loss, valid_loss, score


def draw_curves(history: History, path: str | Path, *, best_epoch: int, stopped: str | None, title: str) -> None:
    """Draw losses, score and learning rate over epochs; mark the best epoch and an early stop.

    A value that is missing or not finite leaves a gap, and a training loss that is not finite is marked.
    best_epoch is counted as in `history`; stopped says why training ended early, or is None.
    """
    epoch, train, valid, score, lr = (
        _floats(history, key) for key in ("epoch", "train_loss", "valid_loss", "score", "lr")
    )
    figure, (losses, scores) = _figure(title, 5.5, ("loss", ""), ("score", "epoch"))
    style = {"marker": "o", "markersize": 3 if len(epoch) < 40 else 0, "linewidth": 1.5}
    losses.plot(epoch, train, color=TRAIN, label="train", **style)
    losses.plot(epoch, valid, color=VALID, label="validation", **style)
    scores.plot(epoch, score, color=VALID, **style)
    if len(broken := epoch[~np.isfinite(train)]):
        floor = {"transform": losses.get_xaxis_transform(), "color": BEST}
        losses.plot(broken, np.full(len(broken), 0.04), "x", label="not finite", **floor)
    rate = losses.twinx()
    rate.plot(epoch, lr, color=FAINT, linewidth=0.8, alpha=0.6, label="learning rate")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_locator(MaxNLocator(3))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    rate.yaxis.get_offset_text().set(color=FAINT, fontsize=7)
    rate.tick_params(colors=FAINT, labelsize=7, length=0)
    rate.spines[:].set_visible(False)
    for axes in (losses, scores):
        axes.axvline(best_epoch, color=BEST, linewidth=0.8, alpha=0.6)
        if stopped:
            axes.axvline(epoch[-1], color=STOP, linewidth=1, linestyle=(0, (4, 3)), alpha=0.8)
    best = score[epoch == best_epoch]
    if len(best) and np.isfinite(best[0]):
        scores.plot(best_epoch, best[0], "o", color=BEST, label=f"best: {best[0]:.4f} in epoch {best_epoch}")
    if stopped:
        ended = escape_dollars(f"{shorten(stopped)}, epoch {epoch[-1]:.0f}")
        scores.plot([], [], color=STOP, linestyle=(0, (4, 3)), label=ended)
    _legend(losses, *rate.get_lines())
    _legend(scores)
    save_figure(figure, path)


def compare_curves(histories: dict[str, History], path: str | Path, title: str) -> None:
    """Draw the validation score of several runs, over epochs and over minutes, each one's best marked."""
    figure, panels = _figure(title, 5.5 + 0.1 * len(histories), ("score", "epoch"), ("score", "minutes"))
    styles = product(("-", "--", ":"), LINES)  # colours return with other dashes
    for (name, history), (dashes, colour) in zip(histories.items(), cycle(styles), strict=False):
        score = _floats(history, "score")
        best = np.argsort(np.nan_to_num(score, nan=-1))[-1:]
        for axes, x in zip(panels, (_floats(history, "epoch"), _floats(history, "seconds") / 60), strict=True):
            axes.plot(x, score, dashes, color=colour, linewidth=1.5, label=escape_dollars(shorten(name)))
            face = colour if dashes == "-" else "white"
            axes.plot(x[best], score[best], "o", color=colour, mfc=face, markersize=5, clip_on=False)
    panels[1].set_xlim(left=0)
    _legend(panels[0])
    save_figure(figure, path)


def draw_confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw the confusion as shares of each true class, with each class's IoU and share of pixels.

    confusion: int64 (C, C), [truth, prediction]. A class that is never true has an empty row.
    """
    counts = np.asarray(confusion, dtype=float)
    if len(counts) > MOST:  # too many to read: the worst ones, and all others as one
        worst = np.sort(np.argsort(np.nan_to_num(metrics.iou(counts), nan=2.0), kind="stable")[: MOST - 1])
        place = np.full(len(counts), MOST - 1)
        place[worst] = np.arange(MOST - 1)
        merged = np.zeros((MOST, MOST))
        np.add.at(merged, (place[:, None], place), counts)
        counts, classes = merged, [*(classes[i] for i in worst), f"{len(classes) - MOST + 1} others"]
    n, true = len(counts), counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / true[:, None]
    side = np.clip(0.36 * n, WIDTH - 2.6, 11.5)
    names = [escape_dollars(shorten(name, 22)) for name in classes]
    figure = Figure(figsize=(side + 2.6, side + 1), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(np.nan_to_num(shares), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(n), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), names)
    axes.set_xticks(np.arange(1, n) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, n) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.set_xlabel("predicted, % of the true class's pixels", color=INK)
    axes.set_ylabel("truth", color=INK)
    right = axes.secondary_yaxis("right")
    part = 100 * true / max(true.sum(), 1)
    iou = metrics.iou(counts)
    if len(confusion) > MOST:
        iou[-1] = np.nan  # of many classes as one it says nothing
    notes = [f"{format_number(i, 3):>5} {p:5.1f} %" for i, p in zip(iou, part, strict=True)]
    right.set_yticks(range(n), notes, fontfamily="monospace")
    right.set_ylabel("IoU, and share of all pixels", color=INK)
    for each in (axes, right):
        each.tick_params(which="both", length=0, labelsize=8, labelcolor=INK)
        each.spines[:].set_visible(False)
    cell = {"ha": "center", "va": "center", "fontsize": 8 if n > 9 else 10, "in_layout": False}
    for i, j in zip(*np.nonzero(shares >= (0.005 if n < 12 else 0.015)), strict=True):
        axes.text(j, i, f"{100 * shares[i, j]:.0f}", color="white" if shares[i, j] > 0.55 else INK, **cell)
    save_figure(figure, path)


def _floats(history: History, key: str) -> np.ndarray:
    values = np.array([row.get(key) for row in history], dtype=float)  # None is NaN
    return np.where(np.isfinite(values), values, np.nan)


def _figure(title: str, height: float, *labels: tuple[str, str]) -> tuple[Figure, list[Axes]]:
    """A figure with two panels, one below the other; `labels` are those of y and x."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(escape_dollars(title), fontsize=11, color=INK, x=0.01, ha="left")
    panels = list(figure.subplots(2, 1))
    for axes, (y, x) in zip(panels, labels, strict=True):
        axes.set_ylabel(y, color=INK)
        axes.set_xlabel(x, color=INK)
        axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10], integer=x != "minutes", min_n_ticks=1))
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(FAINT)
        axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
        axes.tick_params(colors=INK, labelsize=8, length=0)
    return figure, panels


def _legend(axes: Axes, *others: Any) -> None:
    """A legend above the axes, where it hides no line."""
    lines = [*axes.get_legend_handles_labels()[0], *others]
    axes.legend(handles=lines, ncols=3, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
