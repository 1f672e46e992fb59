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
from vision_ssm.tasks.detection.things import Annotated, Fault, Listed, Outline, Thing, box_faults, named

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
    images = _images(part, entries, faults)
    things: dict[Any, list[Thing]] = {key: [] for key in images}
    labels = {key: label for label, key in enumerate(ids)}
    seen: set[Any] = set()
    for number, entry in enumerate(annotations):
        try:
            thing = _thing(entry, labels)
            key = entry["image_id"]
            file, size = images[key]
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
    faults += _unlisted(part, listed)
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


def _images(part: CocoPart, entries: list[Any], faults: list[Fault]) -> dict[Any, tuple[Path, tuple[int, int]]]:
    found: dict[Any, tuple[Path, tuple[int, int]]] = {}
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
    return found


def _reason(error: Exception, entry: Any) -> str:
    if isinstance(error, DataError):
        return str(error).rstrip(".")
    if isinstance(error, KeyError) and isinstance(entry, Mapping):
        missing = str(error.args[0])
        if missing not in entry:
            belongs = next((key for key in ("category_id", "image_id") if str(entry.get(key)) == missing), None)
            return f"its {belongs} {missing} is listed nowhere" if belongs else f"it has no {missing}"
    return f"{type(error).__name__} {error}"


def _thing(entry: Mapping[str, Any], labels: Mapping[int, int]) -> Thing:
    left, top, width, height = (float(value) for value in entry["bbox"])
    area = float(entry["area"]) if entry.get("area") is not None else math.nan
    outline = _outline(entry.get("segmentation"))
    box = (left, top, left + width, top + height)
    return Thing(labels[entry["category_id"]], box, outline, area, bool(entry.get("iscrowd", 0)), entry["id"])


def _outline(given: Any) -> Outline | None:
    if not given:
        return None
    if isinstance(given, Mapping):
        if not isinstance(given.get("counts"), str | list) or len(given.get("size", ())) != 2:
            raise ValueError('run lengths are {"size": [height, width], "counts": ...}')
        return given
    polygons = [[float(value) for value in polygon] for polygon in given]
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        raise ValueError("a polygon of its segmentation has fewer than three corners, or half of one")
    return polygons


def _unlisted(part: CocoPart, listed: list[Listed]) -> list[Fault]:
    """Images that lie beside those of the file, in a folder of this part's own, and are not in it."""
    folder = part.folders[0] if part.folders else None
    known = {image.path for image in listed}
    if folder is None or not any(path.is_relative_to(folder) for path in known):
        return []
    alone = [path for path in image_files(folder) if path not in known]
    return [Fault(str(path), f"is not listed in {part.annotations.name}: it was never annotated") for path in alone]
