"""The settings of classification: where the images come from, and what training does to them. No torch here."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from vision_ssm.data.preprocessing import CropMode, Interpolation
from vision_ssm.errors import ConfigError
from vision_ssm.settings import (
    Count,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Probability,
    Section,
    Share,
    setting,
)
from vision_ssm.tasks.settings import DataSettings, TaskSettings

__all__ = [
    "AugmentSettings",
    "ClassificationData",
    "ClassificationLoss",
    "ClassificationOptions",
    "ClassificationSettings",
]


class ClassificationData(DataSettings):
    """Which images, and how they are read."""

    path: str = setting(
        "", "Folder of class folders (with or without train/ and val/), or a name such as digits.", free=True
    )
    balanced: bool = setting(
        False, "Draw every class equally often in training; the images of rare classes come again and again."
    )
    grey: bool = setting(False, "Read pictures as grey: one channel instead of three. Scenes have the bands they have.")
    crop_pct: Share | None = setting(
        None, "Share of the resized image that evaluation crops; null takes the model's own."
    )
    crop_mode: CropMode | None = setting(
        None, "center cuts the longer side, squash distorts, border pads; null takes the model's own."
    )
    interpolation: Interpolation | None = setting(
        None, "Resampling of evaluation and training; null takes the model's own."
    )
    mean: tuple[float, float, float] | None = setting(None, "Mean per channel in 0..1; null takes the model's own.")
    std: tuple[Positive, Positive, Positive] | None = setting(
        None, "Standard deviation per channel in 0..1; null takes the model's own."
    )


class AugmentSettings(Section):
    """What training does to the images and the targets. Defaults are mild; recipes state their own numbers.

    ``crop: resized`` takes a random part of random size and scales it up (ImageNet practice), ``padded`` shifts the
    image (CIFAR practice), ``none`` uses the evaluation crop. ``auto`` is ``padded`` for sides up to 64 pixels and
    ``resized`` above: at 32 pixels, rescaling parts of an image costs more accuracy than it brings.

    Mixup (arXiv:1710.09412) blends pairs of images and their targets, cutmix (arXiv:1905.04899) pastes rectangles.
    """

    crop: Literal["auto", "resized", "padded", "none"] = setting(
        "auto", "resized: random area scaled up; padded: shift by crop_padding; auto: padded up to 64 pixels."
    )
    crop_padding: Natural = setting(4, "Pixels of reflected border that `padded` shifts within.")
    scale: tuple[Share, Share] = setting(
        (0.08, 1.0), "Range of the area that `resized` takes, as a share of the image."
    )
    ratio: tuple[Positive, Positive] = setting((0.75, 1.3333333333333333), "Range of that area's aspect.")
    hflip: Probability | None = setting(
        None, "Probability of mirroring left-right; null is 0.5, or 0 where mirrored images mean something else."
    )
    vflip: Probability = setting(0.0, "Probability of mirroring top-bottom.")
    color_jitter: NotNegative = setting(0.0, "Strength of colour jitter; unused when auto_augment is set.")
    auto_augment: str | None = setting(None, "timm policy, for instance rand-m9-mstd0.5-inc1.")
    erasing: Probability = setting(0.0, "Probability of erasing a rectangle.")
    erasing_mode: Literal["pixel", "rand", "const"] = setting(
        "pixel", "What fills the erased rectangle: noise per pixel, one random colour or the mean colour."
    )
    erasing_count: Count = setting(1, "Up to how many rectangles.")
    repeats: Count = setting(1, "Repeated augmentation: draws of each image per pass.")
    mixup: NotNegative = setting(0.0, "Alpha of mixup's beta distribution; 0 is off.")
    cutmix: NotNegative = setting(0.0, "Alpha of cutmix's beta distribution; 0 is off.")
    mix_prob: Probability = setting(1.0, "Probability that a batch is mixed at all.")
    mix_switch_prob: Probability = setting(0.5, "Probability of cutmix over mixup when both are on.")
    mix_mode: Literal["batch", "pair", "elem"] = setting("batch", "Whether a batch, a pair or an image has one ratio.")
    label_smoothing: Fraction = setting(0.0, "Probability mass spread over the other classes.")

    @property
    def mixes(self) -> bool:
        """Whether mixup or cutmix is on."""
        return self.mixup > 0 or self.cutmix > 0

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for (low, high), key in ((self.scale, "scale"), (self.ratio, "ratio")):
            if low > high:
                raise ConfigError(f"augment.{key} must be [smallest, largest], got [{low:g}, {high:g}].")
        return self


class ClassificationLoss(Section):
    """The loss."""

    class_weights: Literal["balanced"] | tuple[NotNegative, ...] | None = setting(
        None,
        "Factor of the loss of each class's images, in the order of the classes; balanced takes the inverse of their "
        "shares of the training images.",
    )


class ClassificationOptions(Section):
    """What a prediction may be asked for."""

    top_k: Count = setting(5, "Classes to report per image; all of them if the model knows fewer.")


class ClassificationSettings(TaskSettings):
    """The data and the augmentation of a classification run."""

    data: ClassificationData = Field(default_factory=ClassificationData)
    augment: AugmentSettings = Field(default_factory=AugmentSettings)
    loss: ClassificationLoss = Field(default_factory=ClassificationLoss)

    @model_validator(mode="after")
    def _balanced_once(self) -> Self:
        if self.data.balanced and self.loss.class_weights == "balanced":
            raise ConfigError(
                "data.balanced and loss.class_weights balanced both make up for rare classes; give one of them."
            )
        return self

    @model_validator(mode="after")
    def _pairs_fill_a_batch(self) -> Self:
        if self.augment.mixes and self.data.batch_size != "auto" and self.data.batch_size % 2:
            raise ConfigError(
                f"mixup and cutmix pair the images of a batch, so data.batch_size must be even, "
                f"got {self.data.batch_size}."
            )
        return self
