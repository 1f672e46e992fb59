"""The definition of correct: convolution, projections and scan, one operator after the other.

Each of them runs on its own backend, so this is also what runs where no kernel for the whole does. With
VISION_SSM_BACKEND=reference all of it is plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vision_ssm.ops.conv.op import causal_conv1d
from vision_ssm.ops.scan.op import selective_scan
from vision_ssm.ops.ssm.contract import SsmWeights
from vision_ssm.ops.traversal import Traversal

__all__ = ["forward"]


def forward(
    x: Tensor, z: Tensor | None, weights: SsmWeights, traversals: Sequence[Traversal], reverse: Sequence[bool]
) -> Tensor:
    """Return [B, L, C] in x's dtype; computed in the widest of the dtypes of x and the weights."""
    autocast = not x.is_meta and torch.is_autocast_enabled(x.device.type)  # it decides about products, and keeps x's
    wide = x.dtype if autocast else torch.promote_types(x.dtype, weights.A_log.dtype)
    u = x.to(wide)[:, None]
    if weights.conv_weight is not None:
        u = causal_conv1d(u[:, 0], weights.conv_weight, weights.conv_bias, reverse=reverse)
    rank, states = weights.dt_proj_weight.shape[2], weights.A_log.shape[2]
    projected = torch.einsum("bklc,kpc->bklp", u, weights.x_proj_weight.to(wide))
    step, B, C = torch.split(projected, [rank, states, states], -1)
    delta = torch.einsum("bklr,kcr->bklc", step, weights.dt_proj_weight.to(wide))
    A = -torch.exp(weights.A_log.to(torch.promote_types(wide, torch.float32)))
    y = selective_scan(u, delta, A, B, C, weights.D, z, weights.dt_proj_bias, traversals=traversals)
    return y.to(x.dtype)
