"""Samples to batches: uint8 all the way, in an order that is a function of (seed, epoch).

A sample is augmented with a seed of its own, made from (seed, epoch, place in the epoch), so any number of workers
gives the same bytes, and a run that goes on in the middle of an epoch meets the batches it would have met.
"""

import os
import signal
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comp import distributed
from comp.config import Config
from comp.data import augment
from comp.data.arrays import TrainSplit
from comp.errors import Refused


def draws_per_image(counts: np.ndarray, oversample: dict[str, float], classes: tuple[str, ...]) -> np.ndarray:
    """How often each image is drawn per epoch: float64 (N,), from pixel counts int64 (N, classes)."""
    times = np.ones(len(counts))
    for name, factor in oversample.items():
        has = counts[:, classes.index(name)] > 0
        times[has] = np.maximum(times[has], factor)
    return times


def plan_epoch(rows: np.ndarray, times: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every row once (or `times` times), shuffled.

    A batch is int64 (n, 3): epoch, place in the epoch and row of the split, which name a sample and its seed.
    Batch sizes differ by at most one. A last batch of one sample is merged into its neighbour, because batch norm
    needs two. A fraction of `times` is drawn anew each epoch.
    """
    generator = np.random.default_rng([seed, epoch])
    whole = np.floor(times).astype(np.int64)
    drawn = generator.permutation(np.repeat(rows, whole + (generator.random(len(rows)) < times - whole)))
    keys = np.stack([np.full(len(drawn), epoch), np.arange(len(drawn)), drawn], axis=1)
    batches = max(1, min(-(-len(keys) // batch_size), len(keys) // min(batch_size, 2)))
    cuts = np.linspace(0, len(keys), batches + 1).round().astype(int)
    return np.split(keys, cuts[1:-1])


class TrainBatches:
    """Batches of uint8 images (n, H, W, C) and labels (n, H, W), epoch after epoch.

    One loader with persistent workers serves the whole run; `epoch(k, skip)` starts epoch `k` after
    its first `skip` batches.
    """

    def __init__(self, split: TrainSplit, rows: np.ndarray, times: np.ndarray, config: Config, workers: int, pin: bool):
        self._rows, self._times, self._config = rows, times, config
        self._keys: list[np.ndarray] = []  # what the loader loads next
        self._loader = DataLoader(
            _Samples(split, config),
            sampler=self._keys,  # whole batches, which the dataset reads at once
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=pin,
            worker_init_fn=_leave_ctrl_c_to_the_trainer,
        )

    def steps(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return len(self._plan(epoch))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields the size of each batch over all ranks, and what this one loads of it."""
        whole, ranks = self._plan(epoch)[skip:], distributed.world_size()
        if (fewest := min(map(len, whole), default=ranks)) < ranks:
            raise Refused(f"{ranks} processes, but a batch of {fewest} images; use fewer, or larger batches")
        self._keys[:] = [keys[distributed.own_share()] for keys in whole]
        for keys, (images, labels) in zip(whole, self._loader, strict=True):
            yield len(keys), images, labels

    def _plan(self, epoch: int) -> list[np.ndarray]:
        return plan_epoch(self._rows, self._times, self._config.batch_size, self._config.seed, epoch)


class _Samples(Dataset):
    """Whole batches at a time, so that workers hand over two tensors and not a list of samples."""

    def __init__(self, split: TrainSplit, config: Config):
        self._split, self._seed = split, config.seed
        self._transform = augment.build_transforms(config.augment.transforms)

    def __getitem__(self, keys: np.ndarray) -> tuple[Tensor, Tensor]:
        images, masks = zip(*(self._sample(*key) for key in keys.tolist()), strict=True)
        if len({image.shape for image in images}) > 1:
            raise Refused("augment.transforms: samples of one batch have different sizes; end with a crop or resize")
        return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(masks))

    def _sample(self, epoch: int, place: int, row: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = np.asarray(self._split.images[row]), np.asarray(self._split.masks[row])
        if self._transform is None:
            return image, mask
        seed = int(np.random.SeedSequence([self._seed, epoch, place]).generate_state(1, np.uint64)[0])
        return self._transform(image, mask, seed)


def _leave_ctrl_c_to_the_trainer(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def default_workers(device: torch.device) -> int:
    """Processes that augment beside the one that trains.

    None on a CPU: its cores train, and a training thread that has to wait for one holds up all others.
    """
    return 0 if device.type == "cpu" else min(8, os.cpu_count() or 1)
