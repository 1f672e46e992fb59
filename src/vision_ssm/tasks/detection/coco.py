"""COCO files of instances: boxes, polygons, run lengths, crowds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vision_ssm.data.files import image_files
from vision_ssm.errors import DataError
from vision_ssm.tasks.coco_files import CocoPart, image_file, read_json
from vision_ssm.tasks.detection.things import (
    Annotated,
    Fault,
    Listed,
    Outline,
    Thing,
    box_faults,
    named,
    require_outline,
)

__all__ = ["read_coco"]

_SHOWN = 8  # numbers in a message


def read_coco(part: CocoPart) -> Annotated:
    """Read a COCO file. Classes are numbered in the order of the category ids, as in the published detectors.

    Raises:
        DataError: naming the file; unreadable, or not of this form at all. What is wrong with single entries is listed
            in ``faults``.
    """
    path = part.annotations
    content, digest = read_json(path)
    try:
        categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
        entries, annotations = list(content["images"]), list(content["annotations"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"{str(path)!r} is no COCO file of instances: expected images, annotations and categories with id and "
            f"name; at fault is {type(error).__name__} {error}."
        ) from error
    ids = tuple(sorted(categories))
    names = named([categories[key] for key in ids], path)
    faults: list[Fault] = list(_numbering(path, ids, content["categories"]))
    images, unusable = _images(part, entries, faults)
    things: dict[Any, list[Thing]] = {key: [] for key in images}
    labels = {key: label for label, key in enumerate(ids)}
    seen: set[Any] = set()
    for number, entry in enumerate(annotations):
        try:
            key = entry["image_id"]
            if key in unusable:  # which has been said
                continue
            file, size = images[key]
            thing = _thing(entry, labels, size)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            shown = entry.get("id", f"number {number}") if isinstance(entry, Mapping) else f"number {number}"
            faults.append(Fault(str(path), f"annotation {shown}: {_reason(error, entry)}", refused=True))
            continue
        if thing.id in seen:
            faults.append(Fault(str(path), f"annotation id {thing.id} occurs more than once"))
        seen.add(thing.id)
        faults += [Fault(str(path), text) for text in box_faults(thing, size, file.name)]
        things[key].append(thing)
    listed = [Listed(file, path, size, tuple(things[key])) for key, (file, size) in images.items()]
    faults += _unlisted(part, listed, {Path(str(name)).name for name in unusable.values()})
    return Annotated(path, digest, names, ids, tuple(sorted(listed, key=lambda image: image.path)), tuple(faults))


def _numbering(path: Path, ids: tuple[int, ...], entries: list[Any]) -> list[Fault]:
    faults = []
    if len(entries) > len(ids):
        twice = next(key for key, count in Counter(int(entry["id"]) for entry in entries).items() if count > 1)
        faults.append(Fault(str(path), f"category id {twice} occurs more than once", refused=True))
    gaps = sorted(set(range(ids[0], ids[-1] + 1)) - set(ids)) if ids else []
    if gaps:
        shown = ", ".join(map(str, gaps[:_SHOWN])) + (", ..." if len(gaps) > _SHOWN else "")
        faults.append(
            Fault(str(path), f"category ids have gaps ({shown}); classes are numbered without them", harmless=True)
        )
    return faults


def _images(
    part: CocoPart, entries: list[Any], faults: list[Fault]
) -> tuple[dict[Any, tuple[Path, tuple[int, int]]], dict[Any, Any]]:
    """Files and sizes of the images by their ids, and the file names of those that cannot be used."""
    found: dict[Any, tuple[Path, tuple[int, int]]] = {}
    unusable: dict[Any, Any] = {}
    for number, entry in enumerate(entries):
        try:
            key, size = entry["id"], (int(entry["height"]), int(entry["width"]))
            if key in found:
                raise DataError(f"image id {key} occurs more than once")
            if min(size) < 1:
                raise DataError(f"the size {size[0]} x {size[1]}")
            found[key] = image_file(part, entry["file_name"]), size
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            shown = entry.get("id", f"number {number}") if isinstance(entry, Mapping) else f"number {number}"
            faults.append(Fault(str(part.annotations), f"image {shown}: {_reason(error, entry)}", refused=True))
            key = entry.get("id") if isinstance(entry, Mapping) else None
            if isinstance(key, int | str):  # of others no annotation can be
                unusable[f"number {number}" if key in found else key] = entry.get("file_name")
    return found, unusable


def _reason(error: Exception, entry: Any) -> str:
    if isinstance(error, DataError):
        return str(error).rstrip(".")
    if isinstance(error, KeyError) and isinstance(entry, Mapping):
        missing = str(error.args[0])
        if missing not in entry:
            belongs = next((key for key in ("category_id", "image_id") if str(entry.get(key)) == missing), None)
            return f"its {belongs} {missing} is listed nowhere" if belongs else f"it has no {missing}"
    return str(error) if isinstance(entry, Mapping) else f"expected an object, got {entry!r:.60}"


def _thing(entry: Mapping[str, Any], labels: Mapping[int, int], size: tuple[int, int]) -> Thing:
    left, top, width, height = _numbers(entry["bbox"])
    area = float(entry["area"]) if entry.get("area") is not None else math.nan
    outline = _outline(entry.get("segmentation"))
    if outline is not None:
        require_outline(outline, size)
    box = (left, top, left + width, top + height)
    return Thing(labels[entry["category_id"]], box, outline, area, bool(entry.get("iscrowd", 0)), entry["id"])


def _numbers(box: Any) -> tuple[float, float, float, float]:
    try:
        left, top, width, height = map(float, box)
    except (TypeError, ValueError) as error:
        raise DataError(f"its bbox must be left, top, width and height, got {box!r:.60}") from error
    return left, top, width, height


def _outline(given: Any) -> Outline | None:
    if not given:
        return None
    if isinstance(given, Mapping):
        if not isinstance(given.get("counts"), str | list) or len(given.get("size", ())) != 2:
            raise DataError('its run lengths must be {"size": [height, width], "counts": ...}')
        return given
    try:
        return [[float(value) for value in polygon] for polygon in given]
    except (TypeError, ValueError) as error:
        raise DataError(f"its segmentation must be polygons or run lengths, got {given!r:.60}") from error


def _unlisted(part: CocoPart, listed: list[Listed], said: set[str]) -> list[Fault]:
    """Images that lie beside those of the file, in a folder of this part's own, and are not in it.

    Those called as in ``said`` are, and cannot be used.
    """
    folder = part.folders[0] if part.folders else None
    known = {image.path for image in listed}
    if folder is None or not any(path.is_relative_to(folder) for path in known):
        return []
    alone = [path for path in image_files(folder) if path not in known and path.name not in said]
    return [Fault(str(path), f"is not listed in {part.annotations.name}: it was never annotated") for path in alone]
