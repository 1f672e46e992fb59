"""The processes of a run: one, or as many as torchrun started. The engine asks here and never looks at ranks itself.

Everything that depends on how the model is spread over processes is in this file: wrapping, when gradients are
exchanged, and sums over ranks. Sharding (FSDP2) would change `Processes.wrap`, `Processes.accumulating` and the
gathering of state in `vision_ssm.training.state`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vision_ssm.device import choose_device

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    @contextmanager
    def join(cls, device: str) -> Iterator[Processes]:
        """Join the group that torchrun announced, or the one that exists already; alone otherwise.

        Args:
            device: "auto" or a torch device; "cuda" without a number means the one with this process's local number.

        Raises ConfigError for a device that is not here.
        """
        started_here = dist.is_available() and not dist.is_initialized() and dist.is_torchelastic_launched()
        if started_here:
            dist.init_process_group()
        try:
            if dist.is_available() and dist.is_initialized():
                local_rank = dist.get_node_local_rank(fallback_rank=dist.get_rank())
                yield cls(dist.get_rank(), dist.get_world_size(), _own_device(device, local_rank))
            else:
                yield cls(0, 1, _own_device(device, 0))
        finally:
            if started_here:
                dist.destroy_process_group()

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def wrap(self, model: nn.Module, *, sync_batch_norm: bool, unused_parameters: bool) -> nn.Module:
        """The model as training calls it: gradients are averaged over the processes.

        Args:
            model: on its device; its batch norms are exchanged where they are to be synchronised.
            sync_batch_norm: whether batch norms take their statistics over all processes. PyTorch can on GPUs only;
                elsewhere they keep each process's own.
            unused_parameters: whether a step may leave parameters without a gradient.
        """
        if self.world == 1:
            return model
        on_gpu = self.device.type == "cuda"
        if sync_batch_norm and on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(
            model, device_ids=[self.device] if on_gpu else None, find_unused_parameters=unused_parameters
        )

    def accumulating(self, model: nn.Module, more_to_come: bool) -> AbstractContextManager[Any]:
        """Skip the exchange of gradients while more batches of the same update are to come."""
        if more_to_come and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return nullcontext()

    def mean(self, values: Tensor) -> Tensor:
        """Element-wise mean over the processes."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world

    def gather(self, value: Any) -> list[Any]:
        """The picklable ``value`` of every process, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def _own_device(name: str, local_rank: int) -> torch.device:
    device = choose_device(name)
    if device.type == "cuda" and device.index is None:
        device = choose_device(f"cuda:{local_rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
