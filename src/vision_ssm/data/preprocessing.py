"""How an image becomes a tensor, as plain records: no torch here, so that configurations can hold them cheaply."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vision_ssm.errors import ConfigError, suggestion

__all__ = ["SMALL_IMAGE_SIDE", "Augmentation", "Preprocessing"]

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")
CROP_MODES = ("center", "squash", "border")
CROPS = ("auto", "resized", "padded", "none")
ERASING_MODES = ("pixel", "rand", "const")

SMALL_IMAGE_SIDE = 64
"""Up to this input side, ``Augmentation.crop = "auto"`` shifts images by a few pixels instead of rescaling them."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before a trained model sees it; stored with the weights.

    The fields and their meaning are timm's (`timm.data.create_transform`): the image is resized so that its shorter
    side is ``side / crop_pct``, cropped to ``input_size``, divided by 255, and normalised with ``mean`` and ``std``.

    Attributes:
        input_size: channels (always 3), height and width of the tensor.
        mean: per channel, in units of [0, 1].
        std: per channel, in units of [0, 1], positive.
        interpolation: of the resize.
        crop_pct: share of the resized side that the crop keeps, in (0, 1].
        crop_mode: ``center`` keeps the aspect ratio and cuts the ends off, ``squash`` distorts, ``border`` pads.

    Raises:
        ConfigError: a field is out of its range.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        # Records come back from JSON and YAML, where tuples are lists.
        object.__setattr__(self, "input_size", _integers("input_size", self.input_size))
        object.__setattr__(self, "mean", _numbers("mean", self.mean))
        object.__setattr__(self, "std", _numbers("std", self.std))
        if self.input_size[0] != 3:
            raise ConfigError(f"input_size starts with the 3 colour channels, got {self.input_size}; images are RGB.")
        if min(self.input_size) < 1:
            raise ConfigError(f"the image size must be at least 1 pixel in each direction, got {self.input_size[1:]}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}.")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must lie in (0, 1], got {self.crop_pct}.")
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        _one_of("crop_mode", self.crop_mode, CROP_MODES)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Build from a mapping such as `timm.data.resolve_model_data_config` returns; other keys are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in fields:
            if key not in known:
                raise ConfigError(f"unknown preprocessing field {key!r}.{suggestion(key, known)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return a mapping of plain lists, strings and numbers, ready for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def with_size(self, size: int | tuple[int, int]) -> Preprocessing:
        """Return the same record for another image size: a side, or (height, width)."""
        height, width = (size, size) if isinstance(size, int) else size
        return dataclasses.replace(self, input_size=(3, height, width))


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images. Mixup and cutmix combine samples, so they belong to the training loop.

    Defaults are mild; recipes state their own numbers.

    Attributes:
        crop: ``resized`` takes a random part of random size and scales it up (ImageNet practice), ``padded`` shifts
            the image by up to ``crop_padding`` pixels (CIFAR practice), ``none`` uses the evaluation crop, and
            ``auto`` is ``padded`` for sides up to 64 pixels and ``resized`` above: at 32 pixels, rescaling parts of
            an image costs more accuracy than it brings.
        crop_padding: pixels of reflected border for ``padded``.
        scale: share of the image area for ``resized``.
        ratio: aspect ratios for ``resized``.
        hflip: probability of mirroring left-right. None means 0.5, or 0 where mirrored images mean something else
            (digits).
        vflip: probability of mirroring top-bottom.
        auto_augment: a timm policy such as ``rand-m9-mstd0.5-inc1``, or None. It replaces colour jitter, as in timm.
        color_jitter: strength of brightness, contrast and saturation changes; 0 for none.
        erasing: probability of filling a random rectangle.
        erasing_mode: ``pixel`` (noise per pixel), ``rand`` (one random colour) or ``const`` (the mean colour).
        erasing_count: up to how many rectangles.

    Raises:
        ConfigError: a field is out of its range.
    """

    crop: str = "auto"
    crop_padding: int = 4
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float | None = None
    vflip: float = 0.0
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erasing: float = 0.0
    erasing_mode: str = "pixel"
    erasing_count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scale", _numbers("scale", self.scale, count=2))
        object.__setattr__(self, "ratio", _numbers("ratio", self.ratio, count=2))
        _one_of("crop", self.crop, CROPS)
        _one_of("erasing_mode", self.erasing_mode, ERASING_MODES)
        for name in ("hflip", "vflip", "erasing"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} is a probability in [0, 1], got {value}.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f"scale is a range of area shares inside (0, 1], got {self.scale}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f"ratio is a range of positive aspect ratios, got {self.ratio}.")
        if self.crop_padding < 0 or self.color_jitter < 0:
            raise ConfigError(
                f"crop_padding and color_jitter cannot be negative, got {self.crop_padding} and {self.color_jitter}."
            )
        if self.erasing_count < 1:
            raise ConfigError(f"erasing_count must be at least 1, got {self.erasing_count}.")


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(type(value) is int for value in values):
        raise ConfigError(f"{name} must be three integers (channels, height, width), got {values!r}.")
    return tuple(values)


def _numbers(name: str, values: object, count: int = 3) -> tuple[float, ...]:
    if isinstance(values, (list, tuple)) and len(values) == count:
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) == count and all(math.isfinite(number) for number in numbers):
            return numbers
    raise ConfigError(f"{name} must be {count} finite numbers, got {values!r}.")


def _one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(
            f"unknown {name} {value!r}, expected one of {', '.join(options)}.{suggestion(value, options)}"
        )
