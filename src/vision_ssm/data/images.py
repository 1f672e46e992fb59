"""Decode image files into 8-bit RGB, or say which file cannot be decoded and why."""

from __future__ import annotations

import io
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vision_ssm.errors import DataError

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "check_image", "decoding", "read_image", "to_rgb"]

MAX_PIXELS = 2**29
"""Refuse to decode more pixels than this (23,170 x 23,170; 1.6 GB as RGB). 16,384 x 16,384 scans are half of it."""

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif"),
    )
)

_READ_AT_ONCE = 2**24  # bytes

# A closed list: Pillow would also hand EPS files to Ghostscript, and open video and font formats.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")

# What Pillow's decoders are known to raise on damaged files: they parse binary structures in Python and C.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
)


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image file as 8-bit RGB, upright.

    - Transparency is composited over white, as documents and web pages show it.
    - 16-bit greyscale is scaled from the full range 0..65535 to 0..255 (never clipped); 16-bit colour likewise.
      32-bit integer and float images have no defined white, and are refused.
    - CMYK becomes RGB by Pillow's plain formula; embedded colour profiles are not applied.
    - Of animations and multi-page files, the first frame or page.
    - The EXIF orientation is applied; damaged EXIF data is ignored, as it says nothing about the pixels.

    Args:
        path: an image file (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM family, JPEG 2000, AVIF).
        max_pixels: refuse files whose header announces more, before decoding anything.

    Raises:
        DataError: naming the file and the reason.
    """
    path = Path(path)
    with decoding():
        try:
            with _open(path, max_pixels) as image:
                image.load()
                return to_rgb(_upright(image))
        except _DECODER_ERRORS as error:
            raise DataError(f"cannot read image {str(path)!r}: {_reason(error)}.") from error


def check_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read only the header of an image file and return (width, height).

    Raises:
        DataError: naming the file and the reason. Damage behind the header goes unnoticed.
    """
    path = Path(path)
    with decoding():
        try:
            with _open(path, max_pixels) as image:
                return image.size
        except _DECODER_ERRORS as error:
            raise DataError(f"cannot read image {str(path)!r}: {_reason(error)}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to RGB, by the rules of `read_image`.

    Raises:
        DataError: the mode has no defined conversion.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    # PNG and PNM files of 16 bits per pixel come as mode "I" from some Pillow versions; other files in that mode
    # hold 32-bit integers.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        pixels = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((pixels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise DataError(f"the pixels are {kind}, which have no defined white; convert the image to 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        pixels_and_alpha = image.convert("RGBA")
        canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
        canvas.alpha_composite(pixels_and_alpha)
        return canvas.convert("RGB")
    return image.convert("RGB")


class _Depth:
    """How many `decoding` blocks are open over all threads, and what to restore after the last."""

    lock = threading.Lock()
    count = 0
    limit: int | None = None


@contextmanager
def decoding() -> Iterator[None]:
    """Within the block Pillow neither warns nor applies its own pixel limit (ours is checked by `read_image`).

    Pillow's limit of 179 million pixels also guards `Image.crop`, so transforms of large images belong in here too.
    """
    with _Depth.lock:
        if _Depth.count == 0:
            _Depth.limit = Image.MAX_IMAGE_PIXELS
            Image.MAX_IMAGE_PIXELS = None
        _Depth.count += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        with _Depth.lock:
            _Depth.count -= 1
            if _Depth.count == 0:
                Image.MAX_IMAGE_PIXELS = _Depth.limit


# Raises any of _DECODER_ERRORS with the bare reason; the callers add the file's name.
def _open(path: Path, max_pixels: int) -> Image.Image:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError("it is a folder")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DataError("it is not a regular file")
    if status.st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    # Pillow reads headers in many small steps, which costs more than the decoding of a small image.
    source = io.BytesIO(path.read_bytes()) if status.st_size <= _READ_AT_ONCE else path
    image = Image.open(source, formats=_FORMATS)
    width, height = image.size
    if width < 1 or height < 1:
        image.close()
        raise DataError(f"its header announces {width} x {height} pixels")
    if width * height > max_pixels:
        image.close()
        pixels = width * height
        raise DataError(
            f"{width} x {height} is {pixels:,} pixels, over the limit of {max_pixels:,}; if the file is genuine and "
            f"memory allows ({3 * pixels / 1e9:.1f} GB), raise the limit with max_pixels={pixels}"
        )
    return image


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except _DECODER_ERRORS:
        return image
    return image


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in a supported format ({', '.join(_FORMATS)})"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error) or type(error).__name__).rstrip(".")
