"""Picture to what a denoiser learns from: resized, cut to the middle, and at random mirrored."""

from __future__ import annotations

import random
from typing import Any

from torch import Tensor

from vision_ssm.data.bands import AnyImage, as_picture
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.tasks.eval_transform import build_eval_transform

__all__ = ["SampleTransform"]


class SampleTransform:
    """Transform images to [3, H, W]; their classes stay.

    Args:
        preprocessing: size, normalisation and interpolation.
        mirror: probability of mirroring left-right, drawn from `random`.
    """

    def __init__(self, preprocessing: Preprocessing, mirror: float) -> None:
        self._prepare, self._mirror = build_eval_transform(preprocessing), mirror

    def __call__(self, image: AnyImage, target: Any) -> tuple[Tensor, Any]:
        """Return the image in [-1, 1] and its class."""
        prepared = self._prepare(as_picture(image))
        mirrored = self._mirror and random.random() < self._mirror
        return (prepared.flip(2) if mirrored else prepared), target
