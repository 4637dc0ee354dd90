"""A run on disk, runs/<competition>/<run>/fold-<k>/: what a fold leaves there, never pickled, and how it is found."""

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from comp import config as configs
from comp import files
from comp.config import Config
from comp.data import npz
from comp.data.folds import FULL
from comp.errors import Refused
from comp.model import metrics, segmenter
from comp.report import tables

MODEL, OOF, METRICS, HISTORY = "model.safetensors", "oof.npz", "metrics.json", "history.csv"
CONFIG, CHECKPOINT = "config.json", "checkpoint.safetensors"  # beside the folds; of an unfinished one


class Fold(NamedTuple):
    """A finished fold: its folder, number and metrics."""

    folder: Path
    number: int
    metrics: dict[str, Any]

    def oof(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """ids str (n,), planes uint8 (n, C - 1, H, W) mapped, margins int64 (n, 4, C), counts float64 (n, K)."""
        names = ("ids", "planes", "margins", "counts")
        if lacking := {*names} - {*npz.list_keys(path := self.folder / OOF)}:
            raise Refused(f"{path}: of another version, without {min(lacking)}; delete its folder and train it again")
        ids, *others = (npz.read_member(path, key) for key in names)
        return npz.read_array(ids), *map(npz.map_member, others)  # type: ignore[return-value]

    def history(self) -> pd.DataFrame:
        """Its epochs, a row each, as `report.figures` takes them. Raises Refused."""
        path, columns = self.folder / HISTORY, ("epoch", "seconds", "lr", "train_loss", "valid_loss", "score")
        try:
            return pd.read_csv(path, usecols=columns, dtype=float)
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
    return any(any(run_folder.glob(f"*/{name}")) for name in (MODEL, METRICS, CHECKPOINT))


def check_configuration(run_folder: Path, config: Config, number: int = 0) -> None:
    """Refused where folds of another configuration lie in the run's folder, and where it cannot train this fold."""
    if number == FULL and config.schedule.name == "plateau":
        fits = "train it as another --run with --set schedule.name=cosine, and epochs as the folds had"
        raise Refused(f"schedule.name: no validation shows a plateau to a model of all images; {fits}")
    begun = has_begun(run_folder) and (run_folder / CONFIG).exists()
    if begun and (difference := configs.first_difference(read_config(run_folder), config)):
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
    margins, counts = map(np.concatenate, zip(*(fold.oof()[2:] for fold in done), strict=True))
    pooled = metrics.scores(margins, config.competition.classes, config.competition.metric, counts)
    frames = tables.folds_frame({fold.number: fold.metrics for fold in done}), tables.folds_frame({"pooled": pooled})
    return f"score: {pooled['metric']}\n{tables.to_text(pd.concat(frames))}"


def read_fold(folder: Path) -> Fold:
    """A finished fold read back. Raises Refused when it is not one."""
    try:
        facts = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Fold(folder, int(facts["fold"]), facts | {"train_images": int(facts["train_images"])})
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{folder / METRICS}: missing, damaged or old; delete {folder} and train it again") from None


def find_folds(run_folder: Path, pattern: str = "fold-*", needed: bool = True) -> list[Fold]:
    """A run's finished folds, or "full", here or in a kernel's inputs, by number. Refused for none that is `needed`."""
    inputs = Path("runs", *run_folder.parts[-2:], pattern, METRICS)
    there = [path for path in files.find_below_input(METRICS) if path.match(str(inputs))]
    read = [read_fold(path.parent) for path in [*run_folder.glob(f"{pattern}/{METRICS}"), *there]]
    found = {fold.number: fold for fold in reversed(read)}  # of those with the same number the first
    if needed and not found:
        raise Refused(f"{(run_folder / pattern).absolute()}: no finished fold; train one with kernels/train_fold.py")
    return [found[number] for number in sorted(found)]


def load_start(model: nn.Module, run_folder: Path, fold: str, valid: np.ndarray) -> str:
    """Give a model the weights that fit it of another run's fold, by the fold's folder; tell what fitted.

    Raises Refused where that run may have trained on an image that this one validates on: `valid` are their ids."""
    start = find_folds(run_folder, fold)[0]
    if len(valid) and (known := {*valid.tolist()} - {*start.oof()[0].tolist()}):
        fits = "the same folds.count, folds.seed and groups would fit"
        raise Refused(f"model.start: {start.folder} may have trained on {min(known)!r}, which validates here; {fits}")
    return f"{start.folder}: {segmenter.load_fitting(model, start.folder / MODEL)}"


def save_checkpoint(path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer, facts: dict) -> None:
    """Write modules, optimizer state and JSON-able facts, whole or not at all."""
    states = {name: module.state_dict() for name, module in parts.items()}
    states |= {f"optimizer/{number}": state for number, state in optimizer.state_dict()["state"].items()}
    found = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in found.items() if value is not None}
    text = json.dumps(facts)
    files.write_tensors(path, tensors, {"facts": text, "checksum": _checksum(tensors, text)})


@torch.no_grad()
def load_checkpoint(path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote; its facts, None without it. Raises Refused for a damaged or other one."""
    if not path.exists():
        return None
    tensors, metadata = files.read_tensors(path)
    text = metadata.get("facts", "")
    if metadata.get("checksum") != _checksum(tensors, text):
        raise Refused(f"{path}: damaged, its checksum differs; delete it, and the same command starts anew")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    try:
        for name, module in parts.items():
            module.load_state_dict({k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(f"{name}/")})
        for key, value in tensors.items():
            if key.startswith("optimizer/"):
                _, number, name = key.split("/")
                parameter = parameters[int(number)]
                if value.shape == parameter.shape:
                    # Fused optimizers walk memory as it lies: a moment must lie as its parameter does (channels_last).
                    value = torch.empty_like(parameter).copy_(value)
                moments.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})
    except (RuntimeError, IndexError, ValueError):
        raise Refused(f"{path}: of another network or optimizer; name another --run, or delete it") from None
    return json.loads(text)


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """CRC-32 of everything in a checkpoint: safetensors itself notices damage to its header alone."""
    crc = zlib.crc32(text.encode())
    for key, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
