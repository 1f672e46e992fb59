"""Scenes of any size: windows for a detector, read from disk one at a time."""

from __future__ import annotations

from torch import Tensor, device

from vision_ssm.data.bands import samples_of
from vision_ssm.data.geo.raster import RasterFile
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.tasks.detection.inference import Read

__all__ = ["windows_of_scene"]


def windows_of_scene(scene: RasterFile, preprocessing: Preprocessing, place: device) -> Read:
    """Return what reads windows of a scene at its own size; of one without any data there is nothing to see.

    Args:
        scene: open.
        preprocessing: as trained.
        place: where the windows are to be.

    What it returns raises DataError where the scene has other bands than the model, or is damaged.
    """
    normalise = Normalise(preprocessing)

    def read(top: int, left: int, bottom: int, right: int) -> Tensor | None:
        part = scene.read(top, left, bottom - top, right - left)
        if part.valid is not None and not part.valid.any():
            return None
        return normalise(samples_of(part, preprocessing)).to(place)

    return read
