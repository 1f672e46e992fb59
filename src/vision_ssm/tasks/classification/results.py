"""What a classifier finds in one image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vision_ssm.tasks.task import Result

__all__ = ["Classes"]

SMALLEST = 128  # pixels of the longer side, in a picture with a text below


@dataclass(frozen=True, repr=False)
class Classes(Result):
    """The classes found, most probable first: (class name, probability in [0, 1])."""

    classes: tuple[tuple[str, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """``{"classes": [{"class", "probability"}]}``."""
        return {"classes": [{"class": name, "probability": p} for name, p in self.classes]}

    def row(self) -> dict[str, str]:
        """The first class, and what comes then."""
        (name, probability), *others = self.classes
        then = ", ".join(f"{name} {_percent(p)}" for name, p in others)
        return {"class": name, "probability": _percent(probability), "then": then}

    def records(self) -> list[dict[str, Any]]:
        """One line per rank."""
        return [
            {"rank": rank, "class": name, "probability": f"{probability:.6f}"}
            for rank, (name, probability) in enumerate(self.classes, start=1)
        ]

    def draw(self, image: Image.Image) -> Image.Image:
        """Write the first class below the image, which is enlarged where it is tiny and widened where the text is."""
        name, probability = self.classes[0]
        factor = math.ceil(SMALLEST / max(image.size))
        image = image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)
        size = max(12, image.width // 24)
        font, text = ImageFont.load_default(size), f"{name}  {_percent(probability)}"
        width = max(image.width, math.ceil(font.getlength(text)) + size)
        drawn = Image.new("RGB", (width, image.height + 2 * size), "white")
        drawn.paste(image)
        ImageDraw.Draw(drawn).text((size // 2, image.height + size // 3), text, "black", font)
        return drawn


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
