"""A training run's state on disk, as safetensors: nothing is ever pickled."""

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comp import files
from comp.errors import Refused

NAME = "checkpoint.safetensors"


def save_checkpoint(
    path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer, facts: dict[str, Any]
) -> None:
    """Write modules, optimizer state and JSON-able facts, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, module in parts.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items() if value is not None}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    text = json.dumps(facts)
    files.write_tensors(path, tensors, {"facts": text, "checksum": _checksum(tensors, text)})


def load_checkpoint(path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore what `save_checkpoint` wrote; return its facts, or None where there is no checkpoint.

    Raises Refused for one that is damaged, or of another network or optimizer.
    """
    if not path.exists():
        return None
    tensors, metadata = files.read_tensors(path)
    text = metadata.get("facts", "")
    if metadata.get("checksum") != _checksum(tensors, text):
        raise Refused(f"{path}: damaged, its checksum differs; delete it, and the same command starts anew")
    try:
        _restore(tensors, parts, optimizer)
    except (RuntimeError, IndexError, ValueError):
        raise Refused(f"{path}: of another network or optimizer; name another --run, or delete it") from None
    return json.loads(text)


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """CRC-32 of everything in a checkpoint: safetensors itself notices damage to its header alone."""
    crc = zlib.crc32(text.encode())
    for key, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


@torch.no_grad()
def _restore(tensors: dict[str, Tensor], parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    for name, module in parts.items():
        prefix = f"{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, number, name = key.split("/")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape:
                # Fused optimizers walk memory as it lies, so a moment must lie as its parameter does (channels_last).
                value = torch.empty_like(parameter).copy_(value)
            state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
