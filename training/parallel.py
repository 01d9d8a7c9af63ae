"""Networks over several processes: a copy in each, or a part."""

import inspect
import warnings
from collections.abc import Iterator
from contextlib import ExitStack

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from errors import UserError
from training.speed import BLOCKS

# Buffers are each process's own in a forward pass, under the name that torch's version has for it.
_known = inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS = {"forward_sync_buffers" if "forward_sync_buffers" in _known else "broadcast_buffers": False}


def shard(device: torch.device, *networks: nn.Module) -> None:
    """Leave each process a part of each of the networks' weights, which it gathers block by block.

    (FSDP2: torch's fully_shard.) Of optimizers that are built then, moments are in parts as well. Raises
    UserError where there is one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise UserError("training.shard: there is one process, which needs all; launch several")
    # of logits, in which nobody changes anything
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for network in networks:
        for block in network.modules():
            if isinstance(block, BLOCKS):
                fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)


def over_processes(network: nn.Module, device: torch.device) -> nn.Module:
    """What to call in training so that gradients are averaged over processes: a network in parts itself."""
    if not dist.is_initialized() or isinstance(network, FSDPModule):
        return network
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True, **OWN_BUFFERS)


def accumulate(micro_batches: list, *networks: nn.Module) -> Iterator:
    """Go through a step's micro-batches; gradients are averaged over processes with the last one only."""
    for last, micro_batch in enumerate(micro_batches, start=1 - len(micro_batches)):
        with ExitStack() as stack:
            for network in networks:
                if isinstance(network, FSDPModule):
                    network.set_requires_gradient_sync(last == 0)
                elif isinstance(network, DistributedDataParallel) and last < 0:
                    stack.enter_context(network.no_sync())
            yield micro_batch
