"""The definition of correct: the addition, and torch's own norm after it.

It runs in any floating dtype on any device, and where no kernel does.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.add_norm.contract import NormWeights
from vision_ssm.ops.transforms import transformed

__all__ = ["forward", "norm"]


def forward(
    x: Tensor, added: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str
) -> tuple[Tensor, Tensor]:
    """Return x + added and its norm, which is computed in the sum's dtype and returned in the weight's."""
    stream = x + added
    return stream, norm(stream, NormWeights(kind, eps, weight, bias))


def norm(stream: Tensor, weights: NormWeights) -> Tensor:
    """Return the norm of a stream [..., C], computed in its dtype, returned in the weight's."""
    kind, eps, weight, bias = weights
    scale, shift = weight.to(stream.dtype), None if bias is None else bias.to(stream.dtype)
    if kind == "layer" and transformed():
        # In torch 2.15 the gradient of a forward-mode derivative is wrong of its layer norm, and right of its RMS norm.
        stream, kind = stream - stream.mean(-1, keepdim=True), "rms"
    if kind == "layer":
        normalised = F.layer_norm(stream, weight.shape, scale, shift, eps)
    else:
        normalised = F.rms_norm(stream, weight.shape, scale, eps)
        normalised = normalised if shift is None else normalised + shift
    return normalised.to(weight.dtype)
