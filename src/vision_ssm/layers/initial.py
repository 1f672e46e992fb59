"""Initial values that several layers share."""

from __future__ import annotations

import torch
from timm.layers.weight_init import trunc_normal_
from torch import Tensor

__all__ = ["truncated_normal_"]


def truncated_normal_(x: Tensor, std: float = 0.02) -> Tensor:
    """Fill x with normal numbers, those beyond 2 drawn again: the published initial values of heads and positions.

    They are drawn in float32: some versions of torch (2.11 is one) draw half-precision ones many times too large.
    """
    with torch.no_grad():
        drawn = trunc_normal_(torch.empty_like(x, dtype=torch.float32), std=std)
        return x.copy_(drawn)
