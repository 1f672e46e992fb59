"""Images to patch tokens, for any image size.

    t_i = W flatten(patch_i) + b                                 patches [C, P, P] every S pixels, t [B, M, D]

Source: Vim, arXiv:2401.09417, eq. 2; zeros beyond the image's bottom and right edge are this library's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.strips import Patches, convolved_strips, gather_patches
from vision_ssm.layers.untouched import built_of

__all__ = ["PatchEmbed", "PatchGrid", "as_size"]


def as_size(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return ``value`` as (height, width); raise ConfigError unless both are positive whole numbers."""
    size = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(size) != 2 or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in size):
        raise ConfigError(f"{name} must be a positive whole number or a (height, width) pair of them, got {value!r}")
    return size


class PatchGrid(nn.Module):
    """The size of the images that a column of patches is made for, and the grid of patches of any size.

    Attributes:
        patch_size: (height, width) of a patch.
        stride: pixels between patches.
        img_size: nominal (height, width), that of the position table.
        grid_size: patches of that size per column and row.
        num_patches: patches of that size.
        strict_img_size: refuse images of any other size.
    """

    patch_size: tuple[int, int]
    stride: int
    strict_img_size: bool

    def set_input_size(self, img_size: int | Sequence[int]) -> None:
        """Set the nominal size; the caller resizes what depends on it."""
        size = as_size("img_size", img_size)
        if min(size) < self.patch_size[0]:
            raise ConfigError(f"img_size must be at least one patch of {self.patch_size[0]} pixels, got {size}")
        self.img_size = size
        self.grid_size = self.dynamic_feat_size(size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Patches per column and row for an image of (height, width)."""
        patch, stride = self.patch_size[0], self.stride
        height, width = ((size - patch + stride - 1) // stride + 1 for size in img_size)
        return height, width

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token along each side."""
        return self.stride if as_scalar else (self.stride, self.stride)

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips [B, C, r, W] of any heights, top to bottom; ``size`` is the whole (H, W)."""
        raise TypeError(f"{type(self).__name__} does not say how it embeds strips")

    def _check(self, height: int, width: int) -> None:
        """Raise ShapeError for images that are smaller than a patch, or not of the one size that is taken."""
        if height < self.patch_size[0] or width < self.patch_size[0]:
            raise ShapeError(
                f"an image of {height}x{width} is smaller than a patch of {self.patch_size[0]}x{self.patch_size[0]}; "
                "enlarge it first"
            )
        if self.strict_img_size and (height, width) != self.img_size:
            raise ShapeError(
                f"an image of {height}x{width} came to a model with dynamic_img_size=False and img_size="
                f"{self.img_size}; resize the image, call set_input_size, or allow dynamic_img_size"
            )


@built_of(proj=nn.Conv2d)
class PatchEmbed(PatchGrid):
    """One strided convolution; patches may overlap (stride < patch).

    Sizes that are not a whole number of strides past the first patch are padded with zeros at the bottom and right,
    so exact sizes give the published grid, (size - patch) // stride + 1, and no pixel is ever dropped.

    Args:
        img_size: nominal (height, width), that of the position table.
        patch_size: side of a patch.
        stride: distance between patches.
        in_chans: image channels.
        embed_dim: D.
        strict: refuse images of any size but ``img_size``.
    """

    def __init__(
        self,
        img_size: int | Sequence[int],
        patch_size: int,
        stride: int,
        in_chans: int,
        embed_dim: int,
        *,
        strict: bool = False,
    ) -> None:
        super().__init__()
        height, width = as_size("patch_size", patch_size)
        if height != width:
            raise ConfigError(f"patch_size must be square, got {patch_size!r}")
        self.patch_size, self.stride = (height, width), as_size("stride", stride)[0]
        if self.stride > height:
            raise ConfigError(f"stride must not exceed patch_size, got stride={stride} and patch_size={height}")
        if in_chans < 1:
            raise ConfigError(f"in_chans must be positive, got {in_chans}")
        self.in_chans = in_chans
        self.strict_img_size = strict
        self.proj = nn.Conv2d(in_chans, embed_dim, height, self.stride)
        self.set_input_size(img_size)

    def grid_of(self, x: Tensor) -> tuple[int, int]:
        """Return the (h, w) patches of images x [B, C, H, W].

        Raises:
            ShapeError: not four axes, another number of channels, smaller than a patch, or a fixed size is missed.
        """
        return self._layout_of(x)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed images x [B, C, H, W]; returns patches [B, h*w, D] in row-major order, and (h, w).

        Raises:
            ShapeError: see :meth:`grid_of`.
        """
        grid, (bottom, right) = self._layout_of(x)
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.proj(x).flatten(2).transpose(1, 2), grid

    def embed_strips(self, strips: Iterable[Tensor], size: tuple[int, int]) -> Patches:
        """Embed images that come in strips [B, C, r, W] of any heights, top to bottom; ``size`` is the whole (H, W).

        The result equals :meth:`forward` of the whole images to rounding.

        Raises:
            ShapeError: as :meth:`forward`, or the strips are not of that size.
        """
        grid, (bottom, right) = self._layout(*size)
        rows = convolved_strips(self.proj, strips, bottom=bottom, right=right)
        return gather_patches((row.permute(0, 2, 3, 1) for row in rows), grid)

    def _layout_of(self, x: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ShapeError(f"expected images [B, {self.in_chans}, H, W], got {list(x.shape)}")
        return self._layout(*x.shape[-2:])

    def _layout(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Check a size; return the grid and the zeros to add at the bottom and right."""
        self._check(height, width)
        rows, columns = self.dynamic_feat_size((height, width))
        bottom, right = (
            (count - 1) * self.stride + self.patch_size[0] - size for count, size in ((rows, height), (columns, width))
        )
        return (rows, columns), (bottom, right)
