"""Train a fold of a run: from arrays to all the files that it leaves."""

import contextlib
import math
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comp import distributed, files
from comp.data import augment, folds, npz
from comp.data.folds import FULL, TrainingData
from comp.device import Machine
from comp.errors import Refused, print_once, spare_what_is_trained
from comp.model import metrics, predict
from comp.model.segmenter import Segmenter
from comp.report import figures, tables
from comp.train import pages, runs
from comp.train.fit import State, fit
from comp.train.runs import Fold

SHARE = 0.01  # of the time that figures of a fold in training may take, and its page as much


def check_folds(data: TrainingData, numbers: Iterable[int], run_folder: Path) -> None:
    """Refuse what would stop these folds, and be it after hours: another configuration in the run's folder, a fold
    that cannot be trained or has lost a file, a disk without the room for what will be predicted out of fold."""
    images, classes = 0, data.config.competition.classes
    metrics.describe_metric(data.config.competition.metric)  # a function of the user's that is not there
    for number in numbers:
        runs.check_configuration(run_folder, data.config, number)
        if number != FULL:
            folds.check_training(data.index, data.folds, number, classes)
        folder = runs.fold_folder(run_folder, number)
        lacking = [path.name for path in runs.fold_files(folder) if not path.exists()]
        if lacking and runs.METRICS not in lacking:  # which is written last
            raise Refused(f"{folder}: was finished, and lacks {lacking[0]}; put it back, or delete the folder")
        images += len(data.rows(number)[1]) if lacking else 0
    needed = images * (len(classes) - 1) * math.prod(data.split.images.shape[1:3])
    if needed > (free := files.free_bytes(run_folder)):
        room = f"and the disk has {free / 1e6:,.0f} MB free; free some, or name another disk with --runs"
        raise Refused(f"{run_folder}: {images} images predicted out of fold take {needed / 1e6:,.0f} MB, {room}")


def train_fold(data: TrainingData, number: int, run_folder: Path, machine: Machine) -> Fold:
    """Train one fold to its end and leave all its files; what is there already is not done again.

    `FULL` trains on all images that are not excluded and keeps the last weights, since no validation can choose better
    ones; its metrics have no score. Raises Refused as `check_folds` does, and KeyboardInterrupt."""
    folder = runs.fold_folder(run_folder, number)
    check_folds(data, [number], run_folder)
    with contextlib.nullcontext() if distributed.rank() else files.lock_folder(folder):
        if not distributed.rank():
            files.write_text(run_folder / runs.CONFIG, data.config.model_dump_json(indent=2) + "\n")
        if not runs.is_finished(folder):
            _train(data, number, folder, machine)
            distributed.agree(0.0, False)  # wait for rank 0, whose the files are
        if not distributed.rank():  # only an unfinished fold needs these
            for left in (folder / runs.CHECKPOINT, *folder.glob("frame-*.npy")):
                left.unlink(missing_ok=True)
    fold = runs.read_fold(folder)
    if number == FULL:
        print(f"the model of all images is finished (in {folder})")
    else:
        facts = fold.metrics
        print(f"\nfold {number} is finished, best epoch {facts['best_epoch']}, {facts['tta']} test-time augmentation")
        print(f"{tables.score_table(facts)}\n")
        print(f"{folder} ({facts['seconds']:.0f} s, {facts['images_per_second']} images/s)")
    return fold


def _train(data: TrainingData, number: int, folder: Path, machine: Machine) -> None:
    config, classes = data.config, data.config.competition.classes
    train, valid = data.rows(number)
    which = "" if number == FULL else f"fold {number}: "
    print(f"{which}{len(train)} images to train on, {len(valid) or 'none'} to validate on")
    # The three with the most classes are watched, for the filmstrip.
    watched = valid[np.argsort(-(data.index.counts[valid] > 0).sum(1), kind="stable")[:3]]

    due = {"figures": 0.0, "page": 0.0}  # when each may be made again; the page tells of epochs between two drawings

    def watch(state: State, model: Segmenter, *counted: np.ndarray) -> None:
        if not counted or distributed.rank():
            return
        if state.epoch & (state.epoch - 1) == 0:  # 1, 2, 4, 8 …: most changes early, and the last is not known yet
            with files.atomic_write(folder / f"frame-{state.epoch:05}.npy") as beside:
                np.save(beside, _look(model, data, watched))
        left = timedelta(seconds=round(state.seconds * (1 / max(state.progress, 1e-3) - 1)))
        done = f"epoch {state.epoch}, {state.progress:.0%} done, about {left} left, on {machine.device}"
        unfinished = Fold(folder, number, {"best_epoch": state.best_epoch + 1, "epochs": state.epoch, "ended": ""})

        def show() -> None:
            live = pages.Section(f"Fold {number}, in training: {done}", figures=pages.read_figures(folder))
            print_once(f"{pages.write_run_page(folder.parent, live)} shows how it goes")

        makers = {"figures": lambda: _draw(unfinished, data, watched, model, *counted), "page": show}
        for what, make in makers.items():
            if not state.ended and (began := time.monotonic()) > due[what]:
                with spare_what_is_trained(f"the {what} of a fold in training"):
                    make()
                due[what] = time.monotonic() + (time.monotonic() - began) / SHARE

    model, state = fit(data, number, folder, machine, watch)
    if distributed.rank():
        return
    trained = time.monotonic()
    facts: dict[str, Any] = {"fold": number, "folds": config.folds.count}
    fold = Fold(folder, number, facts)
    if len(valid):
        confusion = _out_of_fold(folder / runs.OOF, model, data, valid)
        _, _, margins, counts = fold.oof()
        facts |= metrics.scores(margins, classes, config.competition.metric, counts)
    facts |= {"tta": config.predict.tta, "best_epoch": state.best_epoch + 1, "epochs": len(state.history)}
    facts |= {"ended": state.ended, "train_images": len(train), "valid_images": len(valid)}
    facts["seconds"] = round(state.seconds + time.monotonic() - trained, 1)
    facts["images_per_second"] = round(state.trained / max(state.training, 1e-9), 1)
    facts |= {"skipped_steps": state.skipped, "device": str(machine.device), "weights": state.weights}
    facts["parameters"] = sum(p.numel() for p in model.parameters())
    if len(valid):
        facts |= {"confusion": confusion.tolist(), "margins": margins.sum(0).tolist()}
        with spare_what_is_trained("figures"):
            _draw(fold, data, watched, model, margins, counts)
    files.write_json(folder / runs.METRICS, facts)  # last: it says that the fold is finished


def _out_of_fold(path: Path, model: Segmenter, data: TrainingData, rows: np.ndarray) -> np.ndarray:
    """Predict `rows` and write what `Fold.oof` reads; return the confusion of all of them, int64 (C, C)."""
    config, split, n = data.config, data.split, len(rows)
    classes, size, overlap = len(config.competition.classes), split.images.shape[1:3], config.competition.overlap
    tally = metrics.Tally(split, rows, config.competition)

    def blocks() -> Iterator[np.ndarray]:
        for batch, probabilities in predict.predict_rows(model, split.inputs, rows, config.predict):
            truth = torch.from_numpy(np.ascontiguousarray(split.masks[batch])).to(probabilities.device)
            tally.add(batch, truth, predict.to_labels(probabilities, overlap))
            yield predict.to_planes(probabilities).cpu().numpy()

    def members() -> Iterator[tuple]:
        yield "ids", (n,), split.ids.dtype, [split.ids[rows]]
        yield "planes", (n, classes - 1, *size), np.uint8, blocks()
        yield "margins", tally.margins.shape, np.int64, [tally.margins]  # there once the planes are written
        yield "counts", tally.counts.shape, np.float64, [tally.counts]

    npz.write_npz(path, members())
    if not overlap:
        return tally.confusion.numpy()
    holds = metrics.hold_classes(len(tally.confusion)).long()
    return (holds @ tally.confusion @ holds.T).numpy()  # of each class what was taken for each: together more than all


def _look(model: Segmenter, data: TrainingData, rows: np.ndarray) -> np.ndarray:
    """What images are predicted as: labels uint8 (n, H, W)."""
    looked = predict.predict_rows(model, data.split.inputs, rows, data.config.predict)
    return torch.cat([predict.to_labels(seen, model.overlap) for _, seen in looked]).cpu().numpy()


def _draw(fold: Fold, data: TrainingData, watched: np.ndarray, model: Segmenter, *counted: np.ndarray) -> None:
    """Draw a fold that is finished, or in training, with what its model predicts of some images that validate."""
    config, split, own, folder = data.config, data.split, data.config.competition, fold.folder
    (margins, counts), classes, best = counted, own.classes, fold.metrics["best_epoch"]
    train, valid = data.rows(fold.number)
    # A pixel that the score leaves out is not an error, and an image that holds nothing else is not a worst case.
    unscored = {k for k in (own.arrays.ignored, 0 if own.metric.background == "drop_truth" else None) if k is not None}
    shown: Any = {"unscored": unscored, "overlap": own.overlap}
    ended = fold.metrics["ended"]
    stopped = None if ended in ("", "all epochs") else ended
    title = f"{own.name} {config.recipe}, {folder.name}"
    figures.draw_curves(fold.history(), folder / "curves.png", best_epoch=best, stopped=stopped, title=title)
    if ended:
        figures.draw_confusion(np.array(fold.metrics["confusion"]), margins.sum(0), classes, folder / "confusion.png")

    scores = metrics.score_each(margins, own.metric, counts)
    at, labels = figures.choose_cases(scores)
    cases = zip(valid[at].tolist(), _look(model, data, valid[at]), labels, scores[at], strict=True)
    figures.draw_sheet(figures.case_rows(split, cases, **shown), classes, folder / "examples.png", **shown)

    frames = {int(path.stem[6:]): np.load(path, allow_pickle=False) for path in folder.glob("frame-*.npy")}
    frames[best if ended else fold.metrics["epochs"]] = _look(model, data, watched)
    names = {epoch: f"epoch {epoch}" + ", kept" * bool(epoch == best and ended) for epoch in sorted(frames)[-8:]}
    film = {name: [(None, labels) for labels in frames[epoch]] for epoch, name in names.items()}
    figures.draw_sheet(figures.series_rows(split, watched, film), classes, folder / "filmstrip.png", **shown)

    if transform := augment.build_transforms(config.augment.transforms):
        pairs = [(split.inputs[row], split.masks[row]) for row in train[:3]]
        draws = {f"augmented {k + 1}": [transform(*one, 4 * i + k) for i, one in enumerate(pairs)] for k in range(4)}
        figures.draw_sheet(figures.series_rows(split, train[:3], draws), classes, folder / "samples.png", **shown)
