"""Detections as other programs read them: COCO, YOLO, Label Studio, GeoJSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vision_ssm.data.geo.grid import Grid
from vision_ssm.errors import ConfigError, suggestion
from vision_ssm.tasks.detection.masks import Patch
from vision_ssm.tasks.detection.results import Detections
from vision_ssm.tasks.outlines import rings_of, signed_area

__all__ = ["export"]

Ring = list[tuple[int, int]]


def export(form: str, found: Sequence[tuple[str, Detections]]) -> dict[str, str]:
    """Return what was found in images, by path, as the text of each file by its name.

    ``coco``: one file of images, annotations (with ``score``) and categories, numbered from 1. ``yolo``: per image a
    text file of lines ``class x y width height score``, or of a class and the corners of the largest piece of its mask,
    in shares of the image; and ``classes.txt``. ``labelstudio``: one file of tasks with predictions, whose labels are
    called ``label`` on an image called ``image``. ``geojson``: a collection of features per image. Of a scene it is in
    the coordinates of its file, whose reference system ``crs`` names where that has an EPSG number, as GDAL writes it;
    ``x`` and ``y`` are the middle of the box. Of a picture it is in pixels from the upper left corner, rows counted
    downwards. ``points``: the same with the middle of each box in the place of its outline.

    Raises:
        ConfigError: there is no such format.
    """
    writers = {"coco": _coco, "yolo": _yolo, "labelstudio": _label_studio, "geojson": _geojson, "points": _points}
    if form not in writers:
        raise ConfigError(f"detections have no format {form!r}.{suggestion(form, writers)}")
    return writers[form](found)


def _coco(found: Sequence[tuple[str, Detections]]) -> dict[str, str]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    names: dict[int, str] = {}
    above = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path, _ in found]) if found else ""
    for number, (path, result) in enumerate(found, 1):
        height, width = result.size
        names |= dict(zip(result.category_ids, result.class_names, strict=True))
        images.append({"id": number, "file_name": _below(path, above), "height": height, "width": width})
        for index, entry in enumerate(result.detections()):
            area = _area(result, index)
            own = {key: value for key, value in entry.items() if key != "class"}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **own, "area": area, "iscrowd": 0})
    categories = [{"id": key, "name": names[key]} for key in sorted(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return {"detections.json": json.dumps(content) + "\n"}


def _below(path: str, folder: str) -> str:
    """The name of a file as COCO has it: below the folder that all files are in, with slashes."""
    return Path(os.path.relpath(os.path.abspath(path), folder)).as_posix()


def _area(result: Detections, index: int) -> float:
    if result.masks is not None:
        return int(result.masks[index].bits.sum())
    left, top, right, bottom = (float(value) for value in result.boxes[index])
    return round((right - left) * (bottom - top), 2)


def _yolo(found: Sequence[tuple[str, Detections]]) -> dict[str, str]:
    files: dict[str, str] = {}
    for path, result in found:
        height, width = result.size
        lines = []
        for index, label in enumerate(result.labels.tolist()):
            ring = _largest(result.masks[index]) if result.masks is not None else None
            if ring is not None:
                numbers = [value / side for x, y in ring for value, side in ((x, width), (y, height))]
                lines.append(" ".join([str(label), *(f"{value:.6f}" for value in numbers)]))
                continue
            left, top, right, bottom = (float(value) for value in result.boxes[index])
            centre = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            numbers = [*centre, (right - left) / width, (bottom - top) / height, float(result.scores[index])]
            lines.append(" ".join([str(label), *(f"{value:.6f}" for value in numbers)]))
        files[_name(path, ".txt", files)] = "".join(f"{line}\n" for line in lines)
    if found:
        files[_name("classes", ".txt", files)] = "".join(f"{name}\n" for name in found[0][1].class_names)
    return files


def _label_studio(found: Sequence[tuple[str, Detections]]) -> dict[str, str]:
    tasks = []
    for path, result in found:
        height, width = result.size
        entries = []
        for index, label in enumerate(result.labels.tolist()):
            name = result.class_names[label]
            ring = _largest(result.masks[index]) if result.masks is not None else None
            if ring is not None:
                kind = "polygonlabels"
                value: dict[str, Any] = {"points": [[100 * x / width, 100 * y / height] for x, y in ring]}
            else:
                kind = "rectanglelabels"
                left, top, right, bottom = (float(number) for number in result.boxes[index])
                value = {
                    "x": 100 * left / width,
                    "y": 100 * top / height,
                    "width": 100 * (right - left) / width,
                    "height": 100 * (bottom - top) / height,
                    "rotation": 0,
                }
            entries.append(
                {
                    "id": f"found{index + 1}",
                    "type": kind,
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": width,
                    "original_height": height,
                    "score": round(float(result.scores[index]), 5),
                    "value": {**value, kind: [name]},
                }
            )
        mean = float(result.scores.mean()) if len(result.scores) else 0.0
        tasks.append({"data": {"image": path}, "predictions": [{"score": round(mean, 5), "result": entries}]})
    return {"tasks.json": json.dumps(tasks) + "\n"}


def _geojson(found: Sequence[tuple[str, Detections]]) -> dict[str, str]:
    return _collections(found, _geometry)


def _points(found: Sequence[tuple[str, Detections]]) -> dict[str, str]:
    return _collections(found, _middle)


def _collections(
    found: Sequence[tuple[str, Detections]], geometry: Callable[[Detections, int], dict[str, Any]]
) -> dict[str, str]:
    files: dict[str, str] = {}
    for path, result in found:
        features = [
            {
                "type": "Feature",
                "geometry": geometry(result, index),
                "properties": {
                    "class": result.class_names[label],
                    "category_id": result.category_ids[label],
                    "score": round(float(result.scores[index]), 5),
                    **_centre(result, index),
                },
            }
            for index, label in enumerate(result.labels.tolist())
        ]
        content = {"type": "FeatureCollection", **_reference(result.grid), "image": Path(path).name}
        files[_name(path, ".geojson", files)] = json.dumps({**content, "features": features}) + "\n"
    return files


def _reference(grid: Grid | None) -> dict[str, Any]:
    number = None if grid is None or grid.crs is None else grid.crs.to_epsg()
    return (
        {} if number is None else {"crs": {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{number}"}}}
    )


def _centre(result: Detections, index: int) -> dict[str, float]:
    """``x`` and ``y`` of the middle of a box, of a scene."""
    return {} if result.grid is None else dict(zip("xy", _middle(result, index)["coordinates"], strict=True))


def _middle(result: Detections, index: int) -> dict[str, Any]:
    left, top, right, bottom = result.boxes[index].tolist()
    (place,) = _placed([((left + right) / 2, (top + bottom) / 2)], result.grid)
    return {"type": "Point", "coordinates": place}


def _placed(corners: Sequence[tuple[float, float]], grid: Grid | None) -> list[list[float]]:
    """Corners (column, row) in the coordinates of a scene, to a hundredth of a pixel or better."""
    if grid is None:
        return [[round(column, 2), round(row, 2)] for column, row in corners]
    columns, rows = np.array(corners, np.float64).T
    x, y = grid.to_map(columns, rows)
    return [[float(f"{a:.12g}"), float(f"{b:.12g}")] for a, b in zip(x.tolist(), y.tolist(), strict=True)]


def _geometry(result: Detections, index: int) -> dict[str, Any]:
    rings = _rings(result.masks[index]) if result.masks is not None else []
    if not rings:
        left, top, right, bottom = result.boxes[index].tolist()
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        return {"type": "Polygon", "coordinates": [_placed(corners, result.grid)]}
    outer = [ring for ring in rings if signed_area(ring) > 0]
    pieces: list[list[Ring]] = [[ring] for ring in outer]
    for hole in (ring for ring in rings if signed_area(ring) < 0):
        owner = next((at for at in range(len(outer) - 1, -1, -1) if _contains(outer[at], hole)), 0)
        pieces[owner].append(hole)
    coordinates = [[_placed([*ring, ring[0]], result.grid) for ring in piece] for piece in pieces]
    if len(coordinates) == 1:
        return {"type": "Polygon", "coordinates": coordinates[0]}
    return {"type": "MultiPolygon", "coordinates": coordinates}


def _contains(outer: Ring, hole: Ring) -> bool:
    """Whether the middle of a hole's first edge is inside a ring, by the edges that a ray to the right crosses."""
    x, y = (hole[0][0] + hole[1][0]) / 2, (hole[0][1] + hole[1][1]) / 2
    y += 0.25 if hole[0][1] == hole[1][1] else 0
    crossed = sum(
        x0 > x and (y0 > y) != (y1 > y) for (x0, y0), (_, y1) in zip(outer, [*outer[1:], outer[0]], strict=True)
    )
    return crossed % 2 == 1


def _rings(patch: Patch) -> list[Ring]:
    return [[(x + patch.left, y + patch.top) for x, y in ring] for ring in rings_of(patch.bits)]


def _largest(patch: Patch) -> Ring | None:
    return next(iter(_rings(patch)), None)


def _name(path: str, suffix: str, used: dict[str, str]) -> str:
    """A file name after the image's; one that is taken is numbered, from 2."""
    stem, number = Path(path).stem, 2
    name = f"{stem}{suffix}"
    while name.lower() in {taken.lower() for taken in used}:
        name, number = f"{stem}_{number}{suffix}", number + 1
    return name
