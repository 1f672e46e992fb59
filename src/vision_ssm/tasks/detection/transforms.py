"""Image, boxes and masks to tensors, moved together, for training and evaluation.

Everything that moves pixels is, along each axis, a map  out = scale · in + offset  of places counted from the corner
of the first pixel. The image goes through its steps one by one; boxes and masks go through the one map that they make,
so that they cannot part from each other. Random changes draw from `random` alone; the loader seeds it per sample.

Sources: large-scale jitter, detectron2's `ResizeScale` and `FixedSizeCrop` as ViTDet and Vim use them; `choice` and its
crop branch, DETR's augmentation as mmdetection 3.3.0 has it in VMamba's 3x configurations.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import resize

from vision_ssm.data.bands import AnyImage, samples_of
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError
from vision_ssm.tasks.detection.sources import Objects
from vision_ssm.tasks.detection.things import LEAST_SIDE, filled
from vision_ssm.tasks.fitting import fitted_size
from vision_ssm.tasks.photometric import Distortion, distorted, varied

__all__ = ["Augment", "EvalTransform", "Sides", "TrainTransform"]

BRANCH_SIDES, BRANCH_LONG = (400, 500, 600), 4200
BRANCH_CROP = (384, 600)


@dataclass(frozen=True)
class Sides:
    """To which size images are resized: the shorter side to ``short``, unless the longer one would be above ``long``.

    ``short`` is None for their own size. Where ``antialias`` is set, shrinking smooths.
    """

    short: int | None = None
    long: int | None = None
    antialias: bool = False

    def fitted(self, height: int, width: int, factor: float = 1.0) -> tuple[int, int]:
        """Return the (height, width) of an image, with both limits (or its own size) times ``factor``."""
        if self.short is None:
            return max(1, round(height * factor)), max(1, round(width * factor))
        long = self.long or -(-5 * self.short // 3)  # 1333 for 800
        return fitted_size(height, width, self.short * factor, long * factor)


@dataclass(frozen=True)
class Augment:
    """What training does to images and objects.

    Attributes:
        resize: ``jitter``: to a random factor of `Sides`, then a random crop; ``choice``: the shorter side to one of
            ``short_sides``; ``fixed``: as `Sides` says.
        jitter: smallest and largest factor.
        crop: height and width of the part that is cut out after ``jitter``; smaller images stay smaller.
        on_objects: probability that this part is placed over the middle of a random object.
        short_sides: of ``choice``.
        crop_branch: half of the images are resized, cropped and then resized again.
        hflip: probability of mirroring left-right.
        vflip: probability of mirroring top-bottom.
        turns: whether to turn by a random multiple of 90 degrees.
        distortion: of the colours; None for none.
        masks: whether there are masks to move.

    Raises:
        ConfigError: a number is out of its range.
    """

    resize: str = "jitter"
    jitter: tuple[float, float] = (0.1, 2.0)
    crop: tuple[int, int] = (1024, 1024)
    on_objects: float = 0.0
    short_sides: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    crop_branch: bool = False
    hflip: float = 0.5
    vflip: float = 0.0
    turns: bool = False
    distortion: Distortion | None = None
    masks: bool = False

    def __post_init__(self) -> None:
        if self.resize not in ("jitter", "choice", "fixed"):
            raise ConfigError(f"resize must be jitter, choice or fixed, got {self.resize!r}.")
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise ConfigError(f"jitter must be (smallest, largest) factor above 0, got {self.jitter}.")
        if min(self.crop) < 1 or not self.short_sides or min(self.short_sides) < 1:
            raise ConfigError(
                f"sizes must be at least 1 pixel, got crop {self.crop} and short_sides {self.short_sides}."
            )
        for name in ("hflip", "vflip", "on_objects"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}.")


class EvalTransform:
    """The deterministic transform of evaluation and prediction; objects stay in pixels of the file.

    Args:
        preprocessing: normalisation; its size is not used.
        sides: to resize to.
    """

    def __init__(self, preprocessing: Preprocessing, sides: Sides) -> None:
        self._preprocessing, self._normalise, self._sides = preprocessing, Normalise(preprocessing), sides

    def __call__(self, image: AnyImage, target: Objects | None) -> tuple[Tensor, Objects | None]:
        """Image -> float32 [C, h, w].

        Raises:
            DataError: the image has other bands or samples than the model.
        """
        moved = _Moved(image, self._preprocessing)
        if self._sides.short is not None:
            moved.resize(self._sides.fitted(*moved.size), self._sides.antialias)
        return self._normalise(moved.pixels.permute(1, 2, 0).numpy()), target


class TrainTransform:
    """The random transform of training.

    Args:
        preprocessing: normalisation; its size is not used.
        sides: to resize to, before random factors.
        augment: the random part.
    """

    def __init__(self, preprocessing: Preprocessing, sides: Sides, augment: Augment) -> None:
        self._preprocessing, self._normalise = preprocessing, Normalise(preprocessing)
        self._sides, self._augment = sides, augment
        self._in_colour = preprocessing.input_size[0] == 3 and preprocessing.samples == "uint8"

    def __call__(self, image: AnyImage, target: Objects) -> tuple[Tensor, dict[str, Tensor]]:
        """Image and objects -> float32 [C, h, w] and a dict of what is left of the n objects in it.

        ``boxes`` [n, 4] float32, left, top, right, bottom in pixels of the image as it is returned; ``labels`` [n]
        int64; with masks ``masks`` [n, h, w] bool, and boxes drawn anew around them. Crowds, and what is smaller than
        `LEAST_SIDE` on a side or has no pixel left, are left out.

        Raises:
            DataError: the image has other bands or samples than the model.
        """
        augment = self._augment
        moved = _Moved(image, self._preprocessing)
        getattr(self, f"_{augment.resize}")(moved, target)
        if random.random() < augment.hflip:
            moved.flip(1)
        if random.random() < augment.vflip:
            moved.flip(0)
        boxes, labels, masks = _moved_objects(moved, target, augment.masks)
        pixels = moved.pixels
        turns = random.randrange(4) if augment.turns else 0
        if turns:
            boxes, pixels, masks = (
                _turned(boxes, pixels.shape[1:], turns),
                pixels.rot90(turns, (1, 2)),
                (masks.rot90(turns, (1, 2)) if masks is not None else None),
            )
        planes = pixels.float()
        if augment.distortion is not None and self._in_colour:
            planes = distorted(planes, augment.distortion)
        planes = (planes - self._normalise.mean) * self._normalise.scale
        if augment.distortion is not None and not self._in_colour:
            planes = varied(planes)
        found = {"boxes": boxes, "labels": labels}
        return planes.contiguous(), found if masks is None else {**found, "masks": masks.contiguous()}

    def _jitter(self, moved: _Moved, target: Objects) -> None:
        augment = self._augment
        moved.resize(self._sides.fitted(*moved.size, random.uniform(*augment.jitter)), self._sides.antialias)
        size = tuple(min(side, given) for side, given in zip(augment.crop, moved.size, strict=True))
        chosen = target.boxes[~target.crowd]
        over = len(chosen) > 0 and random.random() < augment.on_objects
        middle = moved.boxes(chosen[random.randrange(len(chosen))][None])[0] if over else None
        corner = []
        for axis in range(2):
            low, high = 0, moved.size[axis] - size[axis]
            if middle is not None:
                centre = int((middle[1 - axis] + middle[3 - axis]) / 2)
                low, high = max(low, min(high, centre - size[axis] + 1)), min(high, max(low, centre))
            corner.append(random.randint(low, high))
        moved.crop(corner[0], corner[1], size[0], size[1])

    def _choice(self, moved: _Moved, target: Objects) -> None:
        augment = self._augment
        long = self._sides.long or -(-5 * max(augment.short_sides) // 3)
        if augment.crop_branch and random.random() < 0.5:
            moved.resize(fitted_size(*moved.size, random.choice(BRANCH_SIDES), BRANCH_LONG), self._sides.antialias)
            height, width = moved.size
            size = [random.randint(min(side, BRANCH_CROP[0]), min(side, BRANCH_CROP[1])) for side in (height, width)]
            moved.crop(random.randint(0, height - size[0]), random.randint(0, width - size[1]), size[0], size[1])
        moved.resize(fitted_size(*moved.size, random.choice(augment.short_sides), long), self._sides.antialias)

    def _fixed(self, moved: _Moved, target: Objects) -> None:
        if self._sides.short is not None:
            moved.resize(self._sides.fitted(*moved.size), self._sides.antialias)


class _Moved:
    """An image on its way, and the map from places in its file to places in it: (y, x) -> scale · (y, x) + offset."""

    def __init__(self, image: AnyImage, preprocessing: Preprocessing) -> None:
        self.pixels = torch.from_numpy(samples_of(image, preprocessing)).permute(2, 0, 1)
        self.scale, self.offset = [1.0, 1.0], [0.0, 0.0]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    def resize(self, size: tuple[int, int], antialias: bool) -> None:
        for axis in range(2):
            factor = size[axis] / self.size[axis]
            self.scale[axis] *= factor
            self.offset[axis] *= factor
        if size != self.size:
            image = tv_tensors.Image(self.pixels)
            moved = resize(image, list(size), v2.InterpolationMode.BILINEAR, antialias=antialias)
            self.pixels = moved.as_subclass(Tensor)

    def crop(self, top: int, left: int, height: int, width: int) -> None:
        self.offset = [self.offset[0] - top, self.offset[1] - left]
        self.pixels = self.pixels[:, top : top + height, left : left + width]

    def flip(self, axis: int) -> None:
        self.scale[axis] = -self.scale[axis]
        self.offset[axis] = self.size[axis] - self.offset[axis]
        self.pixels = self.pixels.flip(1 + axis)

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes [N, 4] in pixels of the file -> in pixels of the image as it is now, not cut at its edges."""
        scale = boxes.new_tensor([self.scale[1], self.scale[0]] * 2)
        moved = boxes * scale + boxes.new_tensor([self.offset[1], self.offset[0]] * 2)
        return torch.cat([torch.minimum(moved[:, :2], moved[:, 2:]), torch.maximum(moved[:, :2], moved[:, 2:])], 1)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """A mask of the file -> of the image as it is now: each pixel takes the one that its centre is in."""
        places = []
        for axis in range(2):
            centres = np.arange(self.size[axis]) + 0.5
            at = np.floor((centres - self.offset[axis]) / self.scale[axis]).astype(np.int64)
            places.append(at.clip(0, mask.shape[axis] - 1))
        moved: NDArray[np.bool_] = mask[places[0]][:, places[1]]
        return moved


def _moved_objects(moved: _Moved, target: Objects, with_masks: bool) -> tuple[Tensor, Tensor, Any]:
    """Return boxes [n, 4] float32, labels [n], and masks [n, h, w] bool or None, of the objects that are left."""
    height, width = moved.size
    limits = target.boxes.new_tensor([width, height] * 2)
    boxes = torch.minimum(moved.boxes(target.boxes).clamp_min(0), limits)
    left = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(1) & ~target.crowd
    masks = None
    if with_masks:
        kept, found = [], []
        for index in left.nonzero()[:, 0].tolist():
            outline = target.outlines[index]
            mask = None if outline is None else moved.mask(filled(outline, *target.size))
            if mask is not None and mask.any():
                kept.append(index)
                found.append(mask)
                boxes[index] = boxes.new_tensor(_around(mask))
        left = torch.tensor(kept, dtype=torch.int64)
        masks = torch.from_numpy(np.stack(found)) if found else torch.zeros(0, height, width, dtype=torch.bool)
    return boxes[left].float(), target.labels[left], masks


def _around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box around a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _turned(boxes: Tensor, size: tuple[int, ...], turns: int) -> Tensor:
    """Boxes of an image of that (height, width), turned by so many quarters as `torch.rot90` does."""
    height, width = size
    for _ in range(turns):
        left, top, right, bottom = boxes.unbind(1)
        boxes = torch.stack([top, width - right, bottom, width - left], 1)
        height, width = width, height
    return boxes
