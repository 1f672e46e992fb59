"""Class maps for people: colours over an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vision_ssm.tasks.legend import Colour
from vision_ssm.tasks.segmentation.masks import IGNORE

__all__ = ["blended", "coloured"]


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
