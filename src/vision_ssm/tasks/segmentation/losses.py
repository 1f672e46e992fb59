"""The loss of a segmentor.

    loss = 1 / n sum_p w[y_p] (-log softmax(s_p)[y_p])          over pixels p with a class

n counts all pixels, those without a class included, as published (mmsegmentation's ``avg_non_ignore=False``), or only
those that have one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["pixel_cross_entropy"]


def pixel_cross_entropy(
    logits: Tensor, masks: Tensor, *, weights: Tensor | None = None, average: str = "all"
) -> Tensor:
    """Return the loss, a scalar in float32; 0 where no pixel has a class.

    Args:
        logits: [B, classes, H, W].
        masks: classes [B, H, W], int64, 255 where there is none.
        weights: w [classes]; None for ones.
        average: what n counts, ``all`` or ``valid`` pixels.
    """
    total = F.cross_entropy(logits.float(), masks, weight=weights, ignore_index=IGNORE, reduction="sum")
    count = torch.count_nonzero(masks != IGNORE).clamp(min=1) if average == "valid" else masks.numel()
    return total / count
