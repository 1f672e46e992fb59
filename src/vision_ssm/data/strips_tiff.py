"""Compressed, tiled and very large TIFF files, one row of their segments after the other, through tifffile."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.images import check_pixels, to_rgb
from vision_ssm.errors import DataError

__all__ = ["TiffBands", "is_tiff", "missing_packages", "tiff_bands"]

_PACKAGES = ("tifffile", "imagecodecs")
_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, little and big endian
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6
_JPEG = 7
_SEPARATE_PLANES = 2
_ORIENTATION = 274
_ALPHA_MODES = {(): "RGBA", (1,): "RGBa", (2,): "RGBA"}  # by kind of extra sample: unsaid, premultiplied, plain

# tifffile logs some damage that it then raises; without any handler Python would print that to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffBands(NamedTuple):
    """The first page of a TIFF file: its size and its uint8 bands [r, W, 3], top to bottom."""

    height: int
    width: int
    bands: Iterator[NDArray[np.uint8]]


def is_tiff(path: Path) -> bool:
    """Whether the file begins as TIFF or BigTIFF files do."""
    with path.open("rb") as file:
        return file.read(4) in _MAGIC


def missing_packages() -> list[str]:
    """Which of the packages that this takes are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def tiff_bands(path: Path, opened: ExitStack, max_pixels: int) -> TiffBands | None:
    """Open the first page of a TIFF file; None if its pixels are of a kind that is not read here.

    Read are upright grey and RGB images of 8 or 16 bits, in strips or tiles, interleaved or in planes, with or
    without alpha, in every compression that imagecodecs knows. The file is closed with ``opened``. Damage raises any of
    `vision_ssm.data.images.DECODER_ERRORS` with the bare reason, here or while reading bands.
    """
    tifffile = importlib.import_module("tifffile")
    page = opened.enter_context(tifffile.TiffFile(path)).pages.first
    check_pixels(page.imagewidth, page.imagelength, max_pixels)
    return TiffBands(page.imagelength, page.imagewidth, _bands(page)) if _is_supported(page) else None


def _is_supported(page: Any) -> bool:
    orientation = page.tags.get(_ORIENTATION)
    extras = tuple(int(kind) for kind in page.extrasamples)
    grey = page.photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and page.samplesperpixel == 1
    colour = page.photometric == _RGB and page.samplesperpixel >= 3
    # Colour differences are turned into RGB by the JPEG decoder only.
    colour |= page.photometric == _YCBCR and page.compression == _JPEG and page.samplesperpixel == 3
    bits = page.bitspersample if isinstance(page.bitspersample, int) else 0
    inverted_16_bit = page.photometric == _WHITE_IS_ZERO and bits == 16
    return (
        (orientation is None or orientation.value == 1)
        and (grey or colour)
        and page.sampleformat == 1  # unsigned integers
        and bits in (8, 16)
        and not inverted_16_bit
        and page.imagedepth == 1
        and (len(extras) != 1 or extras[0] in (0, 1, 2))
    )


def _bands(page: Any) -> Iterator[NDArray[np.uint8]]:
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    columns, rows = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
    across, down = -(-width // columns), -(-height // rows)
    planes = samples if page.planarconfig == _SEPARATE_PLANES else 1
    if len(page.dataoffsets) < planes * across * down:
        raise DataError(
            f"the file is damaged: {planes * across * down} segments expected, {len(page.dataoffsets)} listed"
        )
    for row in range(down):
        count = min(rows, height - row * rows)
        band = np.zeros((count, width, samples), dtype=page.dtype)
        for plane in range(planes):
            channels = slice(plane, plane + 1) if planes > 1 else slice(None)
            for column in range(across):
                segment = _segment(page, (plane * down + row) * across + column)
                if segment is not None:  # None: left out of a sparse file, which means zeros
                    left = column * columns
                    band[:, left : left + columns, channels] = segment[:count, : width - left]
        yield _rgb(band, page)


def _segment(page: Any, index: int) -> NDArray[Any] | None:
    offset, size = page.dataoffsets[index], page.databytecounts[index]
    if size == 0:
        return None
    file = page.parent.filehandle
    file.seek(offset)
    data = file.read(size)
    if len(data) < size:
        raise DataError(f"the file is truncated: segment {index} of {len(page.dataoffsets)} is not all there")
    tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression == _JPEG else {}
    decoded: NDArray[Any] = page.decode(data, index, **tables)[0][0]
    return decoded


def _rgb(band: NDArray[Any], page: Any) -> NDArray[np.uint8]:
    """Samples [r, W, S] to 8-bit RGB by the rules of `read_image`."""
    samples = band.shape[2]
    if band.dtype == np.uint16:
        # Grey is rounded, colour loses its lower byte: what read_image and Pillow do.
        band = (band.astype(np.uint32) + 128) // 257 if samples == 1 else band >> 8
    pixels = np.ascontiguousarray(band.astype(np.uint8, copy=False))
    if page.photometric == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    if samples == 1:
        return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    mode = _ALPHA_MODES.get(tuple(int(kind) for kind in page.extrasamples)) if samples == 4 else None
    if mode is None:  # further samples, such as infrared, are left out
        return pixels[:, :, :3]
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(to_rgb(Image.frombytes(mode, size, pixels.tobytes())))
