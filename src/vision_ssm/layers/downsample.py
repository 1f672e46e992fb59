"""Halving a channel-last map between two stages, in the three published ways.

v1: Linear(LayerNorm([x[2i, 2j], x[2i+1, 2j], x[2i, 2j+1], x[2i+1, 2j+1]]))        patch merging, 4C values
v2: LayerNorm(Conv2x2(x)), v3: LayerNorm(Conv3x3(x))                               stride 2
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.initial import truncated_normal_
from vision_ssm.layers.one_call import convolve
from vision_ssm.layers.options import check_choice

__all__ = ["DOWNSAMPLES", "ConvDownsample", "PatchMerging", "make_downsample"]

DOWNSAMPLES = ("v1", "v2", "v3")


class PatchMerging(nn.Module):
    """Four neighbouring pixels to one: concatenated, normalised, projected ('v1').

    The neighbours are stacked down the columns first: (row, column) = (0,0), (1,0), (0,1), (1,1). Maps of an odd
    height or width get a row or column of zeros at the bottom or right, so nothing is dropped.

    Args:
        channels: C of the input.
        out_channels: width of the result; None for 2C.

    Source: Swin, arXiv:2103.14030, section 3.1; the first VMamba release and EfficientVMamba use it unchanged.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, out_channels or 2 * channels, bias=False)
        truncated_normal_(self.reduction.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Halve x [B, H, W, C] to [B, ceil(H/2), ceil(W/2), out_channels]."""
        bottom, right = x.shape[1] % 2, x.shape[2] % 2
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        batch, height, width, channels = x.shape
        squares = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5)
        merged: Tensor = self.reduction(self.norm(squares.reshape(batch, height // 2, width // 2, 4 * channels)))
        return merged


class ConvDownsample(nn.Module):
    """A strided convolution with bias, then LayerNorm over the channels ('v2': 2 x 2, 'v3': 3 x 3 with padding 1).

    As published, 2 x 2 leaves out the last row or column of an odd map; 3 x 3 reaches every pixel.

    Args:
        channels: C of the input.
        out_channels: width of the result; None for 2C.
        kernel_size: 2 or 3.

    Raises:
        ConfigError: another kernel size.

    Source: VMamba, arXiv:2401.10166, and its code (MzeroMiko/VMamba, classification/models/vmamba.py).
    """

    def __init__(self, channels: int, out_channels: int | None = None, *, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size not in (2, 3):
            raise ConfigError(f"kernel_size must be 2 or 3, got {kernel_size!r}")
        out = out_channels or 2 * channels
        self.least = 2 if kernel_size == 2 else 1  # rows and columns; what stands in for the convolution has no size
        self.conv = nn.Conv2d(channels, out, kernel_size, stride=2, padding=kernel_size - 2)
        self.norm = nn.LayerNorm(out)

    def forward(self, x: Tensor) -> Tensor:
        """Halve x [B, H, W, C] to [B, floor(H/2), floor(W/2), out_channels] ('v2') or the same with ceil ('v3').

        Raises:
            ShapeError: a 2 x 2 convolution meets a map of one row or column.
        """
        if min(x.shape[1:3]) < self.least:
            raise ShapeError(
                f"a map of {x.shape[1]}x{x.shape[2]} is too small to be halved by a 2x2 convolution; use a larger "
                "image, or the downsample version v1 or v3"
            )
        # Channel-last tokens are an image in channels_last format: both permutes are views.
        result: Tensor = self.norm(convolve(self.conv, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return result


def make_downsample(version: str, channels: int, out_channels: int | None = None) -> nn.Module:
    """Build the downsample module called 'v1' (patch merging), 'v2' (2 x 2) or 'v3' (3 x 3).

    Raises:
        ConfigError: no such version.
    """
    check_choice("downsample", version, DOWNSAMPLES)
    if version == "v1":
        return PatchMerging(channels, out_channels)
    return ConvDownsample(channels, out_channels, kernel_size=int(version[1]))
