"""Images to patch tokens by two overlapping convolutions, for any image size.

    t = LayerNorm(Conv3x3(SiLU(LayerNorm(Conv(x)))))             first P/2 + 1 pixels every P/2, then 3 every 2

Source: ViG's code (hustvl/ViG at dfb9d32, ``PATCH_EMBED_VERSION: v2``), where P is 16; the zeros that fill up what the
first convolution would leave out at the bottom and right are this library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.options import check_count
from vision_ssm.layers.patch_embed import PatchGrid
from vision_ssm.layers.stem import convolved
from vision_ssm.layers.strips import Patches, convolved_strips, gather_patches

__all__ = ["ConvPatchEmbed"]


class ConvPatchEmbed(PatchGrid):
    """Two convolutions with LayerNorm over the channels, SiLU between them: a token for every P x P pixels.

    Sizes that are no whole number of P / 2 pixels are padded with zeros at the bottom and right, so that no pixel is
    dropped; all others give the published grid, ceil(size / P).

    Args:
        img_size: nominal (height, width), that of the position table.
        patch_size: P, an even number from 4.
        in_chans: image channels.
        embed_dim: D; the first convolution has D // 2.
        strict: refuse images of any size but ``img_size``.

    Raises:
        ConfigError: a value is out of range.
    """

    def __init__(
        self, img_size: int | Sequence[int], patch_size: int, in_chans: int, embed_dim: int, *, strict: bool = False
    ) -> None:
        super().__init__()
        check_count("patch_size", patch_size, 4)
        check_count("in_chans", in_chans)
        if patch_size % 2:
            raise ConfigError(f"two convolutions share the stride, so patch_size must be even, got {patch_size}")
        self.patch_size, self.stride = (patch_size, patch_size), patch_size
        self.in_chans, self.strict_img_size = in_chans, strict
        half = patch_size // 2
        self.conv1 = nn.Conv2d(in_chans, embed_dim // 2, half + 1, half, 1)
        self.norm1 = nn.LayerNorm(embed_dim // 2)
        self.act = nn.SiLU()
        self.conv2 = nn.Conv2d(embed_dim // 2, embed_dim, 3, 2, 1)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.set_input_size(img_size)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed images x [B, C, H, W]; returns patches [B, h*w, D] in row-major order, and (h, w).

        Raises:
            ShapeError: not four axes, another number of channels, smaller than a patch, or a fixed size is missed.
        """
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ShapeError(f"expected images [B, {self.in_chans}, H, W], got {list(x.shape)}")
        height, width = x.shape[-2:]
        bottom, right = self._padding(height, width)
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        x = self.act(self.norm1(convolved(self.conv1, x)))
        x = self.norm2(convolved(self.conv2, x.permute(0, 3, 1, 2)))
        return x.flatten(1, 2), self.dynamic_feat_size((height, width))

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips [B, C, r, W] of any heights, top to bottom; ``size`` is the whole (H, W).

        The result equals :meth:`forward` of the whole images to rounding.

        Raises:
            ShapeError: as :meth:`forward`, or the strips are not of that size.
        """
        bottom, right = self._padding(*size)
        first = convolved_strips(self.conv1, strips, bottom=bottom, right=right)
        hidden = (self.act(self.norm1(row.permute(0, 2, 3, 1))).permute(0, 3, 1, 2) for row in first)
        second = convolved_strips(self.conv2, hidden)
        return gather_patches((self.norm2(row.permute(0, 2, 3, 1)) for row in second), self.dynamic_feat_size(size))

    def _padding(self, height: int, width: int) -> tuple[int, int]:
        """Check a size; return the zeros to add at the bottom and right."""
        self._check(height, width)
        half = self.stride // 2
        return -height % half, -width % half
