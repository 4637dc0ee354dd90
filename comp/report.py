"""Pictures of a run: the curves and the confusion, and the sheets of cases from `comp.sheets`."""

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from comp.drawing import DPI, FAINT, INK, LINES, colours, number, plain, save, short
from comp.sheets import choose, examples, filmstrip, samples

__all__ = ["choose", "colours", "confusion", "curves", "examples", "filmstrip", "samples", "side_by_side"]

TRAIN, VALID, BEST, STOP = "#7f8fa6", "#0072b2", "#d55e00", "#8b3fa0"


def curves(
    history: list[dict[str, Any]], path: str | Path, *, best_epoch: int, stopped: str | None, title: str
) -> None:
    """Draw losses, score and learning rate over epochs; mark the best epoch and an early stop.

    history: one dict an epoch with epoch, lr, train_loss, valid_loss and score; a value that is
    missing or not finite leaves a gap, and a training loss that is not finite is marked.
    best_epoch is counted as in `history`; stopped says why training ended early, or is None.
    """
    column = {key: _floats(history, key) for key in ("epoch", "lr", "train_loss", "valid_loss", "score")}
    epoch = column["epoch"]
    figure = Figure(figsize=(8, 6), dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), fontsize=12, color=INK, x=0.01, ha="left")
    losses, scores = figure.subplots(2, 1, sharex=True)
    style = {"marker": "o", "markersize": 3.5 if len(epoch) < 40 else 0, "linewidth": 1.8}
    losses.plot(epoch, column["train_loss"], color=TRAIN, label="train", **style)
    losses.plot(epoch, column["valid_loss"], color=VALID, label="validation", **style)
    scores.plot(epoch, column["score"], color=VALID, label="validation", **style)
    broken = epoch[~np.isfinite(column["train_loss"])]
    if len(broken):
        floor = {"transform": losses.get_xaxis_transform(), "color": BEST}
        losses.plot(broken, np.full(len(broken), 0.04), "x", label="not finite", **floor)
    rate = losses.twinx()
    rate.plot(epoch, column["lr"], color=FAINT, linewidth=1, alpha=0.6, label="learning rate")
    rate.set_ylim(bottom=0)
    rate.yaxis.set_major_locator(MaxNLocator(3))
    rate.tick_params(colors=FAINT, labelsize=8, length=0)
    rate.spines[:].set_visible(False)
    for axes, label in ((losses, "loss"), (scores, "score")):
        _tidy(axes, label)
        axes.axvline(best_epoch, color=BEST, linewidth=1, alpha=0.6)
        if stopped:
            axes.axvline(epoch[-1], color=STOP, linewidth=1.2, linestyle=(0, (4, 3)), alpha=0.8)
    best = column["score"][epoch == best_epoch]
    if len(best) and np.isfinite(best[0]):
        label = f"best: {best[0]:.4f} in epoch {best_epoch}"
        scores.plot(best_epoch, best[0], "o", color=BEST, markersize=8, label=label)
    if stopped:
        label = plain(f"{short(stopped, 50)}, epoch {epoch[-1]:.0f}")
        scores.plot([], [], color=STOP, linestyle=(0, (4, 3)), label=label)
    scores.set_xlabel("epoch", color=INK)
    scores.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epoch):
        scores.set_xlim(epoch[0] - 0.5, epoch[-1] + 0.5)
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 4, "frameon": False, "fontsize": 9}
    losses.legend(handles=losses.get_lines()[: 3 if len(broken) else 2] + rate.get_lines(), **above)
    scores.legend(**above)
    save(figure, path)


def side_by_side(histories: dict[str, list[dict[str, Any]]], path: str | Path, title: str) -> None:
    """Draw the validation score of several runs, over epochs and over minutes; histories as for `curves`."""
    figure = Figure(figsize=(11, 4.5), dpi=DPI, layout="constrained")
    figure.suptitle(plain(title), fontsize=12, color=INK, x=0.01, ha="left")
    panels = figure.subplots(1, 2, sharey=True)
    for (name, history), colour in zip(histories.items(), cycle(LINES), strict=False):
        score = _floats(history, "score")
        for axes, x in zip(panels, (_floats(history, "epoch"), _floats(history, "seconds") / 60), strict=True):
            axes.plot(x, score, color=colour, linewidth=1.8, label=plain(short(name, 40)))
            axes.plot(x[np.nanargmax(score)], np.nanmax(score), "o", color=colour, markersize=6)
    for axes, label in zip(panels, ("epoch", "minutes"), strict=True):
        _tidy(axes, "score" if label == "epoch" else "")
        axes.set_xlabel(label, color=INK)
    panels[1].legend(loc="lower right", frameon=False, fontsize=9)
    save(figure, path)


def confusion(confusion: np.ndarray, classes: Sequence[str], path: str | Path) -> None:
    """Draw the confusion as shares of each true class, with each class's IoU and share of pixels.

    confusion: int64 (C, C), [truth, prediction]. A class that is never true has an empty row.
    """
    counts = np.asarray(confusion, dtype=float)
    n, true, predicted = len(counts), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = counts / true[:, None]
        iou = counts.diagonal() / (true + predicted - counts.diagonal())
    side = np.clip(0.36 * n, 3.2, 11.5)
    names = [plain(short(name, 22)) for name in classes]
    figure = Figure(figsize=(side + 3.6, side + 1.3), dpi=DPI, layout="constrained")
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
    notes = [f"{number(i, 3):>5} {p:5.1f} %" for i, p in zip(iou, part, strict=True)]
    right.set_yticks(range(n), notes, fontfamily="monospace")
    right.set_ylabel("IoU, and share of all pixels", color=INK)
    for each in (axes, right):
        each.tick_params(which="both", length=0, labelsize=9, labelcolor=INK)
        each.spines[:].set_visible(False)
    cell = {"ha": "center", "va": "center", "fontsize": 8 if n > 9 else 10, "in_layout": False}
    for i, j in zip(*np.nonzero(shares >= (0.005 if n < 12 else 0.015)), strict=True):
        axes.text(j, i, f"{100 * shares[i, j]:.0f}", color="white" if shares[i, j] > 0.55 else INK, **cell)
    save(figure, path)


def _floats(history: list[dict[str, Any]], key: str) -> np.ndarray:
    values = np.array([np.nan if row.get(key) is None else row[key] for row in history], dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _tidy(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color="#e6e8eb", linewidth=0.8)
    axes.tick_params(colors=INK, labelsize=9, length=0)
