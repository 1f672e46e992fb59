"""Pixel rows straight from files that hold them uncompressed, at the places that Pillow's header readers find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.images import DECODER_ERRORS, to_rgb
from vision_ssm.errors import DataError

__all__ = ["raw_bands"]

_ORIENTATION = 0x0112
_READ_BYTES = 2**23

# Bits per pixel of the layouts that are read here; files in any other are decoded whole.
_BITS = {
    **{"1": 1, "1;I": 1, "L": 8, "L;I": 8, "LA": 16, "I;16": 16, "I;16B": 16},
    **{"RGB": 24, "BGR": 24, "RGBX": 32, "BGRX": 32, "RGBA": 32, "BGRA": 32, "RGBa": 32, "CMYK": 32},
    **{"RGB;16L": 48, "RGB;16B": 48},
}


class _Tile(NamedTuple):
    """A rectangle of pixels in the file: corners, place of its first byte, layout, bytes per row, and 1 or -1: the
    first row in the file is the top or the bottom one.
    """

    left: int
    top: int
    right: int
    bottom: int
    offset: int
    layout: str
    stride: int
    direction: int


def raw_bands(path: Path, image: Image.Image) -> Iterator[NDArray[np.uint8]] | None:
    """Return uint8 bands [r, W, 3] of an image whose header has been read; None if its pixels are not there as rows.

    The bands raise DataError, without the file's name, when the file is too short.
    """
    if not _is_upright(image) or "transparency" in image.info or image.mode == "P":
        return None
    tiles = [_tile(*entry) for entry in getattr(image, "tile", ())]
    known = [tile for tile in tiles if tile is not None]
    if not known or len(known) < len(tiles):
        return None
    rows: dict[tuple[int, int], list[_Tile]] = {}
    for tile in known:
        rows.setdefault((tile.top, tile.bottom), []).append(tile)
    if not _covers(sorted(rows), image.height):
        return None
    if not all(_covers(sorted((t.left, t.right) for t in row), image.width) for row in rows.values()):
        return None
    return _bands(path, image, [rows[place] for place in sorted(rows)])


def _is_upright(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION, 1) == 1)
    except DECODER_ERRORS:  # damaged EXIF data says nothing about the pixels
        return True


def _tile(codec: str, extents: tuple[int, int, int, int] | None, offset: int, args: object) -> _Tile | None:
    layout, stride, direction = (*args, 0, 1)[:3] if isinstance(args, tuple) and args else (args, 0, 1)
    if codec != "raw" or extents is None or layout not in _BITS:
        return None
    packed = (_BITS[layout] * (extents[2] - extents[0]) + 7) // 8
    return _Tile(*extents, offset, layout, stride or packed, direction or 1)


def _covers(spans: Sequence[tuple[int, int]], size: int) -> bool:
    at = 0
    for start, end in spans:
        if start != at or end <= start:
            return False
        at = end
    return at == size


def _bands(path: Path, image: Image.Image, rows: Sequence[Sequence[_Tile]]) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        for row in rows:
            top, bottom = row[0].top, row[0].bottom
            step = max(1, _READ_BYTES // sum(tile.stride for tile in row))
            for start in range(top, bottom, step):
                end = min(start + step, bottom)
                band = Image.new(image.mode, (image.width, end - start))
                for tile in row:
                    band.paste(_decoded(file, image, tile, start, end), (tile.left, 0))
                band.format = image.format  # decides what mode "I" means
                yield np.asarray(to_rgb(band))


def _decoded(file: BinaryIO, image: Image.Image, tile: _Tile, start: int, end: int) -> Image.Image:
    skipped = start - tile.top if tile.direction == 1 else tile.bottom - end
    file.seek(tile.offset + skipped * tile.stride)
    count = end - start
    packed = (_BITS[tile.layout] * (tile.right - tile.left) + 7) // 8
    data = file.read(count * tile.stride)
    if len(data) < (count - 1) * tile.stride + packed:  # the last row may lack its filling
        raise DataError(f"the file is truncated: its pixels end within rows {start} to {end} of {image.height}")
    data += bytes(count * tile.stride - len(data))
    size = (tile.right - tile.left, count)
    return Image.frombytes(image.mode, size, data, "raw", tile.layout, tile.stride, tile.direction)
