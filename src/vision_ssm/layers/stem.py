"""Images to the first channel-last map of the four-stage families."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.options import check_choice
from vision_ssm.layers.strips import Patches, convolved_strips, gather_patches
from vision_ssm.ops.transforms import transformed

__all__ = ["STEMS", "ConvStem", "PatchStem", "convolved", "make_stem"]

STEMS = ("v1", "v2")


class PatchStem(nn.Module):
    """One convolution over patches that do not overlap, then LayerNorm over the channels ('v1').

    Images that are no whole number of patches get zeros at the bottom and right, so that no pixel is dropped; the
    published code cuts such pixels off.

    Args:
        in_chans: image channels.
        channels: C.
        patch_size: side of a patch.

    Source: the first VMamba release and EfficientVMamba (``patchembed_version="v1"``).
    """

    def __init__(self, in_chans: int, channels: int, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.conv1 = nn.Conv2d(in_chans, channels, patch_size, patch_size)
        self.norm1 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images x [B, in_chans, H, W]; returns [B, ceil(H / p), ceil(W / p), C]."""
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        result: Tensor = self.norm1(convolved(self.conv1, x))
        return result

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips [B, in_chans, r, W], top to bottom; ``size`` is the whole (H, W).

        The result equals :meth:`forward` of the whole images to rounding.

        Raises:
            ShapeError: the strips are not of that size.
        """
        bottom, right = (-side % self.patch_size for side in size)
        rows = convolved_strips(self.conv1, strips, bottom=bottom, right=right)
        grid = ((size[0] + bottom) // self.patch_size, (size[1] + right) // self.patch_size)
        return gather_patches((self.norm1(row.permute(0, 2, 3, 1)) for row in rows), grid)


class ConvStem(nn.Module):
    """Two 3 x 3 convolutions, each with LayerNorm over the channels, GELU between them ('v2').

    Args:
        in_chans: image channels.
        channels: C; the first convolution has C // 2.
        patch_size: pixels per position of the result: 4, as published, or 2, where only the first convolution strides.

    Source: VMamba, arXiv:2401.10166, and its code (``patchembed_version="v2"``).
    """

    def __init__(self, in_chans: int, channels: int, patch_size: int = 4) -> None:
        super().__init__()
        if patch_size not in (2, 4):
            raise ConfigError(
                "the stem of two strided convolutions makes positions of 2 or 4 pixels, got "
                f"patch_size={patch_size!r}; stem='v1' takes any"
            )
        if channels < 2:
            raise ConfigError(f"stem='v2' starts with half the width, and embed_dim={channels} leaves none of it")
        self.conv1 = nn.Conv2d(in_chans, channels // 2, 3, 2, 1)
        self.norm1 = nn.LayerNorm(channels // 2)
        self.patch_size = patch_size
        self.act = nn.GELU()
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, patch_size // 2, 1)
        self.norm2 = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Embed images x [B, in_chans, H, W]; returns [B, ceil(H / p), ceil(W / p), C]."""
        x = self.act(self.norm1(convolved(self.conv1, x)))
        result: Tensor = self.norm2(convolved(self.conv2, x.permute(0, 3, 1, 2)))
        return result

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips, as :meth:`PatchStem.embed_strips`."""
        first = convolved_strips(self.conv1, strips)
        hidden = (self.act(self.norm1(row.permute(0, 2, 3, 1))).permute(0, 3, 1, 2) for row in first)
        second = convolved_strips(self.conv2, hidden)
        grid = (-(-size[0] // self.patch_size), -(-size[1] // self.patch_size))
        return gather_patches((self.norm2(row.permute(0, 2, 3, 1)) for row in second), grid)


def make_stem(version: str, in_chans: int, channels: int, patch_size: int = 4) -> nn.Module:
    """Build the stem called 'v1' (one convolution over patches) or 'v2' (two overlapping ones).

    Raises:
        ConfigError: no such version, or a patch size or width that it cannot have.
    """
    check_choice("stem", version, STEMS)
    if isinstance(patch_size, bool) or not isinstance(patch_size, int) or patch_size < 1:
        raise ConfigError(f"patch_size must be a positive whole number, got {patch_size!r}")
    return (PatchStem if version == "v1" else ConvStem)(in_chans, channels, patch_size)


def convolved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve x [B, C, H, W]; the result is channel-last, [B, h, w, C'], and so is its memory."""
    # Under vmap a tensor has no memory format to ask for.
    result: Tensor = conv(x if transformed() else x.contiguous(memory_format=torch.channels_last))
    return result.permute(0, 2, 3, 1)
