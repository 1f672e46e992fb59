"""Class tokens within the sequence, and position tables resampled to other grids."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import ShapeError

__all__ = [
    "CLASS_TOKENS",
    "class_indices",
    "class_rows",
    "insert_rows",
    "published_interpolation",
    "resample_grid",
    "resample_table",
    "sincos_table",
    "split_rows",
]

# Number of class tokens per layout.
CLASS_TOKENS = {"middle": 1, "head": 1, "double": 2, "none": 0}

BASE = 10000.0  # of the wavelengths of fixed positions
CUBIC = -0.75  # the free parameter of torch's bicubic kernel, which the published interpolation uses


def class_indices(class_token: str, patches: int) -> tuple[int, ...]:
    """Positions of the class tokens in a sequence with ``patches`` patch tokens."""
    places: dict[str, tuple[int, ...]] = {
        "middle": (patches // 2,),
        "head": (0,),
        "double": (0, patches + 1),
        "none": (),
    }
    return places[class_token]


def insert_rows(patches: Tensor, rows: Tensor | None, class_token: str) -> Tensor:
    """Put class rows [B, T, D] among patch rows [B, M, D]: at M // 2, at the head, or at both ends."""
    if rows is None or class_token == "none":
        return patches
    if class_token == "double":
        return torch.cat([rows[:, :1], patches, rows[:, 1:]], dim=1)
    at = patches.shape[1] // 2 if class_token == "middle" else 0
    return torch.cat([patches[:, :at], rows, patches[:, at:]], dim=1)


def class_rows(x: Tensor, class_token: str) -> Tensor:
    """Return the class rows [B, T, D] of a sequence [B, M + T, D]."""
    if class_token == "double":
        return torch.cat([x[:, :1], x[:, -1:]], dim=1)
    at = (x.shape[1] - 1) // 2 if class_token == "middle" else 0
    return x[:, at : at + CLASS_TOKENS[class_token]]


def split_rows(x: Tensor, class_token: str) -> tuple[Tensor, Tensor]:
    """Undo :func:`insert_rows`: sequence [B, M + T, D] to patch rows [B, M, D] and class rows [B, T, D]."""
    rows = class_rows(x, class_token)
    if class_token == "none":
        return x, rows
    if class_token == "double":
        return x[:, 1:-1], rows
    at = (x.shape[1] - 1) // 2 if class_token == "middle" else 0
    return torch.cat([x[:, :at], x[:, at + 1 :]], dim=1), rows


def resample_table(
    table: Tensor, class_token: str, source: tuple[int, int], target: tuple[int, int], patch: int, stride: int
) -> Tensor:
    """Resample a position table [1, M + T, D] from one grid of patches to another; class rows are kept as they are.

    To its own grid it is returned as it is, unless the grid is symbolic: torch.export would take the question whether
    they are the same for a rule, and refuse every other size. Resampling to the own grid changes nothing either.
    """
    if not isinstance(target[0], torch.SymInt) and not isinstance(target[1], torch.SymInt) and source == target:
        return table
    grid, rows = split_rows(table, class_token)
    return insert_rows(resample_grid(grid, source, target, patch, stride), rows, class_token)


def resample_grid(
    table: Tensor, source: tuple[int, int], target: tuple[int, int], patch: int, stride: int | tuple[int, int]
) -> Tensor:
    """Resample grid rows [1, H*W, D] to [1, h*w, D], bicubically, at the places where the new patches' centres lie.

    The two grids are taken to cover the same picture. With stride = patch this is torch's bicubic interpolation with
    align_corners False; with overlapping patches that one would assume centres that the patches do not have.

    Args:
        table: rows in row-major order.
        source: (H, W).
        target: (h, w).
        patch: side of a patch in pixels.
        stride: pixels between patches, or (of the source, of the target).

    Deviation: the published code resizes square grids only and counts the class row as a patch; see
    :func:`published_interpolation`.
    """
    height, width = source
    if table.shape[1] != height * width:
        raise ShapeError(f"a {height}x{width} grid has {height * width} rows, the table has {table.shape[1]}")
    strides = stride if isinstance(stride, tuple) else (stride, stride)
    grid = table.to(torch.promote_types(table.dtype, torch.float32)).reshape(height, width, -1)
    # Positions are places, not activations: autocast must not round them (there is none on the meta device).
    exact = nullcontext() if grid.is_meta else torch.autocast(grid.device.type, enabled=False)
    with exact:
        rows = torch.tensordot(_cubic_weights(height, target[0], patch, strides, grid), grid, dims=1)  # [h, W, D]
        across = _cubic_weights(width, target[1], patch, strides, grid)
        resampled: Tensor = torch.tensordot(across, rows.transpose(0, 1), dims=1)  # [w, h, D]
    return resampled.transpose(0, 1).reshape(1, target[0] * target[1], -1).to(table.dtype)


def _cubic_weights(source: int, target: int, patch: int, strides: tuple[int, int], like: Tensor) -> Tensor:
    """Weights [target, source] of cubic interpolation along one axis, edge rows repeated beyond the border."""
    of_source, of_target = strides
    extent_ratio = ((source - 1) * of_source + patch) / ((target - 1) * of_target + patch)
    centre = torch.arange(target, device=like.device, dtype=torch.float64) * of_target + patch / 2
    place = (centre * extent_ratio - patch / 2) / of_source
    base = place.floor()
    weights = torch.zeros(target, source, device=like.device, dtype=torch.float64)
    for tap in range(-1, 3):
        index = (base + tap).clamp(0, source - 1).long()
        weights.scatter_add_(1, index[:, None], _cubic((place - base - tap).abs())[:, None])
    return weights.to(like.dtype)


def _cubic(distance: Tensor) -> Tensor:
    near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * CUBIC
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, torch.zeros_like(distance)))


def published_interpolation(table: Tensor, side: int, class_tokens: int) -> Tensor:
    """Resize a position table exactly as the published fine-tuning does, mistake included.

    The first ``class_tokens`` rows are kept and the rest is taken for a square grid. With the middle class token that
    is off: row 0 is a patch's and the class row sits inside the "grid". The released fine-tuned weights began so, and
    only a faithful repetition of that recipe needs it; everything else here uses :func:`resample_grid`.

    Args:
        table: [1, rows, D].
        side: patches per side of the new grid.
        class_tokens: class tokens of the new model.

    Returns:
        [1, class_tokens + side * side, D].

    Raises:
        ShapeError: the remaining rows are no square.
    """
    extra, grid = table[:, :class_tokens], table[:, class_tokens:]
    old = math.isqrt(grid.shape[1])
    if old * old != grid.shape[1]:
        raise ShapeError(
            f"the published interpolation needs a square grid; {grid.shape[1]} rows remain after {class_tokens}"
        )
    square = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(square, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([extra, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def sincos_table(grid: tuple[int, int], channels: int, like: Tensor) -> Tensor:
    """Return the fixed positions [1, H*W, D] of a grid (H, W), row by row, on the device and in the dtype of ``like``.

    For j < D/4 and ω = 10000^(-j / (D/4))::

        sin(column ω), cos(column ω), sin(row ω), cos(row ω)

    Args:
        grid: (H, W).
        channels: D, a multiple of 4.
        like: any tensor.

    Source: DiT, arXiv:2212.09748, whose code has the columns in the first half.
    """
    wide = torch.float64 if like.device.type == "cpu" else torch.float32
    frequencies = BASE ** (-torch.arange(channels // 4, device=like.device, dtype=wide) / (channels // 4))
    rows, columns = (torch.arange(n, device=like.device, dtype=wide)[:, None] * frequencies for n in grid)
    of_rows, of_columns = (torch.cat([angles.sin(), angles.cos()], dim=1) for angles in (rows, columns))
    height, width = grid
    both = [of_columns.expand(height, -1, -1), of_rows[:, None].expand(-1, width, -1)]
    return torch.cat(both, dim=2).reshape(1, height * width, channels).to(like.dtype)
