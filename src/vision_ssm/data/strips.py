"""Images in horizontal strips of 8-bit RGB: from the file piece by piece where its format allows, else decoded whole.

| what | how it is read |
|---|---|
| arrays in memory, .npy files | sliced; files are mapped, not loaded |
| uncompressed TIFF and BMP, binary PPM, PGM, PBM | the rows asked for, from their place in the file |
| other TIFF, tiled and BigTIFF included | one row of tiles after the other, with the extra ``large`` |
| everything else; images with an EXIF orientation | decoded whole, at 8 bits (four bytes per pixel in Pillow) |

The colours are those of `vision_ssm.data.images.read_image`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.images import (
    ARRAY_SUFFIX,
    MAX_PIXELS,
    Streamed,
    decoding,
    open_file,
    picture_in_memory,
    read_array,
    read_image,
    reading,
    rgb_array,
    streamed,
)
from vision_ssm.data.strips_tiff import EXTRA, needs_packages

__all__ = ["Strips", "open_strips"]

_STRIP_BYTES = 2**23  # as floating-point numbers four times that: small beside the tokens of a large image


@dataclass(frozen=True)
class Strips:
    """An image that is read as it is consumed.

    Attributes:
        height: in pixels.
        width: in pixels.
        bands: uint8 arrays [r, W, 3] from top to bottom, once; an array may be a view of the file and is only read.
            Raises DataError when the file turns out to be damaged.
        note: why the file could not be read in strips although it could be with the extra installed; else None.
    """

    height: int
    width: int
    bands: Iterator[NDArray[np.uint8]]
    note: str | None = None


@contextmanager
def open_strips(image: str | Path | Image.Image | NDArray[Any], *, max_pixels: int = MAX_PIXELS) -> Iterator[Strips]:
    """Open an image for reading from top to bottom.

    Args:
        image: a file that `read_image` reads, a .npy file or an array (uint8 [H, W] or [H, W, 3]), or a PIL image.
        max_pixels: refuse files whose header announces more.

    Raises:
        DataError: the image cannot be used; names the file, and the extra to install if that is what it takes.
    """
    if isinstance(image, Image.Image):
        yield _from_picture(picture_in_memory(image, max_pixels=max_pixels))
    elif isinstance(image, np.ndarray):
        yield _from_array(rgb_array(image))
    elif Path(image).suffix.lower() == ARRAY_SUFFIX:
        yield _from_array(read_array(image, max_pixels=max_pixels))
    else:
        with _file_strips(Path(image), max_pixels) as strips:
            yield strips


@contextmanager
def _file_strips(path: Path, max_pixels: int) -> Iterator[Strips]:
    name = repr(str(path))
    with ExitStack() as opened:
        with reading(name, max_pixels):
            rows, page = streamed(opened.enter_context(open_file(path)), opened, max_pixels)
        if rows is not None and rows.orientation == 1:
            yield _guarded(name, rows, max_pixels)
            return
    note = None
    if rows is None and page is not None and needs_packages(page):
        note = f"{name} is decoded whole before it is cut into strips; {EXTRA} reads it piece by piece."
    whole = _from_picture(read_image(path, max_pixels=max_pixels))
    yield Strips(whole.height, whole.width, whole.bands, note)


def _from_array(pixels: NDArray[np.uint8]) -> Strips:
    height, width = pixels.shape[:2]
    return Strips(height, width, (pixels[top:bottom] for top, bottom in _cuts(height, width)))


def _from_picture(picture: Image.Image) -> Strips:
    def bands() -> Iterator[NDArray[np.uint8]]:
        for top, bottom in _cuts(picture.height, picture.width):
            # Pillow's limit guards crops, too; what is larger than that has been let through already.
            with decoding():
                band = picture.crop((0, top, picture.width, bottom))
            yield np.asarray(band)

    return Strips(picture.height, picture.width, bands())


def _guarded(name: str, rows: Streamed, max_pixels: int) -> Strips:
    """Bands of even heights that name the file when it is damaged, without catching what their consumer raises."""

    def named() -> Iterator[NDArray[np.uint8]]:
        source = iter(rows.bands)
        while True:
            with reading(name, max_pixels):
                band = next(source, None)
            if band is None:
                return
            yield band

    return Strips(rows.height, rows.width, _regrouped(named(), _rows(rows.width)))


def _regrouped(bands: Iterable[NDArray[np.uint8]], rows: int) -> Iterator[NDArray[np.uint8]]:
    """Files come in bands of one row or of a thousand; hand them on in bands of ``rows``, the last one shorter."""
    waiting: list[NDArray[np.uint8]] = []
    count = 0
    for band in bands:
        waiting.append(band)
        count += len(band)
        if count >= rows:
            joined = waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
            whole = count - count % rows
            for top in range(0, whole, rows):
                yield joined[top : top + rows]
            waiting, count = ([joined[whole:]], count - whole) if count > whole else ([], 0)
    if waiting:
        yield np.concatenate(waiting)


def _rows(width: int) -> int:
    return max(1, _STRIP_BYTES // (3 * width))


def _cuts(height: int, width: int) -> Iterator[tuple[int, int]]:
    rows = _rows(width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)
