"""Where to compute and in which precision: decided once, with the reason for the log."""

import contextlib
import ctypes
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from comp import distributed
from comp.errors import Refused


@dataclass(frozen=True)
class Device:
    """A device, the dtype of its autocast (float32: no autocast), and why."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')} ({self.reason})"


@dataclass(frozen=True)
class Machine:
    """What a training may use: a device, processes that augment beside it, and the time until a deadline."""

    device: Device
    workers: int = 0
    deadline: float = math.inf  # a time of time.monotonic()


def find_devices(name: str = "auto") -> list[str]:
    """The devices that "auto" (every GPU, or the CPU), one name, or "cuda:0,cuda:1" stand for. Raises Refused."""
    if distributed.local_rank() is None and name == "auto":
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())] or ["cpu"]
    names = name.split(",")
    if len(names) > 1 and distributed.local_rank() is not None:
        raise Refused(f"--device {name}: torchrun gives each of its processes one; leave it out")
    for one in names:
        _parse(one)
    return names


def choose_device(name: str = "auto") -> Device:
    """Pick the device: `name` is "auto", "cpu", "cuda" or "cuda:k". Raises Refused."""
    device = _parse(name)
    if device.type == "cpu":
        # glibc hands big blocks back to the system after each step, only to fault them in again.
        with contextlib.suppress(OSError):  # another system's library
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        if flags := sorted(_cpu_flags() & {"amx_bf16", "avx512_bf16"}):
            return Device(device, torch.bfloat16, f"the CPU has {flags[0]}")
        return Device(device, torch.float32, "the CPU has no bf16 instructions")
    return _cuda(device)


def _parse(name: str) -> torch.device:
    """A device by its name, as it is known without being touched. Raises Refused."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if name == "auto":  # under torchrun each process has a GPU of its own
        name = f"cuda:{distributed.local_rank() or 0}" if torch.cuda.is_available() else "cpu"
    known = ["cpu", "cuda", *gpus] if gpus else ["cpu"]
    if name not in known:
        raise Refused(f"--device {name}: there are auto, {', '.join(known)}")
    return torch.device(name)


def _cuda(device: torch.device) -> Device:
    torch.cuda.set_device(device.index or 0)  # or what names no device would take memory of the first one
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name(device)
    # torch.cuda.is_bf16_supported() says True on a T4, by emulation; the architecture does not lie.
    if torch.cuda.get_device_capability(device) >= (8, 0):
        return Device(device, torch.bfloat16, f"{name} computes bf16")
    if torch.cuda.get_device_capability(device) >= (7, 0):
        return Device(device, torch.float16, f"{name} has fp16 tensor cores but no bf16 ones")
    return Device(device, torch.float32, f"{name} has no tensor cores")


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    return {*path.read_text(encoding="utf-8").split()} if path.exists() else set()


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """uint8 (n, H, W, C) to (n, C, H, W) on the device; the permuted layout is channels_last as it is."""
    return images.to(device, non_blocking=True).permute(0, 3, 1, 2)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that the device's memory does not suffice, whichever library says it."""
    said = ("unable to find an engine", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")  # cuDNN's, cuBLAS's
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in said)
