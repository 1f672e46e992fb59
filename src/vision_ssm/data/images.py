"""Decode image files, arrays in .npy files included, into 8-bit RGB, or say which cannot be decoded and why."""

from __future__ import annotations

import importlib
import io
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from vision_ssm import moved
from vision_ssm.data.budget import MAX_BYTES, MAX_PIXELS, check_bytes, check_pixels, picture_bytes, too_large
from vision_ssm.data.pillow import decoding, silent_libtiff
from vision_ssm.data.pixels import ORIENTATIONS, rgb_array, to_rgb
from vision_ssm.data.png import SIGNATURE, png_rgb, require_content, without_large_metadata
from vision_ssm.data.strips_raw import read_raw_header
from vision_ssm.data.strips_tiff import open_tiff, require_right_decoding, unread_kind
from vision_ssm.data.tiff_header import TiffPage, is_tiff
from vision_ssm.errors import ConfigError, DataError

__all__ = [
    "ARRAY_SUFFIX",
    "IMAGE_SUFFIXES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "Streamed",
    "check_image",
    "decoding",
    "open_file",
    "open_picture",
    "orientation_of",
    "picture_in_memory",
    "read_array",
    "read_encoded",
    "read_image",
    "reading",
    "rgb_array",
    "streamed",
    "to_rgb",
    "upright",
]

moved.answer(__name__)

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

_ROW_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}  # bytes per pixel; 4 otherwise

# Bytes per pixel that decoders take besides the picture: coefficients, planes of colours, further screens.
_DECODER_BYTES = {"JPEG": 6, "GIF": 4, "WEBP": 8, "AVIF": 14, "JPEG2000": 16}


class Streamed(NamedTuple):
    """An image whose rows are read piece by piece.

    Attributes:
        height, width: in pixels, as stored.
        bands: uint8 [r, W, 3] from top to bottom, as stored.
        orientation: as in EXIF.
    """

    height: int
    width: int
    bands: Iterable[NDArray[np.uint8]]
    orientation: int = 1


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image file as 8-bit RGB, upright.

    - Transparency is composited over white, as documents and web pages show it.
    - Samples of up to 16 bits are scaled from the full range of the depth that the file declares to 0..255 (never
      clipped). Signed, 32-bit and floating-point samples have no defined white, and are refused.
    - CMYK becomes RGB by Pillow's plain formula; embedded colour profiles are not applied.
    - Of animations and multi-page files, the first frame or page.
    - The EXIF orientation is applied; damaged EXIF data is ignored, as it says nothing about the pixels.

    Args:
        path: an image file (JPEG, PNG, GIF, BMP, WebP, TIFF, PPM family, JPEG 2000, AVIF), or a .npy file of a uint8
            array [H, W] or [H, W, 3].
        max_pixels: refuse files whose header announces more, before decoding anything. What takes more memory than
            `MAX_BYTES` is refused, too, see `vision_ssm.data.budget`.

    Raises:
        DataError: naming the file and the reason.
    """
    path = Path(path)
    if path.suffix.lower() == ARRAY_SUFFIX:
        return _picture_of(read_array(path, max_pixels=max_pixels))
    with reading(repr(str(path)), max_pixels), open_file(path) as file:
        return _read(file, max_pixels)


def read_encoded(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read the content of an image file as `read_image` reads the file.

    Args:
        content: all of it.
        name: of the file, whose suffix tells an array; for messages.
        max_pixels: as in `read_image`.

    Raises:
        DataError: naming the image and the reason.
    """
    with reading(repr(name), max_pixels):
        if not content:
            raise DataError("the file is empty (0 bytes)")
        file = io.BytesIO(content)
        if Path(name).suffix.lower() == ARRAY_SUFFIX:
            pixels = rgb_array(np.lib.format.read_array(file))
            check_pixels(pixels.shape[1], pixels.shape[0], max_pixels)
            return _picture_of(pixels)
        return _read(file, max_pixels)


def picture_in_memory(image: Image.Image | NDArray[Any], *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Return a PIL image, or a uint8 array [H, W] or [H, W, 3], as `read_image` returns the file of it.

    An image that Pillow has opened and not yet decoded is read from its file where Pillow would lose depth.

    Raises:
        DataError: it cannot be decoded, or has no defined conversion to RGB.
    """
    if isinstance(image, np.ndarray):
        return _picture_of(rgb_array(image))
    with reading("in memory", max_pixels):
        file = _undecoded_file(image)
        if file is not None:
            position = file.tell()
            try:
                return _read(file, max_pixels)
            finally:
                file.seek(position)
        if isinstance(image, ImageFile.ImageFile) and image.tile:
            _check_picture(image, max_pixels)
        with silent_libtiff(image):
            image.load()
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            require_right_decoding(image.tag_v2, image.size)
        return upright(to_rgb(image), orientation_of(image))


def check_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read only the header of an image file and return (width, height), as stored.

    Raises:
        DataError: naming the file and the reason. Damage behind the header goes unnoticed.
    """
    path = Path(path)
    if path.suffix.lower() == ARRAY_SUFFIX:
        height, width, _ = read_array(path, max_pixels=max_pixels).shape
        return width, height
    with reading(repr(str(path)), max_pixels), open_file(path) as file, ExitStack() as opened:
        rows, page = streamed(file, opened, max_pixels)
        if rows is not None:
            return rows.width, rows.height
        return opened.enter_context(open_picture(file, page, max_pixels)).size


def read_array(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Map a .npy file of a uint8 array [H, W] or [H, W, 3] into memory, as [H, W, 3]; nothing is loaded yet.

    Raises:
        DataError: naming the file and the reason.
    """
    path = Path(path)
    with reading(repr(str(path)), max_pixels):
        _file_size(path)
        pixels = rgb_array(np.lib.format.open_memmap(path, mode="r"))
        check_pixels(pixels.shape[1], pixels.shape[0], max_pixels)
        check_bytes(_joined_bytes(pixels.shape[1], pixels.shape[0]), max_pixels)
        return pixels


@contextmanager
def reading(name: str, max_pixels: int) -> Iterator[None]:
    """Within the block, images may be decoded, and whatever decoders raise becomes a DataError with name and reason."""
    with decoding(max_pixels):
        try:
            yield
        except ConfigError:  # of a setting, not of this image
            raise
        except Exception as error:  # parsers of binary structures, in Python and C: there is no list of what they raise
            raise DataError(f"cannot read image {name}: {_reason(error)}.") from error


def open_file(path: Path) -> BinaryIO:
    """Open an image file. Raises DataError, without its name, if it is no regular file or empty."""
    # Pillow reads headers in many small steps, which costs more than the decoding of a small image.
    return io.BytesIO(path.read_bytes()) if _file_size(path) <= _READ_AT_ONCE else path.open("rb")


def streamed(file: BinaryIO, opened: ExitStack, max_pixels: int) -> tuple[Streamed | None, TiffPage | None]:
    """Open an image that is read piece by piece, without Pillow; None if it is to be decoded whole.

    Returns:
        The image, and the layout of its first page if it is a TIFF file.

    Raises:
        DataError: without the file's name; anything else: the file is damaged.
    """
    if is_tiff(file):
        tiff = open_tiff(file, opened, max_pixels)
        page = tiff.page
        rows = None if tiff.bands is None else Streamed(page.height, page.width, tiff.bands, page.orientation)
        return rows, page
    raw = read_raw_header(file)
    if raw is None:
        return None, None
    check_pixels(raw.width, raw.height, max_pixels)
    return Streamed(raw.height, raw.width, raw.bands(file, max_pixels)), None


def _read(file: BinaryIO, max_pixels: int) -> Image.Image:
    with ExitStack() as opened:
        rows, page = streamed(file, opened, max_pixels)
        if rows is not None:
            check_bytes(_joined_bytes(rows.width, rows.height), max_pixels)
            pixels, top = np.empty((rows.height, rows.width, 3), np.uint8), 0
            for band in rows.bands:
                pixels[top : top + len(band)] = band
                top += len(band)
            return upright(Image.fromarray(pixels), rows.orientation)
        image = opened.enter_context(open_picture(file, page, max_pixels))
        with silent_libtiff(image):
            image.load()
        if image.format == "PNG":
            return upright(png_rgb(image, file, max_pixels), orientation_of(image))
        return upright(to_rgb(image), orientation_of(image))


def _picture_of(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def _joined_bytes(width: int, height: int) -> int:
    """What an array [H, W, 3] and the picture of it take."""
    return 3 * width * height + picture_bytes(width, height)


def open_picture(file: BinaryIO, page: TiffPage | None, max_pixels: int) -> Image.Image:
    """Read the header with Pillow; ``page`` is the layout of the first page if it is a TIFF file.

    Raises:
        DataError: without the file's name; too large, or of a kind that is not read. Damage raises anything else.
    """
    file.seek(0)
    is_png = file.read(len(SIGNATURE)) == SIGNATURE
    source = without_large_metadata(file) if is_png else file
    source.seek(0)
    try:
        image = Image.open(source, formats=_FORMATS)
    except Image.DecompressionBombError as error:  # over twice max_pixels: some decoders allocate while opening
        announced = re.search(r"\d+", str(error))
        raise too_large(int(announced[0]) if announced else 2 * max_pixels, max_pixels) from error
    except UnidentifiedImageError as error:
        if page is None:
            raise
        raise unread_kind(page) from error
    _check_picture(image, max_pixels)
    if is_png:
        require_content(file)
    return image


def _check_picture(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"its header announces {width} x {height} pixels")
    check_pixels(width, height, max_pixels)
    needed = picture_bytes(width, height, _ROW_MODES.get(image.mode, 4)) + picture_bytes(width, height)
    check_bytes(needed + _DECODER_BYTES.get(image.format or "", 0) * width * height, max_pixels)


def _undecoded_file(image: Image.Image) -> BinaryIO | None:
    """The file of an image that is opened but not decoded, if it is of a format whose depth Pillow reduces."""
    if not isinstance(image, ImageFile.ImageFile) or image.format not in ("TIFF", "PNG") or not image.tile:
        return None
    file = image.fp
    if file is None or image.tell() != 0:
        return None
    position = file.tell()
    file.seek(0)
    start = file.read(len(SIGNATURE))
    file.seek(position)
    return file if start == SIGNATURE or start[:2] in (b"II", b"MM") else None  # type: ignore[return-value]


def _file_size(path: Path) -> int:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise DataError("it is a folder")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise DataError("it is not a regular file")
    if status.st_size == 0:
        raise DataError("the file is empty (0 bytes)")
    return status.st_size


def orientation_of(image: Image.Image) -> int:
    """Return the orientation that EXIF data state, 1 where they are missing or damaged."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - damaged EXIF data says nothing about the pixels; its parser may raise anything
        return 1


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turn an image as its orientation says."""
    method = ORIENTATIONS.get(orientation)
    return image if method is None else image.transpose(method)


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
