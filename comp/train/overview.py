"""The report of a run: what its folder holds, as one page."""

from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pandas as pd

from comp.config import Config
from comp.errors import Refused
from comp.model import metrics
from comp.report import figures, tables
from comp.report.page import Section, read_figures, write_page
from comp.report.tables import format_duration, format_number
from comp.train.runs import Fold, find_folds, read_config


def write_run_page(run_folder: Path) -> Path:
    """Write runs/<competition>/<run>/report.html from what its folder and the audit beside it hold. Raises Refused.

    Where there are several folds, curves.png and confusion.png of all of them are drawn beside it.
    """
    config = read_config(run_folder)
    folds = find_folds(run_folder)
    names = config.competition.classes
    try:
        confusion = np.sum([fold.metrics["confusion"] for fold in folds], axis=0)
        pooled = metrics.scores(confusion[None], names, config.competition.metric)
        if len(folds) > 1:
            histories = {f"fold {fold.number}": fold.history() for fold in folds}
            figures.compare_curves(histories, run_folder / "curves.png", f"{config.competition.name}, all folds")
            figures.draw_confusion(confusion, names, run_folder / "confusion.png")
        by_fold = tables.folds_frame({fold.number: fold.metrics for fold in folds})
        for fold in folds:
            by_fold.loc[fold.number, "best epoch"] = f"{fold.metrics['best_epoch']} of {fold.metrics['epochs']}"
            by_fold.loc[fold.number, "ended by"] = fold.metrics["ended"]
            by_fold.loc[fold.number, "time"] = format_duration(fold.metrics["seconds"])
        by_class = tables.class_frame(pooled)
        if len(folds) > 1:
            ious = pd.concat([tables.class_frame(fold.metrics)["IoU"] for fold in folds], axis=1)
            by_class["worst fold's IoU"], by_class["best"] = ious.min(axis=1), ious.max(axis=1)
        sections = [
            Section("Result", facts=_facts(config, folds), table=by_fold),
            Section("Classes, all folds as one", table=by_class),
        ]
    except KeyError as error:
        raise Refused(f"{run_folder}: a fold's metrics.json lacks {error}; train it again") from None
    if len(folds) > 1:
        sections.append(Section("All folds", figures=read_figures(run_folder)))
    for fold in folds:
        if shown := read_figures(fold.folder):
            sections.append(Section(f"Fold {fold.number}", figures=shown, folded=fold is not folds[0]))
    audit, command = run_folder.parent / "audit", run_folder / "command.txt"
    if (audit / "audit.txt").exists():
        text = (audit / "audit.txt").read_text(encoding="utf-8")
        sections.append(Section("What is odd in the data", text=text, wrap=False, figures=read_figures(audit)))
    ran = command.read_text(encoding="utf-8") if command.exists() else ""
    values = {"every value of the configuration": config.model_dump_json(indent=2)}
    sections.append(Section("Command and configuration", text=ran, details=values))
    title = f"{config.competition.title or config.competition.name}: {run_folder.name}"
    subtitle = f"recipe {config.recipe}, scored by {folds[0].metrics['metric']} on out-of-fold predictions"
    if config.predict.tta != "none":
        subtitle += f" with {config.predict.tta} test-time augmentation; the curves are without"
    return write_page(run_folder / "report.html", title, subtitle, sections)


def _facts(config: Config, folds: list[Fold]) -> dict[str, str]:
    scores = [fold.metrics["score"] for fold in folds]
    return {
        f"score, mean of {len(folds)} of {config.folds.count} folds": format_number(mean(scores))
        + (f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""),
        f"encoder {config.model.encoder}, weights {Path(config.model.encoder_weights).name}": config.model.architecture,
        "training, all folds": format_duration(sum(fold.metrics["seconds"] for fold in folds)),
        f"images/s on {folds[0].metrics['device']}": format_number(folds[0].metrics["images_per_second"], 0),
    }
