"""Probabilities for pictures: test-time augmentation, averaged after softmax; large pictures in tiles."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comp.config import Fit, Predict
from comp.data.arrays import fitted_size
from comp.device import Device, to_device
from comp.errors import Refused
from comp.model.segmenter import Segmenter


@dataclass(frozen=True)
class View:
    """One way to look at a picture: `do` to images (n, C, H, W), `undo` to what was predicted for it."""

    do: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]


def _flips(*dims: int) -> View:
    def flip(x: Tensor) -> Tensor:
        return x.flip(dims) if dims else x  # without a dimension it is the picture as it is, and no copy

    return View(flip, flip)


def _transposed(*dims: int) -> View:
    return View(lambda x: x.transpose(2, 3).flip(dims), lambda x: x.flip(dims).transpose(2, 3))


def _scaled(scale: float, size: tuple[int, int]) -> View:
    scaled = tuple(max(1, round(side * scale)) for side in size)

    def resize(x: Tensor, to: tuple[int, ...]) -> Tensor:
        return F.interpolate(x.float(), size=to, mode="bilinear", align_corners=False, antialias=scale < 1)

    return View(lambda x: resize(x, scaled), lambda x: resize(x, size))


FLIPS = (_flips(), _flips(3), _flips(2), _flips(2, 3))
VIEWS: dict[str, tuple[View, ...]] = {
    "none": FLIPS[:1],
    "hflip": FLIPS[:2],
    "flips": FLIPS,
    # The dihedral group of the square: four flips, and the same of the transposed picture.
    "d4": (*FLIPS, _transposed(), _transposed(3), _transposed(2), _transposed(2, 3)),
}


def test_time_views(tta: str, size: tuple[int, int]) -> tuple[View, ...]:
    """The views of a test-time augmentation for pictures of (height, width)."""
    if tta == "scales":
        return (VIEWS["none"][0], *(_scaled(scale, size) for scale in (0.75, 1.25)))
    return VIEWS[tta]


@torch.inference_mode()
def logits(model: Segmenter, images: Tensor, device: Device) -> Tensor:
    """Logits (n, classes, H, W) of images (n, C, H, W) on the device, in halves where memory is short.

    The model is in evaluation mode. Raises Refused where a single picture does not fit.
    """
    try:
        with device.autocast():
            return model(images)
    except torch.OutOfMemoryError:
        if len(images) == 1:
            raise Refused("out of memory with a single picture; use a smaller model or predict.tile") from None
    return torch.cat([logits(model, half, device) for half in images.chunk(2)])


@torch.inference_mode()
def probabilities(model: Segmenter, images: Tensor, predict: Predict, device: Device) -> Tensor:
    """Mean softmax over the views: images (n, C, H, W) on the device to float32 (n, classes, H, W)."""

    def look_at(images: Tensor) -> Tensor:
        total, looks = None, test_time_views(predict.tta, tuple(images.shape[2:]))
        with device.autocast():  # around all views, which then share one cast of the weights
            for look in looks:
                seen = look.undo(logits(model, look.do(images), device).float().softmax(1))
                total = seen if total is None else total.add_(seen)
        return total.div_(len(looks))

    return predict_tiles(look_at, images, predict)


def predict_tiles(look_at: Callable[[Tensor], Tensor], images: Tensor, predict: Predict) -> Tensor:
    """What `look_at` gives for images (n, C, H, W), tile by tile where they are larger than `predict.tile`.

    `look_at` is given about `predict.batch_size` tiles at a time, all of one size, and gives (m, classes, h, w).
    Tiles overlap by a quarter or more and fade into one another, as a network sees least at their rims.
    """
    size = tuple(images.shape[2:])
    places = _tiles(size, predict.tile)
    if len(places) == 1:
        return look_at(images)
    fade = torch.outer(*(_hann(place.stop - place.start) for place in places[0])).to(images.device)
    cover, total = torch.zeros(size, device=images.device), None
    step = max(1, predict.batch_size // len(images))
    for start in range(0, len(places), step):
        some = places[start : start + step]
        seen = look_at(torch.cat([images[:, :, y, x] for y, x in some])).float()
        total = torch.zeros(len(images), seen.shape[1], *size, device=images.device) if total is None else total
        for (y, x), part in zip(some, seen.split(len(images)), strict=True):
            total[:, :, y, x] += part * fade
            cover[y, x] += fade
    return total.div_(cover)


def _tiles(size: tuple[int, int], tile: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles that cover a picture of (height, width); all lie inside it, all are of one size."""

    def along(side: int) -> list[slice]:
        spare = max(0, side - tile) if tile else 0
        starts = np.linspace(0, spare, 1 + math.ceil(spare / (0.75 * tile or 1))).round().astype(int).tolist()
        return [slice(start, start + side - spare) for start in starts]

    return list(itertools.product(*map(along, size)))


def _hann(length: int) -> Tensor:
    # Taken at the pixels' centres it is nowhere 0: a picture's own rim is in one tile alone.
    return torch.hann_window(2 * length + 1, periodic=False)[1::2]


def plan_batches(rows: np.ndarray, size: tuple[int, int], predict: Predict) -> list[np.ndarray]:
    """Rows of pictures of (height, width) in batches of up to `predict.batch_size` pictures, or of so many tiles."""
    step = max(1, predict.batch_size // len(_tiles(size, predict.tile)))
    return [rows[start : start + step] for start in range(0, len(rows), step)]


def to_labels(scores: Tensor) -> np.ndarray:
    """The largest of scores (n, classes, H, W) in each pixel, uint8 (n, H, W)."""
    # With the classes of a pixel side by side, a CPU finds it six times faster.
    return scores.contiguous(memory_format=torch.channels_last).argmax(1).to(torch.uint8).cpu().numpy()


def predict_rows(
    model: Segmenter, images: np.ndarray, rows: np.ndarray, predict: Predict, device: Device
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Predict `rows` of uint8 images (N, H, W, C): yields (rows of the batch, probabilities on the device)."""
    return for_each_batch(lambda x, _: probabilities(model, x, predict, device), images, rows, predict, device)


def for_each_batch(
    look: Callable[[Tensor, np.ndarray], Any], images: np.ndarray, rows: np.ndarray, predict: Predict, device: Device
) -> Iterator[tuple[np.ndarray, Any]]:
    """Show `look` batches of uint8 images (N, H, W, C), on the device, with their rows: yields (rows, what it gave).

    A batch is halved where memory is short. Raises Refused where a single picture does not fit.
    """
    waiting = plan_batches(rows, images.shape[1:3], predict)[::-1]
    while waiting:
        batch = waiting.pop()
        try:
            pixels = torch.from_numpy(np.ascontiguousarray(images[batch]))
            seen = look(to_device(pixels, device.device), batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise Refused("out of memory with a single picture; use a smaller model or predict.tile") from None
            waiting += np.array_split(batch, 2)[::-1]
        else:
            yield batch, seen


def resize_to_original(probabilities: Tensor, size: tuple[int, int], fit: Fit) -> Tensor:
    """Bring one picture's probabilities (C, H, W) back to its own (height, width).

    `fit` says how the picture was brought here: "stretch", or "letterbox" from the top left corner.
    """
    height, width = fitted_size(size, tuple(probabilities.shape[1:]), fit)
    inside = probabilities[None, :, :height, :width]
    return F.interpolate(inside, size=tuple(size), mode="bilinear", align_corners=False)[0]
