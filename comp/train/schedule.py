"""What moves the learning rate: progress through the epochs, or the clock."""

import math
import time

from comp.config import Schedule


def learning_rate(schedule: Schedule, progress: float) -> float:
    """The factor on `optimizer.lr` after `progress`, 0..1; one_cycle is Smith and Topin's (2018, arXiv:1708.07120)."""
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

    `before` is the share of the schedule that earlier starts have spent; `forwards` says how many images are
    predicted after the last step, and `forward`, once a validation has shown it, how many seconds each takes."""

    def __init__(self, deadline: float, before: float, forwards: int):
        self.deadline, self.before, self.forwards = deadline, before, forwards
        self.forward, self.last = 0.0, before
        self.started, self.first, self.samples, self.steps = time.monotonic(), 0.0, 0, 0

    def progress(self, epochs: float, samples: int) -> float:
        """The share of the schedule after a step of so many samples: `epochs`, that of the epochs, or the time's."""
        now = time.monotonic()
        if not self.first:
            # The first step also pays for starting, so it says nothing about the next.
            self.first, self.last = now, max(epochs, self.before)
            return self.last
        self.samples, self.steps = self.samples + samples, self.steps + 1
        # After the last step come a validation and out-of-fold predictions, all forward passes, and figures.
        left = self.deadline - self.started
        if self.steps >= 8:  # a slow start must not end the run
            left -= 4.0 + self.forwards * (self.forward or 0.5 * (now - self.first) / self.samples)
        spent = self.before + (1 - self.before) * min(1.0, (now - self.started) / max(left, 1e-9))
        if self.last < 0.8 and epochs < 1.0 <= spent:
            print(f"the time budget is too short: it ends the schedule at {self.last:.0%} of it")
        self.last = max(epochs, spent)
        return self.last
