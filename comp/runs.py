"""A run on disk: runs/<competition>/<run>/fold-<k>/, what a fold leaves there, and how it is found again."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from comp import arrays, augment, checkpoint, files, fit, folds, metrics, models, predict, report
from comp import config as configs
from comp.arrays import Index, Split
from comp.config import Config
from comp.device import Device
from comp.errors import Refused

MODEL, OOF, METRICS = "model.safetensors", "oof.npz", "metrics.json"
FULL = "full"  # the folder of a model that all pictures trained and none validated, beside those of the folds


@dataclass(frozen=True)
class Fold:
    """A finished fold: its folder, number and metrics."""

    folder: Path
    number: int
    metrics: dict[str, Any]

    @property
    def model(self) -> Path:
        return self.folder / MODEL

    def oof(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids str (n,), probabilities float16 (n, C, H, W) mapped from disk, confusions int64 (n, C, C)."""
        ids, probabilities, confusions = (
            arrays.npz.member(self.folder / OOF, key) for key in ("ids", "probabilities", "confusions")
        )
        return arrays.npz.read(ids), arrays.npz.mapped(probabilities), arrays.npz.read(confusions)


@dataclass(frozen=True)
class Data:
    """The training samples of a competition, what is known of them, and who validates on what."""

    split: Split
    index: Index
    folds: np.ndarray  # int16 (N,); -1: excluded


def data(config: Config, input_folder: Path, runs_folder: Path) -> Data:
    """Load and check a competition's training samples; make its folds, or read them back. Raises Refused."""
    competition = config.competition
    split = arrays.load_train(competition, input_folder)
    index = arrays.index(split, competition, input_folder)
    dealt = f"{config.folds.count}-seed{config.folds.seed}" if split.folds is None else "given"
    name = f"folds-{dealt}.csv"
    return Data(split, index, folds.load_or_make(runs_folder / competition.name / name, split, index, config))


def train_fold(
    config: Config, data: Data, number: int, run_folder: Path, device: Device, workers: int, deadline: float
) -> Fold:
    """Train one fold to its end and leave all its files; what is there already is not done again.

    Raises Refused when the folder holds a run of another configuration, and fit.Interrupted.
    """
    folder = run_folder / f"fold-{number}"
    with files.lock(folder):
        check_configuration(run_folder, config)
        files.write_text(run_folder / "config.json", config.model_dump_json(indent=2) + "\n")
        if (folder / METRICS).exists():
            fold = read_fold(folder)
            print(f"fold {number} is finished (in {folder})\n{metrics.table(fold.metrics)}")
            return fold
        valid = np.flatnonzero(data.folds == number)
        train = np.flatnonzero((data.folds >= 0) & (data.folds != number))
        folds.check_training(data.index, data.folds, number, config.competition.classes)
        print(f"fold {number}: {len(train)} pictures to train on, {len(valid)} to validate on")
        model, state = fit.fit(config, data.split, data.index, train, valid, folder, device, workers, deadline)
        trained = time.monotonic()
        confusions = _write_oof(folder / OOF, model, data.split, valid, config, device)
        seconds = state.seconds + time.monotonic() - trained
        facts = {
            "fold": number,
            "folds": config.folds.count,
            **metrics.scores(confusions, config.competition.classes, config.competition.metric),
            "tta": config.predict.tta,
            "best_epoch": state.best_epoch + 1,
            "epochs": len(state.history),
            "ended": state.ended,
            "train_pictures": len(train),
            "valid_pictures": len(valid),
            "seconds": round(seconds, 1),
            "images_per_second": round(state.images_per_second, 1),
            "skipped_steps": state.skipped,
            "device": str(device),
            "parameters": sum(p.numel() for p in model.parameters()),
            "confusion": confusions.sum(0).tolist(),
        }
        _pictures(folder, config, data.split, train, valid, state, confusions)
        files.write_json(folder / METRICS, facts)  # last: it says that the fold is finished
        checkpoint.remove(folder / checkpoint.NAME)
        print(f"\nfold {number}, best epoch {facts['best_epoch']}, {facts['tta']} test-time augmentation")
        print(f"{metrics.table(facts)}\n\n{folder} ({seconds:.0f} s, {facts['images_per_second']} images/s)")
        return Fold(folder, number, facts)


def train_full(config: Config, data: Data, run_folder: Path, device: Device, workers: int, deadline: float) -> Fold:
    """Train on all pictures that are not excluded, and keep the last weights: nothing is left to choose a best by.

    Leaves model.safetensors, history.csv and metrics.json, in which there is no score. Raises as train_fold.
    """
    folder = run_folder / FULL
    with files.lock(folder):
        check_configuration(run_folder, config)
        files.write_text(run_folder / "config.json", config.model_dump_json(indent=2) + "\n")
        if not (folder / METRICS).exists():
            train = np.flatnonzero(data.folds >= 0)
            print(f"{len(train)} pictures to train on, none to validate on")
            _, state = fit.fit(config, data.split, data.index, train, train[:0], folder, device, workers, deadline)
            facts = {"fold": -1, "epochs": len(state.history), "ended": state.ended, "train_pictures": len(train)}
            files.write_json(folder / METRICS, facts | {"seconds": round(state.seconds, 1), "device": str(device)})
            checkpoint.remove(folder / checkpoint.NAME)
        print(f"the model of all pictures is finished (in {folder})")
        return read_fold(folder)


def check_configuration(run_folder: Path, config: Config) -> None:
    """Refused where folds that were trained with another configuration lie in the run's folder."""
    path = run_folder / "config.json"
    kept = [file for name in (MODEL, METRICS, checkpoint.NAME) for file in run_folder.glob(f"*/{name}")]
    if not kept or not path.exists():
        return
    try:
        before = configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise Refused(f"{path}: {error}; name another --run, or delete {run_folder}") from None
    if difference := configs.first_difference(before, config):
        raise Refused(
            f"{run_folder} holds a run of another configuration ({difference}); name another --run, or delete it"
        )


def summary(done: list[Fold], config: Config) -> str:
    """The table over folds, with the spread and all samples counted as one."""
    confusions = np.concatenate([fold.oof()[2] for fold in done])
    pooled = metrics.scores(confusions, config.competition.classes, config.competition.metric)
    return metrics.over_folds({fold.number: fold.metrics for fold in done}, pooled)


def read_fold(folder: Path) -> Fold:
    """A finished fold read back. Raises Refused when it is not one."""
    try:
        facts = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Fold(folder, int(facts["fold"]), facts)
    except (OSError, ValueError, KeyError):
        raise Refused(f"{folder}: not a finished fold; train it with kernels/train_fold.py") from None


def find_folds(competition: str, run: str, runs_folder: Path, pattern: str = "fold-*") -> list[Fold]:
    """The finished folds of a run, or `FULL`, here or among a kernel's inputs, by number. Raises Refused for none."""
    places = [runs_folder, *sorted(path for path in arrays.KAGGLE_INPUT.rglob("runs") if path.is_dir())]
    found: dict[int, Fold] = {}
    for place in places:
        for metrics_file in sorted((place / competition / run).glob(f"{pattern}/{METRICS}")):
            fold = read_fold(metrics_file.parent)
            found.setdefault(fold.number, fold)
    if not found:
        place = runs_folder / competition / run / pattern
        raise Refused(f"{place}: no finished fold; train one with kernels/train_fold.py")
    return [found[number] for number in sorted(found)]


def _write_oof(
    path: Path, model: models.Segmenter, split: Split, rows: np.ndarray, config: Config, device: Device
) -> np.ndarray:
    """Write out-of-fold probabilities batch by batch; return confusions int64 (n, C, C)."""
    classes, ignore = len(config.competition.classes), config.competition.arrays.ignore
    confusions: list[np.ndarray] = []

    def blocks() -> Iterator[np.ndarray]:
        for batch, probabilities in predict.over(model, split.images, rows, config.predict, device):
            labels = probabilities.argmax(1).to(torch.uint8).cpu().numpy()
            confusions.append(metrics.confusion(np.ascontiguousarray(split.masks[batch]), labels, classes, ignore))
            yield probabilities.half().cpu().numpy()

    def members() -> Iterator[tuple]:
        ids, n = split.ids[rows], len(rows)
        yield "ids", (n,), ids.dtype, [ids]
        yield "probabilities", (n, classes, *split.images.shape[1:3]), np.float16, blocks()
        yield "confusions", (n, classes, classes), np.int64, confusions

    arrays.npz.write(path, members())
    return np.concatenate(confusions)


def _pictures(
    folder: Path,
    config: Config,
    split: Split,
    train: np.ndarray,
    rows: np.ndarray,
    state: fit.State,
    confusions: np.ndarray,
) -> None:
    competition = config.competition
    report.curves(
        state.history,
        folder / "curves.png",
        best_epoch=state.best_epoch + 1,
        stopped=None if state.ended == "all epochs" else state.ended,
        title=f"{competition.name} {config.recipe}, {folder.name}",
    )
    # A picture that holds nothing the score looks at has no place among the worst.
    counted = confusions[:, 1:] if competition.metric.background == "drop_truth" else confusions
    unscored = counted.sum((1, 2)) == 0
    scores = [
        float("nan") if empty else metrics.score(confusions[i : i + 1], competition.metric)
        for i, empty in enumerate(unscored)
    ]
    chosen, labels = report.choose(scores)
    probabilities = arrays.npz.mapped(arrays.npz.member(folder / OOF, "probabilities"))
    shown = rows[chosen]
    report.examples(
        np.ascontiguousarray(split.images[shown]),
        np.ascontiguousarray(split.masks[shown]),
        probabilities[chosen].argmax(1).astype(np.uint8),
        [f"{label}: {name}" for label, name in zip(labels, split.ids[shown], strict=True)],
        [scores[i] for i in chosen],
        competition.classes,
        folder / "examples.png",
        # What the score does not look at is no error either.
        ignore=0 if competition.metric.background == "drop_truth" else competition.arrays.ignore,
    )
    if transform := augment.build(config.augment.transforms):
        some = train[:3]
        drawn = [
            [transform(split.images[row], split.masks[row], 4 * place + draw) for draw in range(4)]
            for place, row in enumerate(some)
        ]
        with contextlib.suppress(ValueError):  # crops may come in sizes that do not go on one sheet
            report.samples(
                np.ascontiguousarray(split.images[some]),
                np.ascontiguousarray(split.masks[some]),
                np.array([[image for image, _ in each] for each in drawn]),
                np.array([[mask for _, mask in each] for each in drawn]),
                split.ids[some].tolist(),
                competition.classes,
                folder / "samples.png",
            )
    report.confusion(confusions.sum(0), competition.classes, folder / "confusion.png")
