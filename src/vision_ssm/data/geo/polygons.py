"""Maps of classes as polygons with areas: GeoJSON (RFC 7946) or GeoPackage."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vision_ssm.data.geo.gdal import at_work, part, quietly, rasterio
from vision_ssm.data.geo.geopackage import Feature, write_geopackage
from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.geo.maps import NO_CLASS
from vision_ssm.errors import DataError
from vision_ssm.storage import whole_file

__all__ = ["FORMATS", "polygons", "write_polygons"]

FORMATS = ("geojson", "gpkg")
"""Suffixes of the files that `write_polygons` writes."""

_COLUMNS = {"class": str, "index": int, "pixels": int, "area_m2": float}  # of `_properties`

Ring = NDArray[np.float64]  # [n, 2], closed


class Polygon(NamedTuple):
    """Connected pixels of one class.

    Attributes:
        number: the class index.
        rings: [n, 2] in map coordinates, in pixels where there are none: the outer one, then holes.
        pixels: how many.
        square_metres: None where the grid does not tell.
    """

    number: int
    rings: tuple[Ring, ...]
    pixels: int
    square_metres: float | None


def polygons(classes: NDArray[np.uint8] | Path, grid: Grid | None) -> Iterator[Polygon]:
    """Yield the regions of a map whose pixels touch at their sides; `NO_CLASS` is none.

    Args:
        classes: indices [H, W], or the file of a map, which is read line by line.
        grid: coordinates; None for pixels, counted from the upper left corner.
    """
    with at_work():
        if isinstance(classes, Path):
            with quietly():
                dataset = rasterio().open(classes, driver="GTiff")
            with dataset:
                yield from _found(part("rasterio").band(dataset, 1), grid, ~dataset.transform)
        else:
            yield from _found(classes, grid, part("rasterio.transform").Affine.identity())


def _found(source: Any, grid: Grid | None, to_pixels: Any) -> Iterator[Polygon]:
    """The regions of an array, or of a band, which come in the coordinates of its file: ``to_pixels`` undoes that."""
    for shape, number in part("rasterio.features").shapes(source, connectivity=4):
        if int(number) == NO_CLASS:
            continue
        # Corners of pixels are whole numbers, whatever was lost on the way.
        rings = [_moved(np.asarray(ring, np.float64), to_pixels).round() for ring in shape["coordinates"]]
        count = _net([_area(ring) for ring in rings])
        if grid is None:
            yield Polygon(int(number), tuple(rings), round(count), None)
            continue
        placed = [np.stack(grid.to_map(ring[:, 0], ring[:, 1]), 1) for ring in rings]
        areas = [grid.polygon_area(ring[:, 0], ring[:, 1]) for ring in placed]
        known = [area for area in areas if area is not None]
        metres = _net(known) if len(known) == len(areas) else None
        yield Polygon(int(number), tuple(placed), round(count), metres)


def _moved(ring: Ring, by: Any) -> Ring:
    x, y = ring.T
    return np.stack([by.a * x + by.b * y + by.c, by.d * x + by.e * y + by.f], 1)


def write_polygons(
    path: str | Path, classes: NDArray[np.uint8] | Path, grid: Grid | None, class_names: Sequence[str]
) -> None:
    """Write the regions of a map: ``class``, ``index``, ``pixels`` and ``area_m2`` (null if unknown) of each.

    GeoJSON has longitude and latitude, GeoPackage the coordinates of the scene, of pixels where it has none.

    Args:
        path: the file, ``.geojson`` or ``.gpkg``.
        classes: see `polygons`.
        grid: see `polygons`.
        class_names: in the order of the indices.

    Raises:
        DataError: GeoJSON is asked for where nothing is known of longitude and latitude, or it cannot be written.
    """
    path = Path(path)
    found = polygons(classes, grid)
    with whole_file(path) as unfinished:
        if path.suffix == ".gpkg":
            features = (Feature(polygon.rings, _properties(polygon, class_names)) for polygon in found)
            write_geopackage(unfinished, "classes", _COLUMNS, features, None if grid is None else grid.crs)
            return
        if grid is None or grid.crs is None:
            raise DataError(
                "it has no coordinates, and GeoJSON is in longitude and latitude; ask for gpkg, which takes pixels"
            )
        with unfinished.open("w", encoding="utf-8") as file:
            file.write('{"type": "FeatureCollection", "features": [')
            for position, polygon in enumerate(found):
                file.write(",\n" if position else "\n")
                file.write(json.dumps(_feature(polygon, grid, class_names)))
            file.write("\n]}\n")


def _properties(polygon: Polygon, class_names: Sequence[str]) -> dict[str, Any]:
    metres = polygon.square_metres
    return {
        "class": class_names[polygon.number],
        "index": polygon.number,
        "pixels": polygon.pixels,
        "area_m2": None if metres is None else float(f"{metres:.9g}"),
    }


def _feature(polygon: Polygon, grid: Grid, class_names: Sequence[str]) -> Mapping[str, Any]:
    degrees = [np.stack(grid.to_lon_lat(ring[:, 0], ring[:, 1]), 1) for ring in polygon.rings]
    longitudes = degrees[0][:, 0]
    parts = [degrees]
    if float(np.ptp(longitudes)) > 180 or np.abs(longitudes).max() > 180:  # RFC 7946 wants it cut at the date line
        parts = [half for half in (_half(degrees, side) for side in (1, -1)) if half]
    written = [
        [_wound(ring, outer=position == 0).round(7).tolist() for position, ring in enumerate(rings)] for rings in parts
    ]
    several = len(written) > 1
    geometry = {"type": "MultiPolygon" if several else "Polygon", "coordinates": written if several else written[0]}
    return {"type": "Feature", "properties": _properties(polygon, class_names), "geometry": geometry}


def _half(rings: Sequence[Ring], side: int) -> list[Ring]:
    """What of a polygon lies west (1) or east (-1) of the date line, in -180 to 180 degrees; holes that do not go."""
    found = []
    for ring in rings:
        unrolled = np.stack([ring[:, 0] % 360, ring[:, 1]], 1)
        kept = _clipped(unrolled, side)
        if len(kept):
            found.append(kept - [0 if side == 1 else 360, 0])
        elif not found:  # without its outer ring there is nothing
            return []
    return found


def _clipped(ring: Ring, side: int) -> Ring:
    """The part of a ring with side · (180 - longitude) >= 0, edge by edge (Sutherland and Hodgman, 1974)."""
    kept: list[tuple[float, float]] = []
    for (x0, y0), (x1, y1) in zip(ring[:-1].tolist(), ring[1:].tolist(), strict=True):
        inside, next_inside = side * (180 - x0) >= 0, side * (180 - x1) >= 0
        if inside:
            kept.append((x0, y0))
        if inside != next_inside:
            kept.append((180.0, y0 + (y1 - y0) * (180 - x0) / (x1 - x0)))
    if len({x for x, _ in kept}) < 2:  # it touches the line at most
        return np.zeros((0, 2))
    return np.array([*kept, kept[0]])


def _wound(ring: Ring, *, outer: bool) -> Ring:
    """Outer rings run against the clock, holes with it (RFC 7946, section 3.1.6)."""
    return ring if (_area(ring) > 0) == outer else ring[::-1]


def _area(ring: Ring) -> float:
    x, y = ring[:, 0] - ring[0, 0], ring[:, 1] - ring[0, 1]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)


def _net(areas: Sequence[float]) -> float:
    """The first less the others, whatever their signs."""
    return abs(areas[0]) - sum(abs(area) for area in areas[1:])
