"""Train a fold of a run: from arrays to all the files that it leaves."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comp import distributed, files
from comp.config import Config
from comp.data import arrays, augment, folds, npz
from comp.data.arrays import Index, TrainSplit
from comp.device import Device
from comp.model import metrics, predict, segmenter
from comp.report import figures, sheets, tables
from comp.train import checkpoint, fit
from comp.train.runs import CONFIG, FULL, METRICS, OOF, Fold, check_configuration, fold_folder, is_finished, read_fold


@dataclass(frozen=True)
class Data:
    """A configuration, its training samples and what is known of them, and who validates on what."""

    config: Config
    split: TrainSplit
    index: Index
    folds: np.ndarray  # int16 (N,); -1: excluded


def load_data(config: Config, input_folder: Path, runs_folder: Path) -> Data:
    """Load and check a competition's training samples; make its folds, or read them back. Raises Refused."""
    competition = config.competition
    with distributed.first():
        split = arrays.load_train(competition, input_folder)
        index = arrays.build_index(split, competition, input_folder)
        dealt = f"{config.folds.count}-seed{config.folds.seed}" if split.folds is None else "given"
        path = runs_folder / competition.name / f"folds-{dealt}.csv"
        return Data(config, split, index, folds.load_or_deal_folds(path, split, index, config))


def train_fold(data: Data, number: int, run_folder: Path, device: Device, workers: int, deadline: float) -> Fold:
    """Train one fold to its end and leave all its files; what is there already is not done again.

    `FULL` trains on all pictures that are not excluded and keeps the last weights: nothing is left to choose a best
    by. It leaves model.safetensors, history.csv and metrics.json, in which there is no score.
    Raises Refused when the folder holds a run of another configuration, and fit.Interrupted.
    """
    folder = fold_folder(run_folder, number)
    check_configuration(run_folder, data.config, number)
    with contextlib.nullcontext() if distributed.rank() else files.lock_folder(folder):
        with distributed.first():
            if not distributed.rank():
                if not is_finished(folder):  # somebody removed a part of it; the metrics must not vouch for what comes
                    (folder / METRICS).unlink(missing_ok=True)
                files.write_text(run_folder / CONFIG, data.config.model_dump_json(indent=2) + "\n")
        if not is_finished(folder):
            _train(data, number, folder, device, workers, deadline)
            distributed.wait()  # for the files
        if not distributed.rank():  # what only an unfinished fold needs
            checkpoint.remove_checkpoints(folder / checkpoint.NAME)
            for frame in folder.glob("frame-*.npy"):
                frame.unlink()
    fold = read_fold(folder)
    if number == FULL:
        print(f"the model of all pictures is finished (in {folder})")
    else:
        facts = fold.metrics
        print(f"\nfold {number} is finished, best epoch {facts['best_epoch']}, {facts['tta']} test-time augmentation")
        print(
            f"{tables.score_table(facts)}\n\n{folder} ({facts['seconds']:.0f} s, {facts['images_per_second']} images/s)"
        )
    return fold


def _train(data: Data, number: int, folder: Path, device: Device, workers: int, deadline: float) -> None:
    config, classes, kept = data.config, data.config.competition.classes, data.folds >= 0
    train, valid = (np.flatnonzero(kept & rows) for rows in (data.folds != number, data.folds == number))
    if number != FULL:
        folds.check_training(data.index, data.folds, number, classes)
    fold = "" if number == FULL else f"fold {number}: "
    print(f"{fold}{len(train)} pictures to train on, {len(valid) or 'none'} to validate on")
    # The three with the most classes are watched, for the filmstrip.
    watched = np.argsort(-(data.index.counts[valid] > 0).sum(1), kind="stable")[:3]

    def watch(epoch: int, model: segmenter.Segmenter) -> None:
        # At 1, 2, 4, 8 …: most changes early, and the last epoch is not known yet.
        if len(watched) and epoch & (epoch - 1) == 0 and not distributed.rank():
            looked = predict.predict_rows(model, data.split.images, valid[watched], config.predict, device)
            with files.atomic_write(folder / f"frame-{epoch:05}.npy") as beside:
                np.save(beside, np.concatenate([predict.to_labels(probabilities) for _, probabilities in looked]))

    model, state = fit.fit(config, data.split, data.index, train, valid, folder, device, workers, deadline, watch)
    trained = time.monotonic()
    if len(valid):
        confusions = _out_of_fold(folder / OOF, model, data, valid, device)
    if distributed.rank():
        return
    facts = {
        "fold": number,
        "folds": config.folds.count,
        **(metrics.scores(confusions, classes, config.competition.metric) if len(valid) else {}),
        "tta": config.predict.tta,
        "best_epoch": state.best_epoch + 1,
        "epochs": len(state.history),
        "ended": state.ended,
        "train_pictures": len(train),
        "valid_pictures": len(valid),
        "seconds": round(state.seconds + time.monotonic() - trained, 1),
        "images_per_second": round(state.images_per_second, 1),
        "skipped_steps": state.skipped,
        "device": str(device),
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if len(valid):
        facts["confusion"] = confusions.sum(0).tolist()
        _pictures(Fold(folder, number, facts), data, train, valid, watched, confusions)
    files.write_json(folder / METRICS, facts)  # last: it says that the fold is finished


def _out_of_fold(path: Path, model: segmenter.Segmenter, data: Data, rows: np.ndarray, device: Device) -> np.ndarray:
    """Predict `rows`; rank 0 writes probabilities as they come, and returns confusions int64 (n, C, C)."""
    config, split, n = data.config, data.split, len(rows)
    classes, size = len(config.competition.classes), split.images.shape[1:3]
    confusions: list[np.ndarray] = []

    def mine() -> Iterator[distributed.Item]:
        for dealt in predict.plan_batches(rows, size, config.predict)[distributed.share()]:
            # One item for each planned batch, even where short memory halved it: so ranks alternate in order.
            seen = predict.predict_rows(model, split.images, dealt, config.predict, device)
            parts = [(part.half().cpu().numpy(), predict.to_labels(part)) for _, part in seen]
            probabilities, labels = map(np.concatenate, zip(*parts, strict=True))
            truth = np.ascontiguousarray(split.masks[dealt])
            yield probabilities, metrics.count_confusion(truth, labels, classes, config.competition.arrays.ignored)

    def blocks() -> Iterator[np.ndarray]:
        for probabilities, confusion in distributed.gather_in_order(mine()):
            confusions.append(confusion)
            yield probabilities

    if distributed.rank():
        list(blocks())  # which all go to rank 0
        return np.zeros((0, classes, classes), np.int64)
    members = [
        ("ids", (n,), split.ids.dtype, [split.ids[rows]]),
        ("probabilities", (n, classes, *size), np.float16, blocks()),
        ("confusions", (n, classes, classes), np.int64, confusions),  # there once the probabilities are written
    ]
    npz.write_npz(path, members)
    return np.concatenate(confusions)


def _pictures(
    fold: Fold, data: Data, train: np.ndarray, valid: np.ndarray, watched: np.ndarray, confusions: np.ndarray
) -> None:
    config, split = data.config, data.split
    metric, classes = config.competition.metric, config.competition.classes
    folder, best, ended = fold.folder, fold.metrics["best_epoch"], fold.metrics["ended"]
    probabilities = npz.map_member(npz.read_member(folder / OOF, "probabilities"))

    def predicted(at: np.ndarray | list[int]) -> np.ndarray:
        return probabilities[at].argmax(1).astype(np.uint8)

    stopped = None if ended == "all epochs" else ended
    title = f"{config.competition.name} {config.recipe}, {folder.name}"
    figures.draw_curves(fold.history(), folder / "curves.png", best_epoch=best, stopped=stopped, title=title)
    figures.draw_confusion(confusions.sum(0), classes, folder / "confusion.png")

    # What the score does not look at is no error, and a picture that holds nothing else is not among the worst.
    first = 1 if metric.background == "drop_truth" else 0  # class that is scored
    unscored = {config.competition.arrays.ignored, *range(first)} - {None}
    scores = [metrics.score(one[None], metric) if one[first:].any() else np.nan for one in confusions]
    at, labels = sheets.choose_cases(scores)
    rows = sheets.case_rows(split, valid[at], predicted(at), labels, [scores[i] for i in at], unscored)
    sheets.draw_sheet(rows, classes, folder / "examples.png", unscored)

    frames = {int(path.stem[6:]): np.load(path, allow_pickle=False) for path in folder.glob("frame-*.npy")}
    frames[best] = predicted(watched)
    film = {f"epoch {epoch}" + ", kept" * (epoch == best): frames[epoch] for epoch in sorted(frames)[-8:]}
    sheets.draw_sheet(sheets.filmstrip_rows(split, valid[watched], film), classes, folder / "filmstrip.png", unscored)

    if transform := augment.build_transforms(config.augment.transforms):
        draws = [
            [transform(split.images[row], split.masks[row], 4 * place + draw) for draw in range(4)]
            for place, row in enumerate(train[:3])
        ]
        sheets.draw_sheet(sheets.sample_rows(split, train[:3], draws), classes, folder / "samples.png", unscored)
