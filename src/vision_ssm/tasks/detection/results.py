"""What a detection finds in one image."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vision_ssm.data.geo.grid import Grid
from vision_ssm.tasks.detection.masks import Patch
from vision_ssm.tasks.legend import Colour, enlarged, with_legend
from vision_ssm.tasks.task import Result

__all__ = ["Detections", "drawn"]

_SHOWN = 4  # classes in a row of the table on the terminal
_MANY = 60  # objects in a picture above which their scores are not written, and lines are thin


@dataclass(frozen=True, eq=False)
class Detections(Result):
    """The objects of one image, the best first.

    Attributes:
        size: (height, width) of the image.
        boxes: [N, 4], left, top, right, bottom in its pixels.
        labels: class indices [N].
        scores: [N] in [0, 1].
        masks: of each; None where the model has none.
        class_names: in the order of the indices.
        category_ids: the number of each class in the data that the model was trained on.
        palette: a colour for each class.
        grid: coordinates of the scene; None for pictures.
    """

    size: tuple[int, int]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    masks: Sequence[Patch] | None
    class_names: Sequence[str]
    category_ids: Sequence[int]
    palette: Sequence[Colour]
    grid: Grid | None = None

    def placed(self, grid: Grid) -> Self:
        """Return the same with its coordinates."""
        return dataclasses.replace(self, grid=grid)

    def to_dict(self) -> dict[str, Any]:
        """``{"size": [H, W], "detections": [...]}``, each detection as COCO has it, with the name of its class.

        ``bbox`` is left, top, width, height in pixels; ``segmentation``, where there are masks, run lengths.
        """
        return {"size": list(self.size), "detections": self.detections()}

    def detections(self) -> list[dict[str, Any]]:
        """Return the objects as COCO has them, without ids."""
        found = []
        for index, (box, label, score) in enumerate(zip(self.boxes, self.labels, self.scores, strict=True)):
            left, top, right, bottom = (float(value) for value in box)
            entry: dict[str, Any] = {
                "class": self.class_names[label],
                "category_id": self.category_ids[label],
                "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
                "score": round(float(score), 5),
            }
            if self.masks is not None:
                entry["segmentation"] = {"size": list(self.size), "counts": self.masks[index].packed(*self.size)}
            found.append(entry)
        return found

    def counts(self) -> list[tuple[int, int]]:
        """Return (class index, number of objects) of the classes that occur, the most frequent first."""
        return sorted(Counter(self.labels.tolist()).items(), key=lambda entry: (-entry[1], entry[0]))

    def row(self) -> dict[str, str]:
        """The size, and how many of which class."""
        counts = self.counts()
        shown = [f"{count} {self.class_names[label]}" for label, count in counts[:_SHOWN]]
        others = [f"{len(counts) - _SHOWN} more classes"] if len(counts) > _SHOWN else []
        best = f"{100 * float(self.scores[0]):.1f} %" if len(self.scores) else "-"
        return {
            "size": f"{self.size[0]} x {self.size[1]}",
            "found": ", ".join([*shown, *others]) or "nothing",
            "best score": best,
        }

    def records(self) -> list[dict[str, Any]]:
        """One line per object."""
        return [
            {
                "class": entry["class"],
                "score": entry["score"],
                **dict(zip(("left", "top", "width", "height"), entry["bbox"], strict=True)),
            }
            for entry in self.detections()
        ]

    def draw(self, image: Image.Image) -> Image.Image:
        """Draw masks, boxes and scores in the colours of the classes, and write below what they mean."""
        boxes, masks = self.boxes, self.masks
        if (image.height, image.width) != self.size:
            down, across = image.height / self.size[0], image.width / self.size[1]
            boxes = boxes * np.array([across, down, across, down], np.float32)
            masks = None if masks is None else [mask.resized(down, across, image.height, image.width) for mask in masks]
        over = enlarged(drawn(image, boxes, self.labels, self.palette, self.scores, masks))
        return with_legend(
            over, [(f"{self.class_names[label]} {count}", self.palette[label]) for label, count in self.counts()]
        )


def drawn(
    image: Image.Image,
    boxes: NDArray[Any],
    labels: NDArray[np.int64],
    palette: Sequence[Colour],
    scores: NDArray[np.float32] | None = None,
    masks: Sequence[Patch] | None = None,
) -> Image.Image:
    """Return an RGB image with boxes [N, 4], and masks half transparent, in the colours of their classes [N].

    The letters of ``scores`` and the lines grow with the image; of very many objects lines are thin and no score is
    written.
    """
    over = image.copy()
    for index, patch in enumerate(masks or ()):
        if patch.bits.size:
            colour = Image.new("RGB", patch.bits.shape[::-1], palette[labels[index]])
            alpha = Image.fromarray(patch.bits.astype(np.uint8) * 110)
            over.paste(colour, (patch.left, patch.top), alpha)
    draw: Any = ImageDraw.Draw(over)
    width = max(1, round(max(image.size) / (400 if len(boxes) <= _MANY else 1000)))
    size = max(10, round(max(image.size) / 64))
    font = ImageFont.load_default(size)
    for index in range(len(boxes) - 1, -1, -1):  # the best on top
        colour, (left, top, right, bottom) = palette[labels[index]], (float(value) for value in boxes[index])
        right, bottom = max(right - 1, left), max(bottom - 1, top)  # the last pixels, not the edges behind them
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        if scores is not None and len(boxes) <= _MANY:
            text = f"{100 * scores[index]:.0f}"
            at = max(0.0, top - 1.15 * size)
            draw.rectangle((left, at, left + font.getlength(text) + size / 3, at + 1.15 * size), fill=colour)
            draw.text((left + size / 6, at + 0.58 * size), text, "white", font, anchor="lm")
    return over
