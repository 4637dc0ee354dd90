"""Several processes that work as one, under torchrun; alone, a process is rank 0 of 1.

Every rank draws the same plan and does its share of it, and rank 0 alone writes and speaks. The folder of
the runs must be one for all of them.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = Sequence[np.ndarray]  # what one rank hands to another at a time


def join(device: str) -> None:
    """Join the job that torchrun started; with several GPUs and no torchrun, start this script again under it.

    `device` is what --device says: a single one is left alone.
    """
    if "LOCAL_RANK" not in os.environ:
        if device == "auto" and torch.cuda.device_count() > 1:
            _start_again(torch.cuda.device_count())
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def leave() -> None:
    """End what join began: its threads, left running, abort some processes as they exit."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes work as one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share() -> slice:
    """This process's part of any sequence that all of them hold."""
    return slice(rank(), None, world_size())


@contextmanager
def first() -> Iterator[None]:
    """Rank 0 goes through the block before the others, so that what it makes is there for them."""
    if rank():
        wait()
    yield
    if not rank():
        wait()


def wait() -> None:
    """Go on when all are here."""
    all_reduce(torch.zeros(1))


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all ranks of a tensor, in its place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Sum over all ranks the gradients of a model, in place, and the loss, which is returned.

    One message a step and no hooks: ranks may have computed their gradients in as many parts as they liked.
    """
    if world_size() == 1:
        return loss
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = all_reduce(torch.cat([loss.view(1), *(gradient.flatten() for gradient in gradients)]))
    sizes = [gradient.numel() for gradient in gradients]
    for gradient, summed in zip(gradients, flat[1:].split(sizes), strict=True):
        gradient.copy_(summed.view_as(gradient))
    return flat[0]


def agree(progress: float, stop: bool) -> tuple[float, bool]:
    """Rank 0's clock for all, and whether any of them was asked to stop."""
    if world_size() == 1:
        return progress, stop
    said = all_reduce(torch.tensor([0.0 if rank() else progress, float(stop)], dtype=torch.float64))
    return float(said[0]), bool(said[1])


def synchronize(model: nn.Module, device: torch.device) -> nn.Module:
    """Batch statistics of the whole batch and not of this process's share, so that ranks change nothing."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        import timm.layers

        return timm.layers.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = _BatchNorm
    return model


class _BatchNorm(nn.BatchNorm2d):
    """What nn.SyncBatchNorm does, which needs GPUs."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        from torch.distributed.nn import functional  # whose sums gradients flow through

        exact, over = x.float(), (0, 2, 3)
        pixels = all_reduce(torch.tensor(float(x.numel() // x.shape[1])))
        mean = functional.all_reduce(exact.sum(over)) / pixels
        centred = exact - mean.view(-1, 1, 1)
        variance = functional.all_reduce(centred.square().sum(over)) / pixels
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * pixels / (pixels - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)


def gather_in_order(items: Iterable[Item]) -> Iterator[Item]:
    """On rank 0 the items of all ranks, one of each in turn; on the others none, though all must go through.

    An item is a sequence of arrays. Rank 0 holds one at a time.
    """
    if world_size() == 1:
        yield from items
        return
    items = iter(items)
    while True:
        item = next(items, None)
        packed = _pack(item) if item is not None else torch.empty(0, dtype=torch.uint8)
        sizes = torch.zeros(world_size(), dtype=torch.int64)
        sizes[rank()] = len(packed)
        sizes = all_reduce(sizes).tolist()
        if not any(sizes):
            return
        if rank():
            if sizes[rank()]:
                dist.send(packed, 0)
            continue
        if item is not None:
            yield item
        for other in range(1, world_size()):
            if sizes[other]:
                packed = torch.empty(sizes[other], dtype=torch.uint8)
                dist.recv(packed, other)
                yield _unpack(packed)


def _pack(item: Item) -> Tensor:
    file = io.BytesIO()
    np.savez(file, *item)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _unpack(packed: Tensor) -> list[np.ndarray]:
    with np.load(io.BytesIO(packed.numpy()), allow_pickle=False) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def lost(error: Exception) -> bool:
    """Whether an error, from wherever in a step, says that another process of the job is gone."""
    return world_size() > 1 and (isinstance(error, dist.DistBackendError) or "gloo" in str(error))


def _start_again(processes: int) -> None:
    if "ipykernel" in sys.modules:  # a notebook cannot become another process
        print(f"one of {processes} GPUs is used; a script, or torchrun, uses all")
        return
    print(f"{processes} GPUs: one process each, under torchrun", flush=True)
    # "--" keeps torchrun from reading the script's own --run as a short form of its --run-path.
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])
