"""From a backbone's maps to five maps of one width at strides 4, 8, 16, 32 and 64.

Of a pyramid of four maps (FPN):

    L_4 = A_4(X_4),  L_i = A_i(X_i) + up(L_(i+1))                 A_i 1 x 1; up repeats the nearest
    P_i = F_i(L_i)                                                F_i 3 x 3

Of one map (the simple feature pyramid):

    P_i = N(F_i(N(A_i(R_i(X)))))                                  N: LayerNorm over the channels of a position

R_i brings the map to its stride: 2 x 2 transposed convolutions (norm and GELU between two of them), each of which
halves the width, or max pooling. In both P_5 is every second position of P_4.

Source: FPN, arXiv:1612.03144; ViTDet, arXiv:2203.16527; in the forms that mmdetection 3.3.0 and the detectron2 in
hustvl/Vim at dd0358a give them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn

from vision_ssm.errors import ConfigError

__all__ = ["FPN", "LEVELS", "STRIDES", "ConvNorm", "SimplePyramid", "convolution"]

STRIDES = (4, 8, 16, 32, 64)
LEVELS = 4
"""How many of the maps regions take their features from."""


class ConvNorm(nn.Conv2d):
    """LayerNorm over the channels of conv(x), which keeps the size and has no bias."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = LayerNorm2d(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """Map [B, C', H, W] to [B, C, H, W]."""
        normalised: Tensor = self.norm(super().forward(input))
        return normalised


def convolution(in_channels: int, channels: int, kernel: int, norm: bool = False) -> nn.Conv2d:
    """Make a convolution that keeps the size: with a LayerNorm and no bias, or with a bias."""
    if norm:
        return ConvNorm(in_channels, channels, kernel)
    return nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2)


class FPN(nn.Module):
    """Five maps from four.

    Args:
        in_channels: of the four maps, finest first.
        channels: of the five.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(convolution(width, channels, 1) for width in in_channels)
        self.outputs = nn.ModuleList(convolution(channels, channels, 3) for _ in in_channels)
        for module in (*self.laterals, *self.outputs):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps [B, C, h_i, w_i], finest first, of maps [B, C_i, h_i, w_i]."""
        merged = [lateral(x) for lateral, x in zip(self.laterals, maps, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], merged[i - 1].shape[2:], mode="nearest")
        return _with_coarsest([output(x) for output, x in zip(self.outputs, merged, strict=True)])


class SimplePyramid(nn.Module):
    """Five maps from one.

    Args:
        in_channels: of the map.
        stride: of the map, a power of two.
        channels: of the five.

    Raises:
        ConfigError: the stride is no power of two, or the map too narrow to be halved as often as need be.
    """

    def __init__(self, in_channels: int, stride: int, channels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level(in_channels, stride, target, channels) for target in STRIDES[:LEVELS])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps [B, C, h_i, w_i], finest first, of the one map [B, C', h, w]."""
        return _with_coarsest([level(maps[-1]) for level in self.levels])


def _level(width: int, stride: int, target: int, channels: int) -> nn.Sequential:
    steps = round(math.log2(stride / target))
    if target * 2.0**steps != stride:
        raise ConfigError(f"a pyramid needs a backbone whose stride is a power of two, got {stride}")
    parts: list[nn.Module] = [nn.MaxPool2d(2**-steps)] if steps < 0 else []
    for step in range(steps):
        if width % 2:
            raise ConfigError(f"a pyramid halves the width at every doubling of a map, which {width} does not allow")
        parts += [LayerNorm2d(width, eps=1e-6), nn.GELU()] if step else []
        parts.append(nn.ConvTranspose2d(width, width // 2, 2, 2))
        width //= 2
    return nn.Sequential(*parts, ConvNorm(width, channels, 1), ConvNorm(channels, channels, 3))


def _with_coarsest(maps: list[Tensor]) -> list[Tensor]:
    return [*maps, maps[-1][..., ::2, ::2]]
