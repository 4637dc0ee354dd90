"""A reader of one's own: a Python file beside the TOML, whose `read_samples(folder, part)` yields samples.

Each is (id, image, mask, group): text, numbers (H, W) or (H, W, C), labels (H, W), layers (H, W, classes - 1) or None,
text or None. Arrays are kept in npy files, named by what they hold, which are read and checked as any others."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from comp import files
from comp.config import Competition
from comp.errors import Refused
from comp.prepare.samples import Found, Layer, Sample


def run_reader(competition: Competition, folder: Path, spool: Path, parts: tuple[str, ...]) -> Found:
    """Everything that the reader yields of these parts. Raises Refused for what it raises, and what does not fit."""
    path = Path(competition.source.reader)
    found, read = Found([], [], []), files.load_function(str(path), "read_samples(folder, part)")
    for part in parts:
        samples, count = found.train if part == "train" else found.test, 0
        with files.blame(path, lambda: f", after {part} sample {count - 1}" if count else ""):  # noqa: B023
            for count, values in enumerate(read(folder, part), 1):
                samples.append(_keep(values, f"{path}: {part} sample {count - 1}", competition, spool))
    return found


def _keep(values: Any, where: str, competition: Competition, spool: Path) -> Sample:
    """One tuple that a reader yielded, as a sample whose arrays are files. Raises Refused, naming the field."""
    if not isinstance(values, tuple | list) or len(values) != 4:
        raise Refused(f"{where}: yields {type(values).__name__}; id, image, mask, group would fit")
    id, image, mask, group = values
    layers: tuple[Layer, ...] | None = None
    if mask is not None and np.ndim(mask) == 3:
        if mask.shape[2] != (fit := len(competition.classes) - 1):
            raise Refused(f"{where}, {id!r}: mask: {mask.shape[2]} layers; {fit}, one for each class, would fit")
        layers = tuple(Layer(_save(mask[..., k], id, spool), k + 1) for k in range(fit))
    elif mask is not None:
        layers = (Layer(_save(mask, id, spool)),)
    return Sample(str(id), (_save(image, id, spool),), layers, group="" if group is None else str(group))


def _save(values: Any, id: Any, spool: Path) -> Path:
    """Keep an array in a file that is named by its sample and what it holds, so that it is the same state next time."""
    values = np.asarray(values)
    digest = hashlib.blake2b(f"{values.dtype}{values.shape}".encode() + values.tobytes(), digest_size=16).hexdigest()
    path = spool / f"{re.sub('[^A-Za-z0-9._-]', '_', str(id))[:100]}-{digest}.npy"
    if not path.exists():
        np.save(path, values, allow_pickle=False)
        os.utime(path, (0, 0))
    return path
