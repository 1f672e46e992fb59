"""The gate in front of every kernel: a tensor passes as the memory that the kernel was told of, or is refused.

A kernel takes its sizes from a structure and follows pointers by them: what does not lie as it says is read from memory
that is somebody else's. So the public functions ask here what holds for every backend, and what becomes a pointer is
asked for by the sizes in the structure that it goes into.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.errors import ShapeError

__all__ = ["FLOATING", "PLAIN", "check_sizes", "check_tensors", "memory", "show"]

PLAIN = frozenset((Tensor, torch.nn.Parameter))  # subclasses need not have memory
FLOATING = frozenset((torch.float32, torch.bfloat16, torch.float16, torch.float64))


def check_tensors(operator: str, like: Tensor, *optional: str, **tensors: Tensor | None) -> None:
    """Raise ShapeError unless all are dense floating tensors on the device of ``like``; ``optional`` may be None."""
    device = like.device if isinstance(like, Tensor) else None
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            if x is None and name in optional:
                continue
            raise ShapeError(f"{operator} expects a tensor for {name}, got {_kind(x)}")
        if x.dtype not in FLOATING:
            raise ShapeError(
                f"{operator} expects {name} in float32, bfloat16, float16 or float64, got {_word(x.dtype)}: convert it"
            )
        if x.layout is not torch.strided:
            raise ShapeError(f"{operator} expects {name} as a dense tensor, got {_word(x.layout)}: see Tensor.to_dense")
        if x.device != device:
            raise ShapeError(f"{operator} expects all tensors on one device, got {name} on {x.device}, not on {device}")


def memory(name: str, x: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return x as memory that a kernel may read by ``shape`` and ``dtype``, or raise ShapeError.

    It is x itself but for a view that is yet to be negated. Its strides may be any.
    """
    if not isinstance(x, Tensor):
        raise ShapeError(f"the kernel expects a tensor for {name}, got {_kind(x)}")
    if x.shape != tuple(shape) or x.dtype != dtype:
        raise ShapeError(
            f"the kernel expects {name} {list(shape)} in {_word(dtype)}, got {list(x.shape)} in {_word(x.dtype)}"
        )
    if not x.is_cpu or x.layout is not torch.strided or not (type(x) in PLAIN or _has_memory(x)):
        raise ShapeError(
            f"the kernel expects {name} in the CPU's memory, got {_word(x.layout)} {_kind(x)} on {x.device}"
        )
    if x.is_neg():
        x = x.resolve_neg()
    count = x.numel()
    if count and not x.is_contiguous():
        count = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    # Freed storages (of a sharded model, for one) leave tensors whose shapes tell of memory that is gone.
    if count and (x.storage_offset() + count) * x.itemsize > x.untyped_storage().nbytes():
        raise ShapeError(f"the memory of {name} {list(x.shape)} was freed or shortened: it has no such values")
    return x


def check_sizes(kernel: str, at_least: int = 1, **sizes: int) -> None:
    """Raise ShapeError unless every size that the kernel is told is ``at_least`` so much."""
    for name, size in sizes.items():
        if size < at_least:
            raise ShapeError(f"{kernel} expects {name} of {at_least} at least, got {size}")


def show(shape: Sequence[int] | None) -> str:
    """Return a shape as messages write it."""
    return "None" if shape is None else str(list(shape))


def _has_memory(x: Tensor) -> bool:
    try:
        return x.numel() == 0 or x.untyped_storage().data_ptr() != 0
    except RuntimeError:  # a subclass that holds its tensors inside
        return False


def _kind(x: object) -> str:
    return "None" if x is None else type(x).__name__


def _word(x: torch.dtype | torch.layout) -> str:
    return str(x).removeprefix("torch.")
