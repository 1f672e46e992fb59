"""How an image becomes a tensor, as plain records: no torch here, so that configurations can hold them cheaply."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vision_ssm import moved
from vision_ssm.errors import ConfigError, suggestion

__all__ = ["CropMode", "Interpolation", "Preprocessing", "Samples"]

moved.answer(__name__)

Samples = Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
CropMode = Literal["center", "squash", "border"]

MOST_BANDS = 16
"""Of an image."""

MOST_PIXELS = 2**28
"""Of a resized image: as a tensor it takes 3 GB."""


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before a trained model sees it; stored with the weights.

    The fields and their meaning are timm's (`timm.data.create_transform`): the image is resized so that its shorter
    side is ``side / crop_pct``, cropped to ``input_size``, divided by 255, and normalised with ``mean`` and ``std``.
    Images of other channels than three, or of other samples than 8 bits without sign, are beyond timm's.

    Attributes:
        input_size: channels (3 of a picture, 1 of a grey one, the bands of a scene), height and width of the tensor.
        mean: per channel, in units of `unit`.
        std: per channel, in units of `unit`, positive.
        interpolation: of the resize.
        crop_pct: share of the resized side that the crop keeps, in (0, 1].
        crop_mode: ``center`` keeps the aspect ratio and cuts the ends off, ``squash`` distorts, ``border`` pads.
        samples: type of the numbers in the images that the model was trained on.

    Raises:
        ConfigError: a field is out of its range.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    samples: str = "uint8"

    def __post_init__(self) -> None:
        # Records come back from JSON and YAML, where tuples are lists.
        object.__setattr__(self, "input_size", _integers("input_size", self.input_size))
        channels = self.input_size[0]
        if not 1 <= channels <= MOST_BANDS:
            raise ConfigError(f"input_size starts with 1 to {MOST_BANDS} channels, got {self.input_size}.")
        object.__setattr__(self, "mean", _numbers("mean", self.mean, channels))
        object.__setattr__(self, "std", _numbers("std", self.std, channels))
        if min(self.input_size) < 1:
            raise ConfigError(f"the image size must be at least 1 pixel in each direction, got {self.input_size[1:]}.")
        if min(self.std) <= 0:
            raise ConfigError(f"std must be positive, got {self.std}.")
        if not 0 < self.crop_pct <= 1:
            raise ConfigError(f"crop_pct must lie in (0, 1], got {self.crop_pct}.")
        height, width = (side / self.crop_pct for side in self.input_size[1:])
        if height * width > MOST_PIXELS:
            raise ConfigError(
                f"crop_pct {self.crop_pct} with input_size {self.input_size} would enlarge every image to "
                f"{height:.4g} x {width:.4g} pixels; at most {MOST_PIXELS:,} are possible."
            )
        _one_of("interpolation", self.interpolation, get_args(Interpolation))
        _one_of("crop_mode", self.crop_mode, get_args(CropMode))
        _one_of("samples", self.samples, get_args(Samples))

    @property
    def unit(self) -> float:
        """What mean and std count in: 255 for samples of 8 bits without sign, 1 for any other."""
        return 255.0 if self.samples == "uint8" else 1.0

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """Build from a mapping such as `timm.data.resolve_model_data_config` returns; other keys are an error."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in fields:
            if key not in known:
                raise ConfigError(f"unknown preprocessing field {key!r}.{suggestion(key, known)}")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """Return a mapping of plain lists, strings and numbers, ready for JSON; ``samples`` only where not uint8."""
        fields = {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }
        if self.samples == "uint8":  # as versions wrote, and read, that knew nothing else
            del fields["samples"]
        return fields

    def with_size(self, size: int | tuple[int, int]) -> Preprocessing:
        """Return the same record for another image size: a side, or (height, width)."""
        height, width = (size, size) if isinstance(size, int) else size
        return dataclasses.replace(self, input_size=(self.input_size[0], height, width))


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(type(value) is int for value in values):
        raise ConfigError(f"{name} must be three integers (channels, height, width), got {values!r}.")
    return tuple(values)


def _numbers(name: str, values: object, count: int) -> tuple[float, ...]:
    if isinstance(values, (list, tuple)) and len(values) == count:
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            numbers = ()
        if len(numbers) == count and all(math.isfinite(number) for number in numbers):
            return numbers
    raise ConfigError(f"{name} must be {count} finite numbers, got {values!r}.")


def _one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(
            f"unknown {name} {value!r}, expected one of {', '.join(options)}.{suggestion(value, options)}"
        )
