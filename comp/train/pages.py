"""The pages of a run and of a comparison: their tables and the figures that they left, nothing from outside."""

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from comp import files
from comp.config import Competition, Config, Metric
from comp.model import metrics
from comp.report import figures, tables
from comp.train.runs import Fold, find_folds, read_config

FIGURES = {
    "curves.png": "Curves",
    "confusion.png": "Confusion",
    "examples.png": "Worst, median and best cases",
    "filmstrip.png": "How predictions changed as training went on",
    "samples.png": "Augmented samples",
    "audit.png": "",
}


class Section(NamedTuple):
    """A heading and what stands below it, in this order."""

    heading: str
    table: pd.DataFrame | None = None
    text: str = ""  # preformatted
    wrap: bool = True  # whether long lines of the text are wrapped; a table's are not
    figures: Sequence[dict[str, Any]] = ()  # as `read_figures` gives them
    folded: bool = False  # whether the figures open on a click
    details: Mapping[str, str] = {}  # summaries and texts that open on a click


def write_page(path: Path, title: str, subtitle: str, sections: Iterable[Section], live: bool = False) -> Path:
    """Write a page of its sections, atomically; a live one loads itself anew."""
    source = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    template = jinja2.Template(source, autoescape=True, trim_blocks=True)
    about = {"title": title, "subtitle": subtitle, "sections": sections, "to_html": tables.to_html, "live": live}
    files.write_text(path, template.render(about))
    return path


def read_figures(folder: Path) -> list[dict[str, Any]]:
    """The figures in a folder, in the page's order, as the template embeds them."""
    found = []
    for name, heading in FIGURES.items():
        if (path := folder / name).exists():
            with Image.open(path) as image:
                width = round(image.width * 100 / image.info.get("dpi", (100, 100))[0])  # CSS pixels
            data = base64.b64encode(path.read_bytes()).decode()
            found.append({"heading": heading, "name": path.stem, "data": data, "width": width})
    return found


def write_run_page(run_folder: Path, live: Section | None = None) -> Path:
    """Write runs/<competition>/<run>/report.html from what its folder and the audit beside it hold. Raises Refused.

    `live` shows a fold in training; the page then loads itself anew."""
    config = read_config(run_folder)
    folds = find_folds(run_folder, needed=not live)
    competition, model, sections = config.competition, config.model, [live] if live else []
    if folds:
        sections += _describe_folds(run_folder, folds, competition)
    beside = {"What is decided after the blend": run_folder / "decisions"}
    for heading, place in (beside | {"What is odd in the data": run_folder.parent / "audit"}).items():
        if (said := place / f"{place.name}.txt").exists():
            text = said.read_text(encoding="utf-8")
            sections.append(Section(heading, text=text, wrap=False, figures=read_figures(place)))
    command = run_folder / "command.txt"
    ran = command.read_text(encoding="utf-8") if command.exists() else ""
    values = {"every value of the configuration": config.model_dump_json(indent=2)}
    sections.append(Section("Command and configuration", text=ran, details=values))
    facts = folds[0].metrics if folds else {}
    title = f"{competition.title or competition.name}: {run_folder.name}"
    subtitle = f"recipe {config.recipe}, {model.architecture}; {facts.get('weights') or model.encoder}; "
    subtitle += f"{len(folds)} of {config.folds.count} folds" + f" on {facts.get('device')}" * bool(folds) + "; "
    subtitle += f"out-of-fold {metrics.describe_metric(competition.metric)}, "
    subtitle += f"test-time augmentation: {config.predict.tta} (none in the curves)"
    return write_page(run_folder / "report.html", title, subtitle, sections, live is not None)


def _describe_folds(run_folder: Path, folds: list[Fold], competition: Competition) -> Iterator[Section]:
    """What finished folds scored, and their figures; those of all together are drawn in the run's folder."""
    every = {fold.number: fold.metrics for fold in folds}
    confusion, margins = (np.sum([one[key] for one in every.values()], axis=0) for key in ("confusion", "margins"))
    # Of all images' margins alone there is no score of a metric that looks at images, nor is one shown.
    by_class = tables.class_frame(metrics.scores(margins[None], competition.classes, Metric()))
    by_fold = tables.folds_frame(every)
    for number, one in every.items():
        by_fold.loc[number, "best epoch"] = f"{one['best_epoch']} of {one['epochs']}"
        by_fold.loc[number, "ended by"] = one["ended"]
        by_fold.loc[number, "time"] = str(timedelta(seconds=round(one["seconds"])))
        by_fold.loc[number, "images/s"] = one["images_per_second"]
    yield Section("Result", table=by_fold)
    if len(folds) > 1:
        ious = pd.concat([tables.class_frame(one)["IoU"] for one in every.values()], axis=1)
        by_class["worst fold's IoU"], by_class["best"] = ious.min(axis=1), ious.max(axis=1)
    yield Section("Classes, all folds as one", table=by_class)
    if len(folds) > 1:
        histories = {f"fold {fold.number}": fold.history() for fold in folds}
        figures.compare_curves(histories, run_folder / "curves.png", f"{competition.name}, all folds")
        figures.draw_confusion(confusion, margins, competition.classes, run_folder / "confusion.png")
        yield Section("All folds", figures=read_figures(run_folder))
    for fold in folds:
        if drawn := read_figures(fold.folder):
            yield Section(f"Fold {fold.number}", figures=drawn, folded=fold is not folds[0])


def write_comparison(
    folder: Path, variants: Mapping[str, Config], done: Mapping[str, Sequence[Fold]], command: str, notes: Sequence[str]
) -> str:
    """Leave table.csv, curves.png and report.html of the runs that are done in a folder; return the table as text.

    By the name of each run: its configuration; its finished folds, whose scores' sample deviation is "spread"."""
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
