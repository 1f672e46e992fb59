"""Images of other bands than three colours of 8 bits to tensors: what Pillow, and so timm's transforms, cannot hold.

Sizes, crops and mirror images mean what they mean for pictures (`transforms`). Policies and jitter of colours have no
meaning for other bands and are left out, which `left_out` tells.
"""

from __future__ import annotations

import math
import random

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vision_ssm.data.bands import AnyImage, samples_of
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.tasks.classification.settings import AugmentSettings

__all__ = ["SMALL_IMAGE_SIDE", "BandTransform", "are_colours", "crop_kind", "left_out"]

SMALL_IMAGE_SIDE = 64
"""Up to this input side, ``augment.crop: auto`` shifts images by a few pixels instead of rescaling them."""

_KNOWN = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}


def are_colours(preprocessing: Preprocessing) -> bool:
    """Tell whether images are three colours of 8 bits."""
    return preprocessing.input_size[0] == 3 and preprocessing.samples == "uint8"


def crop_kind(preprocessing: Preprocessing, augment: AugmentSettings) -> str:
    """Say how training crops, where ``augment.crop`` leaves it open by the size."""
    if augment.crop != "auto":
        return augment.crop
    return "padded" if max(preprocessing.input_size[1:]) <= SMALL_IMAGE_SIDE else "resized"


def left_out(preprocessing: Preprocessing, augment: AugmentSettings) -> list[str]:
    """Name the settings that change colours, where there are none to change."""
    if are_colours(preprocessing):
        return []
    return [f"augment.{name}" for name in ("auto_augment", "color_jitter") if getattr(augment, name)]


class BandTransform:
    """Image to float32 [C, H, W], normalised; with ``augment`` at random, drawn from `random` and torch.

    Args:
        preprocessing: size, normalisation and interpolation; lanczos, box and hamming are Pillow's, and become bicubic.
        augment: the random part; None in evaluation.
        mirror_safe: decides mirroring where ``augment.hflip`` is None.
        native: leave images at their own size.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augment: AugmentSettings | None = None,
        *,
        mirror_safe: bool = True,
        native: bool = False,
    ) -> None:
        self._preprocessing, self._augment, self._native = preprocessing, augment, native
        self._normalise = Normalise(preprocessing)
        self._mode = _KNOWN.get(preprocessing.interpolation, InterpolationMode.BICUBIC)
        self._mirror = 0.5 * mirror_safe
        if augment is not None and augment.hflip is not None:
            self._mirror = augment.hflip
        self._erase = (
            RandomErasing(  # type: ignore[no-untyped-call]
                augment.erasing, mode=augment.erasing_mode, max_count=augment.erasing_count, device="cpu"
            )
            if augment is not None and augment.erasing
            else None
        )

    def __call__(self, image: AnyImage) -> Tensor:
        """Raises DataError: the image has other bands or samples than the model."""
        planes = self._normalise(samples_of(image, self._preprocessing))
        if self._native:
            return planes
        if self._augment is None:
            return self._fitted(planes, self._preprocessing.crop_pct)
        planes = self._cropped(planes, self._augment)
        if random.random() < self._mirror:
            planes = planes.flip(2)
        if random.random() < self._augment.vflip:
            planes = planes.flip(1)
        if self._erase is not None:
            planes = self._erase(planes)
        return planes.contiguous()

    def _fitted(self, planes: Tensor, crop_pct: float) -> Tensor:
        """Resize so that the crop keeps ``crop_pct`` of the side, and crop; what is beyond the image is 0, the mean."""
        size = self._preprocessing.input_size[1:]
        wanted = [math.floor(side / crop_pct) for side in size]
        mode, given = self._preprocessing.crop_mode, planes.shape[1:]
        if mode != "squash":
            factors = [want / have for want, have in zip(wanted, given, strict=True)]
            factor = max(factors) if mode == "center" else min(factors)
            # A side of 1 x 10,000 pixels is not enlarged to millions: its far ends would be cut off anyway.
            cut = [min(have, math.ceil(8 * want / factor)) for have, want in zip(given, wanted, strict=True)]
            planes = F.center_crop(planes, cut)
            wanted = [max(1, round(factor * side)) for side in cut]
        cropped: Tensor = F.center_crop(self._resized(planes, wanted), list(size))
        return cropped

    def _cropped(self, planes: Tensor, augment: AugmentSettings) -> Tensor:
        kind, size = crop_kind(self._preprocessing, augment), list(self._preprocessing.input_size[1:])
        if kind == "resized":
            top, left, height, width = RandomResizedCrop.get_params(planes, list(augment.scale), list(augment.ratio))
            return self._resized(planes[:, top : top + height, left : left + width], size)
        if kind == "none":
            return self._fitted(planes, self._preprocessing.crop_pct)
        fitted, reach = self._fitted(planes, 1.0), min(augment.crop_padding, min(size) - 1)
        if not reach:
            return fitted
        padded = torch.nn.functional.pad(fitted, (reach,) * 4, mode="reflect")
        top, left = random.randint(0, 2 * reach), random.randint(0, 2 * reach)
        return padded[:, top : top + size[0], left : left + size[1]]

    def _resized(self, planes: Tensor, size: list[int]) -> Tensor:
        resized: Tensor = F.resize(planes, size, self._mode, antialias=True)
        return resized
