"""One optimizer step: batches to new weights; in parts where memory is short, left out where it is not finite."""

import contextlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from comp import distributed
from comp.config import Config, Optimizer
from comp.data import augment
from comp.device import is_out_of_memory, to_device
from comp.errors import Refused
from comp.model.losses import Loss
from comp.model.segmenter import Segmenter

# The size of a batch over all ranks; this rank's images uint8 (n, H, W, C) and labels uint8 (n, H, W).
Batch = tuple[int, Tensor, Tensor]


def make_optimizer(optimizer: Optimizer, model: Segmenter) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD (Nesterov's) over what is trained; biases and norms are not decayed."""
    from timm.optim import create_optimizer_v2  # five seconds, which refusals need not wait for

    plain = optimizer.name == "sgd" and not optimizer.momentum  # timm's "sgd" is Nesterov's, which needs a momentum
    settings = optimizer.model_dump(include={"lr", "weight_decay", "momentum"})
    made = create_optimizer_v2(model, "momentum" if plain else optimizer.name, fused=True, **settings)
    if optimizer.encoder_lr != 1:
        if not (encoder := getattr(model.net, "encoder", None)):
            raise Refused("optimizer.encoder_lr: this architecture has no encoder")
        inside = {*encoder.parameters()}
        for group in [*made.param_groups]:
            own = [parameter for parameter in group["params"] if parameter in inside]
            group["params"] = [parameter for parameter in group["params"] if parameter not in inside]
            made.add_param_group(group | {"params": own, "lr_scale": optimizer.encoder_lr})
    if optimizer.name == "sgd" and not plain:
        for parameter in (parameter for group in made.param_groups for parameter in group["params"]):
            # Made by torch, it would stay uninitialised where the scaler leaves out the first step.
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return made


class Step:
    """Moves a model's weights; holds the optimizer, the scaler, and in how many parts a batch is computed."""

    def __init__(self, model: Segmenter, loss_of: Loss, config: Config):
        self.model, self.loss_of, self.device = model, loss_of, model.device
        self.augment, self.clip = config.augment, config.optimizer.clip
        self.forward: Any = distributed.wrap_model(model, self.device.device)
        self.optimizer = make_optimizer(config.optimizer, model)
        # It scales the loss where fp16 needs it; on any GPU it leaves out steps that are not finite, without a stall.
        scale, kind = 2.0**16 if self.device.dtype == torch.float16 else 1.0, self.device.device.type
        self.scaler = torch.amp.GradScaler(kind, init_scale=scale, enabled=kind == "cuda")
        self.parts = 1
        self._statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]

    def __call__(self, group: list[Batch], lr: float, seed: list[int]) -> Tensor:
        """Take one step over a group of batches; return its mean loss over all samples of all ranks, detached.

        Where the loss or a gradient is not finite, the weights stay as they are; so do the batch statistics where
        the loss is not. `seed` decides what is mixed and dropped. Raises Refused where memory does not suffice."""
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr * parameters.get("lr_scale", 1.0)
        before = parameters_to_vector(self._statistics)
        loss = self._gradients(group, seed, before)
        kept = torch.where(loss.isfinite(), parameters_to_vector(self._statistics), before)
        vector_to_parameters(kept, self._statistics)
        self.scaler.unscale_(self.optimizer)
        norm = clip_grad_norm_(self.model.parameters(), self.clip or torch.finfo(torch.float32).max)
        # On a CPU the numbers are looked at; on a GPU, where that would stall, the scaler looks.
        if self.scaler.is_enabled() or (loss.isfinite() and norm.isfinite()):
            self.scaler.step(self.optimizer)
        else:
            loss = loss * math.nan  # so that it is counted as left out
        self.scaler.update(None if self.device.dtype == torch.float16 else 1.0)
        if self.device.dtype == torch.float16:
            # Halved by every step that is left out, it would become 0, and the next good step would write NaN.
            self.scaler.update(self.scaler.scale(torch.ones_like(loss)).clamp(min=1.0))
        self.optimizer.zero_grad(set_to_none=True)
        return loss

    def _gradients(self, group: list[Batch], seed: list[int], before: Tensor) -> Tensor:
        """Add up a step's gradients, in parts where memory is short, from statistics `before`; return the mean loss."""
        while True:
            try:
                return self._backward(group, seed)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if distributed.world_size() > 1:  # the others wait for this one's gradients
                    fits = "halve batch_size and double optimizer.accumulate"
                    raise Refused(f"rank {distributed.rank()}: out of memory; {fits}") from None
                if self.parts >= max(len(images) for _, images, _ in group):
                    raise Refused("out of memory with a single image; use a smaller model or crops") from None
            self.parts *= 2
            self.model.zero_grad(set_to_none=True)
            vector_to_parameters(before.clone(), self._statistics)
            print(f"out of memory: batches are now computed in {self.parts} parts")

    def _backward(self, group: list[Batch], seed: list[int]) -> Tensor:
        # A function of its own: where memory runs out, what it held is let go before the next try, which draws alike.
        generator = np.random.default_rng([*seed, distributed.rank()])
        torch.manual_seed(int(generator.integers(2**62)))  # dropout's, so that a resumed run draws the same masks
        samples = sum(size for size, *_ in group)
        mean = torch.zeros((), device=self.device.device)
        for number, (_, images, labels) in enumerate(group, start=1):
            # One micro-batch at a time is on the device: accumulation is there to save memory.
            images = to_device(images, self.device.device)
            labels = labels.to(self.device.device, non_blocking=True)
            images, labels, other, share = augment.mix_batch(images, labels, self.augment, generator)
            others = other.chunk(self.parts) if other is not None else [None] * self.parts
            for x, y, z in zip(images.chunk(self.parts), labels.chunk(self.parts), others, strict=False):
                adds_up = number < len(group) and distributed.world_size() > 1  # the last one averages over ranks
                with self.forward.no_sync() if adds_up else contextlib.nullcontext():
                    with self.device.autocast():
                        logits = self.forward(x)
                    loss = self.loss_of(logits, y)
                    if z is not None:
                        loss = share * loss + (1 - share) * self.loss_of(logits, z)
                    loss = loss * (len(x) / samples)
                    self.scaler.scale(loss * distributed.world_size()).backward()  # of which the mean is the sum
                mean += loss.detach()
        return distributed.all_reduce(mean)
