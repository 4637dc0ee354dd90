"""A run on disk: runs/<competition>/<run>/fold-<k>/, what a fold leaves there, and how it is found again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from comp import config as configs
from comp import files
from comp.config import Config
from comp.data import npz
from comp.data.folds import FULL
from comp.errors import Refused
from comp.model import metrics
from comp.report import tables
from comp.train import checkpoint

MODEL, OOF, METRICS, HISTORY = "model.safetensors", "oof.npz", "metrics.json", "history.csv"
CONFIG = "config.json"  # beside the folds
COLUMNS = ("epoch", "seconds", "lr", "train_loss", "valid_loss", "score")


@dataclass(frozen=True)
class Fold:
    """A finished fold: its folder, number and metrics."""

    folder: Path
    number: int
    metrics: dict[str, Any]

    def oof(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """ids str (n,), planes uint8 (n, C - 1, H, W) of `predict.to_planes` mapped, margins int64 (n, 4, C)."""
        names = ("ids", "planes", "margins")
        if lacking := {*names} - {*npz.list_keys(path := self.folder / OOF)}:
            raise Refused(f"{path}: of another version, without {min(lacking)}; delete its folder and train it again")
        ids, planes, margins = (npz.read_member(path, key) for key in names)
        return npz.read_array(ids), npz.map_member(planes), npz.map_member(margins)

    def history(self) -> pd.DataFrame:
        """Its epochs, a row each, as `report.figures` takes them. Raises Refused."""
        path = self.folder / HISTORY
        try:
            return pd.read_csv(path, usecols=COLUMNS, dtype=float)
        except (OSError, ValueError) as error:
            raise Refused(f"{path}: not a training history ({error})") from None


Runs = Sequence[Sequence[Fold]]  # the same folds of every run


def fold_folder(run_folder: Path, number: int) -> Path:
    """The folder of a fold, or of the model of all images."""
    return run_folder / (f"fold-{number}" if number != FULL else "full")


def fold_files(folder: Path) -> list[Path]:
    """The files that make a fold, or the model of all images, which has nothing out of fold."""
    return [folder / name for name in (MODEL, OOF, METRICS) if name != OOF or folder.name != "full"]


def is_finished(folder: Path) -> bool:
    """Whether a folder holds all that makes it a fold, or the model of all images."""
    return all(path.exists() for path in fold_files(folder))


def has_begun(run_folder: Path) -> bool:
    """Whether a run's folder holds anything that was trained, with the configuration that lies there."""
    return any(any(run_folder.glob(f"*/{name}")) for name in (MODEL, METRICS, checkpoint.NAME))


def check_configuration(run_folder: Path, config: Config, number: int = 0) -> None:
    """Refused where folds of another configuration lie in the run's folder, and where it cannot train this fold."""
    if number == FULL and config.schedule.name == "plateau":
        fits = "train it as another --run with --set schedule.name=cosine, and epochs as the folds had"
        raise Refused(f"schedule.name: no validation shows a plateau to a model of all images; {fits}")
    if not has_begun(run_folder) or not (run_folder / CONFIG).exists():
        return
    if difference := configs.first_difference(read_config(run_folder), config):
        raise Refused(f"{run_folder} has another configuration ({difference}); name another --run, or delete it")


def read_config(run_folder: Path) -> Config:
    """The configuration that a run was made with. Raises Refused."""
    path = run_folder / CONFIG
    try:
        return configs.validate_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Refused(f"{path}: {reason}; name another --run, or delete {run_folder}") from None


def summarize_folds(done: list[Fold], config: Config) -> str:
    """The table over folds, with the spread and all samples counted as one."""
    margins = np.concatenate([fold.oof()[2] for fold in done])
    pooled = metrics.scores(margins, config.competition.classes, config.competition.metric)
    return tables.folds_table({fold.number: fold.metrics for fold in done}, pooled)


def read_fold(folder: Path) -> Fold:
    """A finished fold read back. Raises Refused when it is not one."""
    try:
        facts = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Fold(folder, int(facts["fold"]), facts | {"train_images": int(facts["train_images"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{folder / METRICS}: missing, damaged or old; delete {folder} and train it again") from None


def find_folds(run_folder: Path, pattern: str = "fold-*") -> list[Fold]:
    """The finished folds of a run, or "full", here or among a kernel's inputs, by number. Raises Refused for none."""
    inputs = Path("runs", *run_folder.parts[-2:], pattern, METRICS)
    there = [path for path in files.find_below_input(METRICS) if path.match(str(inputs))]
    found: dict[int, Fold] = {}
    for path in [*run_folder.glob(f"{pattern}/{METRICS}"), *there]:
        fold = read_fold(path.parent)
        found.setdefault(fold.number, fold)
    if not found:
        raise Refused(f"{run_folder / pattern}: no finished fold; train one with kernels/train_fold.py")
    return [found[number] for number in sorted(found)]
