"""The HTML report of a run, made from the files in its folder alone: one page, nothing from outside."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from comp import markup, metrics
from comp.config import Config, from_dict
from comp.drawing import LINES
from comp.errors import Refused
from comp.markup import Html, Line, write
from comp.runs import Fold, read_fold

__all__ = ["run_page", "write"]


def run_page(run_folder: Path, more: Sequence[tuple[str, Html]] = ()) -> Path:
    """Write runs/<competition>/<run>/report.html from what the run's folder holds.

    Read: config.json, fold-*/metrics.json, history.csv and examples.png; and where they are there,
    fold-*/filmstrip.png, samples.png and command.txt, beside config.json or in a fold's folder.
    `more` are sections of the caller's, such as the audit's findings. Raises Refused.
    """
    config = _config(run_folder / "config.json")
    folds = [read_fold(path.parent) for path in run_folder.glob("fold-*/metrics.json")]
    if not folds:
        raise Refused(f"{run_folder}: no finished fold; train one with kernels/train_fold.py")
    folds.sort(key=lambda fold: fold.number)
    competition = config.competition
    try:
        pooled = np.sum([fold.metrics["confusion"] for fold in folds], axis=0)[None]
        sections = [
            ("Result", _result(config, folds)),
            ("Folds", _folds(folds)),
            ("Classes", _classes(metrics.scores(pooled, competition.classes, competition.metric), folds)),
            ("Curves", _curves(folds)),
            ("Confusion", _confusion(competition.classes, pooled[0])),
            ("Best, median and worst cases", _cases(folds)),
            ("How predictions changed", _sheets(run_folder, folds, "filmstrip")),
            ("Augmented samples", _sheets(run_folder, folds, "samples")),
            *more,
            ("Command and configuration", _configuration(run_folder, config)),
        ]
    except KeyError as error:
        raise Refused(f"{run_folder}: a fold's metrics.json or history.csv lacks {error}; train it again") from None
    title = f"{competition.title or competition.name}: {run_folder.name}"
    subtitle = f"recipe {config.recipe}, scored by {folds[0].metrics['metric']} on out-of-fold predictions"
    return write(run_folder / "report.html", title, sections, subtitle)


def _config(path: Path) -> Config:
    try:
        return from_dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}; a run's folder holds its configuration") from None
    except ValueError as error:
        raise Refused(f"{path}: {error}") from None


def _result(config: Config, folds: list[Fold]) -> Html:
    scores = [fold.metrics["score"] for fold in folds]
    spread = f" ± {stdev(scores):.4f}" if len(scores) > 1 else ""
    model = config.model
    return markup.facts(
        [
            (f"score, mean of {len(folds)} of {config.folds.count} folds", f"{mean(scores):.4f}{spread}"),
            (f"encoder {model.encoder}, weights {model.encoder_weights}", model.architecture),
            ("training time, all folds", _time(sum(fold.metrics["seconds"] for fold in folds))),
            (f"images/s on {folds[0].metrics['device']}", _text(folds[0].metrics["images_per_second"], 0)),
        ]
    )


def _folds(folds: list[Fold]) -> Html:
    keys = metrics.HEADLINES
    rows = []
    for fold in folds:
        facts = fold.metrics
        epochs = f"{facts['best_epoch']} of {facts['epochs']}"
        made = (epochs, facts["ended"], _time(facts["seconds"]), _text(facts["images_per_second"], 0))
        rows.append([f"fold {fold.number}", *(_text(facts[key]) for key in keys), *made])
    if len(folds) > 1:
        columns = [[fold.metrics[key] for fold in folds] for key in keys]
        rows.append(["mean", *(_text(mean(column)) for column in columns), "", "", "", ""])
        rows.append(["± std", *(_text(stdev(column)) for column in columns), "", "", "", ""])
    head = ["", *keys.values(), "best epoch", "ended by", "time", "images/s"]
    return markup.table(head, rows, emphasis=[len(folds)])


def _classes(pooled: dict, folds: list[Fold]) -> Html:
    rows = []
    for name, values in pooled["classes"].items():
        ious = [fold.metrics["classes"][name]["iou"] for fold in folds]
        known = [iou for iou in ious if iou is not None]
        spread = f"{min(known):.3f} – {max(known):.3f}" if len(known) > 1 else "–"
        iou = markup.bar(values["iou"], _text(values["iou"]))
        others = (_text(values[key]) for key in ("dice", "precision", "recall"))
        rows.append([name, f"{100 * values['share']:.2f} %", iou, spread, *others])
    head = ["all folds as one", "share of pixels", "IoU", "IoU over folds", "Dice", "precision", "recall"]
    return markup.table(head, rows)


def _curves(folds: list[Fold]) -> Html:
    losses, scores, rates, keys = [], [], [], []
    for k, fold in enumerate(folds):
        history = _history(fold.folder / "history.csv")
        name, colour = f"fold {fold.number}", LINES[k % len(LINES)]
        x, early = history["epoch"], fold.metrics["ended"] != "all epochs"
        best = x.index(fold.metrics["best_epoch"])
        losses.append(Line(f"{name}, train", x, history["train_loss"], colour, dashed=True))
        losses.append(Line(f"{name}, validation", x, history["valid_loss"], colour, best=best, stopped=early))
        scores.append(Line(name, x, history["score"], colour, best=best, stopped=early))
        rates.append(Line(name, x, history["lr"], colour))
        ended = f", {fold.metrics['ended']} after {len(x)}" if early else ""
        keys.append((f"{name}: best {history['score'][best]:.4f} in epoch {x[best]:.0f}{ended}", colour))
    charts = markup.join(
        markup.chart("score on the validation pictures", scores),
        markup.chart("loss: validation solid, training dashed", losses),
        markup.chart("learning rate", rates),
    )
    note = "A disc marks the best epoch, a bar the last one where training ended before its time."
    return markup.join(markup.legend(keys), Html(f'<div class="charts">{charts}</div>'), markup.paragraph(note))


def _confusion(classes: Sequence[str], counts: np.ndarray) -> Html:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    note = "Rows are the truth, columns the prediction; figures are per cent of the true class's pixels, all folds."
    return markup.join(markup.paragraph(note), markup.heat(classes, shares))


def _cases(folds: list[Fold]) -> Html:
    parts = [markup.OPACITY]
    for fold in folds:
        path = fold.folder / "examples.png"
        if path.exists():
            cases = markup.sheet(path, f"cases{fold.number}", masks=("truth", "prediction"))
            parts.append(cases if fold is folds[0] else markup.folded(f"fold {fold.number}", cases))
    return markup.join(*parts) if len(parts) > 1 else Html("")


def _sheets(run_folder: Path, folds: list[Fold], name: str) -> Html:
    """The sheets of that name, of the run or of its folds, the first of them open."""
    places = [("", run_folder), *((f"fold {fold.number}", fold.folder) for fold in folds)]
    found = [(label, path) for label, folder in places if (path := folder / f"{name}.png").exists()]
    masks = () if name == "samples" else None
    parts = [markup.sheet(path, f"{name}{k}", masks) for k, (_, path) in enumerate(found)]
    later = (markup.folded(label, part) for (label, _), part in zip(found[1:], parts[1:], strict=True))
    return markup.join(*parts[:1], *later)


def _configuration(run_folder: Path, config: Config) -> Html:
    commands = [run_folder / "command.txt", *sorted(run_folder.glob("fold-*/command.txt"))]
    lines = dict.fromkeys(path.read_text(encoding="utf-8").strip() for path in commands if path.exists())
    values = "\n".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in _flat(config.model_dump()))
    shown = markup.code("\n".join(lines)) if lines else Html("")
    return markup.join(shown, markup.folded("every value of the configuration", markup.code(values)))


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    flat: list[tuple[str, object]] = []
    for key, value in values.items():
        deeper = isinstance(value, dict) and value
        flat += _flat(value, f"{prefix}{key}.") if deeper else [(prefix + key, value)]
    return flat


def _history(path: Path) -> dict[str, list[float]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {key: [float(row[key] or "nan") for row in rows] for key in rows[0]}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise Refused(f"{path}: not a training history ({error})") from None


def _text(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
