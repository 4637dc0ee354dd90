"""The optimizer, and what moves its learning rate: progress through the epochs, or the clock."""

import math
import time

import torch

from comp.config import Optimizer, Schedule
from comp.device import Device


def make_optimizer(optimizer: Optimizer, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW, Adam or SGD over what is trained; biases and norms are not decayed."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optimizer.name == "sgd":
        momentum = optimizer.momentum
        made = torch.optim.SGD(groups, optimizer.lr, momentum=momentum, nesterov=momentum > 0, fused=True)
        for parameter in trained if momentum else ():
            # Made by torch, it would stay uninitialised where the scaler leaves out the first step.
            made.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return made
    kind = torch.optim.AdamW if optimizer.name == "adamw" else torch.optim.Adam
    return kind(groups, optimizer.lr, fused=True)


def make_scaler(device: Device) -> torch.amp.GradScaler:
    """Scales the loss where fp16 needs it; on any GPU it leaves out steps that are not finite, without a stall."""
    scale, patience = (2.0**16, 2000) if device.dtype == torch.float16 else (1.0, 2**30)
    enabled = device.device.type == "cuda"
    return torch.amp.GradScaler(device.device.type, init_scale=scale, growth_interval=patience, enabled=enabled)


def learning_rate(schedule: Schedule, progress: float) -> float:
    """The factor on `optimizer.lr` after `progress` (0..1) of the run.

    one_cycle rises and falls along cosines (Smith and Topin 2018, arXiv:1708.07120); cosine rises
    linearly; plateau and constant rise linearly and stay.
    """
    warmup, final = schedule.warmup, schedule.final
    if progress < warmup:
        rise = progress / warmup
        return 0.04 + 0.96 * (1 - math.cos(math.pi * rise)) / 2 if schedule.name == "one_cycle" else max(rise, 1e-3)
    if schedule.name in ("plateau", "constant"):
        return 1.0
    fall = (progress - warmup) / (1 - warmup) if warmup < 1 else 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * min(fall, 1.0))) / 2


class Timer:
    """Runs the schedule by the clock, so that a deadline meets its end and not its middle.

    `before` is the share of the schedule that earlier starts have spent, `forwards` how many pictures are predicted
    after the last step; `forward`, once a validation has shown it, how many seconds each takes.
    """

    def __init__(self, deadline: float, before: float, forwards: int):
        self.deadline, self.before, self.forwards = deadline, before, forwards
        self.forward = 0.0
        self.started, self.first, self.samples, self.steps = time.monotonic(), 0.0, 0, 0
        self.last = before

    def progress(self, epochs: float, samples: int) -> float:
        """The share of the schedule that is done after a step of so many samples.

        It is `epochs`, the share of the epochs, or that of the time if it is larger. Says where time cuts it short.
        """
        now = time.monotonic()
        if not self.first:
            self.first = now  # the first step also pays for starting, and says nothing of the next
            self.last = max(epochs, self.before)
            return self.last
        self.samples, self.steps = self.samples + samples, self.steps + 1
        # After the last step come a validation and out-of-fold predictions, forward passes all, and pictures.
        finishing = 4.0 + self.forwards * (self.forward or 0.5 * (now - self.first) / self.samples)
        if self.steps < 8:  # a slow start must not end the run
            finishing = 0.0
        left = self.deadline - finishing - self.started
        spent = self.before + (1 - self.before) * min(1.0, (now - self.started) / max(left, 1e-9))
        if self.last < 0.8 and epochs < 1.0 <= spent:
            print(f"the time budget is too short: it ends the schedule at {self.last:.0%} of it")
        self.last = max(epochs, spent)
        return self.last
