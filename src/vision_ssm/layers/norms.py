"""Norms of a residual stream that may be wider than the weights (float32 stream, bfloat16 weights).

RMSNorm(x) = x / sqrt(mean(x^2) + eps) ⊙ g
LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) ⊙ g + b        mean and variance over the last axis
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.layers.options import check_choice
from vision_ssm.layers.untouched import built_of

__all__ = ["NORMS", "RMSNorm", "StreamLayerNorm", "make_norm"]

moved.answer(__name__)

EPS = 1e-5


@built_of()
class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; no bias.

    Computed in the stream's dtype, returned in the weight's: the residual stream stays float32 when the model is cast
    to half precision. Source: arXiv:1910.07467, eq. 4.
    """

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., C]."""
        normalised = F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        return normalised.to(self.weight.dtype)

    def extra_repr(self) -> str:
        """Show the width and epsilon when printed."""
        return f"{self.weight.shape[0]}, eps={self.eps}"


@built_of()
class StreamLayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis with the dtype rule of :class:`RMSNorm`."""

    def __init__(self, channels: int, eps: float = EPS) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise input [..., C]."""
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps).to(self.weight.dtype)


NORMS: dict[str, type[nn.Module]] = {"rms": RMSNorm, "layer": StreamLayerNorm}


def make_norm(name: str, channels: int) -> nn.Module:
    """Build the norm called ``name``; raise ConfigError if there is none."""
    check_choice("norm_layer", name, NORMS)
    return NORMS[name](channels)
