"""Small folders of annotated images, for the tests of this room: coloured rectangles on grey."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from vision_ssm.tasks.outlines import pack_counts, runs_of

NAMES = ("red", "blue")
COLOURS = ((220, 30, 30), (30, 60, 230))
GREY = 120


class Rect(NamedTuple):
    """A rectangle of class ``label`` in pixels, left, top, right, bottom."""

    label: int
    box: tuple[int, int, int, int]


SCENE = (Rect(0, (4, 6, 14, 12)), Rect(1, (20, 10, 32, 24)))


def picture(height: int, width: int, rects: tuple[Rect, ...]) -> Image.Image:
    pixels = np.full((height, width, 3), GREY, np.uint8)
    for label, (left, top, right, bottom) in rects:
        pixels[top:bottom, left:right] = COLOURS[label]
    return Image.fromarray(pixels)


def save(path: Path, height: int = 30, width: int = 40, rects: tuple[Rect, ...] = SCENE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(height, width, rects).save(path)
    return path


def scenes(count: int, height: int = 64, width: int = 72, seed: int = 0) -> list[tuple[Rect, ...]]:
    """Scenes of one to three rectangles that do not touch; the last scene is empty."""
    numbers = np.random.default_rng(seed)
    found = []
    for number in range(count):
        rects: list[Rect] = []
        taken = np.zeros((height, width), bool)
        for _ in range(0 if number == count - 1 else 1 + number % 3):
            h, w = numbers.integers(12, 28, 2)
            top, left = numbers.integers(0, height - h), numbers.integers(0, width - w)
            if not taken[max(0, top - 2) : top + h + 2, max(0, left - 2) : left + w + 2].any():
                taken[top : top + h, left : left + w] = True
                rects.append(Rect(int(numbers.integers(2)), tuple(map(int, (left, top, left + w, top + h)))))
        found.append(tuple(rects))
    return found


def segmentation(kind: str, box: tuple[int, int, int, int], height: int, width: int) -> Any:
    left, top, right, bottom = box
    if kind == "polygons":
        return [[left, top, right, top, right, bottom, left, bottom]]
    runs = runs_of(np.ones((bottom - top, right - left), bool), top, left, height, width)
    return {"size": [height, width], "counts": pack_counts(runs) if kind == "packed" else runs}


def coco(
    root: Path,
    parts: dict[str, list[tuple[Rect, ...]]],
    *,
    outlines: str | None = "polygons",
    ids: tuple[int, int] = (1, 2),
    size: tuple[int, int] = (30, 40),
) -> Path:
    """Write ``PART/N.png`` and ``annotations/PART.json``; outlines are polygons, runs, packed, or None."""
    height, width = size
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, listed in parts.items():
        images, annotations = [], []
        for number, rects in enumerate(listed, 1):
            save(root / part / f"{number}.png", height, width, rects)
            images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
            for label, box in rects:
                left, top, right, bottom = box
                entry: dict[str, Any] = {
                    "id": len(annotations) + 1, "image_id": number, "category_id": ids[label], "iscrowd": 0,
                    "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top),
                }  # fmt: skip
                if outlines:
                    entry["segmentation"] = segmentation(outlines, box, height, width)
                annotations.append(entry)
        categories = [{"id": key, "name": name} for key, name in zip(ids, NAMES, strict=True)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{part}.json").write_text(json.dumps(content))
    return root


def changed(path: Path, **values: Any) -> None:
    """Change the lists of a COCO file: ``annotations=function of the list``."""
    content = json.loads(path.read_text())
    for key, change in values.items():
        content[key] = change(content[key])
    path.write_text(json.dumps(content))
