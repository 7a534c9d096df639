"""Several processes that train one model, started by torchrun."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; by default there is only one.

    Args:
        rank: number of this process; 0 writes.
        world: number of processes.
        device: of this process.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of `values` over all ranks."""
        if self.world > 1:
            dist.all_reduce(values)
            values = values / self.world
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's `value`, in order; values must be picklable."""
        if self.world == 1:
            return [value]
        values = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share(self, value: Any) -> Any:
        """Return rank 0's `value` on every rank; it must be picklable."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the module to call instead of `model`, so that gradients become the mean over all ranks.

        A sharded model (see :func:`shard`) averages its gradients itself.
        """
        if self.world == 1 or is_sharded(model):
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        # All weights of a detector are always in the graph, even in branches without a positive RoI.
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)


@contextmanager
def start(device: str = "cpu") -> Iterator[Ranks]:
    """Join the processes of torchrun, if it started this one, and leave them at the end.

    Args:
        device: "cpu", "auto", or "cuda": each process on a machine then takes the GPU with its local rank.

    Raises:
        ValueError: the device is not available.
    """
    where = resolve(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks(device=where)
        return
    if where.type == "cuda":
        where = resolve(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        with warnings.catch_warnings():
            # The weights of 1×1 convolutions are contiguous in both memory formats: one more copy of their gradients.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield Ranks(dist.get_rank(), world, where)
    finally:
        dist.destroy_process_group()
        if where.type == "cpu":
            # Torch keeps gloo's threads after DDP or FSDP. A thread that still waits for the interpreter's lock to free
            # tensors of the last collective aborts the process at exit; sleeping releases the lock to it.
            time.sleep(0.1)


def resolve(device: str) -> torch.device:
    """Return the device of a name, after allocating a tensor on it; "auto" is a GPU if torch can use one.

    Raises:
        ValueError: the device is not available.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return torch.device(device)


def shard(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Split weights, gradients and optimiser state of a detector among the ranks (FSDP2) and return it.

    Every stage of the backbone is gathered when it runs and freed afterwards; the rest is one unit. A single process
    changes nothing. Load weights before this call; :func:`whole` reads them back.
    """
    if ranks.world == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for name, stage in model.get_submodule("backbone").named_children():
        if name.startswith("layer"):
            fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Return whether :func:`shard` split the parameters of `model`."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in model.parameters())


def whole(tree: Any) -> Any:
    """Return a state dictionary with copies of its tensors, unsharded and on the CPU; all ranks must call it."""
    from torch.distributed.tensor import DTensor

    if isinstance(tree, DTensor):
        return whole(tree.full_tensor())
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, dict):
        return {key: whole(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(whole(value) for value in tree)
    return tree


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an unsharded state into an optimizer, sharding it like the parameters; all ranks must call it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    split: dict[int, Any] = {}
    for number, values in state["state"].items():
        p = parameters[number]
        split[number] = {
            name: distribute_tensor(value.to(p.device), p.device_mesh, p.placements)
            if isinstance(p, DTensor) and isinstance(value, Tensor) and value.shape == p.shape
            else value
            for name, value in values.items()
        }
    optimizer.load_state_dict({**state, "state": split})
