"""Bilinear resizing of maps, corners not aligned and nothing smoothed; whole, or some rows of the result alone.

Position i of n lies at s = (i + 1/2) m / n - 1/2 of m, clamped to [0, m - 1], and takes from the two next to it:

    y[i] = (1 - (s - j)) x[j] + (s - j) x[j + 1],   j = floor(s)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize", "resize_rows", "source_rows"]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps [B, C, h, w] to ``size``."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def resize_rows(
    x: Tensor, size: Sequence[int], start: int, stop: int, *, top: int = 0, height: int | None = None
) -> Tensor:
    """Return rows [B, C, stop - start, W] of maps resized to ``size`` (H, W).

    Args:
        x: [B, C, r, w]: the maps, or of maps of ``height`` rows the rows from ``top`` on that `source_rows` names.
        size: of the whole result.
        start: first row.
        stop: row after the last one.
        top: row of the maps that ``x`` begins with.
        height: of the maps; None where ``x`` is all of them.
    """
    height = x.shape[2] if height is None else height
    if (start, stop, top, x.shape[2]) == (0, size[0], 0, height):
        return resize(x, size)
    if height != size[0]:
        places = _places(start, stop, height, size[0]).to(x.device)
        low = places.floor()
        share = (places - low).to(x.dtype)[:, None]
        first = low.long() - top
        second = (first + 1).clamp(max=height - 1 - top)
        x = torch.lerp(x[:, :, first], x[:, :, second], share)
    else:
        x = x[:, :, start - top : stop - top]
    return resize(x, (stop - start, size[1]))


def source_rows(start: int, stop: int, height: int, resized: int) -> tuple[int, int]:
    """Tell which rows (first, after the last) of ``height`` the rows of maps resized to ``resized`` rows come from."""
    if height == resized:
        return start, stop
    first, last = _places(start, start + 1, height, resized), _places(stop - 1, stop, height, resized)
    return int(first), min(int(last) + 2, height)


def _places(start: int, stop: int, height: int, resized: int) -> Tensor:
    rows = torch.arange(start, stop, dtype=torch.float64)
    return ((rows + 0.5) * (height / resized) - 0.5).clamp(0, height - 1)
