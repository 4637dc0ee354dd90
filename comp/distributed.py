"""One fold on several GPUs: processes that torchrun started and that share each batch. Alone, a process is rank 0 of 1.

Each rank loads and augments its share of a batch; DistributedDataParallel averages the gradients. Rank 0 alone
writes and prints, so the folder of the runs must be one for all."""

import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from comp.errors import Refused

# What torchrun sets, all of it. Of other launchers one or another may be left in the environment.
LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(hours=2)  # for rank 0, which predicts out of fold while the others wait


def local_rank() -> int | None:
    """This process's number on its machine, as that of its GPU, where torchrun started it; None where it is alone."""
    number = os.environ.get("LOCAL_RANK", "")
    return int(number) if number.isdecimal() and all(map(os.environ.get, LAUNCHED)) else None


def join() -> None:
    """Join the job that torchrun started, if it did. Raises Refused where there is no such job."""
    if (local := local_rank()) is None:
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise Refused(f"no job to join as {', '.join(LAUNCHED)} say; unset them, or start torchrun: {error}") from None
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def leave() -> None:
    """End this process, if it is in a job: gloo's threads outlive the group, and abort an exit now and then."""
    if dist.is_initialized():
        dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes in the job."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce(values: Tensor) -> Tensor:
    """Sum a tensor over all ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def agree(progress: float, stop: bool) -> tuple[float, bool]:
    """Rank 0's progress for all ranks, and whether any of them was asked to stop."""
    said = all_reduce(torch.tensor([0.0 if rank() else progress, stop], dtype=torch.float64)).tolist()
    return said[0], said[1] > 0


def wrap_model(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose forward pass takes part in the averaging of gradients; alone, the model itself.

    On GPUs batch statistics are those of the whole batch (SyncBatchNorm); on CPUs each rank's own; rank 0's stay."""
    if world_size() == 1:
        return model
    if device.type == "cuda":
        from timm.layers import convert_sync_batchnorm  # which knows timm's own kinds of batch norm

        convert_sync_batchnorm(model)
    # Layers of an encoder beyond its depth get no gradient.
    return DistributedDataParallel(model, find_unused_parameters=True)


def is_lost_peer(error: Exception) -> bool:
    """Whether an error says that another process of the job is gone."""
    return world_size() > 1 and (isinstance(error, dist.DistBackendError) or "gloo" in str(error))
