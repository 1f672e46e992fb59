"""Pictures of an evaluated detector as PNG files: precision over recall, confusion, and a sheet of what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.data.bands import as_picture
from vision_ssm.plots import BLUE, GREY, INK, ORANGE, RED, png_figure, shortened
from vision_ssm.tasks.confusion import draw_matrix
from vision_ssm.tasks.detection.coco_scores import CocoScores, Seen
from vision_ssm.tasks.detection.masks import Patch
from vision_ssm.tasks.detection.meter import CONFIDENT, MATCHED, DetectionMeter
from vision_ssm.tasks.detection.results import drawn
from vision_ssm.tasks.detection.sources import ObjectImages
from vision_ssm.tasks.detection.things import filled
from vision_ssm.tasks.legend import Colour
from vision_ssm.tasks.outlines import run_lengths

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_confusion", "draw_precision_recall", "draw_predictions"]

SHEET = 6
"""So many images are drawn, evenly spread over the data."""

SHEET_SIDE = 900
"""Longer side of a drawn image, in pixels."""

NOTHING = "nothing"
"""Stands in the matrix for what was not found, and for where nothing is annotated."""

_CURVES = 10  # classes whose curves are drawn


def draw_precision_recall(meter: DetectionMeter, path: str | Path, *, title: str = "") -> None:
    """Draw precision over recall, of boxes and beside it of masks: means over the classes, and each class at IoU 0.5.

    Raises:
        DataError: the picture cannot be written.
    """
    kinds = [False, True] if meter.masks else [False]
    with png_figure(path, (5.2 * len(kinds) + 0.4, 4.4)) as figure:
        for number, masks in enumerate(kinds, 1):
            axes = figure.add_subplot(1, len(kinds), number)
            scored = meter.scored(masks=masks)
            _curves(axes, scored, meter.class_names)
            kind = "Masks" if masks else "Boxes"
            axes.set_title(f"{kind}: AP {_percent(scored.figures['ap'])}, AP50 {_percent(scored.figures['ap50'])}")
        figure.suptitle(
            shortened(title, 60) or f"{meter.count:,} held-out images", x=0.01, ha="left", fontweight="bold"
        )


def _curves(axes: Axes, scored: CocoScores, names: Sequence[str]) -> None:
    known = [label for label in range(len(names)) if (scored.precision[0, :, label] > -1).any()]
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.01)
    axes.set_xlabel("recall: share of the objects that are found")
    axes.set_ylabel("precision: share of the finds that are right")
    if not known:
        axes.text(0.5, 0.5, "no object is annotated", ha="center", color=GREY)
        return
    if len(known) > 1:
        for label in known[:_CURVES]:
            axes.plot(scored.recalls, scored.precision[0, :, label], color=GREY, linewidth=0.9, alpha=0.8)
            reached = np.flatnonzero(scored.precision[0, :, label] > 0.02)
            if not len(reached):
                continue
            at = int(reached[-1])
            axes.annotate(
                shortened(names[label], 14),
                (scored.recalls[at], scored.precision[0, at, label]),
                fontsize=7,
                color=INK,
                ha="right",
            )
    for overlap, colour in ((0.5, BLUE), (0.75, ORANGE), (0.9, RED)):
        row = int(np.abs(scored.overlaps - overlap).argmin())
        mean = scored.precision[row][:, known].mean(1)
        axes.plot(scored.recalls, mean, color=colour, linewidth=1.8, label=f"IoU {overlap:g}")
    if len(known) > 1:
        axes.plot([], [], color=GREY, linewidth=0.9, label="each class, IoU 0.5")
    axes.legend(loc="upper right", fontsize=8)


def draw_confusion(meter: DetectionMeter, path: str | Path, *, title: str = "") -> None:
    """Draw which classes are taken for which, which objects are missed and what is found where nothing is.

    Raises:
        DataError: the picture cannot be written.
    """
    about = f"finds of at least {CONFIDENT:g} over {meter.count:,} images, IoU {MATCHED:g}"
    heading = f"{shortened(title, 40)}: {about}" if title else about
    names = [*meter.class_names, NOTHING]
    draw_matrix(meter.confusion(), names, path, title=heading, unit="objects", asked="annotated", told="found")


def draw_predictions(meter: DetectionMeter, samples: ObjectImages, path: str | Path, *, title: str = "") -> None:
    """Draw images of an evaluation, evenly spread over the data: what is annotated, and beside it what was found.

    Raises:
        DataError: an image cannot be read any more, or the picture cannot be written.
    """
    positions = sorted(meter.seen)
    places = [(2 * at + 1) * len(positions) // (2 * SHEET) for at in range(SHEET)] if positions else []
    picked = dict.fromkeys(positions[place] for place in places)
    rows = [_pair(samples, position, meter.seen[position]) for position in picked]
    across = 2 if len(rows) > 1 else 1
    down = max(1, math.ceil(len(rows) / across))
    cell, gap, between, top, below = 3.2, 0.06, 0.25, 0.62, 0.45
    heights = [cell * max([_ratio(row[0]) for row in rows[at * across : (at + 1) * across]], default=1)
               for at in range(down)]  # fmt: skip
    width = across * 2 * cell + (across - 1) * between
    height = top + sum(heights) + down * gap + below
    with png_figure(path, (width, height), layout=None) as figure:
        figure.text(0, 1, shortened(title, 90) or _heading(meter), va="top", fontsize=13, fontweight="bold")
        for number, pair in enumerate(rows):
            line, place = divmod(number, across)
            edge = top + sum(heights[:line]) + line * gap
            for column, picture in enumerate(pair):
                left = place * (2 * cell + between) + column * cell
                box = (left / width, 1 - (edge + heights[line]) / height, (cell - gap) / width, heights[line] / height)
                axes = figure.add_axes(box)
                axes.set_axis_off()
                axes.set_anchor("N")
                axes.imshow(np.asarray(picture), interpolation="antialiased")
                if line == 0:
                    name = f"found, with scores from {100 * CONFIDENT:.0f} %" if column else "annotated"
                    axes.set_title(name, fontsize=10, fontweight="normal", pad=5)
        _legend(figure.add_axes((0, 0, 1, below / height)), samples.class_names, samples.palette, (width, below))


def _pair(samples: ObjectImages, position: int, seen: Seen) -> tuple[Image.Image, Image.Image]:
    sample, target = samples[position]
    image = as_picture(sample)
    factor = min(1.0, SHEET_SIDE / max(image.size))
    small = image.resize((max(1, round(image.width * factor)), max(1, round(image.height * factor))))
    height, width = target.size
    truth = None
    if seen.masks is not None:
        truth = [Patch(0, 0, _shrunk(filled(outline, height, width), small)) if outline is not None else _nothing()
                 for outline in target.outlines]  # fmt: skip
    palette = samples.palette
    annotated = drawn(small, target.boxes.numpy() * factor, target.labels.numpy(), palette, None, truth)
    sure = seen.scores >= CONFIDENT
    masks = None
    if seen.masks is not None:
        kept = [text for text, is_kept in zip(seen.masks, sure, strict=True) if is_kept]
        masks = [Patch(0, 0, _shrunk(run_lengths(text, height, width), small)) for text in kept]
    found = drawn(small, seen.found[sure] * factor, seen.found_labels[sure], palette, seen.scores[sure], masks)
    return annotated, found


def _shrunk(mask: NDArray[np.bool_], image: Image.Image) -> NDArray[np.bool_]:
    if mask.shape == image.size[::-1]:
        return mask
    return np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))


def _nothing() -> Patch:
    return Patch(0, 0, np.zeros((0, 0), bool))


def _ratio(image: Image.Image) -> float:
    return float(min(2.0, image.height / image.width))


def _legend(axes: Axes, names: Sequence[str], palette: Sequence[Colour], size: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    axes.set_axis_off()
    axes.set_xlim(0, size[0])
    axes.set_ylim(size[1], 0)
    left = 0.0
    for number, (name, colour) in enumerate(zip(names, palette, strict=True)):
        text = shortened(name, 20)
        if left + 1.2 > size[0]:
            axes.text(left, 0.31, f"and {len(names) - number} more", va="center", fontsize=8.5)
            break
        face = tuple(part / 255 for part in colour)
        axes.add_patch(Rectangle((left, 0.22), 0.15, 0.15, facecolor=face, edgecolor=INK, linewidth=0.4))
        axes.text(left + 0.23, 0.305, text, va="center", fontsize=8.5)
        left += 0.5 + 0.085 * len(text)


def _heading(meter: DetectionMeter) -> str:
    figures = meter.scores()
    masks = f", mask AP {_percent(figures['mask_ap'])}" if meter.masks else ""
    return f"AP {_percent(figures['ap'])}{masks} over {meter.count:,} held-out images"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"
