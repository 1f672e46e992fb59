"""Pictures of an evaluated segmentation as PNG files: the confusion matrix, and a sheet of predicted masks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vision_ssm.data.bands import as_picture
from vision_ssm.plots import BLUE, INK, png_figure
from vision_ssm.tasks.segmentation.legend import coloured
from vision_ssm.tasks.segmentation.masks import IGNORE, Colour
from vision_ssm.tasks.segmentation.meter import SegmentationMeter, shrunk
from vision_ssm.tasks.segmentation.sources import MaskSamples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_confusion", "draw_predictions"]

_WRITTEN = 20  # classes of a matrix whose percentages are written into its cells
_UNLABELLED: Colour = (222, 225, 230)
_COLUMNS = ("image", "labelled", "predicted")


def draw_confusion(meter: SegmentationMeter, path: str | Path, *, title: str = "") -> None:
    """Draw which classes are taken for which; each row shows how the pixels of one class were spread.

    Classes that occur neither in labels nor in predictions are left out, unless none occurs.

    Raises:
        DataError: the picture cannot be written.
    """
    counts = meter.confusion.numpy()
    used = np.flatnonzero((counts.sum(0) > 0) | (counts.sum(1) > 0))
    used = used if len(used) else np.arange(len(counts))
    counts = counts[np.ix_(used, used)]
    names = [_short(meter.class_names[index], 24) for index in used]
    total = len(names)
    side = 1.8 + 0.55 * total if total <= _WRITTEN else 4 + 0.12 * total  # inches, the axes alone
    font = 9.0 if total <= _WRITTEN else 7.0
    with png_figure(path, (side, side), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.grid(visible=False)
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        shown = axes.imshow(100 * shares, cmap=_blues(), vmin=0, vmax=100, interpolation="nearest")
        upright = max(len(name) for name in names) * 0.075 < side / total
        axes.set_xticks(range(total), names, rotation=0 if upright else 90, fontsize=font)
        axes.set_yticks(range(total), names, fontsize=font)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted", labelpad=8)
        axes.set_ylabel("labelled", labelpad=8)
        for spine in axes.spines.values():
            spine.set_visible(True)
        scale = figure.colorbar(shown, cax=figure.add_axes((1 + 0.25 / side, 0, 0.18 / side, 1)))
        scale.set_label("% of the pixels of each labelled class")
        scale.outline.set_visible(False)
        score = f"mIoU {_percent(meter.scores()['miou'])} over {meter.count:,} images"
        axes.set_title(f"{_short(title, 40)}: {score}" if title else score, pad=10)
        if total <= _WRITTEN:
            _write_shares(axes, shares)


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
        figure.text(0, 1, _short(title, 90) or _heading(meter), va="top", fontsize=13, fontweight="bold")
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
        axes.text(left + 0.23, top + 0.085, _short(name, 20), va="center", fontsize=8.5)


def _write_shares(axes: Axes, shares: NDArray[Any]) -> None:
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if share > 0.55 else INK)


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", ["#ffffff", "#cfe0f1", "#6fa3d3", BLUE, "#123d6d"])


def _heading(meter: SegmentationMeter) -> str:
    return f"mIoU {_percent(meter.scores()['miou'])} over {meter.count:,} held-out images"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
