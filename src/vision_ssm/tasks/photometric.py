"""Random changes of brightness, contrast, saturation and hue, which leave every pixel where it is."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import adjust_hue

from vision_ssm.errors import ConfigError

__all__ = ["Distortion", "distorted", "varied"]


@dataclass(frozen=True)
class Distortion:
    """How far colours are moved; each of the four changes happens with a probability of one half.

    Attributes:
        brightness: added, up to so much of 255, either sign.
        contrast: smallest and largest factor of every value.
        saturation: smallest and largest factor of the saturation.
        hue: turned by up to so much of the 180 that are the whole circle, either way.

    Raises:
        ConfigError: a number is out of its range.
    """

    brightness: float = 32.0
    contrast: tuple[float, float] = (0.5, 1.5)
    saturation: tuple[float, float] = (0.5, 1.5)
    hue: float = 18.0

    def __post_init__(self) -> None:
        if not 0 <= self.brightness <= 255:
            raise ConfigError(f"brightness must lie in 0..255, got {self.brightness}.")
        if not 0 <= self.hue <= 90:
            raise ConfigError(f"hue must lie in 0..90, got {self.hue}.")
        for name in ("contrast", "saturation"):
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ConfigError(f"{name} must be (smallest, largest) factor, not below 0, got ({low}, {high}).")


def distorted(pixels: Tensor, limits: Distortion) -> Tensor:
    """Return float32 [3, H, W] in 0..255 with its colours changed at random; draws from `random`.

    Brightness, then saturation and hue in HSV; the contrast comes second or last, at even odds. Values are cut to
    0..255 after each change. Source: `PhotoMetricDistortion` of mmsegmentation 1.2.2, which also rounds after each
    change, and takes whole numbers for the hue; here nothing is rounded.
    """
    if _even():
        pixels = (pixels + random.uniform(-limits.brightness, limits.brightness)).clamp(0, 255)
    contrast_last = _even()
    if not contrast_last:
        pixels = _contrasted(pixels, limits)
    if _even():
        pixels = _saturated(pixels, random.uniform(*limits.saturation))
    if _even():
        pixels = 255 * adjust_hue(pixels / 255, random.uniform(-limits.hue, limits.hue) / 180)
    return _contrasted(pixels, limits) if contrast_last else pixels


def varied(planes: Tensor) -> Tensor:
    """Return normalised bands [C, H, W] brighter or darker, with more or less contrast; draws from `random`.

    What is left of `distorted` where there are no three colours to turn: all bands alike, so that what one says beside
    another stays. At even odds each, values are multiplied by 0.75 to 1.25 and moved by up to 0.25 deviations. No
    published recipe has it.
    """
    if _even():
        planes = planes * random.uniform(0.75, 1.25)
    return planes + random.uniform(-0.25, 0.25) if _even() else planes


def _contrasted(pixels: Tensor, limits: Distortion) -> Tensor:
    return (pixels * random.uniform(*limits.contrast)).clamp(0, 255) if _even() else pixels


def _saturated(pixels: Tensor, factor: float) -> Tensor:
    """Scale S of HSV, up to 1, at the same hue and V: the distances to the largest channel grow by that factor."""
    value, lowest = pixels.amax(0, keepdim=True), pixels.amin(0, keepdim=True)
    most = value / (value - lowest).clamp_min(torch.finfo(pixels.dtype).tiny)
    return value - (value - pixels) * most.clamp_max(factor)


def _even() -> bool:
    return random.random() < 0.5
