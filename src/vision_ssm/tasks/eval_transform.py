"""Picture to tensor without anything random: what evaluation and prediction of whole pictures do.

timm's own transforms, so that a size, a crop or an interpolation means here what it means there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from PIL import Image
from timm.data.transforms import MaybeToTensor
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing

__all__ = ["ToTensor", "Transform", "build_eval_transform", "to_tensor", "with_fast_tensors"]

Transform = Callable[[Image.Image], Tensor]
"""RGB image of any size -> float32 tensor [3, H, W], normalised."""


def build_eval_transform(preprocessing: Preprocessing) -> Transform:
    """Return the deterministic transform of evaluation and prediction: resize, centre crop, normalise."""
    chain = create_transform(
        input_size=preprocessing.input_size,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    steps = with_fast_tensors(chain.transforms, preprocessing)
    if preprocessing.crop_mode == "center":
        steps.insert(0, _LimitAspect(preprocessing.input_size))
    return cast(Transform, transforms.Compose(steps))


def to_tensor(preprocessing: Preprocessing) -> Transform:
    """Return the transform that leaves images at their own size: normalise."""
    return ToTensor(preprocessing)


class ToTensor:
    """Image to normalised tensor, at its own size."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.normalise = Normalise(preprocessing)

    def __call__(self, image: Image.Image) -> Tensor:
        """Convert an RGB image."""
        return self.normalise(np.asarray(image))


def with_fast_tensors(steps: Sequence[object], preprocessing: Preprocessing) -> list[object]:
    """Return timm's ``steps`` with one conversion to a normalised tensor in place of its own."""
    # timm's conversion and normalisation pass over the pixels four times; on small images that is half of the work.
    kept = [step for step in steps if not isinstance(step, transforms.Normalize)]
    return [ToTensor(preprocessing) if isinstance(step, MaybeToTensor) else step for step in kept]


class _LimitAspect:
    """Cut the far ends off very long images, which the centre crop would drop anyway, before they are enlarged.

    A strip of 1 x 10,000 pixels would otherwise be resized to 256 x 2,560,000.
    """

    slack = 8  # times the aspect ratio of the crop: far from the cut that the resampling filter could feel

    def __init__(self, input_size: tuple[int, ...]) -> None:
        self.height, self.width = input_size[1:]

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        longest = max(1, round(self.slack * max(self.width / self.height, 1) * height))
        tallest = max(1, round(self.slack * max(self.height / self.width, 1) * width))
        if width <= longest and height <= tallest:
            return image
        new_width, new_height = min(width, longest), min(height, tallest)
        left, top = (width - new_width) // 2, (height - new_height) // 2
        return image.crop((left, top, left + new_width, top + new_height))
