"""Convolutions over images that come in strips, so that no image has to be in memory as floating-point numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ShapeError
from vision_ssm.layers.untouched import untouched

__all__ = ["Patches", "convolved_strips", "gather_patches"]


class Patches(NamedTuple):
    """Embedded images, which the models take in the place of images: what their first layer would have returned.

    Attributes:
        tokens: [B, h * w, D], row by row.
        grid: (h, w).
    """

    tokens: Tensor
    grid: tuple[int, int]


def convolved_strips(conv: nn.Conv2d, strips: Iterable[Tensor], *, bottom: int = 0, right: int = 0) -> Iterator[Tensor]:
    """Convolve an image that comes in strips, with its own zero padding; equal to the whole image's to rounding.

    Rows that the next outputs need again are carried over, so strips may have any heights. A convolution that somebody
    has changed or watches is called, with the whole image.

    Args:
        conv: a plain convolution (no dilation, no groups) whose stride is not above its kernel.
        strips: [B, C, r, W] from top to bottom.
        bottom: rows of zeros after the last strip, beside the convolution's own.
        right: columns of zeros at the right edge, beside the convolution's own.

    Yields:
        [B, C', r', w] from top to bottom; together they have the height of the whole result.

    Raises:
        ShapeError: a strip has not four axes, or another number of channels.
    """
    if not untouched(conv):
        yield conv(F.pad(torch.cat(list(strips), dim=2), (0, right, 0, bottom)))
        return
    kernel, stride = int(conv.kernel_size[0]), int(conv.stride[0])
    above, beside = (int(p) for p in conv.padding)
    rows: Tensor | None = None

    def ready(rows: Tensor) -> tuple[Tensor | None, Tensor]:
        count = (rows.shape[2] - kernel) // stride + 1
        if count < 1:
            return None, rows
        used = rows[:, :, : (count - 1) * stride + kernel]
        return F.conv2d(used, conv.weight, conv.bias, conv.stride, (0, beside)), rows[:, :, count * stride :]

    for strip in strips:
        if strip.dim() != 4 or strip.shape[1] != conv.in_channels:
            raise ShapeError(f"expected strips of images [B, {conv.in_channels}, r, W], got {list(strip.shape)}")
        edged = F.pad(strip, (0, right, 0 if rows is not None else above, 0)) if right or rows is None else strip
        rows = edged if rows is None else torch.cat([rows, edged], dim=2)
        result, rows = ready(rows)
        if result is not None:
            yield result
    if rows is not None and bottom + above:
        result, _ = ready(F.pad(rows, (0, 0, 0, bottom + above)))
        if result is not None:
            yield result


def gather_patches(strips: Iterable[Tensor], grid: tuple[int, int]) -> Patches:
    """Collect channel-last strips [B, r, w, D] of a map in one tensor.

    Raises:
        ShapeError: the strips do not make up a map of ``grid``.
    """
    height, width = grid
    tokens: Tensor | None = None
    top = 0
    for strip in strips:
        if tokens is None:
            tokens = strip.new_empty(strip.shape[0], height, width, strip.shape[3])
        bottom = top + strip.shape[1]
        if bottom > height or strip.shape[2] != width:
            raise ShapeError(
                f"strips of {strip.shape[2]} patches per row reach down to row {bottom}, and the image is to have "
                f"{height}x{width} patches; give the strips' own height and width as the size"
            )
        tokens[:, top:bottom] = strip
        top = bottom
    if tokens is None or top != height:
        raise ShapeError(
            f"the strips end after {top} of {height} rows of patches; give all strips of the image, top to bottom"
        )
    return Patches(tokens.flatten(1, 2), grid)
