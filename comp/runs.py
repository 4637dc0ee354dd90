"""A run on disk: runs/<competition>/<run>/fold-<k>/, what a fold leaves there, and how it is found again."""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comp import arrays, augment, checkpoint, files, fit, folds, metrics, models, npz, predict, ranks, report, sheets
from comp import config as configs
from comp.arrays import Index, Split
from comp.config import Config
from comp.device import Device
from comp.errors import Refused

MODEL, OOF, METRICS = "model.safetensors", "oof.npz", "metrics.json"
CONFIG = "config.json"  # beside the folds
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
            npz.member(self.folder / OOF, key) for key in ("ids", "probabilities", "confusions")
        )
        return npz.read(ids), npz.mapped(probabilities), npz.read(confusions)


@dataclass(frozen=True)
class Data:
    """The training samples of a competition, what is known of them, and who validates on what."""

    split: Split
    index: Index
    folds: np.ndarray  # int16 (N,); -1: excluded


def data(config: Config, input_folder: Path, runs_folder: Path) -> Data:
    """Load and check a competition's training samples; make its folds, or read them back. Raises Refused."""
    competition = config.competition
    with ranks.first():
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
    with _held(folder, config):
        if finished(folder):
            fold = read_fold(folder)
            _tidy(folder)  # if the process died before it could
            print(f"fold {number} is finished (in {folder})\n{metrics.table(fold.metrics)}")
            return fold
        valid = np.flatnonzero(data.folds == number)
        train = np.flatnonzero((data.folds >= 0) & (data.folds != number))
        folds.check_training(data.index, data.folds, number, config.competition.classes)
        print(f"fold {number}: {len(train)} pictures to train on, {len(valid)} to validate on")
        watched = valid[_watched(data.index, valid)]

        def watch(epoch: int, model: models.Segmenter) -> None:
            # At 1, 2, 4, 8 …: most changes early, and the last epoch is not known yet.
            if epoch & (epoch - 1) == 0 and not ranks.rank():
                looked = predict.over(model, data.split.images, watched, config.predict, device)
                labels = [predict.labels(probabilities) for _, probabilities in looked]
                with files.whole(folder / f"frame-{epoch:05}.npy") as beside:
                    np.save(beside, np.concatenate(labels))

        model, state = fit.fit(config, data.split, data.index, train, valid, folder, device, workers, deadline, watch)
        trained = time.monotonic()
        confusions = _out_of_fold(folder / OOF, model, data.split, valid, config, device)
        if ranks.rank():
            ranks.wait()  # for the files
            return read_fold(folder)
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
        _pictures(folder, config, data, train, valid, state, confusions)
        files.write_json(folder / METRICS, facts)  # last: it says that the fold is finished
        ranks.wait()
        _tidy(folder)
        print(f"\nfold {number}, best epoch {facts['best_epoch']}, {facts['tta']} test-time augmentation")
        print(f"{metrics.table(facts)}\n\n{folder} ({seconds:.0f} s, {facts['images_per_second']} images/s)")
        return Fold(folder, number, facts)


def train_full(config: Config, data: Data, run_folder: Path, device: Device, workers: int, deadline: float) -> Fold:
    """Train on all pictures that are not excluded, and keep the last weights: nothing is left to choose a best by.

    Leaves model.safetensors, history.csv and metrics.json, in which there is no score. Raises as train_fold.
    """
    folder = run_folder / FULL
    with _held(folder, config):
        if not finished(folder):
            train = np.flatnonzero(data.folds >= 0)
            print(f"{len(train)} pictures to train on, none to validate on")
            _, state = fit.fit(config, data.split, data.index, train, train[:0], folder, device, workers, deadline)
            facts = {"fold": -1, "epochs": len(state.history), "ended": state.ended, "train_pictures": len(train)}
            if not ranks.rank():
                files.write_json(folder / METRICS, facts | {"seconds": round(state.seconds, 1), "device": str(device)})
            ranks.wait()
        _tidy(folder)
        print(f"the model of all pictures is finished (in {folder})")
        return read_fold(folder)


def finished(folder: Path) -> bool:
    """Whether a fold's folder holds all that makes it one, or the model of all pictures."""
    return all((folder / name).exists() for name in (METRICS, MODEL, OOF) if name != OOF or folder.name != FULL)


def _tidy(folder: Path) -> None:
    """Remove what only an unfinished fold needs."""
    if not ranks.rank():
        checkpoint.remove(folder / checkpoint.NAME)
        for frame in folder.glob("frame-*.npy"):
            frame.unlink()


@contextlib.contextmanager
def _held(folder: Path, config: Config) -> Iterator[None]:
    """Hold a fold's folder, which holds nothing of another configuration, for this job alone. Raises Refused."""
    with contextlib.nullcontext() if ranks.rank() else files.lock(folder):
        with ranks.first():
            check_configuration(folder.parent, config)
            if not ranks.rank():
                files.sweep(folder)
                if not finished(folder):  # somebody removed a part of it; the metrics must not vouch for what comes
                    (folder / METRICS).unlink(missing_ok=True)
                files.write_text(folder.parent / CONFIG, config.model_dump_json(indent=2) + "\n")
        yield


def check_configuration(run_folder: Path, config: Config) -> None:
    """Refused where folds that were trained with another configuration lie in the run's folder."""
    kept = [file for name in (MODEL, METRICS, checkpoint.NAME) for file in run_folder.glob(f"*/{name}")]
    if not kept or not (run_folder / CONFIG).exists():
        return
    if difference := configs.first_difference(read_config(run_folder), config):
        raise Refused(
            f"{run_folder} holds a run of another configuration ({difference}); name another --run, or delete it"
        )


def read_config(run_folder: Path) -> Config:
    """The configuration that a run was made with. Raises Refused."""
    path = run_folder / CONFIG
    try:
        return configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{path}: {reason}; name another --run, or delete {run_folder}") from None


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
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{folder / METRICS}: damaged or missing; delete {folder} and train it again") from None


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


def _out_of_fold(
    path: Path, model: models.Segmenter, split: Split, rows: np.ndarray, config: Config, device: Device
) -> np.ndarray:
    """Predict `rows`; rank 0 writes probabilities as they come, and returns confusions int64 (n, C, C)."""
    classes, ignore = len(config.competition.classes), config.competition.arrays.ignore
    confusions: list[np.ndarray] = []

    def mine() -> Iterator[ranks.Arrays]:
        dealt = predict.batches(rows, split.images.shape[1:3], config.predict)[ranks.share()]
        shared = np.concatenate([rows[:0], *dealt])
        for batch, probabilities in predict.over(model, split.images, shared, config.predict, device):
            truth = np.ascontiguousarray(split.masks[batch])
            confusion = metrics.confusion(truth, predict.labels(probabilities), classes, ignore)
            yield probabilities.half().cpu().numpy(), confusion

    def blocks() -> Iterator[np.ndarray]:
        for probabilities, confusion in ranks.in_order(mine()):
            confusions.append(confusion)
            yield probabilities

    def members() -> Iterator[tuple]:
        ids, n = split.ids[rows], len(rows)
        yield "ids", (n,), ids.dtype, [ids]
        yield "probabilities", (n, classes, *split.images.shape[1:3]), np.float16, blocks()
        yield "confusions", (n, classes, classes), np.int64, confusions

    if ranks.rank():
        list(blocks())  # which all go to rank 0
        return np.zeros((0, classes, classes), np.int64)
    npz.write(path, members())
    return np.concatenate(confusions)


def _watched(index: Index, valid: np.ndarray) -> np.ndarray:
    """Positions in `valid` of the three pictures with the most classes, for the filmstrip."""
    return np.argsort(-(index.counts[valid] > 0).sum(1), kind="stable")[:3]


def _pictures(
    folder: Path,
    config: Config,
    data: Data,
    train: np.ndarray,
    valid: np.ndarray,
    state: fit.State,
    confusions: np.ndarray,
) -> None:
    split, metric, classes = data.split, config.competition.metric, config.competition.classes
    probabilities = npz.mapped(npz.member(folder / OOF, "probabilities"))

    def shown(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ascontiguousarray(split.images[rows]), np.ascontiguousarray(split.masks[rows])

    def predicted(at: np.ndarray | list[int]) -> np.ndarray:
        return probabilities[at].argmax(1).astype(np.uint8)

    stopped, best = None if state.ended == "all epochs" else state.ended, state.best_epoch + 1
    title = f"{config.competition.name} {config.recipe}, {folder.name}"
    report.curves(state.history, folder / "curves.png", best_epoch=best, stopped=stopped, title=title)
    report.confusion(confusions.sum(0), classes, folder / "confusion.png")

    # What the score does not look at is no error, and a picture that holds nothing else is not among the worst.
    truth_only = metric.background == "drop_truth"
    ignore = 0 if truth_only else config.competition.arrays.ignore
    empty = (confusions[:, 1:] if truth_only else confusions).sum((1, 2)) == 0
    scores = [np.nan if empty[i] else metrics.score(confusions[i : i + 1], metric) for i in range(len(valid))]
    at, labels = sheets.choose(scores)
    names = [f"{label}: {name}" for label, name in zip(labels, split.ids[valid[at]], strict=True)]
    rows = sheets.cases(*shown(valid[at]), predicted(at), names, [scores[i] for i in at], ignore)
    sheets.draw(rows, classes, folder / "examples.png", ignore)

    at = _watched(data.index, valid)
    frames = {int(path.stem[6:]): np.load(path, allow_pickle=False) for path in folder.glob("frame-*.npy")} | {
        best: predicted(at)
    }
    film = {f"epoch {epoch}" + ", kept" * (epoch == best): frames[epoch] for epoch in sorted(frames)[-8:]}
    rows = sheets.filmstrip(*shown(valid[at]), film, split.ids[valid[at]].tolist(), ignore)
    sheets.draw(rows, classes, folder / "filmstrip.png", ignore, columns=len(film) + 2)

    if transform := augment.build(config.augment.transforms):
        some = train[:3]
        drawn = [
            [transform(split.images[row], split.masks[row], 4 * place + draw) for draw in range(4)]
            for place, row in enumerate(some)
        ]
        rows = sheets.samples(*shown(some), drawn, split.ids[some].tolist(), ignore)
        sheets.draw(rows, classes, folder / "samples.png", ignore, columns=6)
