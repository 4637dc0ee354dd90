"""The report of a run: what its folder holds, as one page."""

from html import escape
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from comp.config import Config
from comp.errors import Refused
from comp.model import metrics
from comp.report import figures, tables
from comp.report.page import folded, pictures, table, verbatim, write_page
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
        sections = {
            "Result": _facts(config, folds) + table(_fold_rows(folds)),
            "Classes, all folds as one": table(_class_rows(pooled, folds)),
        }
    except KeyError as error:
        raise Refused(f"{run_folder}: a fold's metrics.json lacks {error}; train it again") from None
    if len(folds) > 1:
        sections["All folds"] = pictures(run_folder)
    for fold in folds:
        shown = pictures(fold.folder)
        first = fold is folds[0]
        sections[f"Fold {fold.number}"] = shown if first else folded(f"the pictures of fold {fold.number}", shown)
    audit, command = run_folder.parent / "audit", run_folder / "command.txt"
    if (audit / "audit.txt").exists():
        table_text = (audit / "audit.txt").read_text(encoding="utf-8")
        sections["What is odd in the data"] = verbatim(table_text, wrap=False) + pictures(audit)
    values = folded("every value of the configuration", verbatim(config.model_dump_json(indent=2)))
    ran = verbatim(command.read_text(encoding="utf-8")) if command.exists() else ""
    sections["Command and configuration"] = ran + values
    title = f"{config.competition.title or config.competition.name}: {run_folder.name}"
    subtitle = f"recipe {config.recipe}, scored by {folds[0].metrics['metric']} on out-of-fold predictions"
    if config.predict.tta != "none":
        subtitle += f" with {config.predict.tta} test-time augmentation; the curves are without"
    return write_page(run_folder / "report.html", title, subtitle, sections)


def _facts(config: Config, folds: list[Fold]) -> str:
    scores = [fold.metrics["score"] for fold in folds]
    facts = {
        f"score, mean of {len(folds)} of {config.folds.count} folds": format_number(mean(scores))
        + (f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""),
        f"encoder {config.model.encoder}, weights {Path(config.model.encoder_weights).name}": config.model.architecture,
        "training, all folds": format_duration(sum(fold.metrics["seconds"] for fold in folds)),
        f"images/s on {folds[0].metrics['device']}": format_number(folds[0].metrics["images_per_second"], 0),
    }
    cards = "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in facts.items())
    return f'<div class="facts">{cards}</div>'


def _fold_rows(folds: list[Fold]) -> list[list[str]]:
    head, *rows = tables.fold_rows({fold.number: fold.metrics for fold in folds})
    for row, facts in zip(rows, (fold.metrics for fold in folds), strict=False):
        row += [f"{facts['best_epoch']} of {facts['epochs']}", facts["ended"], format_duration(facts["seconds"])]
    for row in rows[len(folds) :]:  # the mean and the spread
        row += ["", "", ""]
    return [[*head, "best epoch", "ended by", "time"], *rows]


def _class_rows(pooled: dict, folds: list[Fold]) -> list[list[str]]:
    head, *rows = tables.class_rows(pooled)
    if len(folds) == 1:
        return [head, *rows]
    for row, name in zip(rows, pooled["classes"], strict=True):
        known = [iou for fold in folds if (iou := fold.metrics["classes"][name]["iou"]) is not None]
        row.append(f"{min(known):.3f} – {max(known):.3f}" if known else "–")
    return [[*head, "IoU over folds"], *rows]
