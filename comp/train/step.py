"""One optimizer step: batches to new weights; in parts where memory is short, left out where the loss is not finite."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from comp import distributed
from comp.config import Config
from comp.data import augment
from comp.device import Device, to_device
from comp.errors import Refused
from comp.model.segmenter import Segmenter
from comp.train import schedule

# Of all ranks the size of a batch; of this one its images uint8 (n, H, W, C) and labels uint8 (n, H, W).
Batch = tuple[int, Tensor, Tensor]
# Images (n, C, H, W), labels (n, H, W), the labels mixed in, if any, and how much the first labels weigh.
_Mixed = tuple[Tensor, Tensor, Tensor | None, float]


class Step:
    """Moves a model's weights; holds the optimizer, the scaler, and in how many parts a batch is computed."""

    def __init__(self, model: Segmenter, loss_of: Callable, config: Config, device: Device):
        self.model, self.loss_of, self.config, self.device = model, loss_of, config, device
        self.optimizer = schedule.make_optimizer(config.optimizer, model)
        self.scaler = schedule.make_scaler(device)
        self.parts = 1
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def __call__(self, group: list[Batch], lr: float, seed: list[int]) -> Tensor:
        """Take one step over a group of batches; return its mean loss over all samples of all ranks, detached.

        Where the loss is not finite, weights and batch statistics stay as they are. `seed` draws what is mixed
        and dropped. Raises Refused where memory does not suffice.
        """
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        generator = np.random.default_rng(seed)
        torch.manual_seed(int(generator.integers(2**62)) + distributed.rank())  # dropout's: a run goes on as it was
        samples = sum(size for size, *_ in group)
        mixed = [self._mix(images, labels, generator) for _, images, labels in group]
        before = _flat(self._statistics)
        loss = distributed.all_reduce_gradients(self.model, self._gradients(mixed, samples))
        self._keep(torch.where(loss.isfinite(), _flat(self._statistics), before))
        if self.config.optimizer.clip:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip)
        # Reading the loss is free on a CPU; on a GPU, where it would stall, the scaler looks.
        if self.scaler.is_enabled() or loss.isfinite():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _mix(self, images: Tensor, labels: Tensor, generator: np.random.Generator) -> _Mixed:
        images = to_device(images, self.device.device)
        labels = labels.to(self.device.device, non_blocking=True)
        if not augment.mixes(self.config.augment):
            return images, labels, None, 1.0
        images, labels, others, share = augment.mix_batch(images, labels, self.config.augment, generator)
        mine = distributed.share()
        return images[mine], labels[mine], None if others is None else others[mine], share

    def _gradients(self, mixed: list[_Mixed], samples: int) -> Tensor:
        """Add up gradients over this rank's part of a step of so many samples; return its part of the mean loss."""
        while True:
            try:
                return self._backward(mixed, samples)
            except torch.OutOfMemoryError:
                if distributed.world_size() > 1:  # the others wait for this one's batch statistics
                    raise Refused(
                        f"rank {distributed.rank()}: out of memory; halve batch_size and double optimizer.accumulate"
                    ) from None
                if self.parts >= max(len(images) for images, *_ in mixed):
                    raise Refused("out of memory with a single picture; use a smaller model or crops") from None
                self.parts *= 2
                self.model.zero_grad(set_to_none=True)
                print(f"out of memory: batches are now computed in {self.parts} parts")

    def _backward(self, mixed: list[_Mixed], samples: int) -> Tensor:
        # A function of its own: where memory runs out, what it held is let go before the next try.
        mean = torch.zeros((), device=self.device.device)
        for images, labels, other, share in mixed:
            others = other.chunk(self.parts) if other is not None else [None] * self.parts
            for x, y, z in zip(images.chunk(self.parts), labels.chunk(self.parts), others, strict=False):
                with self.device.autocast():
                    logits = self.model(x)
                loss = self.loss_of(logits, y)
                if z is not None:
                    loss = share * loss + (1 - share) * self.loss_of(logits, z)
                loss = loss * (len(x) / samples)
                self.scaler.scale(loss).backward()
                mean += loss.detach()
        return mean

    def _keep(self, flat: Tensor) -> None:
        """Set the batch statistics to what one flat tensor holds."""
        parts = flat.split([statistic.numel() for statistic in self._statistics])
        views = [part.view_as(statistic) for part, statistic in zip(parts, self._statistics, strict=True)]
        torch._foreach_copy_(self._statistics, views)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])
