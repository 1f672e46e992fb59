"""COCO files: outlines of things, filled into a mask of their classes.

Pixels that no outline covers are background, which is class 0. Where outlines overlap, the one of the smaller area is
on top, and of equal ones that which comes later in the file: a hole cut by drawing something onto it stays visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_ssm.data.images import MAX_PIXELS
from vision_ssm.errors import DataError
from vision_ssm.tasks.coco_files import CocoPart, image_file, read_json
from vision_ssm.tasks.outlines import fill_polygons, run_lengths
from vision_ssm.tasks.segmentation.classes import MOST_CLASSES

__all__ = ["CocoImages", "Outline", "fill", "read_coco"]

_BACKGROUND = "background"


class Outline(NamedTuple):
    """One thing: its category, where it is (polygons, or a dict of run lengths), its area, and its id in the file."""

    category: str
    segmentation: Sequence[Sequence[float]] | Mapping[str, Any]
    area: float
    id: object


class CocoImages(NamedTuple):
    """A COCO file.

    Attributes:
        source: the file.
        digest: of its content.
        class_names: background first.
        images: file, (height, width) and outlines of each, by name.
        without_outline: how many annotations have a box only and are left out.
    """

    source: Path
    digest: str
    class_names: tuple[str, ...]
    images: tuple[tuple[Path, tuple[int, int], tuple[Outline, ...]], ...]
    without_outline: int


def read_coco(part: CocoPart, *, max_pixels: int = MAX_PIXELS) -> CocoImages:
    """Read a COCO file of instances.

    A category called background stands for what no outline covers; otherwise background is added.

    Raises:
        DataError: naming the file; unreadable, of another form, without any outline, or an image file is missing.
    """
    path = part.annotations
    content, digest = read_json(path)
    try:
        names = {entry["id"]: str(entry["name"]).strip() for entry in content["categories"]}
        outlines: dict[Any, list[Outline]] = {image["id"]: [] for image in content["images"]}
        without = 0
        for entry in content["annotations"]:
            if not entry.get("segmentation"):
                without += 1
                continue
            outline = Outline(
                names[entry["category_id"]], entry["segmentation"], float(entry.get("area", 0)), entry["id"]
            )
            outlines[entry["image_id"]].append(outline)
        images = [
            (image_file(part, image["file_name"]), _size(image, max_pixels), image["id"]) for image in content["images"]
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} is no COCO file of instances: expected images, categories and annotations that refer to "
            f"each other by id; at fault is {type(error).__name__} {error}."
        ) from error
    if not any(outlines.values()):
        raise DataError(
            f"{str(path)!r} holds {without:,} boxes and no outline (segmentation); masks cannot be made from boxes."
        )
    listed = sorted((file, size, tuple(outlines[key])) for file, size, key in images)
    return CocoImages(path, digest, _class_names(path, names), tuple(listed), without)


def _size(image: Mapping[str, Any], max_pixels: int) -> tuple[int, int]:
    height, width = int(image["height"]), int(image["width"])
    if height < 1 or width < 1 or height * width > max_pixels:
        raise ValueError(f"the size {height} x {width} of an image; at most {max_pixels:,} pixels are read")
    return height, width


def _class_names(path: Path, names: Mapping[Any, str]) -> tuple[str, ...]:
    listed = [names[key] for key in sorted(names)]
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{str(path)!r} has two categories called {twice!r}; rename one.")
    things = [name for name in listed if name.lower() != _BACKGROUND]
    if not things or len(things) >= MOST_CLASSES:
        raise DataError(
            f"{str(path)!r} has {len(things)} categories; expected 1 to {MOST_CLASSES - 1}, and background."
        )
    return next((name for name in listed if name.lower() == _BACKGROUND), _BACKGROUND), *things


def fill(
    outlines: Sequence[Outline], size: tuple[int, int], class_names: Sequence[str], source: Path
) -> NDArray[np.uint8]:
    """Return class indices [H, W] of an image's outlines, the smaller ones on top; see the module.

    Raises:
        DataError: naming ``source`` and the annotation that cannot be filled.
    """
    index = {name: number for number, name in enumerate(class_names)}
    mask = np.full(size, 0, np.uint8)
    # sorted() keeps the order of the file among equals.
    for outline in sorted(outlines, key=lambda outline: -outline.area):
        try:
            mask[_inside(outline.segmentation, size)] = index[outline.category]
        except (DataError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(
                f"annotation {outline.id} of {str(source)!r} cannot be filled: "
                f"{str(error).rstrip('.') or type(error).__name__}."
            ) from error
    return mask


def _inside(segmentation: Sequence[Sequence[float]] | Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    if not isinstance(segmentation, Mapping):
        return fill_polygons(segmentation, *size)
    if tuple(segmentation["size"]) != size:
        raise DataError(f"its run lengths are of {segmentation['size']} pixels, the image of {list(size)}")
    return run_lengths(segmentation["counts"], *size)
