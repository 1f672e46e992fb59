"""Whether tensors from a file can be the weights of a model: how they are stored, and what kind of numbers they are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["not_plain", "wrong_kinds"]


def not_plain(tensor: Tensor) -> str | None:
    """Say how a tensor is stored otherwise than as plain numbers in memory, such as "sparse"; None for a plain one."""
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout is not torch.strided or tensor.is_nested:
        return "nested" if tensor.is_nested else "sparse"
    return "without numbers (on the meta device)" if tensor.is_meta else None


def wrong_kinds(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """List the tensors whose numbers are of another kind than the model's, which copying would convert silently.

    Precisions are not compared: weights stored in half precision fit a model in single precision.
    """
    return [
        f"{name} holds {str(given[name].dtype).removeprefix('torch.')} instead of {_kind(own.dtype)}"
        for name, own in expected.items()
        if name in given and not _fits(own.dtype, given[name].dtype)
    ]


def _fits(own: torch.dtype, given: torch.dtype) -> bool:
    if own.is_floating_point:
        return given.is_floating_point
    return own == given or not (given.is_complex or given is torch.bool or own.is_complex or own is torch.bool)


def _kind(dtype: torch.dtype) -> str:
    return "floating-point numbers" if dtype.is_floating_point else str(dtype).removeprefix("torch.")
