"""What annotation files say of images: things in boxes, some with outlines, and what is wrong with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_ssm.errors import DataError
from vision_ssm.tasks.outlines import fill_polygons, lengths_of, polygon_corners, run_lengths

__all__ = [
    "LEAST_SIDE",
    "Annotated",
    "Box",
    "Fault",
    "Listed",
    "Outline",
    "Thing",
    "box_faults",
    "filled",
    "named",
    "require_outline",
    "usable",
]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, counted from the corner of the first pixel."""

Outline = Sequence[Sequence[float]] | Mapping[str, Any]
"""Polygons [x0, y0, x1, y1, ...], or COCO's run lengths ``{"size": [H, W], "counts": ...}``."""

ROUNDING = 0.5
"""Pixels beyond the edge of an image at which a box may end."""

LEAST_SIDE = 1.0
"""Boxes narrower or lower than this, in pixels of the image as it is trained on, are no object to learn."""


class Thing(NamedTuple):
    """One annotated thing.

    Attributes:
        label: class index.
        box: in pixels; in shares of the image where its `Listed` says so.
        outline: in the same unit; None where only the box is known.
        area: in pixels, by which COCO's scores tell small from large; nan where the file does not say.
        crowd: several things in one box, or too hard to tell: neither learned nor counted.
        id: in the file.
    """

    label: int
    box: Box
    outline: Outline | None
    area: float
    crowd: bool
    id: object


class Listed(NamedTuple):
    """An image file with its things.

    Attributes:
        path: of the image.
        source: the annotation file.
        size: (height, width) that the annotation file claims; None where it does not.
        things: in its order.
        relative: whether boxes and outlines are in shares of the image's width and height.
    """

    path: Path
    source: Path
    size: tuple[int, int] | None
    things: tuple[Thing, ...]
    relative: bool = False


class Fault(NamedTuple):
    """Something wrong in a file of annotations.

    Attributes:
        file: it.
        text: what is wrong in it.
        refused: nothing can be trained before it is mended.
        harmless: it is said where somebody asks (`vision_ssm.analysis.check_data`), not whenever the data are opened.
    """

    file: str
    text: str
    refused: bool = False
    harmless: bool = False


class Annotated(NamedTuple):
    """One part of a data set, as its annotation files tell it.

    Attributes:
        place: file or folder, for messages.
        digest: of the annotation files.
        class_names: in the order of the class indices.
        category_ids: the number of each class in the files.
        images: by name.
        faults: what is wrong.
    """

    place: Path
    digest: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: tuple[Listed, ...]
    faults: tuple[Fault, ...]


def box_faults(thing: Thing, size: tuple[int, int] | None, image: str) -> Iterator[str]:
    """Yield what is wrong with a box, in words; its image, of that (height, width), is called ``image``."""
    left, top, right, bottom = thing.box
    shown = f"box {[round(value, 4) for value in thing.box]} of annotation {thing.id} on {image}"
    if not all(math.isfinite(value) for value in thing.box):
        yield f"{shown} is not finite; it is left out"
        return
    if right <= left or bottom <= top:
        yield f"{shown} has no area; it is left out"
        return
    if size is None:
        return
    kept = usable(thing.box, size)
    if kept is None:
        yield f"{shown} is outside the {size[0]} x {size[1]} pixels of the image; it is left out"
    elif kept != thing.box:
        yield f"{shown} reaches outside the {size[0]} x {size[1]} pixels of the image; it is cut"


def usable(box: Box, size: tuple[float, float]) -> Box | None:
    """Return what is left of a box in an image of (height, width) pixels, or None: it has no area there.

    A box that ends at most `ROUNDING` beyond the edge stays as it is, so that scores of data whose programs round so
    are those of other scorers.
    """
    if not all(math.isfinite(value) for value in box):
        return None
    height, width = size
    left, top, right, bottom = box
    if not (left < right and top < bottom and left < width and top < height and right > 0 and bottom > 0):
        return None
    return (
        left if left >= -ROUNDING else 0.0,
        top if top >= -ROUNDING else 0.0,
        right if right <= width + ROUNDING else float(width),
        bottom if bottom <= height + ROUNDING else float(height),
    )


def require_outline(outline: Outline, size: tuple[int, int]) -> None:
    """Raise DataError, without the file's name, unless `filled` can fill an outline in an image of (height, width)."""
    if not isinstance(outline, Mapping):
        for polygon in outline:
            polygon_corners(polygon)
        return
    if list(outline["size"]) != list(size):
        raise DataError(f"its run lengths are of {list(outline['size'])} pixels, the image of {list(size)}")
    lengths_of(outline["counts"], *size)


def filled(outline: Outline, height: int, width: int) -> NDArray[np.bool_]:
    """Return the pixels [H, W] inside an outline.

    Raises:
        DataError: without the file's name: it cannot be filled, or is of another size.
    """
    require_outline(outline, (height, width))
    if not isinstance(outline, Mapping):
        return fill_polygons(outline, height, width)
    return run_lengths(outline["counts"], height, width)


def named(names: Sequence[str], place: Path) -> tuple[str, ...]:
    """Return names of classes, or raise DataError: there are none, or two are alike."""
    listed = tuple(name.strip() for name in names)
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{str(place)!r} has two classes called {twice!r}; rename one.")
    if not listed:
        raise DataError(f"{str(place)!r} names no classes; expected one or more.")
    return listed
