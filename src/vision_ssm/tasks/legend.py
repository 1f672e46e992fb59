"""Colours that stand for classes, and a picture with what they mean below it."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Colour", "default_palette", "enlarged", "with_legend"]

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""

_SMALLEST = 160  # pixels of the longer side, in a picture with a legend below
_NARROWEST = 200
_INK, _EDGE = (34, 38, 44), (139, 146, 156)


def default_palette(count: int) -> tuple[Colour, ...]:
    """Return colours that differ, for classes without any: hues a golden section apart, in turns light and dark."""
    lightness, saturation = (0.52, 0.38, 0.68), (0.75, 0.55, 0.9)
    return tuple(
        _bytes(colorsys.hls_to_rgb((0.58 + 0.618034 * i) % 1, lightness[i % 3], saturation[i // 3 % 3]))
        for i in range(count)
    )


def _bytes(colour: tuple[float, float, float]) -> Colour:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


def enlarged(image: Image.Image) -> Image.Image:
    """Return a tiny image with every pixel as a square of several, so that something can be seen."""
    factor = math.ceil(_SMALLEST / max(image.size))
    if factor == 1:
        return image
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


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
