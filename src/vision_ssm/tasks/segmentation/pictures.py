"""Pictures of an evaluated segmentation as PNG files: the confusion matrix, and a sheet of predicted masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vision_ssm.data.bands import as_picture
from vision_ssm.plots import INK, png_figure, shortened
from vision_ssm.tasks.confusion import draw_matrix
from vision_ssm.tasks.legend import Colour
from vision_ssm.tasks.segmentation.legend import coloured
from vision_ssm.tasks.segmentation.masks import IGNORE
from vision_ssm.tasks.segmentation.meter import SegmentationMeter, shrunk
from vision_ssm.tasks.segmentation.sources import MaskSamples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_confusion", "draw_predictions"]

_UNLABELLED: Colour = (222, 225, 230)
_COLUMNS = ("image", "labelled", "predicted")


def draw_confusion(meter: SegmentationMeter, path: str | Path, *, title: str = "") -> None:
    """Draw which classes are taken for which; each row shows how the pixels of one class were spread.

    Classes that occur neither in labels nor in predictions are left out, unless none occurs; see
    `vision_ssm.tasks.confusion.draw_matrix`.

    Raises:
        DataError: the picture cannot be written.
    """
    score = f"mIoU {_percent(meter.scores()['miou'])} over {meter.count:,} images"
    heading = f"{shortened(title, 40)}: {score}" if title else score
    draw_matrix(meter.confusion.numpy(), meter.class_names, path, title=heading, unit="pixels", asked="labelled")


def draw_predictions(meter: SegmentationMeter, samples: MaskSamples, path: str | Path, *, title: str = "") -> None:
    """Draw images of an evaluation, evenly spread over the data, beside their labels and the predicted classes.

    Args:
        meter: of ``samples``.
        samples: images and masks.
        path: the PNG file to write.
        title: heading.

    Raises:
        DataError: an image cannot be read any more, or the picture cannot be written.
    """
    rows = [_row(samples, position, predicted) for position, predicted in meter.maps.items()]
    across = 2 if len(rows) > 1 else 1  # rows of images side by side
    down = max(1, math.ceil(len(rows) / across))
    cell, gap, between, top = 2.3, 0.06, 0.25, 0.62
    heights = [
        cell * max([row.ratio for row in rows[at * across : (at + 1) * across]], default=1) for at in range(down)
    ]
    names = [(samples.class_names[index], samples.palette[index]) for index in _occurring(rows)]
    if any((row.labelled == IGNORE).any() for row in rows):
        names.append(("not labelled", _UNLABELLED))
    width = across * 3 * cell + (across - 1) * between
    columns = max(1, int(width / 1.75))
    below = 0.3 + 0.24 * math.ceil(len(names) / columns)
    height = top + sum(heights) + down * gap + below
    with png_figure(path, (width, height), layout=None) as figure:
        figure.text(0, 1, _heading(meter, title), va="top", fontsize=13, fontweight="bold")
        for number, row in enumerate(rows):
            line, place = divmod(number, across)
            edge = top + sum(heights[:line]) + line * gap
            for column, picture in enumerate(_pictures(row, samples.palette)):
                left = place * (3 * cell + between) + column * cell
                box = (left / width, 1 - (edge + heights[line]) / height, (cell - gap) / width, heights[line] / height)
                axes = figure.add_axes(box)
                axes.set_axis_off()
                axes.set_anchor("N")
                axes.imshow(picture, interpolation="nearest" if column else "antialiased")
                if line == 0:
                    axes.set_title(_COLUMNS[column], fontsize=10, fontweight="normal", pad=5)
        legend = figure.add_axes((0, 0, 1, below / height))
        _legend(legend, names, columns, (width, below))


class _Row(NamedTuple):
    """An image [h, w, 3], its labelled and predicted class indices [h, w], and its height by its width."""

    image: NDArray[np.uint8]
    labelled: NDArray[np.uint8]
    predicted: NDArray[np.uint8]

    @property
    def ratio(self) -> float:
        height, width = self.predicted.shape
        return float(min(2.0, height / width))


def _row(samples: MaskSamples, position: int, predicted: NDArray[np.uint8]) -> _Row:
    image, mask = samples[position]
    size = predicted.shape[1], predicted.shape[0]
    return _Row(np.asarray(as_picture(image).resize(size)), shrunk(mask.as_subclass(torch.Tensor)).numpy(), predicted)


def _pictures(row: _Row, palette: Sequence[Colour]) -> tuple[NDArray[np.uint8], ...]:
    return row.image, coloured(row.labelled, palette, _UNLABELLED), coloured(row.predicted, palette, _UNLABELLED)


def _occurring(rows: Sequence[_Row]) -> list[int]:
    found = {int(index) for row in rows for index in np.unique(np.stack([row.labelled, row.predicted]))}
    return sorted(found - {IGNORE})


def _legend(axes: Axes, names: Sequence[tuple[str, Colour]], columns: int, size: tuple[float, float]) -> None:
    """Colours with their names, row by row, on axes of ``size`` inches."""
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    for number, (name, colour) in enumerate(names):
        row, column = divmod(number, columns)
        left, top = column * size[0] / columns, 0.25 + 0.24 * row
        face = tuple(part / 255 for part in colour)
        axes.add_patch(Rectangle((left, top), 0.15, 0.15, facecolor=face, edgecolor=INK, linewidth=0.4))
        axes.text(left + 0.23, top + 0.085, shortened(name, 20), va="center", fontsize=8.5)


def _heading(meter: SegmentationMeter, title: str) -> str:
    score = f"mIoU {_percent(meter.scores()['miou'])} over {meter.count:,} images"
    return f"{shortened(title, 60)}: {score}" if title else score


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
