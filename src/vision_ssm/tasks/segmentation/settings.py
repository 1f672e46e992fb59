"""The settings of segmentation: images and masks, what training does to them, heads and losses, testing. No torch here.

Defaults are those of the published segmentors on ADE20K (docs/segmentation.md has the sources), except that images keep
their own size: most people's are not photographs.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vision_ssm.errors import ConfigError
from vision_ssm.settings import Count, Fraction, Natural, NotNegative, Positive, Probability, Section, Share, setting
from vision_ssm.tasks.settings import DataSettings, TaskSettings
from vision_ssm.tasks.windows import WindowOptions, WindowSettings

__all__ = [
    "HeadSettings",
    "LossSettings",
    "SegmentationAugment",
    "SegmentationData",
    "SegmentationOptions",
    "SegmentationSettings",
    "TestSettings",
]


class SegmentationData(DataSettings):
    """Which images and masks, and how they are read."""

    path: str = setting("", "Folder of images and masks, or of images and COCO annotations.", free=True)
    batch_size: Count | Literal["auto"] = setting(
        8, "Images per step and process; auto finds what fits into memory before training."
    )
    eval_batch_size: Count | None = setting(1, "Images per evaluation step; null takes batch_size.", free=True)
    grey: bool = setting(False, "Read pictures as grey: one channel instead of three. Scenes have the bands they have.")
    short_side: Count | None = setting(
        None, "Images are resized to this shorter side (the longer one at most 4 times it); null keeps their size."
    )


class SegmentationAugment(Section):
    """What training does to an image and its mask together. The crop is model.img_size."""

    ratio: tuple[Positive, Positive] = setting((0.5, 2.0), "Range of the random resizing.")
    cat_max_ratio: Share = setting(0.75, "A crop with a larger share of one class is drawn again, up to ten times.")
    on_classes: Probability = setting(
        0.0, "Probability that the crop is placed over one of the image's classes, each as likely as the other."
    )
    hflip: Probability = setting(0.5, "Probability of mirroring left-right.")
    vflip: Probability = setting(0.0, "Probability of mirroring top-bottom.")
    rotate: bool = setting(False, "Turn by a random multiple of 90 degrees: for images without an upper side.")
    photometric: bool = setting(True, "Random brightness, contrast, saturation and hue.")

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if self.ratio[0] > self.ratio[1]:
            raise ConfigError(f"augment.ratio must be [smallest, largest], got [{self.ratio[0]:g}, {self.ratio[1]:g}].")
        return self


class HeadSettings(Section):
    """The heads on the backbone's maps."""

    channels: Count = setting(512, "Width of the decode head.")
    auxiliary_channels: Natural = setting(256, "Width of the auxiliary head of training; 0 for none.")
    drop_rate: Fraction = setting(0.1, "Share of channels dropped before the classifiers in training.")
    tap: Literal["stream", "branch"] = setting(
        "stream", "Of backbones with maps of one stride: the residual stream after a block, or what the block added."
    )
    last_norm: bool = setting(False, "Of such backbones: put the last map through the backbone's final norm.")


class LossSettings(Section):
    """The losses."""

    auxiliary: NotNegative = setting(0.4, "Weight of the auxiliary head's loss.")
    class_weights: tuple[NotNegative, ...] | None = setting(
        None, "Factor of each class's pixels, in the order of the classes."
    )
    average: Literal["all", "valid"] = setting(
        "all", "Divide by the count of all pixels, as published, or by that of those with a class."
    )


class TestSettings(WindowSettings):
    """How an image of any size is segmented."""

    __test__ = False  # no class of tests

    blend: Literal["tapered", "uniform"] = setting(
        "tapered", "Where windows overlap: weights that fall towards their edges, or the plain mean as published."
    )


class SegmentationOptions(WindowOptions):
    """What a prediction or an evaluation may be asked for."""

    scales: tuple[Positive, ...] = setting((1.0,), "Average over the image resized by these factors.")
    flips: bool = setting(False, "Average over the image and its mirror image.")
    polygons: Literal["geojson", "gpkg"] | None = setting(
        None, "Also write the areas of each class as polygons, beside its map in the folder of results."
    )


class SegmentationSettings(TaskSettings):
    """The data, augmentation, heads, losses and testing of a segmentation run."""

    data: SegmentationData = Field(default_factory=SegmentationData)
    augment: SegmentationAugment = Field(default_factory=SegmentationAugment)
    head: HeadSettings = Field(default_factory=HeadSettings)
    loss: LossSettings = Field(default_factory=LossSettings)
    test: TestSettings = Field(default_factory=TestSettings)
