"""The settings of detection: images and objects, what training does to them, heads, testing. No torch here.

Defaults are for images taken at their own size; docs/detection.md has the published settings, which are recipes.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vision_ssm.errors import ConfigError
from vision_ssm.settings import Count, Natural, Positive, Probability, Section, setting
from vision_ssm.tasks.settings import DataSettings, TaskSettings
from vision_ssm.tasks.windows import WindowOptions, WindowSettings

__all__ = [
    "DetectionAugment",
    "DetectionData",
    "DetectionOptions",
    "DetectionSettings",
    "HeadSettings",
    "TestSettings",
]


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


class HeadSettings(Section):
    """Neck and heads, see `vision_ssm.models.detector.Detector`; null takes what it does by itself."""

    cascade: bool = setting(True, "Three stages of boxes (IoU 0.5, 0.6, 0.7) instead of one.")
    masks: bool | None = setting(
        None, "Predict masks; null does where every object of the training data has an outline."
    )
    convention: Literal["mmdet", "detectron2"] | None = setting(
        None, "Whose published detectors the heads equal; null: detectron2's for cascades, mmdetection's for others."
    )
    channels: Count = setting(256, "Width of the maps and of the heads' convolutions.")
    fc_channels: Count = setting(1024, "Width of the box heads' linear layers.")
    mask_channels: Count | None = setting(None, "Width of the mask head; null takes channels.")
    norm: bool = setting(False, "A LayerNorm after every convolution of the heads.")
    rpn_convs: Natural = setting(1, "Convolutions before the proposals.")
    box_convs: Natural = setting(0, "Convolutions of a box head.")
    box_fcs: Count = setting(2, "Linear layers of a box head.")
    mask_convs: Natural = setting(4, "Convolutions of the mask head.")
    mask_per_stage: bool = setting(False, "A mask head for every stage of a cascade.")
    anchor_scale: Positive = setting(8.0, "Side of an anchor over the stride of its map; smaller for small objects.")
    anchor_ratios: tuple[Positive, ...] = setting((0.5, 1.0, 2.0), "Height over width of the anchors.")
    proposals: Count = setting(1000, "Boxes that the first stage hands on.")
    samples: Count = setting(512, "Of them, those per image that the heads learn from.")
    square: Count | None = setting(None, "Pad images to squares of this side; null pads to multiples of 32.")


class TestSettings(WindowSettings):
    """How objects are found in an image of any size."""

    __test__ = False  # no class of tests

    score_threshold: Probability = setting(0.05, "What is less probable is not found at all.")
    nms_threshold: Probability = setting(
        0.5, "Of two finds of a class that overlap by more (IoU), the less probable one goes."
    )
    detections: Count = setting(100, "The most finds per image or window, and per image in the scores.")


class DetectionOptions(WindowOptions):
    """What a prediction or an evaluation may be asked for."""

    score: Probability = setting(0.3, "Finds of a lower score are left out of results.")


class DetectionSettings(TaskSettings):
    """The data, augmentation, heads and testing of a detection run."""

    data: DetectionData = Field(default_factory=DetectionData)
    augment: DetectionAugment = Field(default_factory=DetectionAugment)
    head: HeadSettings = Field(default_factory=HeadSettings)
    test: TestSettings = Field(default_factory=TestSettings)
