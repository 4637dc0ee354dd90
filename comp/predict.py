"""Probabilities for pictures: test-time augmentation, averaged after softmax."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comp.batches import to_device
from comp.config import Predict
from comp.device import Device
from comp.errors import Refused
from comp.models import Segmenter


@dataclass(frozen=True)
class View:
    """One way to look at a picture: `do` to images (n, C, H, W), `undo` to what was predicted for it."""

    do: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor], Tensor]


def _flips(*dims: int) -> View:
    # An empty tuple of dims is the picture as it is.
    return View(lambda x: x.flip(dims), lambda x: x.flip(dims)) if dims else View(_same, _same)


def _transposed(*dims: int) -> View:
    return View(lambda x: x.transpose(2, 3).flip(dims), lambda x: x.flip(dims).transpose(2, 3))


def _same(x: Tensor) -> Tensor:
    return x


def _scaled(scale: float) -> Callable[[tuple[int, int]], View]:
    def view(size: tuple[int, int]) -> View:
        smaller = [max(1, round(side * scale)) for side in size]

        def resize(x: Tensor, to: tuple[int, int] | list[int]) -> Tensor:
            return F.interpolate(x.float(), size=to, mode="bilinear", align_corners=False, antialias=scale < 1)

        return View(lambda x: resize(x, smaller), lambda x: resize(x, size))

    return view


FLIPS = (_flips(), _flips(3), _flips(2), _flips(2, 3))
VIEWS: dict[str, tuple[View, ...]] = {
    "none": FLIPS[:1],
    "hflip": FLIPS[:2],
    "flips": FLIPS,
    # The dihedral group of the square: four flips, and the same of the transposed picture.
    "d4": (*FLIPS, _transposed(), _transposed(3), _transposed(2), _transposed(2, 3)),
}


def views(tta: str, size: tuple[int, int]) -> tuple[View, ...]:
    """The views of a test-time augmentation for pictures of (height, width)."""
    if tta == "scales":
        return (VIEWS["none"][0], *(_scaled(scale)(size) for scale in (0.75, 1.25)))
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
            raise Refused("out of memory with a single picture; use a smaller model") from None
    return torch.cat([logits(model, half, device) for half in images.chunk(2)])


@torch.inference_mode()
def probabilities(model: Segmenter, images: Tensor, tta: str, device: Device) -> Tensor:
    """Mean softmax over the views: images (n, C, H, W) on the device to float32 (n, classes, H, W)."""
    total, looks = None, views(tta, tuple(images.shape[2:]))
    with device.autocast():  # around all views, which then share one cast of the weights
        for look in looks:
            seen = look.undo(logits(model, look.do(images), device).float().softmax(1))
            total = seen if total is None else total.add_(seen)
    return total.div_(len(looks))


def labels(scores: Tensor) -> np.ndarray:
    """The largest of scores (n, classes, H, W) in each pixel, uint8 (n, H, W)."""
    # With the classes of a pixel side by side, a CPU finds it six times faster.
    return scores.contiguous(memory_format=torch.channels_last).argmax(1).to(torch.uint8).cpu().numpy()


def over(
    model: Segmenter, images: np.ndarray, rows: np.ndarray, predict: Predict, device: Device
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Predict `rows` of uint8 images (N, H, W, C): yields (rows of the batch, probabilities on the device)."""
    for start in range(0, len(rows), predict.batch_size):
        batch = rows[start : start + predict.batch_size]
        pixels = torch.from_numpy(np.ascontiguousarray(images[batch]))
        yield batch, probabilities(model, to_device(pixels, device.device), predict.tta, device)


def original(probabilities: Tensor, size: tuple[int, int], fit: str) -> Tensor:
    """Bring one picture's probabilities (C, H, W) back to its own (height, width).

    `fit` says how the picture was brought here: "stretch", or "letterbox" from the top left corner.
    """
    height, width = probabilities.shape[1:]
    if fit == "letterbox":
        scale = min(height / size[0], width / size[1])
        height, width = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    inside = probabilities[None, :, :height, :width]
    return F.interpolate(inside, size=tuple(size), mode="bilinear", align_corners=False)[0]
