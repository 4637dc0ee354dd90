"""Small tables as pandas frames, shown as text or HTML: numbers flush right, a dash for what is missing."""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from comp.model.metrics import READINGS

# Columns with a format of their own; all other floats have four digits.
FORMATS = {"share": "{:.2%}", "epochs": "{:.0f}", "seconds": "{:.0f}", "images/s": "{:.1f}", "M parameters": "{:.2f}"}
STYLE: dict[str, Any] = {"float_format": "{:.4f}".format, "na_rep": "–"}
STYLE["formatters"] = {column: form.format for column, form in FORMATS.items()}


def format_number(value: float, digits: int = 4) -> str:
    """A number with fixed digits, or a dash where it is not finite."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def shorten(text: str, most: int = 40) -> str:
    """Text of at most `most` characters, cut before its end, since the end tells an image's windows apart."""
    return text if len(text) <= most else f"{text[: most - 1 - most // 3]}…{text[-(most // 3) :]}"


def to_text(frame: pd.DataFrame) -> str:
    """A frame as aligned lines, its index flush left below the index's name."""
    return frame.rename_axis(index=None, columns=frame.index.name).to_string(col_space=8, **STYLE)


def to_html(frame: pd.DataFrame) -> str:
    """A frame as an HTML table, escaped, with the columns of `to_text`."""
    return frame.rename_axis(index=None, columns=frame.index.name).to_html(border=0, justify="right", **STYLE)


def class_frame(scores: Mapping[str, Any]) -> pd.DataFrame:
    """The scores by class, as `metrics.scores` gives them, a class a row."""
    frame = pd.DataFrame(scores["classes"]).T.astype(float)[["share", "iou", "dice", "precision", "recall"]]
    return frame.fillna({"share": 0}).rename(columns={"iou": "IoU", "dice": "Dice"}, index=shorten).rename_axis("class")


def folds_frame(folds: Mapping[Any, Mapping[str, Any]]) -> pd.DataFrame:
    """The folds' headlines, a fold a row; below two or more their mean and their sample standard deviation."""
    columns = {"score": "score"} | {key: column for key, (column, _) in READINGS.items()}
    frame = pd.DataFrame([*folds.values()], [*folds], [*columns], dtype=float).rename(columns=columns)
    if len(folds) > 1:
        frame = pd.concat([frame, frame.agg(["mean", "std"]).rename({"std": "± std"})])
    return frame.rename_axis("fold")


def score_table(scores: Mapping[str, Any]) -> str:
    """One fold's scores as text: a line per class, then the headlines."""
    headlines = folds_frame({"all": scores}).rename_axis("class")
    return f"{to_text(class_frame(scores))}\n\nscore: {scores['metric']}\n{to_text(headlines)}"
