"""Decode image files, arrays in .npy files included, into 8-bit RGB, or say which cannot be decoded and why."""

from __future__ import annotations

import importlib
import io
import logging
import os
import re
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from vision_ssm.errors import DataError

__all__ = [
    "ARRAY_SUFFIX",
    "DECODER_ERRORS",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "check_image",
    "check_pixels",
    "decoding",
    "open_image",
    "read_array",
    "read_image",
    "reading",
    "rgb_array",
    "to_rgb",
]

MAX_PIXELS = 2**29
"""Refuse to decode more pixels than this (23,170 x 23,170; 1.6 GB as RGB). 16,384 x 16,384 scans are half of it."""

ARRAY_SUFFIX = ".npy"

IMAGE_SUFFIXES = frozenset(
    f".{suffix}"
    for suffix in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "gif", "bmp", "webp", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "jp2", "j2k", "avif"),
    )
) | {ARRAY_SUFFIX}
"""What a folder is searched for."""

_READ_AT_ONCE = 2**24  # bytes

# A closed list: Pillow would also hand EPS files to Ghostscript, and open video and font formats. Plugins that are not
# loaded by name are searched for among all of Pillow's at the first unreadable file; AVIF's came with Pillow 11.3.
Image.preinit()
for _plugin in ("TiffImagePlugin", "WebPImagePlugin", "Jpeg2KImagePlugin", "AvifImagePlugin"):
    with suppress(ImportError):
        importlib.import_module(f"PIL.{_plugin}")
_KNOWN = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG2000", "AVIF")
_FORMATS = tuple(name for name in _KNOWN if name in Image.OPEN)

# What Pillow's decoders are known to raise on damaged files: they parse binary structures in Python and C.
DECODER_ERRORS = (
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
    Image.DecompressionBombError,
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
        path: an image file (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM family, JPEG 2000, AVIF), or a .npy file of a uint8
            array [H, W] or [H, W, 3].
        max_pixels: refuse files whose header announces more, before decoding anything.

    Raises:
        DataError: naming the file and the reason.
    """
    path = Path(path)
    if path.suffix.lower() == ARRAY_SUFFIX:
        return Image.fromarray(np.ascontiguousarray(read_array(path, max_pixels=max_pixels)))
    with reading(path, max_pixels), open_image(path, max_pixels) as image:
        with _silent_libtiff(image):
            image.load()
        return to_rgb(_upright(image))


def check_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read only the header of an image file and return (width, height).

    Raises:
        DataError: naming the file and the reason. Damage behind the header goes unnoticed.
    """
    path = Path(path)
    if path.suffix.lower() == ARRAY_SUFFIX:
        height, width, _ = read_array(path, max_pixels=max_pixels).shape
        return width, height
    with reading(path, max_pixels), open_image(path, max_pixels) as image:
        return image.size


def read_array(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Map a .npy file of a uint8 array [H, W] or [H, W, 3] into memory, as [H, W, 3]; nothing is loaded yet.

    Raises:
        DataError: naming the file and the reason.
    """
    path = Path(path)
    with reading(path, max_pixels):
        _file_size(path)
        pixels = rgb_array(np.load(path, mmap_mode="r", allow_pickle=False))
        check_pixels(pixels.shape[1], pixels.shape[0], max_pixels)
        return pixels


def rgb_array(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a uint8 array [H, W] or [H, W, 3] as [H, W, 3], without copying.

    Raises:
        DataError: the array is no such image.
    """
    is_image = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if pixels.dtype != np.uint8 or not is_image or pixels.size == 0:
        raise DataError(f"an array must be uint8 of shape [H, W] or [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[:, :, None], (*pixels.shape, 3))


@contextmanager
def reading(path: Path, max_pixels: int) -> Iterator[None]:
    """Within the block, images may be decoded, and what decoders raise becomes a DataError naming file and reason."""
    with decoding(max_pixels):
        try:
            yield
        except DECODER_ERRORS as error:
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


# Pillow logs some damage; without any handler Python would print that to the terminal.
logging.getLogger("PIL").addHandler(logging.NullHandler())

_open_limits: list[int | None] = []
_limits_lock = threading.Lock()
_hidden_stderr: list[int] = []  # the true one, while libtiff's is turned away
_pillows_limit = Image.MAX_IMAGE_PIXELS


@contextmanager
def decoding(max_pixels: int | None = None) -> Iterator[None]:
    """Within the block Pillow does not warn, and its own limit is at least ``max_pixels``; None lifts it.

    Pillow's limit of 179 million pixels also guards `Image.crop`, so transforms of large images belong in here too.
    Blocks may be nested and may overlap in threads: the widest limit holds.
    """
    _move_limit(_open_limits.append, max_pixels)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        _move_limit(_open_limits.remove, max_pixels)


def _move_limit(change: Callable[[int | None], None], limit: int | None) -> None:
    global _pillows_limit  # noqa: PLW0603 - Pillow's own setting is a global, too
    with _limits_lock:
        if not _open_limits:
            _pillows_limit = Image.MAX_IMAGE_PIXELS
        change(limit)
        wanted = [limit for limit in _open_limits if limit is not None]
        if not _open_limits:
            Image.MAX_IMAGE_PIXELS = _pillows_limit
        else:
            Image.MAX_IMAGE_PIXELS = max(wanted) if len(wanted) == len(_open_limits) else None


@contextmanager
def _silent_libtiff(image: Image.Image) -> Iterator[None]:
    # libtiff reports damage to the C standard error, past Python; Pillow turns the same damage into an OSError.
    if image.format != "TIFF":
        yield
        return
    with _limits_lock, open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        _hidden_stderr.append(kept)
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            os.dup2(kept, 2)
            _hidden_stderr.clear()
            os.close(kept)


def _renew_after_fork() -> None:
    """In a child, free what another thread held when it was born: that thread is not there to do so."""
    global _limits_lock  # noqa: PLW0603
    _limits_lock = threading.Lock()
    if _hidden_stderr:
        os.dup2(_hidden_stderr.pop(), 2)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_after_fork)


def open_image(path: Path, max_pixels: int) -> Image.Image:
    """Read the header. Raises any of `DECODER_ERRORS` with the bare reason; the caller adds the file's name."""
    # Pillow reads headers in many small steps, which costs more than the decoding of a small image.
    source = io.BytesIO(path.read_bytes()) if _file_size(path) <= _READ_AT_ONCE else path
    try:
        image = Image.open(source, formats=_FORMATS)
    except Image.DecompressionBombError as error:  # over twice max_pixels: some decoders allocate while opening
        announced = re.search(r"\d+", str(error))
        raise _too_large(int(announced[0]) if announced else 2 * max_pixels, max_pixels) from error
    width, height = image.size
    if width < 1 or height < 1:
        image.close()
        raise DataError(f"its header announces {width} x {height} pixels")
    try:
        check_pixels(width, height, max_pixels)
    except DataError:
        image.close()
        raise
    return image


def _file_size(path: Path) -> int:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError("it is a folder")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DataError("it is not a regular file")
    if status.st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    return status.st_size


def check_pixels(width: int, height: int, max_pixels: int) -> None:
    """Raise DataError, without the file's name, if these are more pixels than ``max_pixels``."""
    if width * height > max_pixels:
        raise _too_large(width * height, max_pixels)


def _too_large(pixels: int, max_pixels: int) -> DataError:
    return DataError(
        f"its header announces {pixels:,} pixels, over the limit of {max_pixels:,}; if the file is genuine and memory "
        f"allows ({3 * pixels / 1e9:.1f} GB), raise the limit with max_pixels={pixels} (predict: --max-pixels)"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except DECODER_ERRORS:
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
