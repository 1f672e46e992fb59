"""TIFF files, one row of their segments after the other: uncompressed ones by ourselves, others through tifffile."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vision_ssm import moved
from vision_ssm.data.budget import check_bytes, check_pixels
from vision_ssm.data.geo.gdal import EXTRA as SCENES
from vision_ssm.data.geo.gdal import is_installed
from vision_ssm.data.pixels import eight_bits, to_rgb
from vision_ssm.data.tiff_header import Photometric, TiffPage, read_page
from vision_ssm.errors import DataError

__all__ = [
    "EXTRA",
    "TiffBands",
    "missing_packages",
    "needs_packages",
    "open_tiff",
    "require_right_decoding",
    "unread_kind",
]

moved.answer(__name__)

EXTRA = "pip install 'vision-ssm[large]' (tifffile and imagecodecs)"

_PACKAGES = ("tifffile", "imagecodecs")
_READ_BYTES = 2**23
_NONE, _OLD_JPEG, _JPEG = 1, 6, 7
_FAX = (2, 3, 4, 32771, 32809)
_IMAGES_INSIDE = (33003, 33004, 33005, 34712, 50001)  # JPEG 2000 and WebP: streams that say their own size
_UNSAID, _PREMULTIPLIED, _PLAIN, _COREL = 0, 1, 2, 999
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), axis=1)[:, 0]

# tifffile logs some damage that it then raises; without any handler Python would print that to the terminal.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffBands(NamedTuple):
    """The first page of a TIFF file.

    Attributes:
        page: its layout.
        bands: uint8 [r, W, 3], top to bottom as stored; None: Pillow is to decode it.
    """

    page: TiffPage
    bands: Iterator[NDArray[np.uint8]] | None


def missing_packages() -> list[str]:
    """Which of the packages that compressed files take are not installed."""
    return [name for name in _PACKAGES if importlib.util.find_spec(name) is None]


def open_tiff(file: BinaryIO, opened: ExitStack, max_pixels: int) -> TiffBands:
    """Open the first page of a TIFF file. What reads it is closed with ``opened``; ``file`` is left open.

    Read here are grey, RGB and CMYK images of up to 16 bits, in strips or tiles, interleaved or in planes, with or
    without alpha, in every compression that imagecodecs knows; samples are scaled by the bits that are declared. Pillow
    gets palettes, colour differences, fax codes and the like, as far as it reads them rightly.

    Raises:
        DataError: without the file's name; the pixels are of a kind that is not read, or the file is damaged. Damage
            raises anything else as well, here or while reading bands.
    """
    page = read_page(file)
    check_pixels(page.width, page.height, max_pixels)
    if _is_read_here(page):
        _check_memory(page, max_pixels)
        if page.compression == _NONE:
            return TiffBands(page, _colours(_rows(file, page), page))
        if not missing_packages():
            tifffile = importlib.import_module("tifffile")
            file.seek(0)
            source = opened.enter_context(tifffile.TiffFile(file)).pages.first
            _require_agreement(page, source)
            return TiffBands(page, _colours(_decoded_rows(file, page, source), page))
        if not _is_read_by_pillow(page):
            raise unread_kind(page)
    elif not _is_read_by_pillow(page):
        raise unread_kind(page)
    check_bytes(page.rows * page.row_bytes, max_pixels)
    return TiffBands(page, None)


def needs_packages(page: TiffPage) -> bool:
    """Whether the pixels would be read in bands if `EXTRA` were installed."""
    return _is_read_here(page) and page.compression != _NONE and bool(missing_packages())


def unread_kind(page: TiffPage) -> DataError:
    """Return the error for pixels that are not read, by us or by Pillow."""
    if needs_packages(page):
        return DataError(f"this kind of TIFF needs {EXTRA}: it holds {page}")
    more = "" if is_installed() else f"; where a task takes scenes, all bands are read with {SCENES}"
    return DataError(
        f"expected grey or RGB of 8 or 16 bits, and this TIFF holds {page}; scale what has no "
        f"defined white or choose bands, and convert the image to 8 or 16 bits{more}"
    )


def require_right_decoding(tags: Mapping[int, Any], size: tuple[int, int]) -> None:
    """Refuse an image that Pillow has decoded wrongly, by the tags that it has kept.

    Raises:
        DataError: the pixels in memory are not those of the file.
    """

    def numbers(tag: int, default: int) -> tuple[int, ...]:
        values = tags.get(tag, default)
        return tuple(values) if isinstance(values, tuple) else (values,)

    bits, formats, samples = numbers(258, 1), numbers(339, 1), numbers(277, 1)[0]
    page = TiffPage(
        width=size[0],
        height=size[1],
        bits=(bits + bits[:1] * samples)[:samples],
        formats=formats[:samples],
        extras=numbers(338, 0) if 338 in tags else (),
        photometric=numbers(262, 0)[0],
        compression=numbers(259, 1)[0],
        planar=numbers(284, 1)[0] == 2 and samples > 1,
        predictor=1,
        orientation=1,
        reversed_bits=False,
        big_endian=False,
        columns=size[0],
        rows=size[1],
        offsets=(),
        counts=numbers(325 if 325 in tags else 279, 0),
    )
    if not _is_read_by_pillow(page):
        raise DataError(f"it holds {page}, which Pillow does not decode rightly; give the path of the file instead")


def _is_read_here(page: TiffPage) -> bool:
    depth = page.depth
    if depth is None or depth > 16 or set(page.formats) != {1} or page.compression == _OLD_JPEG:
        return False
    if not all(kind in (_UNSAID, _PREMULTIPLIED, _PLAIN, _COREL) for kind in page.extras):
        return False
    if page.photometric in (Photometric.WHITE_IS_ZERO, Photometric.BLACK_IS_ZERO):
        grey = page.samples == 1 or (page.samples == 2 and len(page.extras) == 1)
        return grey and page.compression not in _FAX
    if page.photometric == Photometric.CMYK:
        return page.samples == 4 and depth in (8, 16) and page.compression != _JPEG
    # Colour differences are turned into RGB by the JPEG decoder only.
    differences = page.photometric == Photometric.YCBCR and page.compression == _JPEG and page.samples == 3
    return (page.photometric == Photometric.RGB and page.samples >= 3) or differences


def _is_read_by_pillow(page: TiffPage) -> bool:
    """Whether Pillow, if it opens the file, gives the pixels that are there: of some kinds it gives others."""
    if set(page.formats) != {1}:
        return False
    if page.photometric == Photometric.YCBCR and page.compression == _NONE:
        stored = page.width * page.height * page.samples  # less where colour is stored for every other pixel only
        return page.depth == 8 and not page.planar and sum(page.counts) >= stored
    if page.depth == 16:
        kinds = (Photometric.BLACK_IS_ZERO, Photometric.RGB, Photometric.CMYK)
        return page.photometric in kinds and not page.planar
    if page.depth == 12:
        return page.photometric == Photometric.BLACK_IS_ZERO and page.samples == 1
    return page.depth in (1, 2, 4, 8) and (page.depth == 8 or not page.planar)


def _require_agreement(page: TiffPage, source: Any) -> None:
    ours = [page.width, page.height, page.samples, page.depth, page.compression, page.photometric, page.planar]
    theirs = [source.imagewidth, source.imagelength, source.samplesperpixel, source.bitspersample]
    theirs += [int(source.compression), int(source.photometric), int(source.planarconfig) == 2 and page.samples > 1]
    segments = (source.tilewidth, source.tilelength) if source.is_tiled else (page.width, page.rows)
    if ours != theirs or segments != (page.columns, page.rows) or source.imagedepth != 1 or source.tiledepth > 1:
        raise DataError("the file is damaged: its tags contradict each other")


def _check_memory(page: TiffPage, max_pixels: int) -> None:
    """Ask for the memory of one band, of the size that the file claims."""
    if page.compression == _NONE:  # bits are unpacked to bytes
        needed = min(_step(page), page.rows) * page.width * page.samples * (8 + page.bits[0])
    else:  # a segment and what it is unpacked from; the band and its colours
        wide = _dtype(page).itemsize
        segment = page.rows * page.columns * page.samples_per_segment * wide
        needed = 2 * segment + min(page.rows, page.height) * page.width * (2 * page.samples * wide + 8)
    check_bytes(needed, max_pixels)


def _step(page: TiffPage) -> int:
    return max(1, _READ_BYTES // (page.row_bytes * page.across))


def _dtype(page: TiffPage) -> np.dtype[Any]:
    return np.dtype(np.uint8 if page.bits[0] <= 8 else np.uint16)


def _rows(file: BinaryIO, page: TiffPage) -> Iterator[NDArray[Any]]:
    """Bands of samples [r, W, S] of a file without compression, straight from their place."""
    size = file.seek(0, os.SEEK_END)
    step = _step(page)
    for row in range(page.down):
        top, bottom = row * page.rows, min((row + 1) * page.rows, page.height)
        for start in range(top, bottom, step):
            end = min(start + step, bottom)
            band = np.zeros((end - start, page.width, page.samples), dtype=_dtype(page))
            for index, columns, channels in _segments(page, row):
                offset = page.offsets[index]
                if offset == 0:  # left out of a sparse file, which means zeros
                    continue
                offset += (start - top) * page.row_bytes
                count = (end - start) * page.row_bytes
                if offset + count > size:
                    raise DataError(
                        f"the file is truncated: its pixels end within rows {start} to {end} of {page.height}"
                    )
                file.seek(offset)
                data = np.frombuffer(file.read(count), np.uint8).reshape(end - start, page.row_bytes)
                band[:, columns, channels] = _unpacked(data, page, columns.stop - columns.start)
            yield band


def _segments(page: TiffPage, row: int) -> Iterator[tuple[int, slice, slice]]:
    """Index, columns and channels of every segment that lies in a row of segments."""
    planes = page.samples if page.planar else 1
    count = planes * page.across * page.down
    if len(page.offsets) < count:
        raise DataError(f"the file is damaged: {count} segments expected, {len(page.offsets)} listed")
    for plane in range(planes):
        channels = slice(plane, plane + 1) if page.planar else slice(0, page.samples)
        for column in range(page.across):
            left = column * page.columns
            columns = slice(left, min(left + page.columns, page.width))
            yield (plane * page.down + row) * page.across + column, columns, channels


def _unpacked(data: NDArray[np.uint8], page: TiffPage, columns: int) -> NDArray[Any]:
    """Bytes [r, n] to samples [r, columns, S]."""
    depth, samples = page.bits[0], page.samples_per_segment
    if page.reversed_bits:
        data = _REVERSED[data]
    shape = (len(data), columns, samples)
    if depth == 8:
        return data[:, : columns * samples].reshape(shape)
    if depth == 16:
        order = ">u2" if page.big_endian else "<u2"
        return np.ascontiguousarray(data[:, : 2 * columns * samples]).view(order).reshape(shape)
    bits = np.unpackbits(data, axis=1)[:, : columns * samples * depth].reshape(*shape, depth)
    weights = (1 << np.arange(depth - 1, -1, -1)).astype(np.uint16)
    return np.asarray(bits @ weights, dtype=_dtype(page))


def _decoded_rows(file: BinaryIO, page: TiffPage, source: Any) -> Iterator[NDArray[Any]]:
    """Bands of samples [r, W, S] of a compressed file."""
    size = file.seek(0, os.SEEK_END)
    for row in range(page.down):
        count = min(page.rows, page.height - row * page.rows)
        band = np.zeros((count, page.width, page.samples), dtype=_dtype(page))
        for index, columns, channels in _segments(page, row):
            length = page.counts[index] if index < len(page.counts) else 0
            if length == 0:  # left out of a sparse file, which means zeros
                continue
            if page.offsets[index] + length > size:
                raise DataError(f"the file is truncated: segment {index} of {len(page.offsets)} is not all there")
            file.seek(page.offsets[index])
            data = file.read(length)
            _require_claimed_size(data, page)
            tables = {"jpegtables": source.jpegtables, "jpegheader": source.jpegheader}
            decoded = source.decode(data, index, **(tables if page.compression == _JPEG else {}))[0][0]
            band[:, columns, channels] = decoded[:count, : columns.stop - columns.start]
        yield band


def _require_claimed_size(data: bytes, page: TiffPage) -> None:
    """Refuse a segment that is a file of its own and larger than the segment may be."""
    size = None
    if page.compression == _JPEG:
        size = _jpeg_size(data)
    elif page.compression in _IMAGES_INSIDE:
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG2000", "WEBP")) as inside:
                size = inside.size
        except UnidentifiedImageError:  # damaged: its decoder says how
            return
    if size is not None and (size[0] > page.columns or size[1] > max(page.rows, page.height)):
        raise DataError(
            f"the file is damaged: a segment of {page.columns} x {page.rows} pixels holds {size[0]} x {size[1]}"
        )


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the frame header of a JPEG stream (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8:  # filling; markers without content
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _colours(bands: Iterator[NDArray[Any]], page: TiffPage) -> Iterator[NDArray[np.uint8]]:
    for band in bands:
        yield _rgb(band, page)


def _rgb(band: NDArray[Any], page: TiffPage) -> NDArray[np.uint8]:
    """Samples [r, W, S] to 8-bit RGB by the rules of `vision_ssm.data.images.read_image`."""
    depth = page.bits[0]
    grey = page.photometric in (Photometric.WHITE_IS_ZERO, Photometric.BLACK_IS_ZERO)
    if depth == 16 and not grey:
        band = (band >> 8).astype(np.uint8)  # colour loses its lower byte, as in Pillow
    elif depth != 8:
        band = eight_bits(band, 2**depth - 1)
    pixels = np.ascontiguousarray(band.astype(np.uint8, copy=False))
    if page.photometric == Photometric.WHITE_IS_ZERO:
        pixels = np.concatenate([255 - pixels[..., :1], pixels[..., 1:]], axis=2)
    mode = _mode(page, grey)
    if mode is None and grey:
        return np.broadcast_to(pixels[..., :1], (*pixels.shape[:2], 3))
    if mode is None:  # further samples, such as infrared, are left out
        return pixels[:, :, :3]
    pixels = np.ascontiguousarray(pixels[..., : len(mode)])
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(to_rgb(Image.frombytes(mode, size, pixels.tobytes())))


def _mode(page: TiffPage, grey: bool) -> str | None:
    """Pillow's mode of samples that take a conversion; None of those that are colours already."""
    if page.photometric == Photometric.CMYK:
        return "CMYK"
    alpha = page.extras[:1] or ((_PLAIN,) if page.photometric == Photometric.RGB and page.samples == 4 else ())
    if alpha in ((), (_UNSAID,)):
        return None
    return {True: "La", False: "RGBa"}[grey] if alpha == (_PREMULTIPLIED,) else {True: "LA", False: "RGBA"}[grey]
