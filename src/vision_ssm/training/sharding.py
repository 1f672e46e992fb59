"""A model in shards (FSDP2): of every parameter each of W processes keeps 1/W, with its gradient and moments.

The blocks of the backbone are units: a block's parameters are put together right before it runs, forward and backward,
and its gradients are averaged and cut when it is done. All that is outside the blocks is one more unit, which stays
whole from a forward pass to its backward pass. With P parameters of which R are outside the blocks and B in the largest
block, a process holds, in bytes of float32,

    4 P/W (1 + 1 + m + e)    shards: parameter, gradient, m moments of the optimiser (AdamW 2), e 1 with an average
    4 (R + B ...)            what is whole for a while, with its gradient in the backward pass

Source: PyTorch FSDP, arXiv:2304.11277, and `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vision_ssm.errors import ConfigError

__all__ = ["evaluated", "in_shards_like", "require_shardable", "shard", "whole", "whole_state"]

_OPTIMIZERS = ("adam", "adamw", "lamb", "lion", "nadam", "nadamw", "radam", "sgd", "momentum", "nesterov", "sgdw")
"""Those that treat every number of a parameter alike, so that shards of it may be updated apart; and LAMB's norms."""

SMALLEST_UNIT = 0.01
"""Of the backbone's parameters: an exchange for less costs more than it saves."""


def require_shardable(optimizer: str) -> None:
    """Raise ConfigError for an optimiser that needs whole parameters."""
    if optimizer not in _OPTIMIZERS:
        raise ConfigError(
            f"run.parallel fsdp updates each parameter in shards, which {optimizer} (optim.name) cannot; use one of "
            f"{', '.join(_OPTIMIZERS)}, or run.parallel ddp."
        )


def units(backbone: nn.Module) -> list[nn.Module]:
    """The members of lists and sequences of modules, from the innermost, where they are worth an exchange each."""
    if getattr(backbone, "direction", None) == "layerwise":  # pairs of its blocks run without being called
        return []
    least = SMALLEST_UNIT * _count(backbone)
    lists = [module for module in backbone.modules() if type(module) in (nn.ModuleList, nn.Sequential)]
    found = [
        member
        for each in lists
        if len(list(each.children())) > 1
        for member in each.children()
        if _count(member) >= least
    ]
    # A list is no unit: nobody calls it.
    return [module for module in reversed(list(backbone.modules())) if _is_in(module, found)]


def shard(
    model: nn.Module, backbone: nn.Module, device: torch.device, world: int, *, unused_parameters: bool = False
) -> None:
    """Cut the parameters of ``model``, in place, over ``world`` processes.

    Args:
        model: the same on every process, on ``device``.
        backbone: the part of it whose blocks are units. What is around it may leave out modules in a step.
        device: of the processes.
        world: how many there are.
        unused_parameters: a step may leave parameters without a gradient, and other ones on each process; they get a
            gradient of zeros, so that all processes exchange the same.
    """
    # Imported here: these take a second, and most runs are of one process.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    def placement(parameter: nn.Parameter) -> Shard:
        """Along the first axis that divides evenly: that of the scan directions is shorter than many processes."""
        return Shard(next((axis for axis, size in enumerate(parameter.shape) if size % world == 0), 0))

    mesh = init_device_mesh(device.type, (world,))
    for unit in units(backbone):
        fully_shard(unit, mesh=mesh, shard_placement_fn=placement)
    if unused_parameters:
        model.register_forward_hook(_reach_all)
    fully_shard(model, mesh=mesh, shard_placement_fn=placement, reshard_after_forward=False)


def _reach_all(model: nn.Module, arguments: Any, output: Any) -> Any:
    """Let every parameter of the outermost unit take part in the loss, with nothing."""
    if not (model.training and torch.is_grad_enabled()):
        return output
    nothing = sum(0.0 * p.reshape(-1)[0] for p in model.parameters() if p.requires_grad and not _in_shards(p))
    if isinstance(output, Mapping):
        first = next(iter(output))
        return {**output, first: output[first] + nothing}
    if isinstance(output, list | tuple):
        return type(output)([output[0] + nothing, *output[1:]])
    return output + nothing


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Within the block the parameters of a model in shards are whole, and calling it exchanges nothing."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    inner = [part for part in parts if part is not model]
    for part in parts:
        part.unshard()
    for part in inner:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in inner:
            part.set_reshard_after_forward(True, recurse=False)
        for part in parts:
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor in shards, on every process, which all must ask for; another one as it is."""
    return tensor.full_tensor() if _in_shards(tensor) else tensor  # type: ignore[attr-defined]


def whole_state(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a model with whole tensors in main memory; empty where it is not kept. All processes must ask.

    One tensor is whole at a time, so that the processes that do not keep them need no memory for them.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        content = whole(tensor.detach())
        if keep:
            found[name] = content.cpu()
    return found


def in_shards_like(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a tensor that every process has, where ``like`` is in shards; else the tensor."""
    if like is None or not _in_shards(like) or like.shape != tensor.shape:
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    model: DTensor = like  # type: ignore[assignment]
    content = tensor.to(model.device_mesh.device_type)
    return distribute_tensor(content, model.device_mesh, model.placements, src_data_rank=None)


def _in_shards(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, without importing what knows them


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _is_in(module: nn.Module, found: list[nn.Module]) -> bool:
    return type(module) not in (nn.ModuleList, nn.Identity) and any(module is each for each in found)
