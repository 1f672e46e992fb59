"""Decode image files whose samples are numbers of things, not brightness: every sample as the file holds it."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.budget import MAX_PIXELS, check_bytes
from vision_ssm.data.images import open_file, open_picture, orientation_of, reading, upright
from vision_ssm.data.pillow import silent_libtiff
from vision_ssm.data.png import png_depth
from vision_ssm.data.tiff_header import Photometric, TiffPage, is_tiff, read_page
from vision_ssm.errors import DataError

__all__ = ["STORED_SUFFIXES", "Stored", "read_stored"]

STORED_SUFFIXES = frozenset((".png", ".tif", ".tiff", ".bmp", ".gif"))
"""What a folder is searched for."""

_FORMATS = ("PNG", "TIFF", "BMP", "GIF")
_LOSSY = ("JPEG", "WEBP", "JPEG2000", "AVIF")
_LOSSY_TIFF = {6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000"}


class Stored(NamedTuple):
    """What a file holds.

    Attributes:
        values: indices [H, W] of a picture with a palette, or the values [H, W] of a grey one, as uint8, and as uint16
            where a sample has more than 8 bits; the colours [H, W, 3], uint8, of any other.
        palette: the colours [n, 3] that the indices are shown in; None without.
    """

    values: NDArray[np.uint8] | NDArray[np.uint16]
    palette: NDArray[np.uint8] | None = None


def read_stored(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Stored:
    """Read one file of indices: PNG, TIFF (of unsigned integers), BMP or GIF; upright, the first page or frame.

    Nothing is scaled: a sample of 1 bit is 0 or 1.

    Args:
        path: the file.
        max_pixels: see `vision_ssm.data.images.read_image`.

    Raises:
        DataError: naming the file and the reason: unreadable, of a lossy format, or not of whole numbers of up to 16
            bits (colours: 8).
    """
    path = Path(path)
    with reading(repr(str(path)), max_pixels), open_file(path) as file:
        page = read_page(file) if is_tiff(file) else None
        if page is not None:
            _require_whole_numbers(page)
            check_bytes(page.rows * page.row_bytes, max_pixels)  # of a segment, which is decoded at once
        with open_picture(file, page, max_pixels) as image:
            _require_exact(image, file)
            with silent_libtiff(image):
                image.load()
            spread = _spread(image, file, page)
            turned = upright(_without_alpha(image), orientation_of(image))
        if turned.mode in ("RGB", "1"):  # True is 1
            return Stored(np.array(turned, dtype=np.uint8))
        if turned.mode == "P":
            return Stored(np.array(turned), np.array(turned.getpalette("RGB"), np.uint8).reshape(-1, 3))
        if turned.mode == "L":
            values = np.array(turned)
            return Stored(values // np.uint8(spread) if spread > 1 else values)
        if turned.mode == "I" or turned.mode.startswith("I;16"):
            return Stored(np.array(turned).astype(np.uint16))
        raise DataError(
            f"expected indices, grey values or RGB colours, and it holds {turned.mode} pixels; save it as a PNG of "
            "8 bits"
        )


def _require_whole_numbers(page: TiffPage) -> None:
    if set(page.formats) != {1} or page.depth is None or page.depth > 16:
        raise DataError(f"expected whole numbers of 8 or 16 bits without sign, and this TIFF holds {page}; convert it")
    if page.compression in _LOSSY_TIFF:
        raise DataError(
            f"it is compressed as {_LOSSY_TIFF[page.compression]}, which changes values at every edge; save it as "
            "PNG, or as TIFF compressed without loss, from its source"
        )


def _require_exact(image: Image.Image, file: BinaryIO) -> None:
    if image.format in _LOSSY:
        raise DataError(
            f"it is a {image.format} file, which changes values at every edge; save it as PNG from its source"
        )
    if image.format not in _FORMATS:
        raise DataError(f"expected a file of {', '.join(_FORMATS)}, got {image.format}; save it as PNG")
    if image.format == "PNG" and image.mode in ("RGB", "RGBA", "LA") and png_depth(file) > 8:
        raise DataError("its colours have 16 bits per sample, and 8 are read; save it with 8")


def _spread(image: Image.Image, file: BinaryIO, page: TiffPage | None) -> int:
    """What Pillow has multiplied grey values of 2 and 4 bits by, to reach white."""
    if image.mode != "L":
        return 1
    if image.format == "PNG":
        depth = png_depth(file)
    elif page is not None and page.photometric in (Photometric.BLACK_IS_ZERO, Photometric.WHITE_IS_ZERO):
        depth = page.bits[0]
    else:
        return 1
    return 255 // (2**depth - 1) if depth in (2, 4) else 1


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode not in ("RGBA", "LA"):
        return image
    opaque = image.getchannel("A").getextrema()[0] == 255
    if not opaque:
        raise DataError("some of its pixels are transparent, which says nothing about what is there; fill them")
    return image.convert(image.mode[:-1])
