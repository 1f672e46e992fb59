"""Image to tensor, for training and evaluation, from `Preprocessing` and `AugmentSettings`.

timm's own transforms wherever they fit, so that a recipe means here what it means there. Random transforms draw from
`random`, `numpy.random` and torch's default generator; `vision_ssm.data.loader` seeds all three for each sample.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms import MaybeToTensor
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision import transforms

from vision_ssm import moved
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.tasks.classification.bands import crop_kind
from vision_ssm.tasks.classification.settings import AugmentSettings

__all__ = ["Transform", "build_eval_transform", "build_train_transform", "to_tensor"]

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
    steps = _with_fast_tensors(chain.transforms, preprocessing)
    if preprocessing.crop_mode == "center":
        steps.insert(0, _LimitAspect(preprocessing.input_size))
    return cast(Transform, transforms.Compose(steps))


@moved.arguments
def build_train_transform(
    preprocessing: Preprocessing, augment: AugmentSettings, *, mirror_safe: bool = True
) -> Transform:
    """Return the random transform of training.

    Args:
        preprocessing: size, normalisation and interpolation, which training shares with evaluation.
        augment: the random part.
        mirror_safe: of the data set; decides mirroring where ``augment.hflip`` is None.
    """
    hflip = augment.hflip if augment.hflip is not None else 0.5 * mirror_safe
    chain = create_transform(
        input_size=preprocessing.input_size,
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=hflip,
        vflip=augment.vflip,
        color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]  # None leaves it out
        auto_augment=augment.auto_augment,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=augment.erasing,
        re_mode=augment.erasing_mode,
        re_count=augment.erasing_count,
    )
    _accept_zero_bits(chain)
    steps = _with_fast_tensors(chain.transforms, preprocessing)
    crop = crop_kind(preprocessing, augment)
    if crop == "resized":
        return cast(Transform, transforms.Compose(steps))
    # timm puts the random resized crop first; the rest of its chain serves the other crops as it is.
    return cast(Transform, transforms.Compose([*_fixed_scale_crop(preprocessing, augment, crop), *steps[1:]]))


def _fixed_scale_crop(preprocessing: Preprocessing, augment: AugmentSettings, crop: str) -> list[object]:
    if crop == "padded":
        # Nothing is lost at the border but by the shift.
        preprocessing = dataclasses.replace(preprocessing, crop_pct=1.0)
    evaluation = cast(transforms.Compose, build_eval_transform(preprocessing)).transforms
    steps = [step for step in evaluation if not isinstance(step, _ToTensor)]
    if crop == "padded" and augment.crop_padding:
        steps.append(_RandomShift(augment.crop_padding))
    return steps


def _with_fast_tensors(steps: Sequence[object], preprocessing: Preprocessing) -> list[object]:
    # timm's conversion and normalisation pass over the pixels four times; on small images that is half of the work.
    kept = [step for step in steps if not isinstance(step, transforms.Normalize)]
    return [_ToTensor(preprocessing) if isinstance(step, MaybeToTensor) else step for step in kept]


def _accept_zero_bits(chain: transforms.Compose) -> None:
    # timm's strongest posterisation keeps 0 bits, a black image; recent versions of Pillow raise ValueError for it.
    for step in chain.transforms:
        policy = getattr(step, "policy", [])
        for op in [*getattr(step, "ops", []), *(op for sub_policy in policy for op in sub_policy)]:
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits_to_keep: int, **_: object) -> Image.Image:
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return image if bits_to_keep >= 8 else ImageOps.posterize(image, bits_to_keep)


def to_tensor(preprocessing: Preprocessing) -> Transform:
    """Return the transform that leaves images at their own size: normalise."""
    return _ToTensor(preprocessing)


class _ToTensor:
    def __init__(self, preprocessing: Preprocessing) -> None:
        self.normalise = Normalise(preprocessing)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.normalise(np.asarray(image))


class _RandomShift:
    """Move an image by up to ``reach`` pixels in each direction and fill the border by reflection.

    The same distribution as torchvision's RandomCrop with reflected padding, in one pass over the pixels.
    """

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        rows = _reflect(np.arange(height) + random.randint(-self.reach, self.reach), height)
        columns = _reflect(np.arange(width) + random.randint(-self.reach, self.reach), width)
        return Image.fromarray(np.asarray(image).take(rows, axis=0).take(columns, axis=1))


def _reflect(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    last = size - 1
    return last - np.abs(last - positions % max(2 * last, 1))


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
