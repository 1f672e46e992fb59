"""Pixels of any kind to 8-bit RGB: the one set of rules for files, strips of files and images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from vision_ssm.errors import DataError

__all__ = ["ORIENTATIONS", "eight_bits", "rgb_array", "to_rgb"]

_PIECE = 2**22  # pixels converted at a time: intermediate copies of the whole would be several times its size

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to RGB, by the rules of `vision_ssm.data.images.read_image`.

    Raises:
        DataError: the mode has no defined conversion.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    top = 65535
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.mode.startswith("I;16"):
        top = 2 ** int(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0]) - 1  # Pillow does not scale 12 bits
    # PNG and PNM files of 16 bits per pixel come as mode "I" from some Pillow versions; other files in that mode
    # hold 32-bit integers.
    grey_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not grey_16:
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"the pixels are {kind}, which have no defined white; convert the image to 8 or 16 bits")
    if image.width * image.height <= _PIECE:
        return _grey(image, top) if grey_16 else _converted(image)
    result = Image.new("RGB", image.size)
    for start, end in _pieces(image):
        piece = image.crop((0, start, image.width, end))
        result.paste(_grey(piece, top) if grey_16 else _converted(piece), (0, start))
    return result


def _pieces(image: Image.Image) -> Iterator[tuple[int, int]]:
    rows = max(1, _PIECE // image.width)
    for start in range(0, image.height, rows):
        yield start, min(start + rows, image.height)


def _grey(image: Image.Image, top: int) -> Image.Image:
    values = np.asarray(image)
    pixels = eight_bits(values, top)
    key = image.info.get("transparency")
    if isinstance(key, int):
        pixels = np.where(values == key, np.uint8(255), pixels)
    return Image.fromarray(pixels).convert("RGB")


def _converted(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        # "La" becomes RGBA by way of LA only.
        pixels_and_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(pixels_and_alpha)
        return canvas.convert("RGB")
    return image.convert("RGB")


def eight_bits(values: NDArray[Any], top: int) -> NDArray[np.uint8]:
    """Scale whole numbers 0..``top`` (at most 65535) to 0..255, rounded; what is above ``top`` is white."""
    table = (np.arange(top + 1, dtype=np.int64) * 255 + top // 2) // top
    scaled: NDArray[np.uint8] = np.take(table.astype(np.uint8), values, mode="clip")
    return scaled


def rgb_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a uint8 array [H, W] or [H, W, 3] as [H, W, 3], without copying.

    Raises:
        DataError: the array is no such image.
    """
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or pixels.size == 0:
        raise DataError(f"an array must be uint8 of shape [H, W] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))
