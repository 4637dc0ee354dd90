"""Images seen together with those before and after them in their group: slices of a volume, frames of a film."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class Neighbours:
    """What a network sees of images (N, H, W, C) that have neighbours: uint8 (N, H, W, C·k), read when asked for.

    An image's channels are those of its k neighbours, at `offsets` from its own place in its group, in the order of
    the rows; beyond the ends of a group its first or last image stands in. An image of no group, "", is its own
    neighbour. Indexed by a row, or an array of rows.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, images: np.ndarray, groups: np.ndarray, offsets: Sequence[int]):
        self._images = images
        numbers = np.unique(groups, return_inverse=True)[1]
        numbers = np.where(groups == "", len(groups) + np.arange(len(groups)), numbers)
        order = np.argsort(numbers, kind="stable")
        _, first, count = np.unique(numbers[order], return_index=True, return_counts=True)
        low, high = np.repeat(first, count)[:, None], np.repeat(first + count - 1, count)[:, None]
        near = np.clip(np.arange(len(order))[:, None] + np.array(offsets), low, high)
        self._rows = np.empty_like(near)
        self._rows[order] = order[near]  # (N, k)
        self.shape = (*images.shape[:3], images.shape[3] * len(offsets))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, rows: Any) -> np.ndarray:
        images = np.moveaxis(self._images[self._rows[rows]], -4, -2)
        return images.reshape(*images.shape[:-2], self.shape[-1])
