"""A training run's state on disk, as safetensors: nothing is ever pickled."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comp import files, models
from comp.errors import Refused

NAME = "checkpoint.safetensors"


def save(path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """Write modules, optimizer state and JSON-able facts, whole or not at all; keep the one before it."""
    tensors: dict[str, Tensor] = {}
    for name, module in parts.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{key}": value for key, value in state.items() if value is not None}
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    if path.exists():
        path.replace(_previous(path))
    files.write_tensors(path, tensors, {"facts": json.dumps(facts)})


def load(
    path: Path, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Any], str] | None:
    """Restore what `save` wrote; returns its facts and a line for the log, None where there is nothing.

    A checkpoint that cannot be read gives way to the one before it.
    """
    note = ""
    for candidate in (path, _previous(path)):
        if not candidate.exists():
            continue
        try:
            tensors, metadata = models.read_tensors(candidate)
            facts = json.loads(metadata["facts"])
        except (Refused, KeyError, ValueError) as error:
            note = f" ({error}; took the one before it)"
            continue
        _restore(tensors, parts, optimizer)
        return facts, f"goes on from {candidate.name}{note}"
    return None


def remove(path: Path) -> None:
    """Delete the checkpoints of a run that is finished."""
    path.unlink(missing_ok=True)
    _previous(path).unlink(missing_ok=True)


def _previous(path: Path) -> Path:
    return path.with_stem(f"{path.stem}-previous")


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
