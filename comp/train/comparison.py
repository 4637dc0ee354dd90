"""Runs side by side: a table of their folds' scores, their curves, and a page of both."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from comp import files
from comp.config import Config
from comp.model import metrics
from comp.report import figures, tables
from comp.report.page import Section, read_figures, write_page
from comp.train.runs import Fold


def write_comparison(
    folder: Path, variants: Mapping[str, Config], done: Mapping[str, Sequence[Fold]], command: str, notes: Sequence[str]
) -> str:
    """Leave table.csv, curves.png and report.html of the runs that are done in a folder; return the table as text.

    variants: the configuration of each run, by its name; done: its finished folds. "spread" is the sample standard
    deviation of their scores.
    """
    competition = next(iter(variants.values())).competition
    numbers = sorted({fold.number for folds in done.values() for fold in folds})
    metric = f"{metrics.describe_metric(competition.metric)}, fold {', '.join(map(str, numbers))}"
    by_run = pd.DataFrame([{"run": run} | fold.metrics for run, folds in done.items() for fold in folds]).groupby("run")
    columns = {"mean_iou": "mean IoU", "images_per_second": "images/s", "parameters": "M parameters"}
    frame = by_run[["score", "mean_iou", "epochs", "seconds", "images_per_second", "parameters"]].mean()
    frame = frame.rename(columns=columns).sort_values("score", ascending=False)
    frame.insert(1, "spread", by_run["score"].std())
    frame["M parameters"] /= 1e6
    files.write_text(folder / "table.csv", frame.to_csv(lineterminator="\n"))
    histories = {name: folds[0].history() for name, folds in done.items()}
    figures.compare_curves(histories, folder / "curves.png", f"score on fold {numbers[0]}")
    values = {name: config.model_dump_json(indent=2) for name, config in variants.items()}
    sections = [
        Section("Result", table=frame, text="\n".join(notes)),
        Section("Scores", figures=read_figures(folder)),
        Section("Command and configuration", text=command, details=values),
    ]
    title = f"{competition.title or competition.name}: {len(variants)} runs"
    write_page(folder / "report.html", title, metric, sections)
    return f"{metric}\n{tables.to_text(frame)}"
