"""What all pictures share: the colours of classes, text, and saving.

Everything is drawn through matplotlib's object interface: nothing global is touched, so a
notebook's own figures stay as they are.
"""

from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from comp.files import atomic_write

INK, FAINT = "#22272e", "#8b949e"

# A light grey for class 0, usually the background, then Okabe and Ito's colours (2008).
FIRST = "c4c8ce e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7"
# How protanopes and deuteranopes see linear RGB (Machado, Oliveira and Fernandes, 2009, severity 1).
PROTAN = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998))
DEUTAN = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881))
# Linear RGB to cone responses, and their cube roots to OKLab (Ottosson, 2020).
TO_LMS = ((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300))
TO_LAB = ((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087))
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b3fa0", "#8c8474")


def class_colours(n: int) -> np.ndarray:
    """Colours of the classes 0 … n-1 as uint8 (n, 3), n at most 255; fewer are a prefix of more."""
    return _palette()[:n].copy()


@cache
def _palette() -> np.ndarray:
    """Each further colour is the one farthest from all before it for the eye, colour-blind eyes included."""
    first = np.array([list(bytes.fromhex(colour)) for colour in FIRST.split()])
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 32)] * 3, indexing="ij"), -1).reshape(-1, 3)
    candidates = np.concatenate([first, grid])
    eyes = [_oklab(candidates / 255.0, eye) for eye in (np.eye(3), PROTAN, DEUTAN)]
    # Near black and near white are taken: a dimmed picture, and pixels that are ignored.
    nearest = np.where((eyes[0][:, 0] > 0.42) & (eyes[0][:, 0] < 0.9), np.inf, 0)
    chosen: list[int] = []
    while len(chosen) < 255:
        latest = len(chosen) if len(chosen) < len(first) else int(np.argmax(nearest.round(6)))
        chosen.append(latest)
        distance = [np.linalg.norm(lab - lab[latest], axis=1) for lab in eyes]
        distance[0] /= 2  # for most eyes colours are to differ twice as much as for colour-blind ones
        nearest = np.minimum(nearest, np.min(distance, axis=0))
    return candidates[chosen].astype(np.uint8)


def _oklab(rgb: np.ndarray, eye: np.ndarray) -> np.ndarray:
    seen = np.clip(rgb**2.2 @ np.transpose(eye), 0, 1)
    return np.cbrt(seen @ np.transpose(TO_LMS)) @ np.transpose(TO_LAB)


def escape_dollars(text: str) -> str:
    """Text as it is: matplotlib reads a pair of dollars as mathematics."""
    return str(text).replace("$", r"\$")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as an RGB PNG that knows its resolution, whole or not at all."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    with atomic_write(path) as beside:
        Image.fromarray(pixels).save(beside, format="PNG", compress_level=4, dpi=(figure.dpi, figure.dpi))
