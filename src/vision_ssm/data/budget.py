"""How large an image may be: pixels that its header announces, and bytes that decoding it would take."""

from __future__ import annotations

import os

from vision_ssm.errors import ConfigError, DataError

__all__ = ["MAX_BYTES", "MAX_BYTES_VARIABLE", "MAX_PIXELS", "check_bytes", "check_pixels", "picture_bytes", "too_large"]

MAX_PIXELS = 2**29
"""Refuse to decode more pixels than this (23,170 x 23,170; 1.6 GB as RGB). 16,384 x 16,384 scans are half of it."""

MAX_BYTES = 16 * MAX_PIXELS
"""Refuse to decode what would take more memory than this (8.6 GB), whatever its width and height.

Raising ``max_pixels`` raises it in proportion; the environment variable `MAX_BYTES_VARIABLE` replaces it.
"""

MAX_BYTES_VARIABLE = "VISION_SSM_MAX_IMAGE_BYTES"


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise DataError, without the file's name, if these are more pixels than ``max_pixels``."""
    if width * height > max_pixels:
        raise too_large(width * height, max_pixels)


def too_large(pixels: int, max_pixels: int) -> DataError:
    """Return the error for an image of too many pixels."""
    return DataError(
        f"its header announces {pixels:,} pixels, over the limit of {max_pixels:,}; if the file is genuine and memory "
        f"allows ({3 * pixels / 1e9:.1f} GB), raise the limit with max_pixels={pixels} (predict: --max-pixels)"
    )


def check_bytes(needed: int, max_pixels: int) -> None:
    """Raise DataError, without the file's name, if decoding would take more bytes than the budget.

    Raises:
        ConfigError: the environment variable is no number of bytes.
    """
    allowed = _allowed(max_pixels)
    if needed > allowed:
        raise DataError(
            f"decoding it would take {needed:,} bytes of memory, over the limit of {allowed:,}; if the file is genuine "
            f"and memory allows, set the environment variable {MAX_BYTES_VARIABLE}={needed}"
        )


def picture_bytes(width: int, height: int, bytes_per_pixel: int = 4) -> int:
    """Return what Pillow takes for a picture: rows of whole words, and a pointer for each."""
    return height * (8 + -(-width * bytes_per_pixel // 4) * 4)


def _allowed(max_pixels: int) -> int:
    setting = os.environ.get(MAX_BYTES_VARIABLE)
    if setting is None:
        return max(MAX_BYTES, 16 * max_pixels)
    try:
        allowed = int(setting)
    except ValueError:
        allowed = 0
    if allowed < 1:
        raise ConfigError(f"the environment variable {MAX_BYTES_VARIABLE} must be a number of bytes, got {setting!r}.")
    return allowed
