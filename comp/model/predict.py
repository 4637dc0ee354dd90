"""Probabilities for images: test-time augmentation, averaged as probabilities; large images in tiles."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import pairwise, product
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from comp.config import Predict
from comp.data.arrays import Neighbours, spread_starts
from comp.device import Device, is_out_of_memory, to_device
from comp.errors import Refused, print_once
from comp.model.segmenter import Segmenter

T = TypeVar("T")
Images = np.ndarray | Neighbours  # uint8 (N, H, W, C)
Look = Callable[[Tensor, np.ndarray, Predict], T]  # at a batch of images on the device, their rows, the settings
Predictions = Iterator[tuple[np.ndarray, Tensor]]  # rows int64 (n,), probabilities float32 (n, C, H, W) on the device


class View(NamedTuple):
    """One way to look at an image: `do` to images (n, C, H, W), `undo` to what was predicted, given (H, W)."""

    do: Callable[[Tensor], Tensor]
    undo: Callable[[Tensor, Sequence[int]], Tensor]


def _flips(*dims: int, axis: int = 2) -> View:
    """Flip along `dims`, having swapped the rows with an axis: 3 transposes images, 2 does nothing."""
    return View(lambda x: x.transpose(2, axis).flip(dims), lambda x, _: x.flip(dims).transpose(2, axis))


def _scaled(scale: float) -> View:
    def resize(x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=scale < 1)

    return View(lambda x: resize(x, [max(1, round(side * scale)) for side in x.shape[2:]]), resize)


AS_IS = View(lambda x: x, lambda x, _: x)
FLIPS = (AS_IS, _flips(3), _flips(2), _flips(2, 3))
VIEWS: dict[str, tuple[View, ...]] = {
    "none": FLIPS[:1],
    "hflip": FLIPS[:2],
    "flips": FLIPS,
    # The dihedral group of the square: four flips, and the same of the transposed image.
    "d4": (*FLIPS, *(_flips(*dims, axis=3) for dims in ((), (3,), (2,), (2, 3)))),
    "scales": (AS_IS, _scaled(0.75), _scaled(1.25)),
}


@torch.inference_mode()
def logits(model: Segmenter, images: Tensor) -> Tensor:
    """Logits (n, classes, H, W) of images (n, C, H, W) on the model's device; it is in evaluation mode."""
    with model.device.autocast():
        seen = model(images)
    if model.device.dtype == torch.float16 and not seen.isfinite().all():
        # Float16 ends at 65,504, where a model that was trained in bf16 need not end.
        with torch.autocast(images.device.type, enabled=False):
            seen = model(images)
        if seen.isfinite().all():
            print_once("values beyond float16: such batches are predicted in float32, which is slower")
    return seen


@torch.inference_mode()
def probabilities(model: Segmenter, images: Tensor, settings: Predict) -> Tensor:
    """Mean probabilities over the views: images (n, C, H, W) on the device to float32 (n, classes, H, W)."""
    views = VIEWS[settings.tta]

    def look_at(x: Tensor) -> Tensor:
        with model.device.autocast():  # around all views, which then share one cast of the weights
            seen = (v.undo(activate(logits(model, v.do(x)).float(), model.overlap), x.shape[2:]) for v in views)
            return reduce(Tensor.add_, seen).div_(len(views))

    return predict_tiles(look_at, images, settings)


def predict_tiles(look_at: Callable[[Tensor], Tensor], images: Tensor, settings: Predict) -> Tensor:
    """What `look_at` gives for images (n, C, H, W), tile by tile where they are larger than `settings.tile`.

    `look_at` is given about `settings.batch_size` tiles at a time, all of one size, and gives (m, classes, h, w).
    Tiles overlap by a quarter or more and fade into one another, since a network sees least at their rims."""
    size = tuple(images.shape[2:])
    places = _tiles(size, settings.tile)
    if len(places) == 1:
        return look_at(images)
    fade = make_fade([place.stop - place.start for place in places[0]]).to(images.device)
    cover = total = torch.zeros(size, device=images.device)
    step = max(1, settings.batch_size // len(images))
    for start in range(0, len(places), step):
        some = places[start : start + step]
        seen = look_at(torch.cat([images[:, :, y, x] for y, x in some])).float()
        if not start:  # now the number of classes is known
            total = torch.zeros(len(images), seen.shape[1], *size, device=images.device)
        for (y, x), part in zip(some, seen.split(len(images)), strict=True):
            total[:, :, y, x] += part * fade
            cover[y, x] += fade
    return total.div_(cover)


def make_fade(size: Sequence[int]) -> Tensor:
    """Weights of a tile's pixels, float32 (H, W): Hann's window at their centres fades to the rim, and is 0 nowhere."""
    return torch.outer(*(torch.hann_window(2 * side + 1, periodic=False)[1::2] for side in size))


def _tiles(size: Sequence[int], tile: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the tiles that cover an image of (height, width); all lie inside it and have one size."""
    lengths = [min(side, tile or side) for side in size]
    starts = product(*(spread_starts(*sides, 0.25) for sides in zip(size, lengths, strict=True)))
    return [(slice(y, y + lengths[0]), slice(x, x + lengths[1])) for y, x in starts]


def activate(logits: Tensor, overlap: bool) -> Tensor:
    """Probabilities of logits (n, C, H, W): softmax; where classes overlap, each against the first, which has ½."""
    return (logits - logits[:, :1]).sigmoid() if overlap else logits.softmax(1)


def to_labels(scores: Tensor, overlap: bool = False) -> Tensor:
    """The class with the largest of scores (n, classes, H, W) in each pixel, uint8 (n, H, W).

    Where classes overlap, bit k - 1 says whether class k has more than the first, which is none of them."""
    if overlap:
        bits = 1 << torch.arange(scores.shape[1] - 1, device=scores.device).view(-1, 1, 1)
        return ((scores[:, 1:] > scores[:, :1]) * bits).sum(1).to(torch.uint8)
    # With the classes of a pixel side by side, a CPU finds it six times faster.
    return scores.contiguous(memory_format=torch.channels_last).argmax(1).to(torch.uint8)


def to_planes(probabilities: Tensor) -> Tensor:
    """Probabilities (n, C, H, W) as they are stored: uint8 (n, C - 1, H, W), 255 is 1; the first class is the rest."""
    return (probabilities[:, 1:] * 255).round().to(torch.uint8)


def from_planes(planes: Tensor, overlap: bool = False) -> Tensor:
    """Stored planes uint8 (n, C - 1, H, W) as probabilities float32 (n, C, H, W)."""
    others = planes.float()
    first = torch.full_like(others[:, :1], 127.5) if overlap else (255 - others.sum(1, keepdim=True)).clamp_min(0)
    return torch.cat([first, others], 1) / 255


def predict_rows(model: Segmenter, images: Images, rows: np.ndarray, settings: Predict) -> Predictions:
    """Predict `rows` of images, batch by batch."""
    return for_each_batch(lambda x, _, now: probabilities(model, x, now), images, rows, settings, model.device)


def for_each_batch(
    look: Look[T], images: Images, rows: np.ndarray, settings: Predict, device: Device
) -> Iterator[tuple[np.ndarray, T]]:
    """Call `look` with batches of images (n, H, W, C) on the device, their rows and the settings.

    Yields (rows, what it returned). A batch holds `settings.batch_size` images, or tiles of larger ones; from where
    memory runs out, half as many; a thread reads the next one meanwhile. Raises Refused where one does not fit."""

    def read(batch: np.ndarray) -> Tensor:
        pixels = torch.from_numpy(np.ascontiguousarray(images[batch]))
        return pixels.pin_memory() if device.device.type == "cuda" else pixels

    tiles = len(_tiles(images.shape[1:3], settings.tile))
    while len(rows):
        size = max(1, settings.batch_size // tiles)
        batches = np.split(rows, range(size, len(rows), size))
        try:
            with ThreadPoolExecutor(1) as thread:
                reading = thread.submit(read, batches[0])
                for batch, following in pairwise([*batches, rows[:0]]):
                    pixels, reading = reading.result(), thread.submit(read, following)
                    yield batch, look(to_device(pixels, device.device), batch, settings)
                    rows = rows[len(batch) :]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if settings.batch_size == 1:
                raise Refused("out of memory with a single image; use a smaller model or predict.tile") from None
            settings = settings.model_copy(update={"batch_size": settings.batch_size // 2})
