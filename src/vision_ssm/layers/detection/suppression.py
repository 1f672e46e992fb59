"""Suppression of boxes with a fixed number of rows, as one operator that a program can hold. For export; CPU only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, library
from torchvision.ops import batched_nms

__all__ = ["BEST", "NEVER"]

NEVER = -1e30
"""Below every score; what is lower still is no box."""

library.define(
    "vision_ssm_boxes::best",
    "(Tensor boxes, Tensor scores, Tensor groups, float overlap, float threshold, int count) -> Tensor",
)


@library.impl("vision_ssm_boxes::best", "CPU")
def _best(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, threshold: float, count: int) -> Tensor:
    """Return the indices [count] of the boxes that suppression leaves, the best first; -1 where there are no more."""
    rows = torch.where(scores > threshold)[0]
    kept = rows[batched_nms(boxes[rows], scores[rows], groups[rows], overlap)[:count]]
    return F.pad(kept, (0, count - len(kept)), value=-1)


def _rows(boxes: Tensor, scores: Tensor, groups: Tensor, overlap: float, threshold: float, count: int) -> Tensor:
    return scores.new_empty(count, dtype=torch.int64)


library.register_fake("vision_ssm_boxes::best", _rows)

BEST = torch.ops.vision_ssm_boxes.best.default
