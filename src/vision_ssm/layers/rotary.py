"""Rotary positions of a grid of tokens.

    (a, b) -> (a cos φ - b sin φ, b cos φ + a sin φ)              a, b: neighbouring channels 2j and 2j + 1
    φ = 14 (row / H) / 10000^(2j / (D/2))                         j < D/4; the other half of the channels: column / W

Source: RoFormer, arXiv:2104.09864, in the form of EVA-02, arXiv:2303.11331, that Vim's detectors have (hustvl/Vim at
dd0358a): positions are those of a grid of 14 x 14, whatever the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rotary_table", "rotated"]

SPAN, BASE = 14.0, 10000.0


def rotary_table(grid: tuple[int, int], channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cos φ and sin φ [H * W, D / 2] for D ``channels``, a multiple of 4, on the device of ``like``."""
    height, width = grid
    each = channels // 4
    wide = torch.float64 if like.device.type == "cpu" else torch.float32
    frequencies = BASE ** (-torch.arange(each, device=like.device, dtype=wide) / each)
    of_rows = torch.arange(height, device=like.device, dtype=wide)[:, None] * (SPAN / height) * frequencies
    of_columns = torch.arange(width, device=like.device, dtype=wide)[:, None] * (SPAN / width) * frequencies
    rows, columns = of_rows[:, None].expand(-1, width, -1), of_columns[None].expand(height, -1, -1)
    angles = torch.cat([rows, columns], dim=2).flatten(0, 1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn tokens x [B, H * W, D] by the angles of their places."""
    cosine, sine = table
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cosine - b * sine, b * cosine + a * sine], dim=-1).flatten(-2)
