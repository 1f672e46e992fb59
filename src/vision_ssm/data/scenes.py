"""Which files are scenes and which are pictures; reading either."""

from __future__ import annotations

import functools
from contextlib import suppress
from pathlib import Path

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.geo.gdal import EXTRA, is_installed
from vision_ssm.data.geo.raster import open_raster, read_raster
from vision_ssm.data.images import MAX_PIXELS, check_image, read_image
from vision_ssm.data.tiff_header import Photometric, TiffPage, read_page
from vision_ssm.errors import DataError, notify

__all__ = ["check_any", "is_scene", "read_any"]

SUFFIXES = (".tif", ".tiff")
_WORLD_FILES = (".tfw", ".tifw", ".wld")
_ALPHA = (1, 2)


def read_any(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> AnyImage:
    """Read an image file: a scene with all its bands, or an RGB picture, see `vision_ssm.data.images.read_image`.

    Raises:
        DataError: naming the file and the reason.
    """
    return read_raster(path, max_pixels=max_pixels) if is_scene(path) else read_image(path, max_pixels=max_pixels)


def check_any(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read only the header of a scene or a picture and return (width, height), as stored. Raises DataError."""
    if not is_scene(path):
        return check_image(path, max_pixels=max_pixels)
    with open_raster(path) as opened:
        return opened.width, opened.height


def is_scene(path: str | Path) -> bool:
    """Tell whether a file is read as a scene: a TIFF that says where its pixels are, or that is no picture.

    The latter are those of further bands than colour and transparency, of samples with sign, above 16 bits or real.
    Without the extra ``geo`` none is, and that coordinates are lost is told once by a `VisionSSMNotice`.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        return False
    page = None
    with suppress(DataError, OSError), path.open("rb") as file:  # what is the matter, reading it says
        page = read_page(file)
    if page is None:
        return False
    located = page.located or any(path.with_suffix(suffix).exists() for suffix in _WORLD_FILES)
    if is_installed():
        return located or not _is_picture(page)
    if located:
        _tell_of_loss()
    return False


def _is_picture(page: TiffPage) -> bool:
    if set(page.formats) != {1} or max(page.bits) > 16:
        return False
    colours = {Photometric.RGB: 3, Photometric.YCBCR: 3, Photometric.CIELAB: 3, Photometric.CMYK: 4}
    others = page.samples - colours.get(page.photometric, 1)  # type: ignore[call-overload]  # any number may be there
    # A fourth sample of RGB that nothing is said about has always been transparency.
    alpha = (_ALPHA[1],) if page.photometric == Photometric.RGB and others == 1 and not page.extras else page.extras
    return others <= 0 or (others == 1 and alpha[:1] != () and alpha[0] in _ALPHA)


@functools.cache
def _tell_of_loss() -> None:
    notify(
        "scenes are read as pictures here: coordinates are lost, and further bands and values without data are not "
        f"known. {EXTRA} keeps them."
    )
