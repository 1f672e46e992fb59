"""PNG files: kept from metadata that Pillow refuses, and from transparency that it gets wrong."""

from __future__ import annotations

import importlib
import io
import os
import struct
import zlib
from typing import BinaryIO

import numpy as np
from PIL import Image

from vision_ssm.data.budget import check_bytes
from vision_ssm.data.pixels import to_rgb
from vision_ssm.data.strips_tiff import EXTRA, missing_packages
from vision_ssm.errors import DataError

__all__ = ["SIGNATURE", "png_depth", "png_rgb", "require_content", "without_large_metadata"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_LONGEST_TEXT = 2**20  # Pillow refuses more, and 64 times that in all
_MOST_TEXT = 32 * _LONGEST_TEXT
_MOST_RATIO = 1032  # of deflate: a pair of bits stands for at most 258 bytes
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type


def without_large_metadata(file: BinaryIO) -> BinaryIO:
    """Return the file, or a copy without colour profiles and texts that unpack to a lot: they are no pixels.

    Pillow refuses a file for them. Small texts stay, as they may hold the orientation.
    """
    dropped, at = [], len(SIGNATURE)
    size = file.seek(0, os.SEEK_END)
    text = total = 0
    while at + 12 <= size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        end = at + 12 + length
        if kind == b"iCCP":
            dropped.append((at, end))
        elif kind in _TEXTS:
            if total <= _MOST_TEXT:
                text = _unpacked_length(kind, file.read(length) if at + length <= size else b"")
                total += text
            if text > _LONGEST_TEXT or total > _MOST_TEXT:
                dropped.append((at, end))
        at = end
    if not dropped:
        return file
    copy, at = io.BytesIO(), 0
    for start, end in [*dropped, (size, size)]:
        file.seek(at)
        copy.write(file.read(start - at))
        at = end
    return copy


def _unpacked_length(kind: bytes, data: bytes) -> int:
    """Bytes that a text chunk unpacks to; what is far too much is not unpacked."""
    rest = data.partition(b"\0")[2]
    if kind == b"zTXt":
        packed = rest[1:]
    elif kind == b"iTXt" and rest[:1] == b"\1":
        packed = rest[2:].split(b"\0", 2)[-1]
    else:
        return len(data)
    try:
        return len(zlib.decompressobj().decompress(packed, _LONGEST_TEXT + 1))
    except zlib.error:  # Pillow takes it for empty
        return 0


def require_content(file: BinaryIO) -> None:
    """Refuse a file that is too short for the pixels it announces, before memory is taken for them.

    Raises:
        DataError: without the file's name.
    """
    width, height, depth, colour = _header(file)
    stored = height * ((width * _SAMPLES.get(colour, 1) * depth + 7) // 8 + 1)
    size = file.seek(0, os.SEEK_END)
    if stored > size * _MOST_RATIO:
        raise DataError(f"the file is truncated: {size} bytes cannot hold the {stored:,} bytes of its pixels")


def png_rgb(image: Image.Image, file: BinaryIO, max_pixels: int) -> Image.Image:
    """Convert a decoded PNG image to RGB, with the transparent colour compared in the depth of the file."""
    _, _, depth, colour = _header(file)
    key = image.info.get("transparency")
    if colour == 0 and depth < 8 and isinstance(key, int):
        # Pillow spreads pixels of 1, 2 and 4 bits over 0..255, but not the colour (of 1 bit in some versions only).
        key = (min(key, 1) if depth == 1 else key & (2**depth - 1)) * (255 // (2**depth - 1))
        image.info["transparency"] = key
    elif colour == 2 and depth == 16 and isinstance(key, tuple):
        return _keyed_16_bit(image, file, key, max_pixels)
    return to_rgb(image)


def png_depth(file: BinaryIO) -> int:
    """Return the bits per sample that the header of a PNG file announces."""
    return _header(file)[2]


def _keyed_16_bit(image: Image.Image, file: BinaryIO, key: tuple[int, ...], max_pixels: int) -> Image.Image:
    # Pillow keeps the upper bytes only, and they do not tell which pixels have the colour.
    if missing_packages():
        raise DataError(f"16-bit colours with a transparent one need {EXTRA}")
    size = file.seek(0, os.SEEK_END)
    check_bytes(size + 20 * image.width * image.height, max_pixels)
    file.seek(0)
    values = importlib.import_module("imagecodecs").png_decode(file.read())
    clear = (values[..., :3] == np.array(key, np.uint16)).all(axis=2)
    pixels = np.array(image.convert("RGB") if image.mode != "RGB" else image)
    pixels[clear] = 255
    return Image.fromarray(pixels)


def _header(file: BinaryIO) -> tuple[int, int, int, int]:
    """Width, height, bits per sample and colour type."""
    file.seek(16)
    width, height, depth, colour = struct.unpack(">IIBB", file.read(10))
    return width, height, depth, colour
