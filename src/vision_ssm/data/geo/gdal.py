"""The one door to rasterio: whether it is there, and how it is set while it works."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vision_ssm.errors import DataError

__all__ = ["CACHE_BYTES", "EXTRA", "at_work", "is_installed", "part", "quietly", "rasterio"]

EXTRA = "pip install 'vision-ssm[geo]' (rasterio)"

CACHE_BYTES = 128 * 2**20
"""What GDAL may keep of decoded blocks. Left alone it takes a share of the machine, and memory grows with the file."""

_LOCK = threading.Lock()

# rasterio logs what it then raises; without any handler Python would print that to the terminal.
logging.getLogger("rasterio").addHandler(logging.NullHandler())


def is_installed() -> bool:
    """Tell whether scenes can be read with their coordinates."""
    return importlib.util.find_spec("rasterio") is not None


def rasterio() -> Any:
    """Return the package. Raises DataError, naming the extra, where it is missing."""
    return part("rasterio")


def part(name: str) -> Any:
    """Return a module of the package, such as ``rasterio.features``. Raises DataError where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"coordinates need {EXTRA}: {error}") from error


@contextmanager
def at_work() -> Iterator[None]:
    """Within the block GDAL keeps to its memory, and looks for no other files in a scene's folder."""
    with rasterio().Env(GDAL_CACHEMAX=CACHE_BYTES, GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        yield


@contextmanager
def quietly() -> Iterator[None]:
    """Within the block nobody is told that an image has no coordinates: that is said where it matters."""
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", part("rasterio.errors").NotGeoreferencedWarning)
        yield
