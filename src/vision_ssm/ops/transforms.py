"""Transforms of torch, which see through its own operations and not through a kernel."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["has_tangent", "holds_many", "transformed"]


def transformed() -> bool:
    """Tell whether a transform of ``torch.func`` or forward-mode differentiation is at work.

    A tensor may then carry a tangent, or be many tensors in one, or need a gradient though ``requires_grad`` is False.
    """
    return bool(torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0)


def holds_many(x: Tensor) -> bool:
    """Tell whether x is many tensors in one: of ``torch.vmap``, or of autograd where it is given many gradients."""
    functorch = torch._C._functorch
    return bool(functorch.is_batchedtensor(x) or functorch.is_legacy_batchedtensor(x))


def has_tangent(x: Tensor) -> bool:
    """Tell whether x is dual: forward-mode differentiation goes on along it."""
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return torch.autograd.forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
