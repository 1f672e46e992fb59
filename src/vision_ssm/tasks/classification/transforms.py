"""Image to tensor, for training and evaluation, from `Preprocessing` and `AugmentSettings`.

timm's own transforms wherever they fit, so that a recipe means here what it means there. Random transforms draw from
`random`, `numpy.random` and torch's default generator; `vision_ssm.data.loader` seeds all three for each sample.
"""

from __future__ import annotations

import dataclasses
import random
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data import auto_augment
from timm.data.transforms_factory import create_transform
from torchvision import transforms

from vision_ssm import moved
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.tasks.classification.bands import crop_kind
from vision_ssm.tasks.classification.settings import AugmentSettings
from vision_ssm.tasks.eval_transform import ToTensor, Transform, build_eval_transform, to_tensor, with_fast_tensors

__all__ = ["Transform", "build_eval_transform", "build_train_transform", "to_tensor"]


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
    steps = with_fast_tensors(chain.transforms, preprocessing)
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
    steps = [step for step in evaluation if not isinstance(step, ToTensor)]
    if crop == "padded" and augment.crop_padding:
        steps.append(_RandomShift(augment.crop_padding))
    return steps


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
