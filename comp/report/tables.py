"""Figures, names and tables as text."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any


def format_number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def shorten(text: str, most: int = 40) -> str:
    """Text of at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def format_duration(seconds: float) -> str:
    """Seconds as "45 s", "3 min 05 s" or "2 h 10 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of equal length as lines, the first `left` columns flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return "\n".join("  ".join(pad(*cell) for pad, *cell in zip(pads, row, widths, strict=True)) for row in rows)


# The scores of a run that tables show, and what the columns are headed.
HEADLINES = {
    "score": "score",
    "mean_iou": "IoU",
    "mean_iou_without_0": "IoU w/o 0",
    "mean_iou_truth_without_0": "IoU truth≠0",
    "mean_iou_per_image": "IoU/image",
    "dice": "Dice",
    "dice_per_image": "Dice/image",
    "pixel_accuracy": "accuracy",
}


def score_table(scores: Mapping[str, Any]) -> str:
    """One fold's scores, as `scores` gives them, as aligned text: a line per class, then the headlines."""
    headlines = [[*HEADLINES.values()], [format_number(scores[key]) for key in HEADLINES]]
    return f"{aligned(class_rows(scores))}\n\nscore: {scores['metric']}\n{aligned(headlines)}"


def class_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The scores by class as the cells of a table, its head first."""
    rows = [["class", "share", "IoU", "Dice", "precision", "recall"]]
    for name, values in scores["classes"].items():
        shown = (format_number(values[key]) for key in ("iou", "dice", "precision", "recall"))
        rows.append([shorten(name), f"{values['share'] or 0:.2%}", *shown])
    return rows


def folds_table(folds: Mapping[str | int, Mapping[str, Any]], pooled: Mapping[str, Any]) -> str:
    """The folds' scores as aligned text: a line per fold, their mean, their spread, all samples as one.

    `folds` holds what `scores` gives, by the fold's number; `pooled` is the same over the confusions
    of all folds together. The spread is the sample standard deviation.
    """
    rows = [*fold_rows(folds), ["pooled", *(format_number(pooled[key]) for key in HEADLINES)]]
    return f"score: {pooled['metric']}\n{aligned(rows)}"


def fold_rows(folds: Mapping[str | int, Mapping[str, Any]]) -> list[list[str]]:
    """The folds' scores, their mean and their spread as the cells of a table, its head first."""
    rows = [["fold", *HEADLINES.values()]]
    rows += [[str(fold), *(format_number(values[key]) for key in HEADLINES)] for fold, values in folds.items()]
    by_score = [[values[key] for values in folds.values()] for key in HEADLINES]
    if len(folds) < 2:
        return rows
    means = ["mean", *(format_number(mean(column)) for column in by_score)]
    return [*rows, means, ["± std", *(format_number(stdev(column)) for column in by_score)]]
