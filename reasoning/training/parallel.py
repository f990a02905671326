"""Workers that share the training of one backbone, through torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from reasoning.training.config import TrainingConfig
from reasoning.training.objective import Objective


class Workers:
    """The ranks of a run: all of the default process group, or this process alone where there is none."""

    def __init__(self) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if grouped else 0
        """Rank of this worker."""
        self.count = dist.get_world_size() if grouped else 1
        """Number of workers."""

    def wrap(self, objective: Objective, config: TrainingConfig) -> nn.Module:
        """Let the workers share a backbone, whose weights must be alike on all of them."""
        if self.count == 1:
            return objective
        if config.parallel == "fsdp2":
            for parameter in objective.parameters():  # those of a model that was loaded may be transposed in memory
                parameter.data = parameter.data.contiguous()
            for layer in objective.backbone.children():
                for part in layer if isinstance(layer, nn.ModuleList) else []:
                    fully_shard(part)
            fully_shard(objective)  # changes the module itself
            return objective
        device = objective.backbone.device
        wrapped = DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)
        if config.fixed_reduction_order:
            wrapped.register_comm_hook(None, _mean_in_rank_order)
        return wrapped

    @contextmanager
    def part(self, wrapped: nn.Module, last: bool) -> Iterator[None]:
        """A context for the passes of one part of a step; gradients are exchanged in the last one only."""
        if isinstance(wrapped, DistributedDataParallel) and not last:
            with wrapped.no_sync():
                yield
            return
        if isinstance(wrapped, FSDPModule):
            wrapped.set_requires_gradient_sync(last)
        yield

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the workers of a tensor on this worker's device."""
        if self.count > 1:
            dist.all_reduce(values)
        return values


def squared_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Sum of the squares of all gradients, in fp64; a scalar, the same on all workers."""
    norms = [p.grad for p in parameters if p.grad is not None]
    return sum(
        (whole(torch.linalg.vector_norm(each)).double().square() for each in norms),
        torch.zeros((), dtype=torch.float64),
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which every worker may hold a part, as one; all workers must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, example: Tensor) -> Tensor:
    """A tensor that all workers hold, divided among them as `example` is; on its device."""
    tensor = tensor.to(example.device)
    return (
        distribute_tensor(tensor, example.device_mesh, example.placements) if isinstance(example, DTensor) else tensor
    )


def _mean_in_rank_order(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP communication hook: the mean over the workers, added up in the order of their ranks."""
    mine = bucket.buffer()
    gathered = torch.empty(dist.get_world_size(), len(mine), dtype=mine.dtype, device=mine.device)
    work = dist.all_gather_into_tensor(gathered.view(-1), mine, async_op=True)
    assert work is not None, "asynchronous operations return their work"

    def add_up(_: Any) -> Tensor:
        total = gathered[0].clone()
        for other in gathered[1:]:
            total += other
        return total.div_(len(gathered))

    return work.get_future().then(add_up)


# torch compares the annotations, which are texts in this file, with the types.
_mean_in_rank_order.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}
