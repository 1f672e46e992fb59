"""Small folders of images with masks, for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = [{"name": "sky", "color": [0, 0, 255]}, {"name": "road", "color": [90, 90, 90]}]


def image(path: Path, height: int = 6, width: int = 8, value: int = 100) -> Path:
    """Write a picture of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)
    return path


def mask(path: Path, values: Any) -> Path:
    """Write an index PNG (or what the suffix says) of numbers [H, W] or colours [H, W, 3]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path)
    return path


def halves(height: int = 6, width: int = 8, left: int = 0, right: int = 1) -> np.ndarray[Any, Any]:
    """Class indices: the left half of one class, the right half of another; the first pixel counts for none."""
    values = np.full((height, width), left, np.uint8)
    values[:, width // 2 :] = right
    values[0, 0] = 255
    return values


def folder(root: Path, images: Iterable[str], *, masks: str = "annotations", classes: Any = CLASSES) -> Path:
    """Write ``images/NAME.jpg`` and ``annotations/NAME.png`` for each name, such as ``train/a``."""
    for number, name in enumerate(images):
        image(root / "images" / f"{name}.jpg", value=10 * number % 256)
        mask(root / masks / f"{name}.png", halves())
    if classes is not None:
        (root / "classes.json").write_text(json.dumps(classes))
    return root
