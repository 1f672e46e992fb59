"""Anchors: the boxes that proposals start from, a few at every position of every map.

At (row i, column j) of the map of stride s, for each ratio r of height to width, the box around (j s, i s), which is
the corner of the cell, with sides  w = c s / √r,  h = c s √r.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["RATIOS", "anchor_boxes", "cells_inside"]

RATIOS = (0.5, 1.0, 2.0)


def anchor_boxes(
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    scale: float = 8.0,
    ratios: Sequence[float] = RATIOS,
    device: torch.device | None = None,
) -> list[Tensor]:
    """Return for each map the anchors [h * w * ratios, 4], row by row, the ratios of a position together.

    Args:
        grids: (h, w) of each map.
        strides: of each map.
        scale: c, side of a square anchor over the stride.
        ratios: r.
        device: of the result.
    """
    found = []
    for (height, width), stride in zip(grids, strides, strict=True):
        root = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()
        half = 0.5 * scale * stride * torch.stack([1 / root, root], dim=1)
        rows = torch.arange(height, dtype=torch.float32, device=device) * stride
        columns = torch.arange(width, dtype=torch.float32, device=device) * stride
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        corners = torch.stack([x, y], dim=2).reshape(-1, 1, 2)
        found.append(torch.cat([corners - half, corners + half], dim=2).reshape(-1, 4))
    return found


def cells_inside(
    grids: Sequence[tuple[int, int]],
    strides: Sequence[int],
    size: tuple[int, int],
    each: int,
    device: torch.device | None = None,
) -> Tensor:
    """Tell for the anchors of all maps, ``each`` per position, whether their cells begin inside an image (H, W)."""
    found = []
    for (height, width), stride in zip(grids, strides, strict=True):
        rows = torch.arange(height, device=device) * stride < size[0]
        columns = torch.arange(width, device=device) * stride < size[1]
        found.append((rows[:, None] & columns).flatten().repeat_interleave(each))
    return torch.cat(found)
