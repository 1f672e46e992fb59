"""Scenes of any size: windows read from disk, classes written as they become known.

Memory is that of a row of windows, of one stripe of tiles and of what GDAL keeps, whatever the size of the file. The
arithmetic is that of `vision_ssm.tasks.segmentation.inference.window_logits`, so the classes are those of the scene
taken in windows from memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vision_ssm.data.bands import samples_of
from vision_ssm.data.geo.maps import TILE, writing_map
from vision_ssm.data.geo.raster import RasterFile
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import DataError
from vision_ssm.models.segmentor import Segmentor
from vision_ssm.tasks.legend import Colour
from vision_ssm.tasks.segmentation.inference import Testing, image_logits, require_window, window_logits
from vision_ssm.tasks.segmentation.masks import IGNORE
from vision_ssm.tasks.segmentation.results import SceneSegments, counted_rows, listed_areas

__all__ = ["segment_scene"]

_BYTES = 2**28  # of the logits of a row of windows, in all copies
_COPIES = 3  # sums over windows, their means, and probabilities

Write = Callable[[int, int, NDArray[np.uint8]], None]


def segment_scene(
    model: Segmentor,
    scene: RasterFile,
    preprocessing: Preprocessing,
    testing: Testing,
    class_names: Sequence[str],
    palette: Sequence[Colour],
    *,
    path: Path | None,
    polygons: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> SceneSegments:
    """Segment a scene window by window.

    Args:
        model: in evaluation mode.
        scene: at its own size.
        preprocessing: as trained.
        testing: with a window.
        class_names: for the map.
        palette: for the map.
        path: the GeoTIFF to write; None keeps the map in memory, a byte for each pixel.
        polygons: format of those that the result writes when it is saved.
        on_progress: called with (rows done, rows in all), in every part of the columns anew.

    Raises:
        DataError: the scene has other bands than the model, is damaged, the model's output is not finite, or the map
            cannot be written.
        ConfigError: the windows are smaller than a patch of the model.
    """
    require_window(model, testing)
    size = scene.height, scene.width
    kept = np.full(size, IGNORE, np.uint8) if path is None else None

    def keep(top: int, left: int, classes: NDArray[np.uint8]) -> None:
        if kept is not None:
            kept[top : top + classes.shape[0], left : left + classes.shape[1]] = classes

    areas = None if scene.grid is None else scene.grid.pixel_areas(*size)
    pixels = np.zeros(len(class_names), np.int64)
    metres = np.zeros(len(class_names))
    certain = 0.0
    opened = nullcontext(keep) if path is None else writing_map(path, size, scene.grid, class_names, palette)
    with opened as write:
        stripe = _Stripe(write)
        for top, left, classes, sure in _blocks(model, scene, preprocessing, testing, len(class_names)):
            rows = len(classes)
            counts = counted_rows(classes, len(class_names))
            pixels += counts.sum(0)
            if areas is not None:
                metres += areas[top : top + rows] @ counts
            certain += sure
            if not math.isfinite(certain):
                raise DataError("the model's output is not finite")
            stripe.add(top, left, classes, last=top + rows == scene.height)
            if on_progress is not None:
                on_progress(top + rows, scene.height)
    total = int(pixels.sum())
    found = listed_areas(pixels, None if areas is None else metres, class_names)
    confidence = certain / total if total else None
    return SceneSegments(
        size, found, class_names, palette, confidence, grid=scene.grid, polygons=polygons, file=path, kept=kept
    )


class _Stripe:
    """Rows of a part of the columns, written on in whole tiles."""

    def __init__(self, write: Write) -> None:
        self._write, self._top = write, 0
        self._waiting: list[NDArray[np.uint8]] = []

    def add(self, top: int, left: int, classes: NDArray[np.uint8], *, last: bool) -> None:
        if not self._waiting:
            self._top = top
        rows = np.concatenate([*self._waiting, classes])
        ready = len(rows) if last else len(rows) // TILE * TILE
        if ready:
            self._write(self._top, left, rows[:ready])
        self._waiting = [rows[ready:]] if ready < len(rows) else []
        self._top += ready


def _blocks(
    model: Segmentor, scene: RasterFile, preprocessing: Preprocessing, testing: Testing, count: int
) -> Iterator[tuple[int, int, NDArray[np.uint8], float]]:
    """Yield (top, left, classes [r, c], sum of the probabilities of those) that cover the scene."""
    device: Any = next(model.parameters()).device
    normalise = Normalise(preprocessing)

    def logits_of(top: int, left: int, rows: int, columns: int) -> Tensor:
        part = scene.read(top, left, rows, columns)
        if part.valid is not None and not part.valid.any():
            return torch.zeros(1, count, rows, columns, device=device)
        return image_logits(model, normalise(samples_of(part, preprocessing))[None].to(device), testing)

    window = testing.window or max(scene.height, scene.width)
    of_a_column = _COPIES * torch.float32.itemsize * count * min(window, scene.height)
    wide = _BYTES // of_a_column // TILE * TILE
    size = scene.height, scene.width
    for top, left, found in window_logits(logits_of, size, testing, columns=max(wide, TILE)):
        best = found[0].argmax(0).to(torch.uint8).cpu().numpy()
        sure = found[0].softmax(0).amax(0).cpu().numpy()
        valid = scene.read(top, left, *best.shape).valid
        if valid is not None:
            best, sure = np.where(valid, best, np.uint8(IGNORE)), np.where(valid, sure, 0)
        yield top, left, best, float(sure.sum(dtype=np.float64))
