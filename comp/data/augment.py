"""Augmentation: albumentations on samples, CutMix and MixUp on batches, each random by a seed that the caller gives."""

import os
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comp.config import Augment
from comp.errors import Refused, did_you_mean, print_once

Transform = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def build_transforms(transforms: Sequence[dict[str, Any]]) -> Transform | None:
    """Turn the recipe's list into a function `(image, mask, seed) -> (image, mask)`; None where it is empty.

    Images are uint8 (H, W, C), masks uint8 (H, W). Raises Refused for an unknown name or argument."""
    if not transforms:
        return None
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network on import
    import albumentations

    def build(position: int, /, name: str = "", **arguments: Any) -> Any:
        key, kind = f"augment.transforms.{position}", getattr(albumentations, str(name), None)
        if not (isinstance(kind, type) and issubclass(kind, albumentations.BasicTransform)):
            hint = did_you_mean(str(name), dir(albumentations))
            raise Refused(f"{key}.name: albumentations has no transform {name!r}{hint}")
        # A constructor that validates only warns of an argument that it does not know, and where validation itself
        # fails it takes the defaults, unless it is told to be strict. The others know no such argument.
        validates = hasattr(kind.__init__, "__signature__")  # type: ignore[misc]
        try:
            with warnings.catch_warnings(record=True, action="always") as said:
                made = kind(**arguments | ({"strict": True} if validates else {}))
        except (TypeError, ValueError, NotImplementedError) as error:
            reason = " ".join(str(error).split()).partition(" [type=")[0]
            raise Refused(f"{key} ({name}): {reason}") from None
        for warning in said:
            print_once(f"{key} ({name}): {' '.join(str(warning.message).split())}")
        return made

    pipeline = albumentations.Compose([build(k, **transform) for k, transform in enumerate(transforms)])
    # All transforms share these two generators: seeding them costs a third of albumentations' own set_random_seed.
    generator, python = np.random.default_rng(), random.Random()
    pipeline.set_random_state(generator, python)

    def transform(image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        python.seed(seed)
        generator.bit_generator.state = np.random.PCG64(seed).state
        try:
            moved = pipeline(image=image, mask=mask)
        except Exception as error:  # albumentations and OpenCV raise what they like
            raise Refused(f"augment.transforms: {' '.join(str(error).split())[:300]}") from None
        if moved["image"].dtype != np.uint8:
            raise Refused("augment.transforms: one of them makes float images; the model itself normalises")
        return moved["image"], moved["mask"]

    return transform


def mix_batch(
    images: Tensor, labels: Tensor, augment: Augment, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor | None, float]:
    """CutMix and MixUp for one batch, each drawn with the recipe's probability.

    `images` (N, C, H, W) and `labels` (N, H, W) are on the device. Returns images, labels, a second set of labels or
    None, and the share that the first set has in the loss. CutMix (Yun et al. 2019, arXiv:1905.04899) pastes boxes
    with their labels, so it needs no second set; MixUp (Zhang et al. 2018, arXiv:1710.09412) blends whole images."""

    def shift() -> int:  # each sample meets another one; a permutation would have to be sent to a GPU, which waits
        return int(generator.integers(1, max(2, len(images))))

    if generator.random() < augment.cutmix:
        (height, width), sources = labels.shape[1:], (images, labels)
        images, labels = images.clone(), labels.clone()
        for _ in range(augment.cutmix_sources):
            side = np.sqrt(generator.uniform(0, 0.5))  # the box's area is up to half of the image
            h, w = max(1, round(height * side)), max(1, round(width * side))
            y, x = generator.integers(height - h + 1), generator.integers(width - w + 1)
            other = shift()
            for target, source in zip((images, labels), sources, strict=True):
                target[..., y : y + h, x : x + w] = source[..., y : y + h, x : x + w].roll(other, 0)
    if generator.random() < augment.mixup:
        share = float(generator.beta(augment.mixup_alpha, augment.mixup_alpha))
        other, images = shift(), images.float()
        return torch.lerp(images.roll(other, 0), images, share), labels, labels.roll(other, 0), share
    return images, labels, None, 1.0
