"""The loss of a classifier.

    loss = 1 / B sum_b sum_c w[c] t[b, c] (-log softmax(s_b)[c])

t are the targets, one-hot, smoothed or mixed. B counts images, not their weights, so that images of one class weigh the
same in every batch; torch's own mean would divide by the weights of a batch's classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from vision_ssm.errors import ConfigError

__all__ = ["class_weights", "weighted_cross_entropy"]


def class_weights(asked: Literal["balanced"] | Sequence[float], targets: Sequence[int], classes: int) -> Tensor:
    """Return w [classes] in float32.

    ``balanced`` is n / (C n_c) for the n_c of n training images that are of one of C classes: the mean over the images
    is 1, and all classes weigh the same in the sum. A class without an image weighs 0.

    Raises:
        ConfigError: another number of weights than classes, or none above 0.
    """
    if asked == "balanced":
        counts = torch.bincount(torch.tensor(list(targets)), minlength=classes)
        return torch.where(counts > 0, len(targets) / (classes * counts.clamp(min=1)), 0.0).float()
    if len(asked) != classes:
        raise ConfigError(f"loss.class_weights must have a factor for each of the {classes} classes, got {len(asked)}.")
    weights = torch.tensor([float(weight) for weight in asked if not isinstance(weight, str)])
    if not bool((weights > 0).any()):
        raise ConfigError("loss.class_weights must have a factor above 0: nothing would be learned.")
    return weights


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None, smoothing: float) -> Tensor:
    """Return the loss, a scalar in float32.

    Args:
        logits: s [B, C] in float32.
        targets: classes [B], int64, or their shares t [B, C].
        weights: w [C]; None for ones.
        smoothing: share of each target that is spread over all classes.
    """
    if weights is None:
        return F.cross_entropy(logits, targets, label_smoothing=smoothing)
    weights = weights.to(logits.device)
    return F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing) / len(logits)
