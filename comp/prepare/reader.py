"""A reader of one's own: a Python file beside the TOML, with one function that yields samples.

    def read_samples(folder, part):                # a Path; "train" or "test"
        for path in sorted((folder / part).glob("*.npy")):
            yield path.stem, image, mask, group    # str, array (H, W) or (H, W, C), array (H, W) or None, str or None

What it yields is kept in npy files, named by what they hold, which are then read as any image and mask."""

import hashlib
import os
import re
import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import Competition
from comp.errors import Refused
from comp.prepare.decode import MOST_BANDS
from comp.prepare.samples import Found, Layer, Sample

FUNCTION = "read_samples"


def run_reader(competition: Competition, folder: Path, spool: Path, parts: tuple[str, ...]) -> Found:
    """Everything that the reader yields of these parts. Raises Refused for what it raises, and what does not fit."""
    path = Path(competition.source.reader)
    for there in (folder, path):
        if not there.exists():
            raise Refused(f"{there}: no such file or folder")
    found = Found([], [], [])
    for part in parts:
        samples = found.train if part == "train" else found.test
        for number, values in enumerate(_yielded(path, folder, part)):
            samples.append(_keep(values, f"{path}: {part} sample {number}", competition, spool))
    return found


def _yielded(path: Path, folder: Path, part: str) -> Iterator[Any]:
    number: int | None = None
    try:
        function = runpy.run_path(str(path)).get(FUNCTION)
        if not callable(function):
            raise Refused(f"{path}: has no function {FUNCTION}(folder, part)")
        for number, values in enumerate(function(folder, part)):  # noqa: B007
            yield values
    except Refused:
        raise
    except (Exception, SystemExit) as error:  # the reader is the user's, and may raise anything
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
        line = f"line {own[-1].lineno}" if own else f"line {getattr(error, 'lineno', '?')}"
        after = "" if number is None else f", after {part} sample {number}"
        raise Refused(f"{path}: {line}{after}: {type(error).__name__}: {error}") from None


def _keep(values: Any, where: str, competition: Competition, spool: Path) -> Sample:
    """One tuple that a reader yielded, as a sample whose arrays are files. Raises Refused, naming the field."""
    if not isinstance(values, tuple | list) or len(values) != 4:
        raise Refused(f"{where}: yields {type(values).__name__}; id, image, mask, group would fit")
    id, image, mask, group = values
    if not isinstance(id, str) or not id:
        raise Refused(f"{where}: its id is {id!r:.60}; text would fit")
    if group is not None and not isinstance(group, str):
        raise Refused(f"{where}, {id!r}: group: {group!r:.60}; text or None would fit")
    for name, array in [("image", image)] + ([] if mask is None else [("mask", mask)]):
        fits = isinstance(array, np.ndarray) and array.dtype.kind in "buif" and array.ndim in (2, 3) and array.size
        if not fits or (array.ndim == 3 and array.shape[2] > MOST_BANDS):
            found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise Refused(f"{where}, {id!r}: {name}: {found}; numbers (H, W) or (H, W, C), C ≤ {MOST_BANDS}, would fit")
    if mask is not None and mask.shape[:2] != image.shape[:2]:
        raise Refused(f"{where}, {id!r}: mask: of shape {mask.shape}, the image of {image.shape}")
    layers: tuple[Layer, ...] | None = None
    if mask is not None and mask.ndim == 2:
        layers = (Layer(_save(mask, id, spool)),)
    elif mask is not None:
        if mask.shape[2] != len(competition.classes) - 1:
            few = f"{len(competition.classes) - 1}, one for each class,"
            raise Refused(f"{where}, {id!r}: mask: {mask.shape[2]} layers; {few} would fit")
        layers = tuple(Layer(_save(mask[..., k], id, spool), k + 1) for k in range(mask.shape[2]))
    return Sample(id, (_save(image, id, spool),), layers, group=group or "")


def _save(values: np.ndarray, id: str, spool: Path) -> Path:
    """Keep an array in a file that is named by its sample and what it holds, so that it is the same state next time."""
    about = f"{values.dtype}{values.shape}".encode()
    digest = hashlib.blake2b(about + values.tobytes(), digest_size=16).hexdigest()
    path = spool / f"{re.sub('[^A-Za-z0-9._-]', '_', id)[:100]}-{digest}.npy"
    if not path.exists():
        np.save(path, values)
        os.utime(path, (0, 0))
    return path
