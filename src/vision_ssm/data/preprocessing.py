"""How an image becomes a tensor, as plain records: no torch here, so that configurations can hold them cheaply."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from vision_ssm import moved
from vision_ssm.errors import ConfigError, suggestion

__all__ = ["CropMode", "Interpolation", "Preprocessing"]

moved.answer(__name__)

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
CropMode = Literal["center", "squash", "border"]

MOST_PIXELS = 2**28
"""Of a resized image: as a tensor it takes 3 GB."""


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
        height, width = (side / self.crop_pct for side in self.input_size[1:])
        if height * width > MOST_PIXELS:
            raise ConfigError(
                f"crop_pct {self.crop_pct} with input_size {self.input_size} would enlarge every image to "
                f"{height:.4g} x {width:.4g} pixels; at most {MOST_PIXELS:,} are possible."
            )
        _one_of("interpolation", self.interpolation, get_args(Interpolation))
        _one_of("crop_mode", self.crop_mode, get_args(CropMode))

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


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(type(value) is int for value in values):
        raise ConfigError(f"{name} must be three integers (channels, height, width), got {values!r}.")
    return tuple(values)


def _numbers(name: str, values: object) -> tuple[float, ...]:
    if isinstance(values, (list, tuple)) and len(values) == 3:
        try:
            numbers = tuple(float(value) for value in values)
        except (TypeError, ValueError, OverflowError):
            numbers = ()
        if len(numbers) == 3 and all(math.isfinite(number) for number in numbers):
            return numbers
    raise ConfigError(f"{name} must be 3 finite numbers, got {values!r}.")


def _one_of(name: str, value: str, options: tuple[str, ...]) -> None:
    if value not in options:
        raise ConfigError(
            f"unknown {name} {value!r}, expected one of {', '.join(options)}.{suggestion(value, options)}"
        )
