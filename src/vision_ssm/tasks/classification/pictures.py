"""Pictures of an evaluated classifier as PNG files: the confusion matrix, and a sheet of predicted images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from vision_ssm.data.bands import as_picture
from vision_ssm.data.batches import Samples
from vision_ssm.errors import DataError
from vision_ssm.plots import BLUE, GREY, INK, RED, png_figure
from vision_ssm.tasks.classification.meter import ClassificationMeter, Guess

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Tile", "draw_confusion", "draw_predictions", "draw_sheet"]


def draw_confusion(evaluation: ClassificationMeter, path: str | Path, *, title: str = "") -> None:
    """Draw which classes are taken for which; each row shows how the images of one class were spread.

    Up to 20 classes have their percentages written in; larger matrices come with a list of the commonest confusions.

    Raises:
        DataError: the picture cannot be written.
    """
    counts = evaluation.confusion.numpy()
    # A model of a thousand classes evaluated on ten of them: show what occurs.
    used = np.flatnonzero((counts.sum(0) > 0) | (counts.sum(1) > 0))
    counts = counts[np.ix_(used, used)]
    names = [evaluation.class_names[index] for index in used]
    total = len(names)
    side = 1.6 + 0.55 * total if total <= 20 else min(8 + 0.04 * total, 12)  # inches
    font = 9 if total <= 40 else max(4.5, 44 * side / total)
    step = math.ceil(total / 140)
    labels = [_short(name, 24) for name in names[::step]]
    # The axes are exactly `side` inches wide; the picture is cut to whatever the labels need around them.
    with png_figure(path, (side, side), layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.grid(visible=False)
        # The root makes rare confusions visible beside a strong diagonal.
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(np.sqrt(shares), cmap=_blues(), vmin=0, vmax=1, interpolation="nearest")
        upright = max(len(label) for label in labels) * 0.075 < side / total
        axes.set_xticks(range(0, total, step), labels, rotation=0 if upright else 90, fontsize=font)
        axes.set_yticks(range(0, total, step), labels, fontsize=font)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted (% of each true class)" if total <= 20 else "predicted", labelpad=8)
        axes.set_ylabel("true", labelpad=8)
        score = f"{_percent(evaluation.top1)} of {evaluation.count:,} images right"
        axes.set_title(f"{_short(title, 40)}: {score}" if title else score, pad=10)
        for spine in axes.spines.values():
            spine.set_visible(True)
        if total <= 20:
            _write_shares(axes, shares)
        else:
            _list_confusions(axes, counts, names, side)


def draw_predictions(
    evaluation: ClassificationMeter, dataset: Samples, path: str | Path, *, columns: int = 8, title: str = ""
) -> None:
    """Draw images of an evaluation with their true and predicted classes.

    The first rows are spread evenly over the data, in its order, whatever was predicted; the last row shows the
    mistakes that the model was surest of.

    Args:
        evaluation: of ``dataset``.
        dataset: the images.
        path: the PNG file to write.
        columns: images per row.
        title: heading.

    Raises:
        DataError: an image cannot be read any more, or the picture cannot be written.
    """
    guesses = evaluation.guesses
    picked = [guesses[(2 * i + 1) * len(guesses) // (6 * columns)] for i in range(3 * columns)]
    picked = list(dict.fromkeys(picked))
    mistakes = sorted((guess for guess in guesses if guess.predicted != guess.true), key=_surest_first)[:columns]
    sections = [("Spread evenly over the held-out images", picked)]
    if mistakes:
        sections.append(("The mistakes made with most confidence", mistakes))
    draw_sheet(
        [(heading, [_tile(guess, dataset, evaluation) for guess in chosen]) for heading, chosen in sections],
        path,
        columns=columns,
        title=title or f"{_percent(evaluation.top1)} of {evaluation.count:,} held-out images right",
    )


class Tile(NamedTuple):
    """One picture of a sheet: image, predicted class with its probability, and the true class if it is known."""

    image: Image.Image
    predicted: str
    probability: float
    true: str | None = None


def draw_sheet(
    sections: Sequence[tuple[str, Sequence[Tile]]], path: str | Path, *, columns: int = 8, title: str = ""
) -> None:
    """Draw sections of predicted images, wrong ones framed in red with the true class below.

    Raises:
        DataError: there is no image, or the picture cannot be written.
    """
    sections = [(heading, tiles) for heading, tiles in sections if tiles]
    if not sections:
        raise DataError("no predicted images to draw.")
    columns = min(columns, max(len(tiles) for _, tiles in sections))
    rows = [math.ceil(len(tiles) / columns) for _, tiles in sections]
    cell, caption, heading_height, top = 1.3, 0.46, 0.42, 0.4 if title else 0.0
    width = max(columns, 4) * cell
    height = top + sum(rows) * (cell + caption) + len(sections) * heading_height
    with png_figure(path, (width + 0.2, height), layout=None) as figure:
        if title:
            figure.text(0.1 / width, 1 - 0.12 / height, _short(title, 90), va="top", fontsize=13, fontweight="bold")
        edge = top
        for (heading, tiles), count in zip(sections, rows, strict=True):
            figure.text(0.1 / width, 1 - (edge + 0.16) / height, heading, va="top", fontsize=10, color=GREY)
            edge += heading_height
            for number, tile in enumerate(tiles):
                row, column = divmod(number, columns)
                bottom = height - edge - row * (cell + caption) - cell
                box = (0.1 + column * cell + 0.06, bottom + 0.06, cell - 0.12, cell - 0.12)
                _draw_tile(
                    figure, (box[0] / (width + 0.2), box[1] / height, box[2] / (width + 0.2), box[3] / height), tile
                )
            edge += count * (cell + caption)


def _draw_tile(figure: Figure, box: tuple[float, float, float, float], tile: Tile) -> None:
    wrong = tile.true is not None and tile.true != tile.predicted
    axes = figure.add_axes(box)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    smoothing = "nearest" if max(tile.image.size) <= 16 else "bicubic" if max(tile.image.size) < 100 else "antialiased"
    axes.imshow(_square(tile.image), interpolation=smoothing)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(RED if wrong else "#d5d9de")
        spine.set_linewidth(2.4 if wrong else 0.8)
    caption = f"{_short(tile.predicted, 13)} · {100 * tile.probability:.0f} %"
    axes.text(
        0.5, -0.05, caption, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=RED if wrong else INK
    )
    if wrong:
        truth = f"true: {_short(str(tile.true), 15)}"
        axes.text(0.5, -0.2, truth, transform=axes.transAxes, ha="center", va="top", fontsize=8, color=INK)


def _write_shares(axes: Axes, shares: np.ndarray[Any, Any]) -> None:
    for row, column in zip(*np.nonzero(shares), strict=True):
        share = shares[row, column]
        text = f"{100 * share:.0f}" if share >= 0.005 else "<1"
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if share > 0.35 else INK)


def _list_confusions(axes: Axes, counts: np.ndarray[Any, Any], names: Sequence[str], side: float) -> None:
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(off, axis=None, kind="stable")[::-1][:20]
    pairs = [divmod(int(cell), len(names)) for cell in order if off.flat[cell] > 0]
    lines = [
        f"{off[true, predicted]} ×  {_short(names[true], 24)}  as  {_short(names[predicted], 24)}"
        for true, predicted in pairs
    ]
    left = 1 + 0.3 / side
    axes.text(left, 1, "Commonest confusions", transform=axes.transAxes, va="top", fontsize=11, fontweight="bold")
    axes.text(left, 1 - 0.35 / side, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=9, linespacing=1.7)


def _tile(guess: Guess, dataset: Samples, evaluation: ClassificationMeter) -> Tile:
    names = evaluation.class_names
    image, _ = dataset[guess.position]
    image = as_picture(image).copy()
    image.thumbnail((256, 256))
    return Tile(image, names[guess.predicted], guess.probability, names[guess.true])


def _surest_first(guess: Guess) -> tuple[float, int]:
    return -guess.probability, guess.position


def _square(image: Image.Image) -> np.ndarray[Any, Any]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)))


def _blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("blues", ["#ffffff", "#cfe0f1", "#6fa3d3", BLUE, "#123d6d"])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _short(text: str, length: int) -> str:
    text = " ".join(text.split())
    if len(text) > length:
        text = text.split(",")[0]  # ImageNet's names are lists of synonyms
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
