"""Pictures of an evaluated classifier as PNG files: the confusion matrix, calibration, and sheets of images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from vision_ssm.data.bands import as_picture
from vision_ssm.data.batches import Samples
from vision_ssm.errors import DataError
from vision_ssm.plots import BLUE, GREY, INK, ORANGE, RED, png_figure, shortened
from vision_ssm.tasks.classification.calibration import BINS
from vision_ssm.tasks.classification.meter import ClassificationMeter, Guess
from vision_ssm.tasks.confusion import draw_matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Tile", "draw_calibration", "draw_confusion", "draw_mistakes", "draw_predictions", "draw_sheet"]


def draw_confusion(evaluation: ClassificationMeter, path: str | Path, *, title: str = "") -> None:
    """Draw which classes are taken for which; each row shows how the images of one class were spread.

    Classes that do not occur are left out; see `vision_ssm.tasks.confusion.draw_matrix`.

    Raises:
        DataError: the picture cannot be written.
    """
    score = _score(evaluation)
    heading = f"{shortened(title, 40)}: {score}" if title else score
    draw_matrix(evaluation.confusion.numpy(), evaluation.class_names, path, title=heading, unit="images")


def draw_calibration(evaluation: ClassificationMeter, path: str | Path, *, title: str = "") -> None:
    """Draw the share of right guesses against their probability, and below how many there are of each.

    Raises:
        DataError: the picture cannot be written.
    """
    found = evaluation.calibration
    filled = [row for row in found.bins if row.images]
    with png_figure(path, (5.2, 5.6), layout=None) as figure:
        share, amount = figure.subplots(2, 1, height_ratios=(3.2, 1), sharex=True)
        width = 1 / BINS
        centres = [100 * (row.lower + width / 2) for row in filled]
        share.plot(
            [0, 100], [0, 100], color=GREY, linewidth=1, linestyle=(0, (4, 3)), label="right as often as probable"
        )
        share.bar(centres, [100 * row.accuracy for row in filled], 94 * width, color=BLUE, label="right")
        for row in filled:  # from what was claimed to what came
            at = 100 * row.confidence
            share.plot([at, at], [100 * row.accuracy, at], color=ORANGE, linewidth=1.6)
        share.plot(
            [100 * row.confidence for row in filled],
            [100 * row.confidence for row in filled],
            "_",
            color=ORANGE,
            markersize=9,
            markeredgewidth=2,
            label="mean probability",
        )
        share.set(ylim=(0, 101), xlim=(0, 100), ylabel="right, % of the images")
        share.legend(loc="upper left", fontsize=8.5, frameon=True, framealpha=0.85, edgecolor="none")
        amount.bar(centres, [row.images for row in filled], 94 * width, color=GREY)
        amount.set(ylabel="images", xlabel="probability of the predicted class, %")
        amount.yaxis.get_major_locator().set_params(integer=True)
        error = "-" if math.isnan(found.ece) else f"{100 * found.ece:.1f} %"
        score = f"calibration error {error} over {evaluation.count:,} images"
        share.set_title(f"{shortened(title, 50)}\n{score}" if title else score)


def draw_predictions(
    evaluation: ClassificationMeter, dataset: Samples, path: str | Path, *, columns: int = 8, title: str = ""
) -> None:
    """Draw images of an evaluation with their true and predicted classes.

    The first rows are spread evenly over the data, in its order, whatever was predicted; the last row shows the
    mistakes that the model was surest of, those in the first rows aside.

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
    mistakes = [guess for guess in evaluation.mistakes() if guess not in picked][:columns]
    sections = [("Spread evenly over the images", picked), ("Other mistakes, the surest first", mistakes)]
    draw_sheet(
        [(heading, [_tile(guess, dataset, evaluation) for guess in chosen]) for heading, chosen in sections],
        path,
        columns=columns,
        title=f"{shortened(title, 60)}: {_score(evaluation)}" if title else _score(evaluation),
    )


def draw_mistakes(
    evaluation: ClassificationMeter, dataset: Samples, path: str | Path, *, columns: int = 8, title: str = ""
) -> None:
    """Draw the mistakes that the model was surest of, in up to five rows; arguments and errors as `draw_predictions`.

    Without a mistake the picture says so.
    """
    mistakes = evaluation.mistakes()
    shown = mistakes[: 5 * columns]
    which = "all, the surest first" if len(shown) == len(mistakes) else f"the {len(shown)} that it was surest of"
    found = f"{len(mistakes):,} mistakes in {evaluation.count:,} images"
    heading = f"{shortened(title, 60)}: {found}" if title else found
    if not shown:
        with png_figure(path, (6.0, 0.6), layout=None) as figure:
            figure.text(0, 0.5, heading, fontsize=13, fontweight="bold")
        return
    draw_sheet([(which, [_tile(guess, dataset, evaluation) for guess in shown])], path, columns=columns, title=heading)


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
    cell, heading_height, top = 1.3, 0.42, 0.4 if title else 0.0
    caption = 0.16 + 0.135 * max(len(_caption(tile)) for _, tiles in sections for tile in tiles)
    width = max(columns, 4) * cell
    height = top + sum(rows) * (cell + caption) + len(sections) * heading_height
    with png_figure(path, (width + 0.2, height), layout=None) as figure:
        if title:
            figure.text(0.1 / width, 1 - 0.12 / height, title, va="top", fontsize=13, fontweight="bold")
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
    for line, (text, colour) in enumerate(_caption(tile)):
        axes.annotate(
            text, (0.5, 0), xycoords="axes fraction", xytext=(0, -4 - 9.7 * line), textcoords="offset points",
            ha="center", va="top", fontsize=8, color=colour,
        )  # fmt: skip


def _caption(tile: Tile) -> list[tuple[str, str]]:
    """Lines below an image with their colours: predicted class and probability, and the true class of a mistake."""
    wrong = tile.true is not None and tile.true != tile.predicted
    lines = _wrapped(f"{_brief(tile.predicted)} · {100 * tile.probability:.0f} %")
    truth = _wrapped(f"true: {_brief(str(tile.true))}") if wrong else []
    return [*((line, RED if wrong else INK) for line in lines), *((line, INK) for line in truth)]


def _brief(name: str) -> str:
    return shortened(name.split(",", maxsplit=1)[0] if len(name) > 20 else name, 34)


def _wrapped(text: str) -> list[str]:
    """As many lines as fit below an image, broken between words, or inside a word that is too long."""
    return textwrap.wrap(text.replace(" %", "\xa0%").replace(" · ", " ·\xa0"), 20)


def _tile(guess: Guess, dataset: Samples, evaluation: ClassificationMeter) -> Tile:
    names = evaluation.class_names
    image, _ = dataset[guess.position]
    image = as_picture(image).copy()
    image.thumbnail((256, 256))
    return Tile(image, names[guess.predicted], guess.probability, names[guess.true])


def _square(image: Image.Image) -> np.ndarray[Any, Any]:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.convert("RGB").crop((left, top, left + side, top + side)))


def _score(evaluation: ClassificationMeter) -> str:
    return f"{100 * evaluation.top1:.1f} % of {evaluation.count:,} images right"
