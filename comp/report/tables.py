"""Small tables as pandas frames, shown as text or HTML: numbers flush right, a dash for what is missing."""

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import pandas as pd

# The scores of a run that tables show, and their columns' names.
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
CLASS_COLUMNS = {"share": "share", "iou": "IoU", "dice": "Dice", "precision": "precision", "recall": "recall"}
# Columns with a format of their own; all other floats have four digits.
FORMATS = {"epochs": "{:.0f}", "seconds": "{:.0f}", "images/s": "{:.1f}", "M parameters": "{:.2f}"}
STYLE: dict[str, Any] = {
    "float_format": "{:.4f}".format,
    "formatters": {column: form.format for column, form in FORMATS.items()},
    "na_rep": "–",
}


def format_number(value: float, digits: int = 4) -> str:
    """A number with fixed digits, or a dash where it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def format_duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def shorten(text: str, most: int = 40) -> str:
    """Text of at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def to_text(frame: pd.DataFrame, index: bool = True) -> str:
    """A frame as aligned lines, its index, if shown, flush left below the index's name."""
    return frame.rename_axis(index=None, columns=frame.index.name).to_string(index=index, col_space=8, **STYLE)


def to_html(frame: pd.DataFrame) -> str:
    """A frame as an HTML table, escaped, with the columns of `to_text`."""
    return frame.rename_axis(index=None, columns=frame.index.name).to_html(border=0, justify="right", **STYLE)


def score_table(scores: Mapping[str, Any]) -> str:
    """One fold's scores, as `metrics.scores` gives them, as text: a line per class, then the headlines."""
    headlines = to_text(headline_frame([scores]), index=False)
    return f"{to_text(class_frame(scores))}\n\nscore: {scores['metric']}\n{headlines}"


def class_frame(scores: Mapping[str, Any]) -> pd.DataFrame:
    """The scores by class, a class a row."""
    frame = pd.DataFrame(scores["classes"]).T.astype(float).rename(columns=CLASS_COLUMNS, index=shorten)
    shares = frame["share"].fillna(0).map("{:.2%}".format)
    return frame[[*CLASS_COLUMNS.values()]].assign(share=shares).rename_axis("class")


def headline_frame(folds: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The headlines of several folds' scores, a fold a row."""
    return pd.DataFrame([*folds], columns=[*HEADLINES], dtype=float).rename(columns=HEADLINES)


def folds_frame(folds: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    """The folds' headlines by fold number; below two or more their mean and their sample standard deviation."""
    frame = headline_frame([*folds.values()]).set_axis([*folds])
    if len(folds) > 1:
        frame = pd.concat([frame, frame.agg(["mean", "std"]).rename({"std": "± std"})])
    return frame.rename_axis("fold")


def folds_table(folds: Mapping[int, Mapping[str, Any]], pooled: Mapping[str, Any]) -> str:
    """`folds_frame` as text, and below it `pooled`: the scores of all folds' confusions together."""
    frame = pd.concat([folds_frame(folds), headline_frame([pooled]).set_axis(["pooled"])])
    return f"score: {pooled['metric']}\n{to_text(frame.rename_axis('fold'))}"
