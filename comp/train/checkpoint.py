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
    """Write modules, optimizer state and JSON-able facts, whole or not at all; keep the one before it."""
    tensors: dict[str, Tensor] = {}
    for name, module in parts.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items() if value is not None}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    if path.exists():
        path.replace(_previous(path))
    text = json.dumps(facts)
    files.write_tensors(path, tensors, {"facts": text, "checksum": _checksum(tensors, text)})


def load_checkpoint(
    path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], str] | None:
    """Restore what `save_checkpoint` wrote; returns its facts and a line for the log, None where there is nothing.

    A damaged checkpoint gives way to the one before it. Raises Refused where none can be used.
    """
    damage = ""
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            tensors, metadata = files.read_tensors(candidate)
            text = metadata.get("facts", "")
            if metadata.get("checksum") != _checksum(tensors, text):
                raise Refused(f"{candidate}: damaged: it does not have the checksum that it was written with")
        except Refused as error:
            damage = str(error)
            continue
        try:
            _restore(tensors, parts, optimizer)
        except (RuntimeError, IndexError, ValueError):
            raise Refused(f"{candidate}: of another network or optimizer; name another --run, or delete it") from None
        if damage:
            candidate.replace(path)  # or the next `save_checkpoint` would put the damaged one in its place
            damage = f" ({damage}; took the one before it)"
        return json.loads(text), f"goes on from {candidate.name}{damage}"
    if damage:
        raise Refused(f"{damage}; there is no other: delete it, and the same command starts anew")
    return None


def remove_checkpoints(path: Path) -> None:
    """Delete the checkpoints of a run that is finished."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_stem(f"{path.stem}-previous")


def _checksum(tensors: dict[str, Tensor], text: str) -> str:
    """CRC-32 of everything in a checkpoint: safetensors itself notices damage to its header alone."""
    crc = zlib.crc32(text.encode())
    for key, value in sorted(tensors.items()):
        crc = zlib.crc32(f"{key} {value.dtype} {tuple(value.shape)}".encode(), crc)
        crc = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy(), crc)
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
