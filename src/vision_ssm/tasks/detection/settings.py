"""The settings of detection: images and objects, what training does to them, heads, testing. No torch here.

Defaults are for images taken at their own size; docs/detection.md has the published settings, which are recipes.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vision_ssm.errors import ConfigError
from vision_ssm.settings import Count, Positive, Probability, Section, setting
from vision_ssm.tasks.settings import DataSettings, TaskSettings

__all__ = [
    "DetectionAugment",
    "DetectionData",
    "DetectionOptions",
    "DetectionSettings",
    "HeadSettings",
    "TestSettings",
]

Window = Count | Literal["none"] | None


class DetectionData(DataSettings):
    """Which images and objects, and how they are read."""

    path: str = setting("", "Folder of images with COCO, YOLO or Pascal VOC annotations.", free=True)
    batch_size: Count = setting(4, "Images per step and process.")
    eval_batch_size: Count | None = setting(1, "Images per evaluation step; null takes batch_size.", free=True)
    short_side: Count | None = setting(
        None, "Images are resized to this shorter side, if long_side allows; null keeps their size."
    )
    long_side: Count | None = setting(
        None, "The longer side of a resized image is at most this; null: five thirds of short_side."
    )
    antialias: bool = setting(False, "Smooth images as they are shrunk, as Pillow does and OpenCV does not.")
    one_class: str | None = setting(None, "Take all categories for one class of this name.")

    @model_validator(mode="after")
    def _sides_belong_together(self) -> Self:
        if self.long_side is not None and self.short_side is None:
            raise ConfigError(f"data.long_side bounds data.short_side, got {self.long_side} without one.")
        if self.long_side is not None and self.short_side is not None and self.long_side < self.short_side:
            raise ConfigError(
                f"data.long_side must not be below data.short_side, got {self.long_side} and {self.short_side}."
            )
        return self


class DetectionAugment(Section):
    """What training does to an image, its boxes and masks together."""

    resize: Literal["jitter", "choice", "fixed"] = setting(
        "jitter",
        "jitter: to a random factor of the size of testing, then a crop of model.img_size; choice: to one of "
        "short_sides; fixed: as in testing.",
    )
    jitter: tuple[Positive, Positive] = setting((0.5, 1.5), "Range of the random factor; published are 0.1 to 2.")
    on_objects: Probability = setting(
        0.0, "With jitter: probability that the crop is placed over an object; for large images with few of them."
    )
    short_sides: tuple[Count, ...] = setting(
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800), "Shorter sides to choose from."
    )
    crop_branch: bool = setting(
        False, "With choice: half of the images are cropped between two resizings, as DETR's are."
    )
    hflip: Probability = setting(0.5, "Probability of mirroring left-right.")
    vflip: Probability = setting(0.0, "Probability of mirroring top-bottom.")
    rotate: bool = setting(False, "Turn by a random multiple of 90 degrees: for images without an upper side.")
    photometric: bool = setting(False, "Random brightness, contrast, saturation and hue.")

    @model_validator(mode="after")
    def _ranges_hold(self) -> Self:
        if self.jitter[0] > self.jitter[1]:
            raise ConfigError(
                f"augment.jitter must be [smallest, largest], got [{self.jitter[0]:g}, {self.jitter[1]:g}]."
            )
        if not self.short_sides:
            raise ConfigError("augment.short_sides is empty; give at least one side.")
        if self.crop_branch and self.resize != "choice":
            raise ConfigError(f"augment.crop_branch belongs to resize choice, and augment.resize is {self.resize}.")
        return self
