"""A sheet of small pictures, in lines of one name each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["COLUMNS", "draw_sheet"]

COLUMNS = 10
"""More pictures of a name go on in the next line."""

_SIDE = 64  # pixels to which smaller pictures are enlarged, each of theirs as a square
_GAP = 2
_INK = (34, 38, 44)


def draw_sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: int = COLUMNS) -> Image.Image:
    """Return an RGB picture with all the pictures of ``rows``, (name, pictures of one size), and the names beside them.

    Args:
        rows: at least one picture in all; a name that is empty is left out.
        columns: pictures in a line.
    """
    first = next(picture for _, pictures in rows for picture in pictures)
    factor = max(1, math.ceil(_SIDE / max(first.size)))
    width, height = factor * first.width, factor * first.height
    font = ImageFont.load_default(max(12, height // 5))
    left = max((math.ceil(font.getlength(name)) + 3 * _GAP for name, _ in rows if name), default=0)
    lines = [
        (name if start == 0 else "", pictures[start : start + columns])
        for name, pictures in rows
        for start in range(0, len(pictures), columns)
    ]
    across = max(len(pictures) for _, pictures in lines)
    size = left + across * (width + _GAP) + _GAP, len(lines) * (height + _GAP) + _GAP
    drawn = Image.new("RGB", size, "white")
    draw: Any = ImageDraw.Draw(drawn)
    for at, (name, pictures) in enumerate(lines):
        top = _GAP + at * (height + _GAP)
        draw.text((_GAP, top + height / 2), name, _INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            enlarged = picture.resize((width, height), Image.Resampling.NEAREST)
            drawn.paste(enlarged, (left + _GAP + column * (width + _GAP), top))
    return drawn
