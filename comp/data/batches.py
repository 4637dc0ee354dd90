"""Samples to batches: uint8 all the way, in an order that is a function of (seed, epoch).

A sample is augmented with a seed of its own, made from (seed, epoch, place in the epoch), so any number of workers
gives the same bytes, and a run that goes on in the middle of an epoch meets the batches it would have met."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from comp import distributed
from comp.config import Config
from comp.data import augment
from comp.data.arrays import TrainSplit
from comp.errors import Refused

PATIENCE = 300  # seconds for a batch; a worker that takes longer hangs
AHEAD = 4  # batches that a worker prepares ahead
SHARED_MEMORY = Path("/dev/shm")  # through which a worker hands its batches over


def draws_per_image(counts: np.ndarray, oversample: dict[str, float], classes: tuple[str, ...]) -> np.ndarray:
    """How often each image is drawn per epoch: float64 (N,), from pixel counts int64 (N, classes)."""
    return np.where(counts > 0, [oversample.get(name, 1.0) for name in classes], 1.0).max(axis=1, initial=1.0)


def plan_epoch(rows: np.ndarray, times: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of one epoch: every row `times` times, shuffled; a fraction of a time is drawn anew each epoch.

    A batch is int64 (n, 3): epoch, place in the epoch and row of the split, which name a sample and its seed.
    Sizes differ by at most one, and are not 1 where more samples are there, because batch norm needs two."""
    generator = np.random.default_rng([seed, epoch])
    whole = np.floor(times).astype(np.int64)
    drawn = generator.permutation(np.repeat(rows, whole + (generator.random(len(rows)) < times - whole)))
    keys = np.stack([np.full(len(drawn), epoch), np.arange(len(drawn)), drawn], axis=1)
    batches = max(1, min(-(-len(keys) // batch_size), len(keys) // min(batch_size, 2)))
    return np.split(keys, np.linspace(0, len(keys), batches + 1).round().astype(int)[1:-1])


class TrainBatches(AbstractContextManager):
    """Batches of uint8 images (n, H, W, C) and labels (n, H, W), epoch after epoch.

    One loader reads ahead: first comes `epoch(k, skip)`, without `skip` batches, then `epoch(k + 1)` and so on."""

    def __init__(self, split: TrainSplit, rows: np.ndarray, times: np.ndarray, config: Config, workers: int, pin: bool):
        self._plan = partial(plan_epoch, rows, times, config.batch_size, config.seed)  # of an epoch
        self._samples, self._count, self._pin = _Samples(split, config), workers, pin
        if workers:
            size = sum(tensor.numel() for tensor in self._samples[np.array([[0, 0, rows[0]]])])
            size *= (AHEAD + 1) * -(-config.batch_size // distributed.world_size())  # bytes of a worker's batches
            free = shutil.disk_usage(SHARED_MEMORY).free
            self._count = min(workers, free // 4 // size)  # a quarter: other folds may train beside this one
            if self._count < workers:
                fits = f"--workers {self._count} instead of {workers}; docker run --shm-size=8g gives more"
                print(f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free: {fits}")
        self._loaded: Iterator[tuple[Tensor, Tensor]] | None = None

    def steps(self, epoch: int) -> int:
        """Number of batches in an epoch."""
        return len(self._plan(epoch))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yields the size of each batch over all ranks, and what this one loads of it."""
        whole, ranks = self._plan(epoch)[skip:], distributed.world_size()
        if (fewest := min(map(len, whole), default=ranks)) < ranks:
            raise Refused(f"{ranks} processes, but a batch of {fewest} images; use fewer, or larger batches")
        if self._loaded is None:
            self._loaded = self._load(epoch, skip)
        for keys in whole:
            yield len(keys), *next(self._loaded)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any, /) -> None:
        """End the workers. Raises Refused where one has died, or gave no batch for `PATIENCE` seconds.

        That a worker died torch raises at once, be it in the middle of a step."""
        if self._count and self._loaded is not None:
            self._loaded._shutdown_workers()  # type: ignore[attr-defined]
        if isinstance(error, RuntimeError) and str(error).startswith("DataLoader "):
            raise Refused(f"{error}; the same command goes on, if memory is short with fewer --workers") from None

    def _load(self, first: int, skip: int) -> Iterator[tuple[Tensor, Tensor]]:
        plans = (self._plan(epoch)[skip if epoch == first else 0 :] for epoch in count(first))
        loader = DataLoader(
            self._samples,
            sampler=(keys[distributed.rank() :: distributed.world_size()] for plan in plans for keys in plan),
            batch_size=None,  # since the sampler gives whole batches
            num_workers=self._count,
            multiprocessing_context="fork" if self._count else None,  # whatever a notebook set: the arrays are mapped
            prefetch_factor=AHEAD if self._count else None,
            pin_memory=self._pin,
            worker_init_fn=_begin_worker,
            timeout=PATIENCE if self._count else 0,
        )
        return iter(loader)


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
        image, mask, soft = np.asarray(self._split.inputs[row]), np.asarray(self._split.masks[row]), self._split.soft
        seed = int(np.random.SeedSequence([self._seed, epoch, place]).generate_state(1, np.uint64)[0])
        if soft is not None and row < len(soft):  # behind them are those of arrays.extra
            # Drawn anew each time, so that cross-entropy and BCE learn the mean; not with numbers of what augments.
            mask = np.where(mask < 2, soft[row] > np.random.default_rng([seed, 1]).integers(255), mask)
        return self._transform(image, mask, seed) if self._transform else (image, mask)


def _begin_worker(worker: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # one worker a core is enough
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def default_workers(device: torch.device, processes: int = 1) -> int:
    """Workers of each of so many processes that train on this machine."""
    # None on a CPU: its cores train, and a training thread that has to wait for one holds up all others.
    return 0 if device.type == "cpu" else min(8, max(1, len(os.sched_getaffinity(0)) // processes))
