"""What a segmentation finds in one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.tasks.segmentation.legend import blended, enlarged, with_legend
from vision_ssm.tasks.segmentation.masks import IGNORE, Colour, paletted
from vision_ssm.tasks.task import Result

__all__ = ["Area", "Segments"]

_SHOWN = 4  # classes in a row of the table on the terminal


class Area(NamedTuple):
    """The pixels of one class: its index, name, how many, and their share of all that have one, in [0, 1]."""

    number: int
    name: str
    pixels: int
    share: float


@dataclass(frozen=True, eq=False, repr=False)
class Segments(Result):
    """A class for each pixel.

    Attributes:
        classes: indices uint8 [H, W], 255 where there is no image.
        class_names: in the order of the indices.
        palette: a colour for each class.
        confidence: mean probability of the classes chosen, in [0, 1]; None if it was not kept.
    """

    classes: NDArray[np.uint8]
    class_names: Sequence[str]
    palette: Sequence[Colour]
    confidence: float | None = None

    @cached_property
    def areas(self) -> list[Area]:
        """The classes that occur, largest first."""
        counts = np.array(Image.fromarray(self.classes).histogram()[:IGNORE])  # without eight bytes for each pixel
        total = max(1, int(counts.sum()))
        order = np.argsort(-counts, kind="stable")
        return [
            Area(int(index), self.class_names[index], int(counts[index]), int(counts[index]) / total)
            for index in order
            if counts[index]
        ]

    def to_dict(self) -> dict[str, Any]:
        """``{"size": [H, W], "classes": [{"class", "index", "pixels", "share"}]}``, ``mean_confidence`` if known."""
        known = {} if self.confidence is None else {"mean_confidence": self.confidence}
        listed = [
            {"class": area.name, "index": area.number, "pixels": area.pixels, "share": area.share}
            for area in self.areas
        ]
        return {"size": list(self.classes.shape), "classes": listed, **known}

    def row(self) -> dict[str, str]:
        """The size, and the largest classes."""
        height, width = self.classes.shape
        shown = [f"{area.name} {_percent(area.share)}" for area in self.areas[:_SHOWN]]
        others = [f"{len(self.areas) - _SHOWN} more"] if len(self.areas) > _SHOWN else []
        return {"size": f"{height} x {width}", "classes": ", ".join([*shown, *others]) or "none"}

    def records(self) -> list[dict[str, Any]]:
        """One line per class that occurs."""
        return [{"class": area.name, "pixels": area.pixels, "share": f"{area.share:.6f}"} for area in self.areas]

    def draw(self, image: Image.Image) -> Image.Image:
        """Lay the colours of the classes over the image, half transparent, and write below what they mean."""
        over = enlarged(blended(image, self.classes, self.palette))
        return with_legend(over, [(f"{a.name} {_percent(a.share)}", self.palette[a.number]) for a in self.areas])

    def mask(self) -> Image.Image:
        """Return the class indices as a picture with a palette (mode ``P``)."""
        return paletted(self.classes, self.palette)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "<0.1 %"
