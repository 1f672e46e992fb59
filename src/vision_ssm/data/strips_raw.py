"""Pixel rows straight from BMP and binary PNM files, which hold them uncompressed."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from vision_ssm import moved
from vision_ssm.data.budget import check_bytes
from vision_ssm.data.pixels import eight_bits
from vision_ssm.errors import DataError

__all__ = ["RawImage", "read_raw_header"]

moved.answer(__name__)

_READ_BYTES = 2**23
_HEADER_BYTES = 2**16  # PNM headers may hold comments
_BMP_DEPTHS = (1, 4, 8, 24, 32)
_PNM = re.compile(rb"P([456])" + rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,10})" * 2)
_PNM_TOP = re.compile(rb"(?:\s|#[^\n\r]*[\n\r])+(\d{1,5})\s")


@dataclass(frozen=True)
class RawImage:
    """Where the rows of an image are, and how its pixels are stored.

    Attributes:
        width, height: in pixels.
        offset: of the first row in the file.
        stride: bytes per row.
        channels: samples per pixel; 3 are red, green, blue unless ``reversed_channels``, a fourth is left out.
        bits: per sample.
        top: the value of white, where there is no palette.
        upside_down: whether the first row in the file is the bottom one.
        reversed_channels: blue comes first.
        palette: colours [N, 3] that samples count; None: they are brightnesses.
    """

    width: int
    height: int
    offset: int
    stride: int
    channels: int
    bits: int
    top: int
    upside_down: bool = False
    reversed_channels: bool = False
    palette: NDArray[np.uint8] | None = None

    def bands(self, file: BinaryIO, max_pixels: int) -> Iterator[NDArray[np.uint8]]:
        """Yield uint8 bands [r, W, 3], top to bottom.

        Raises:
            DataError: without the file's name: it is too short, or a row takes more memory than allowed.
        """
        size = file.seek(0, os.SEEK_END)
        rows = max(1, _READ_BYTES // self.stride)
        check_bytes(min(rows, self.height) * self.width * (self.channels * max(8, self.bits) + 8), max_pixels)
        for start in range(0, self.height, rows):
            end = min(start + rows, self.height)
            first = self.height - end if self.upside_down else start
            at, count = self.offset + first * self.stride, (end - start) * self.stride
            packed = (self.width * self.channels * self.bits + 7) // 8
            if at + count - self.stride + packed > size:  # the last row may lack its filling
                raise DataError(f"the file is truncated: its pixels end within rows {start} to {end} of {self.height}")
            file.seek(at)
            data = file.read(count)
            data += bytes(count - len(data))
            band = np.frombuffer(data, np.uint8).reshape(end - start, self.stride)
            yield self._colours(band[::-1] if self.upside_down else band)

    def _colours(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        count, shape = self.width * self.channels, (len(data), self.width, self.channels)
        values: NDArray[np.uint8] | NDArray[np.uint16]
        if self.bits == 8:
            values = data[:, :count].reshape(shape)
        elif self.bits == 16:
            values = np.ascontiguousarray(data[:, : 2 * count]).view(">u2").reshape(shape)
        elif self.bits == 4:
            values = np.stack([data >> 4, data & 15], axis=2).reshape(len(data), -1)[:, :count].reshape(shape)
        else:
            values = np.unpackbits(data, axis=1)[:, :count].reshape(shape)
        if self.palette is not None:
            return self.palette[values[..., 0]]
        pixels = values.astype(np.uint8) if self.top == 255 else eight_bits(values, self.top)
        if self.channels == 1:
            return np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        return pixels[..., 2::-1] if self.reversed_channels else pixels[..., :3]


def read_raw_header(file: BinaryIO) -> RawImage | None:
    """Return the layout of a BMP or PNM file whose rows are uncompressed; None for any other file."""
    file.seek(0)
    start = file.read(54)
    found = None
    if start[:2] == b"BM":
        found = _bmp(file, start)
    elif re.match(rb"P[456][\s#]", start):
        found = _pnm(start + file.read(_HEADER_BYTES))
    return found if found is not None and found.width > 0 and found.height > 0 else None


def _bmp(file: BinaryIO, start: bytes) -> RawImage | None:
    """Source: BITMAPFILEHEADER and BITMAPINFOHEADER of the Windows API; later headers begin like the latter."""
    if len(start) < 54:
        return None
    offset, header, width, height, planes, bits, compression = struct.unpack("<IIiiHHI", start[10:34])
    if header < 40 or planes != 1 or bits not in _BMP_DEPTHS or compression != 0:
        return None
    palette = None
    if bits <= 8:
        count = struct.unpack("<I", start[46:50])[0] or 2**bits
        file.seek(14 + header)
        entries = file.read(4 * min(count, 2**bits))
        if len(entries) % 4 or 14 + header + len(entries) > offset:
            return None
        palette = np.zeros((2**bits, 3), np.uint8)
        palette[: len(entries) // 4] = np.frombuffer(entries, np.uint8).reshape(-1, 4)[:, 2::-1]
    return RawImage(
        width=width,
        height=abs(height),
        offset=offset,
        stride=(width * bits + 31) // 32 * 4,
        channels=max(1, bits // 8),
        bits=min(bits, 8),
        top=255,
        upside_down=height > 0,
        reversed_channels=True,
        palette=palette,
    )


def _pnm(start: bytes) -> RawImage | None:
    """Source: pbm(5), pgm(5), ppm(5) of Netpbm."""
    found = _PNM.match(start)
    if found is None:
        return None
    kind, width, height = found[1], int(found[2]), int(found[3])
    if kind == b"4":
        ends = re.match(rb"\s", start[found.end() :])
        ink = np.array([[255] * 3, [0] * 3], np.uint8)  # ones are black
        return ends and RawImage(width, height, found.end() + 1, (width + 7) // 8, 1, 1, 1, palette=ink)
    top = _PNM_TOP.match(start, found.end())
    if top is None or not 1 <= int(top[1]) <= 65535:
        return None
    bits, channels = 8 if int(top[1]) <= 255 else 16, 3 if kind == b"6" else 1
    return RawImage(width, height, top.end(), width * channels * bits // 8, channels, bits, int(top[1]))
