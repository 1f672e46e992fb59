"""Class maps for people: colours over an image, and what they mean below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vision_ssm.tasks.segmentation.masks import IGNORE, Colour

__all__ = ["blended", "coloured", "enlarged", "with_legend"]

SMALLEST = 160  # pixels of the longer side, in a picture with a legend below
_NARROWEST = 200
_INK, _EDGE = (34, 38, 44), (139, 146, 156)


def enlarged(image: Image.Image) -> Image.Image:
    """Return a tiny image with every pixel as a square of several, so that something can be seen."""
    factor = math.ceil(SMALLEST / max(image.size))
    if factor == 1:
        return image
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def coloured(classes: NDArray[np.uint8], palette: Sequence[Colour], ignored: Colour) -> NDArray[np.uint8]:
    """Return class indices [H, W] as colours [H, W, 3]; `IGNORE` in the colour ``ignored``."""
    table: NDArray[np.uint8] = np.full((256, 3), ignored, np.uint8)
    table[: min(len(palette), IGNORE)] = palette[:IGNORE]
    return table[classes]


def blended(
    image: Image.Image, classes: NDArray[np.uint8], palette: Sequence[Colour], strength: float = 0.5
) -> Image.Image:
    """Return an RGB image with the colours of the classes over it; pixels of `IGNORE` stay as they are.

    Args:
        image: of any size; the map is scaled to it.
        classes: indices [H, W].
        palette: a colour for each class.
        strength: share of the colour, in [0, 1].
    """
    if classes.shape != image.size[::-1]:
        classes = np.asarray(Image.fromarray(classes).resize(image.size, Image.Resampling.NEAREST))
    over = Image.blend(image, Image.fromarray(coloured(classes, palette, (0, 0, 0))), strength)
    over.paste(image, mask=Image.fromarray(np.where(classes == IGNORE, np.uint8(255), np.uint8(0))))
    return over


def with_legend(image: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """Return an RGB image with names and their colours below it, in as many lines as they take.

    The letters grow with the image: it will be looked at as a whole.
    """
    size = max(12, round(max(image.size) / 60))
    font, gap = ImageFont.load_default(size), size // 2
    width = max(image.width, _NARROWEST)
    lines: list[list[tuple[str, Colour, float]]] = [[]]
    left = float(gap)
    for name, colour in entries:
        text = _fitting(name, font, width - 4 * gap - size)
        needed = size + gap + font.getlength(text) + 2 * gap
        if lines[-1] and left + needed > width:
            lines.append([])
            left = float(gap)
        lines[-1].append((text, colour, left))
        left += needed
    step = round(1.6 * size)
    drawn = Image.new("RGB", (width, image.height + len(lines) * step + gap), "white")
    drawn.paste(image)
    draw: Any = ImageDraw.Draw(drawn)
    for row, line in enumerate(lines):
        top = image.height + gap + row * step
        for text, colour, at in line:
            draw.rectangle((at, top, at + size, top + size), colour, _EDGE, max(1, size // 16))
            draw.text((at + size + gap, top + size / 2), text, _INK, font, anchor="lm")
    return drawn


def _fitting(name: str, font: Any, width: float) -> str:
    """Cut a name that is longer than a line."""
    if font.getlength(name) <= width:
        return name
    kept = next((end for end in range(len(name) - 1, 0, -1) if font.getlength(f"{name[:end]}…") <= width), 1)
    return f"{name[:kept]}…"
