"""Normalisation of a residual stream that may be wider than the weights (float32 stream, bfloat16 weights)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm import moved
from vision_ssm.layers.options import check_choice, has_global_hooks, is_plain
from vision_ssm.ops import NormWeights, add_norm, add_norm_applies

__all__ = ["NORMS", "RMSNorm", "StreamLayerNorm", "add_and_norm", "described_norm", "make_norm"]

moved.answer(__name__)

EPS = 1e-5


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


FUSED_KINDS: dict[type[nn.Module], str] = {RMSNorm: "rms", StreamLayerNorm: "layer", nn.LayerNorm: "layer"}


def described_norm(norm: nn.Module) -> NormWeights | None:
    """Describe a norm to the operators that take one, or return None where something looks at it or has replaced it."""
    kind, own = FUSED_KINDS.get(type(norm)), norm._parameters  # looking weights up as attributes takes longer
    weight, eps = own.get("weight"), norm.__dict__.get("eps")
    if kind is None or weight is None or not isinstance(eps, float) or not is_plain(norm):
        return None
    return NormWeights(kind, eps, weight, own.get("bias"))


def add_and_norm(norm: nn.Module, x: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (x + added, norm(x + added)), or (x, norm(x)) where nothing is added; x [..., C].

    One pass over the stream where the Triton backend runs and nothing looks at the norm or has replaced it.
    """
    if added is not None:
        fused = _fused(norm, x, added)
        if fused is not None:
            return fused
        x = x + added
    return x, norm(x)


def _fused(norm: nn.Module, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor] | None:
    """The two in one pass, with the dtypes that they have one after the other, or None where that is not possible."""
    if not isinstance(norm, (RMSNorm, nn.LayerNorm)) or type(norm) not in FUSED_KINDS:
        return None
    weight, bias = norm._parameters.get("weight"), getattr(norm, "bias", None)
    if weight is None or not add_norm_applies(x, added, weight, bias):
        return None
    if has_global_hooks() or not is_plain(norm):
        return None
    scale: Tensor = weight
    if type(norm) is nn.LayerNorm:
        stream = torch.promote_types(x.dtype, added.dtype)
        if x.is_cuda and torch.is_autocast_enabled("cuda"):
            scale, bias = weight.float(), None if bias is None else bias.float()
        elif weight.dtype != stream or (bias is not None and bias.dtype != stream):
            return None  # torch has a rule of its own, or an error
    return add_norm(x, added, scale, bias, norm.eps, FUSED_KINDS[type(norm)])
