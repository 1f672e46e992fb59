"""What the first page of a TIFF or BigTIFF file holds, from its own tags (TIFF 6.0, section 2 and 8; BigTIFF)."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

from vision_ssm.errors import DataError

__all__ = ["Photometric", "TiffPage", "is_tiff", "read_page"]

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # classic and BigTIFF, little and big endian
_FORMATS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_KINDS = {2: "integers with sign", 3: "floating-point numbers", 4: "undefined", 5: "complex integers", 6: "complex"}
_MOST_VALUES = 2**24  # segments of one image; more would be less than 32 pixels each at MAX_PIXELS
_LONGEST_XMP = 2**20
_JPEG = 7

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _ROWS_PER_STRIP, _STRIP_COUNTS = 273, 274, 277, 278, 279
_PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS = 284, 317, 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _XMP, _DEPTH = 338, 339, 700, 32997
# Of GeoTIFF 1.1: the scale of a pixel, tie points, a transformation, keys; and GDAL's value of pixels without data.
_OF_SCENES = (33550, 33922, 34264, 34735, 42113)


class Photometric(IntEnum):
    """What the samples mean."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    MASK = 4
    CMYK = 5
    YCBCR = 6
    CIELAB = 8


_MEANINGS: dict[int, str] = {
    Photometric.WHITE_IS_ZERO: "grey, white is zero",
    Photometric.BLACK_IS_ZERO: "grey",
    Photometric.RGB: "RGB",
    Photometric.PALETTE: "palette",
    Photometric.MASK: "mask",
    Photometric.CMYK: "CMYK",
    Photometric.YCBCR: "YCbCr",
    Photometric.CIELAB: "CIELAB",
}


@dataclass(frozen=True)
class TiffPage:
    """The layout of an image: segments are its tiles or strips, plane after plane, row after row.

    Attributes:
        width, height: in pixels, at least 1.
        bits: of each sample.
        formats: of each sample: 1 unsigned, 2 signed, 3 floating point; 4 undefined.
        extras: kinds of the samples beyond the colour: 0 unsaid, 1 premultiplied alpha, 2 plain alpha.
        photometric: see `Photometric`; other numbers occur.
        compression: 1 is none, 7 JPEG.
        planar: whether each sample has segments of its own.
        predictor: 1 is none.
        orientation: 1 to 8, as in EXIF.
        reversed_bits: whether the first pixel is in the lowest bit of a byte.
        big_endian: byte order of samples.
        columns, rows: of a segment, cut to the image where it is a strip.
        offsets, counts: where each segment begins and how many bytes it has.
        located: whether it says where on the ground its pixels are, or which of them hold no data.
    """

    width: int
    height: int
    bits: tuple[int, ...]
    formats: tuple[int, ...]
    extras: tuple[int, ...]
    photometric: int
    compression: int
    planar: bool
    predictor: int
    orientation: int
    reversed_bits: bool
    big_endian: bool
    columns: int
    rows: int
    offsets: Sequence[int]
    counts: Sequence[int]
    located: bool = False

    @property
    def samples(self) -> int:
        """Samples per pixel."""
        return len(self.bits)

    @property
    def depth(self) -> int | None:
        """Bits per sample; None if they differ."""
        return self.bits[0] if len(set(self.bits)) == 1 else None

    @property
    def across(self) -> int:
        """Segments side by side."""
        return -(-self.width // self.columns)

    @property
    def down(self) -> int:
        """Rows of segments in one plane."""
        return -(-self.height // self.rows)

    @property
    def samples_per_segment(self) -> int:
        """Samples per pixel in one segment."""
        return 1 if self.planar else self.samples

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of a segment when it is not compressed."""
        return (self.columns * sum(self.bits[: self.samples_per_segment]) + 7) // 8

    def __str__(self) -> str:
        """Say what the pixels are, for people."""
        bits = "/".join(dict.fromkeys(map(str, self.bits)))
        kinds = "/".join(sorted({_KINDS.get(kind, "integers") for kind in self.formats}))
        meaning = _MEANINGS.get(self.photometric, f"photometric interpretation {self.photometric}")
        planes = ", in planes" if self.planar else ""
        samples = "one sample" if self.samples == 1 else f"{self.samples} samples"
        return f"{samples} per pixel of {bits}-bit {kinds} ({meaning}{planes}, compression {self.compression})"


def is_tiff(file: BinaryIO) -> bool:
    """Whether the file begins as TIFF or BigTIFF files do."""
    file.seek(0)
    return file.read(4) in _MAGIC


def read_page(file: BinaryIO) -> TiffPage:
    """Read the layout of the first page.

    Raises:
        DataError: without the file's name; the tags are damaged or contradict each other.
    """
    tags = _Tags(file)
    width, height = tags.number(_WIDTH, 0), tags.number(_HEIGHT, 0)
    if width < 1 or height < 1:
        raise DataError(f"its header announces {width} x {height} pixels")
    if tags.number(_DEPTH, 1) > 1:
        raise DataError("it holds a volume, which is no image of two dimensions")
    compression, photometric = tags.number(_COMPRESSION, 1), tags.number(_PHOTOMETRIC, Photometric.WHITE_IS_ZERO)
    # JPEG streams say it themselves, so some writers leave the tag out.
    colour_jpeg = compression == _JPEG and photometric in (Photometric.RGB, Photometric.YCBCR)
    samples = tags.number(_SAMPLES, 3 if colour_jpeg else 1)
    if not 1 <= samples <= 2**16:
        raise DataError(f"its header announces {samples} samples per pixel")
    bits = tags.per_sample(_BITS, 1, samples)
    if not all(1 <= count <= 128 for count in bits):
        raise DataError(f"its header announces {min(bits)} to {max(bits)} bits per sample")
    tiled = _TILE_WIDTH in tags or _TILE_OFFSETS in tags
    columns = tags.number(_TILE_WIDTH, 0) if tiled else width
    rows = tags.number(_TILE_HEIGHT, 0) if tiled else min(tags.number(_ROWS_PER_STRIP, height), height)
    if columns < 1 or rows < 1:
        raise DataError(f"its header announces tiles or strips of {columns} x {rows} pixels")
    return TiffPage(
        width=width,
        height=height,
        bits=bits,
        formats=tags.per_sample(_SAMPLE_FORMAT, 1, samples),
        extras=tags.numbers(_EXTRA_SAMPLES),
        photometric=photometric,
        compression=compression,
        planar=tags.number(_PLANAR, 1) == 2 and samples > 1,
        predictor=tags.number(_PREDICTOR, 1),
        orientation=tags.orientation(),
        reversed_bits=tags.number(_FILL_ORDER, 1) == 2,
        big_endian=tags.order == ">",
        columns=columns,
        rows=rows,
        offsets=tags.numbers(_TILE_OFFSETS if _TILE_OFFSETS in tags else _STRIP_OFFSETS),
        counts=tags.numbers(_TILE_COUNTS if _TILE_COUNTS in tags else _STRIP_COUNTS),
        located=any(tag in tags for tag in _OF_SCENES),
    )


class _Tags:
    """The entries of the first directory; values are read when asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        start = self._bytes(0, 4)
        if start not in _MAGIC:
            raise DataError("not a TIFF file")
        self.order = "<" if start[:2] == b"II" else ">"
        big = start[2] + start[3] == ord("+")
        self._offset_format, self._inline = ("Q", 8) if big else ("I", 4)
        at = self._unpack(self._offset_format, 8 if big else 4)[0]
        count_format, entry = ("Q", 20) if big else ("H", 12)
        count = self._unpack(count_format, at)[0]
        at += struct.calcsize(count_format)
        if count * entry > self._size:
            raise DataError("the file is truncated: its tags are not all there")
        self._entries: dict[int, tuple[int, int, int]] = {}  # kind, number of values, where the entry's value begins
        data = self._bytes(at, count * entry)
        for index in range(count):
            tag, kind, values = struct.unpack_from(f"{self.order}HH{self._offset_format}", data, index * entry)
            self._entries.setdefault(tag, (kind, values, at + index * entry + entry - self._inline))

    def __contains__(self, tag: int) -> bool:
        return tag in self._entries

    def numbers(self, tag: int) -> tuple[int, ...]:
        """All values of a tag, () where it is missing."""
        if tag not in self._entries:
            return ()
        kind, count, at = self._entries[tag]
        if kind not in _FORMATS:
            raise DataError(f"the file is damaged: its tag {tag} is of type {kind}, which holds no whole numbers")
        size = count * struct.calcsize(_FORMATS[kind])
        if count > _MOST_VALUES or size > self._size:
            raise DataError(f"the file is damaged: its tag {tag} claims {count:,} values")
        if size > self._inline:
            at = self._unpack(self._offset_format, at)[0]
        return struct.unpack(f"{self.order}{count}{_FORMATS[kind]}", self._bytes(at, size))

    def number(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        values = self.numbers(tag)
        return values[0] if values else default

    def per_sample(self, tag: int, default: int, samples: int) -> tuple[int, ...]:
        """One value for each sample; a single one, or less than all as some writers leave it, stands for the rest."""
        values = self.numbers(tag) or (default,)
        if len(values) < samples and len(set(values)) > 1:
            raise DataError(f"the file is damaged: its tag {tag} has {len(values)} values for {samples} samples")
        return (values + values[:1] * samples)[:samples]

    def orientation(self) -> int:
        """By the tag, or where it is missing by the XMP data; 1 if it is none of the eight."""
        found = self.number(_ORIENTATION, 0)
        kind, count, at = self._entries.get(_XMP, (0, 0, 0))
        if found == 0 and kind in (1, 7) and self._inline < count < _LONGEST_XMP:
            self._file.seek(self._unpack(self._offset_format, at)[0])
            packet = self._file.read(count)  # where that is damaged, it says nothing about the pixels
            written = re.search(rb'tiff:Orientation(?:="|>)([1-8])', packet)
            found = int(written[1]) if written else 0
        return found if 1 <= found <= 8 else 1

    def _bytes(self, at: int, count: int) -> bytes:
        if at + count > self._size:
            raise DataError("the file is truncated: its tags are not all there")
        self._file.seek(at)
        return self._file.read(count)

    def _unpack(self, layout: str, at: int) -> tuple[int, ...]:
        return struct.unpack(self.order + layout, self._bytes(at, struct.calcsize(layout)))
