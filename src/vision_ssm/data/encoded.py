"""Images whose files are no files of their own: in a tar file, in a column of bytes, or at an address."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vision_ssm.data.bands import AnyImage
from vision_ssm.data.geo.raster import Raster, read_raster
from vision_ssm.data.images import MAX_PIXELS, read_encoded
from vision_ssm.data.scenes import SUFFIXES, read_any
from vision_ssm.errors import DataError

__all__ = ["Encoded"]


@dataclass(frozen=True)
class Encoded:
    """An image that is fetched and decoded when it is asked for.

    Attributes:
        name: for messages and results; its suffix says what a file of it would be called.
        fetch: returns the content of its file. Raises DataError.
    """

    name: str
    fetch: Callable[[], bytes]

    def read(self, *, scenes: bool = False, max_pixels: int = MAX_PIXELS) -> AnyImage:
        """Decode it as `vision_ssm.data.images.read_image`, or with ``scenes`` as `vision_ssm.data.scenes.read_any`.

        Raises:
            DataError: naming the image and the reason.
        """
        content = self.fetch()
        suffix = Path(self.name).suffix.lower()
        if not scenes or suffix not in SUFFIXES:
            return read_encoded(content, self.name, max_pixels=max_pixels)
        with self._as_file(content) as path:
            return read_any(path, max_pixels=max_pixels)

    def read_scene(self, *, max_pixels: int = MAX_PIXELS) -> Raster:
        """Decode it as `vision_ssm.data.geo.raster.read_raster`, whether or not its header makes it a scene.

        Raises:
            DataError: naming the image and the reason.
        """
        with self._as_file(self.fetch()) as path:
            return read_raster(path, max_pixels=max_pixels)

    @contextmanager
    def _as_file(self, content: bytes) -> Iterator[Path]:
        """What reads scenes takes files."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(self.name).name  # which notices name
            path.write_bytes(content)
            try:
                yield path
            except DataError as error:
                raise DataError(str(error).replace(str(path), self.name)) from error
