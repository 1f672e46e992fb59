"""Image and mask to tensors, moved together, for training and evaluation.

Random changes draw from `random` alone; `vision_ssm.data.loader` seeds it for each sample. The published augmentation
is what `Augment` does by default, without turns: resize, crop, flip, photometric distortion, normalise, pad.
Source: the ADE20K training pipeline of Swin and VMamba (mmsegmentation 1.2.2, `configs/_base_/datasets/ade20k.py`).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import crop, horizontal_flip, resize, vertical_flip

from vision_ssm.data.bands import AnyImage, samples_of
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.fitting import fitted_size
from vision_ssm.tasks.photometric import Distortion, distorted, varied
from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["LONG_SIDE", "Augment", "EvalTransform", "TrainTransform"]

LONG_SIDE = 4
"""The longer side of an image is resized to at most so many times what the shorter one may have."""

_TRIES = 10


@dataclass(frozen=True)
class Augment:
    """What training does to images and masks.

    Attributes:
        size: the shorter side that images are resized to, before it is multiplied by a random factor; None for their
            own.
        scale: smallest and largest factor.
        crop: height and width of the part that is cut out; smaller images are padded to it.
        most_of_one_class: one class must have less than this share of the labelled pixels of a cut, unless ten tries
            fail; 1 takes any.
        on_classes: probability that a cut is placed over a pixel of a class drawn evenly from those in the image, so
            that rare ones are seen as often as common ones; `most_of_one_class` does not ask about such a cut.
        hflip: probability of mirroring left-right.
        vflip: probability of mirroring top-bottom.
        turns: whether to turn by a random multiple of 90 degrees, for images without an upright.
        distortion: of colours of 8 bits; other bands get `varied` in its place. None for neither.

    Raises:
        ConfigError: a number is out of its range.
    """

    size: int | None = 512
    scale: tuple[float, float] = (0.5, 2.0)
    crop: tuple[int, int] = (512, 512)
    most_of_one_class: float = 0.75
    on_classes: float = 0.0
    hflip: float = 0.5
    vflip: float = 0.0
    turns: bool = False
    distortion: Distortion | None = field(default_factory=Distortion)

    def __post_init__(self) -> None:
        if (self.size is not None and self.size < 1) or min(self.crop) < 1:
            raise ConfigError(f"sizes must be at least 1 pixel, got size {self.size} and crop {self.crop}.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"scale must be (smallest, largest) factor above 0, got {self.scale}.")
        for name in ("most_of_one_class", "on_classes", "hflip", "vflip"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}.")


class EvalTransform:
    """The deterministic transform of evaluation and prediction; the mask stays at its own size.

    Args:
        preprocessing: normalisation; its size is not used.
        short: the shorter side is resized to so many pixels, the longer one to at most `LONG_SIDE` times as many,
            bilinearly and without antialias. None leaves images at their own size.
    """

    def __init__(self, preprocessing: Preprocessing, short: int | None) -> None:
        self._preprocessing, self._normalise, self._short = preprocessing, Normalise(preprocessing), short

    def __call__(self, image: AnyImage, target: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Image and class indices [H, W] -> float32 [C, h, w], int64 [H, W]; a mask of None stays None.

        Raises:
            DataError: the image has other bands or samples than the model.
        """
        pixels = _pixels(image, self._preprocessing)
        if self._short is not None:
            size = fitted_size(image.height, image.width, self._short, LONG_SIDE * self._short)
            pixels = _resized(pixels, size)
        mask = None if target is None else target.as_subclass(Tensor).long()
        return self._normalise(pixels.permute(1, 2, 0).numpy()), mask


class TrainTransform:
    """The random transform of training.

    Args:
        preprocessing: normalisation; its size is not used.
        augment: the random part.
    """

    def __init__(self, preprocessing: Preprocessing, augment: Augment) -> None:
        self._preprocessing, self._normalise, self._augment = preprocessing, Normalise(preprocessing), augment
        self._in_colour = preprocessing.input_size[0] == 3 and preprocessing.samples == "uint8"

    def __call__(self, image: AnyImage, target: Tensor) -> tuple[Tensor, Tensor]:
        """Image and class indices [H, W] -> float32 [C, h, w] and int64 [h, w] of the size of a crop.

        Pixels beyond a smaller image are 0 after normalisation, and `IGNORE`.

        Raises:
            DataError: the image has other bands or samples than the model.
        """
        augment = self._augment
        pixels, labels = _pixels(image, self._preprocessing), tv_tensors.Mask(target)
        factor = random.uniform(*augment.scale)
        if augment.size is None:
            size = max(1, round(image.height * factor)), max(1, round(image.width * factor))
        else:
            short = max(1, int(augment.size * factor))
            size = fitted_size(image.height, image.width, short, LONG_SIDE * short)
        pixels, labels = _resized(pixels, size), resize(labels, list(size), v2.InterpolationMode.NEAREST)
        if augment.turns:
            turns = random.randrange(4)
            pixels = tv_tensors.Image(pixels.rot90(turns, (1, 2)))
            labels = tv_tensors.Mask(labels.rot90(turns, (0, 1)))
        box = self._box(labels)
        pixels, labels = crop(pixels, *box), crop(labels, *box)
        for probability, flip in ((augment.hflip, horizontal_flip), (augment.vflip, vertical_flip)):
            if random.random() < probability:
                pixels, labels = flip(pixels), flip(labels)
        planes = pixels.as_subclass(Tensor).float()
        if augment.distortion is not None and self._in_colour:
            planes = distorted(planes, augment.distortion)
        planes = (planes - self._normalise.mean) * self._normalise.scale
        if augment.distortion is not None and not self._in_colour:
            planes = varied(planes)
        below, right = (side - given for side, given in zip(augment.crop, labels.shape, strict=True))
        return (
            F.pad(planes, (0, right, 0, below)),
            F.pad(labels.as_subclass(Tensor).long(), (0, right, 0, below), value=IGNORE),
        )

    def _box(self, labels: Tensor) -> tuple[int, int, int, int]:
        """Choose (top, left, height, width) of a part: over a class, or of several classes if one of ten is."""
        height, width = (min(side, given) for side, given in zip(self._augment.crop, labels.shape, strict=True))
        most, share = self._augment.most_of_one_class, self._augment.on_classes
        if share > 0 and random.random() < share and (pixel := _pixel_of_a_class(labels)) is not None:
            top, left = (
                random.randint(max(0, at - side + 1), min(at, whole - side))
                for at, side, whole in zip(pixel, (height, width), labels.shape, strict=True)
            )
            return top, left, height, width
        for attempt in range(_TRIES + 1):
            top, left = random.randint(0, labels.shape[0] - height), random.randint(0, labels.shape[1] - width)
            if attempt == _TRIES or most >= 1:
                break
            part = np.asarray(labels[top : top + height, left : left + width])
            counts = np.bincount(part.ravel(), minlength=IGNORE + 1)[:IGNORE]
            if 0 < counts.max() < most * counts.sum():
                break
        return top, left, height, width


def _pixel_of_a_class(labels: Tensor) -> tuple[int, int] | None:
    """Choose a class of the mask, each as likely as the other, and a pixel of it; None for a mask without classes."""
    flat = np.asarray(labels).ravel()
    present = np.flatnonzero(np.bincount(flat, minlength=IGNORE + 1)[:IGNORE])
    if not len(present):
        return None
    at = random.choice(np.flatnonzero(flat == random.choice(present)))
    return divmod(int(at), labels.shape[1])


def _pixels(image: AnyImage, preprocessing: Preprocessing) -> tv_tensors.Image:
    return tv_tensors.Image(torch.from_numpy(samples_of(image, preprocessing)).permute(2, 0, 1))


def _resized(pixels: tv_tensors.Image, size: tuple[int, int]) -> tv_tensors.Image:
    return resize(pixels, list(size), v2.InterpolationMode.BILINEAR, antialias=False)
