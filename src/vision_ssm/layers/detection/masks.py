"""Masks of regions, between the square grid that a head gives and the pixels of an image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["mask_targets", "pasted"]

THRESHOLD = 0.5


def mask_targets(boxes: Tensor, masks: Tensor, objects: Tensor, side: int) -> Tensor:
    """Return what of each region [N, 4] its object covers, 0 or 1, on a grid [N, side, side].

    A cell counts if at least half of it is covered.

    Args:
        boxes: regions in pixels of the masks.
        masks: [G, H, W], bool.
        objects: [N] which mask belongs to each region.
        side: of the grid.
    """
    targets = boxes.new_zeros(len(boxes), side, side)
    for each in sorted({*objects.tolist()}):  # one at a time: hundreds of them as numbers would fill the memory
        rows = torch.where(objects == each)[0]
        plane = masks[each].to(boxes.dtype)[None, None]
        covered = roi_align(plane, [boxes[rows]], side, 1.0, 0, aligned=True)
        targets[rows] = (covered[:, 0] >= THRESHOLD).to(boxes.dtype)
    return targets


def pasted(grids: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the pixels [N, 1, H, W], bool, that regions cover.

    The pixel whose centre is at (x + 1/2, y + 1/2) takes the grid's value there, interpolated between the centres of
    its cells and falling to 0 outside; it is covered from one half on.

    Args:
        grids: [N, s, s] probabilities.
        boxes: [N, 4] the regions, in pixels of the result.
        size: (H, W).
    """
    height, width = size
    result = torch.zeros(len(boxes), 1, height, width, dtype=torch.bool, device=boxes.device)
    for grid, box, mask in zip(grids.to(boxes.dtype), boxes, result, strict=True):
        x1, y1, x2, y2 = box.tolist()
        left, top = max(math.floor(x1) - 1, 0), max(math.floor(y1) - 1, 0)
        right, bottom = min(math.ceil(x2) + 1, width), min(math.ceil(y2) + 1, height)
        if right <= left or bottom <= top or x2 <= x1 or y2 <= y1:
            continue
        columns = torch.arange(left, right, device=box.device, dtype=box.dtype) + 0.5
        rows = torch.arange(top, bottom, device=box.device, dtype=box.dtype) + 0.5
        u = (columns - box[0]) / (box[2] - box[0]) * 2 - 1
        v = (rows - box[1]) / (box[3] - box[1]) * 2 - 1
        places = torch.stack([u[None].expand(len(v), -1), v[:, None].expand(-1, len(u))], dim=2)
        values = F.grid_sample(grid[None, None], places[None], align_corners=False)[0, 0]
        mask[0, top:bottom, left:right] = values >= THRESHOLD
    return result
