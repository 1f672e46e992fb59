"""Where on the ground the pixels of a scene are, and how large they are there.

The area between two parallels of an ellipsoid of semi-major axis a and eccentricity e, over a difference of longitudes,

    A = a^2 / 2 (lambda_2 - lambda_1) (q(phi_2) - q(phi_1))
    q(phi) = (1 - e^2) [ sin phi / (1 - e^2 sin^2 phi) - 1 / (2 e) ln((1 - e sin phi) / (1 + e sin phi)) ]

makes the area of a polygon a line integral: A = a^2 / 2 |sum over its edges of q d lambda|. That is exact for edges
along meridians and parallels, such as those of pixels. Source: Snyder, Map Projections: A Working Manual (1987), 3-12.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vision_ssm.data.geo.gdal import part
from vision_ssm.errors import DataError

__all__ = ["LON_LAT", "Grid", "ellipsoid_area"]

LON_LAT = "EPSG:4326"
"""What GeoJSON is written in: longitude and latitude in degrees on WGS 84 (RFC 7946, section 4)."""

_WGS84 = (6378137.0, 1 / 298.257223563)
_ELLIPSOID = re.compile(r'(?:SPHEROID|ELLIPSOID)\["[^"]*",\s*([\d.eE+]+),\s*([\d.eE+]+)')

# Maps whose scale is true at one latitude only: there an area of the map is none of the ground.
_NOT_TO_SCALE = re.compile(
    r'(?:PROJECTION|METHOD)\["(?:Mercator|Popular[ _]Visualisation|Equidistant[ _]Cylindrical|Equirectangular|Plate)',
    re.IGNORECASE,
)

Points = NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """The coordinates of a scene, as its file states them.

    Attributes:
        crs: rasterio's; of the transform or, without one, of the ground control points. None where nobody said.
        transform: from (column, row), counted from the corner of the first pixel, to map coordinates: six numbers
            a, b, c, d, e, f with x = a column + b row + c, y = d column + e row + f. None with control points.
        gcps: ground control points, rasterio's; empty with a transform.
    """

    crs: Any
    transform: tuple[float, ...] | None
    gcps: tuple[Any, ...] = ()

    def to_map(self, columns: Points, rows: Points) -> tuple[Points, Points]:
        """Return (x, y) in the crs of places in the image."""
        if self.transform is not None:
            a, b, c, d, e, f = self.transform
            return a * columns + b * rows + c, d * columns + e * rows + f
        with part("rasterio.transform").GCPTransformer(list(self.gcps)) as transformer:
            x, y = transformer.xy(rows.tolist(), columns.tolist(), offset="ul")
        return np.asarray(x, np.float64), np.asarray(y, np.float64)

    def to_lon_lat(self, x: Points, y: Points) -> tuple[Points, Points]:
        """Return longitude and latitude on WGS 84 in degrees of map coordinates.

        Raises:
            DataError: there is no crs, or it is not of the Earth.
        """
        if self.crs is None:
            raise DataError("it has no coordinate reference system, so nothing is known of longitude and latitude")
        return self._warped(x, y, LON_LAT)

    def polygon_area(self, x: Points, y: Points) -> float | None:
        """Return the square metres inside a closed ring of map coordinates; None where the crs does not tell.

        A projected crs is measured in its own units: exact in equal-area projections, within 0.1 % in UTM zones.
        Degrees, and projections that are not to scale (Mercator, plate carrée), are measured on the ellipsoid.
        """
        if self._metres is not None:
            return abs(_shoelace(x, y)) * self._metres**2
        if self.crs is None or not (self.crs.is_geographic or self.crs.is_projected):
            return None
        longitude, latitude = self._degrees(x, y)
        return abs(ellipsoid_area(longitude, latitude, *self._ellipsoid))

    def pixel_areas(self, height: int, width: int) -> NDArray[np.float64] | None:
        """Return the square metres of a pixel in each row, [H], that of the middle column; None as `polygon_area`."""
        if self.transform is not None and self._metres is not None:
            a, b, _, d, e, _ = self.transform
            return np.full(height, abs(a * e - b * d) * self._metres**2)
        if self.crs is None or not (self.crs.is_geographic or self.crs.is_projected):
            return None
        left, rows = np.full(height + 1, width // 2, np.float64), np.arange(height + 1, dtype=np.float64)
        sides = [self.to_map(columns, rows) for columns in (left, left + 1)]
        if self._metres is None:
            sides = [self._degrees(x, y) for x, y in sides]
        (x0, y0), (x1, y1) = sides
        corners = [np.stack(each, 1) for each in ((x0[:-1], x1[:-1], x1[1:], x0[1:], x0[:-1]),
                                                  (y0[:-1], y1[:-1], y1[1:], y0[1:], y0[:-1]))]  # fmt: skip
        if self._metres is not None:
            areas = np.array([_shoelace(x, y) for x, y in zip(*corners, strict=True)]) * self._metres**2
        else:
            areas = np.array([ellipsoid_area(x, y, *self._ellipsoid) for x, y in zip(*corners, strict=True)])
        return np.abs(areas)

    @cached_property
    def _metres(self) -> float | None:
        """Of a unit of the crs, where its map may be measured as it is."""
        if self.crs is None or not self.crs.is_projected or _NOT_TO_SCALE.search(self.crs.to_wkt()):
            return None
        return float(self.crs.linear_units_factor[1])

    @cached_property
    def _ellipsoid(self) -> tuple[float, float]:
        """Semi-major axis in metres and flattening."""
        found = _ELLIPSOID.search(self.crs.to_wkt())
        if found is None:
            return _WGS84
        inverse = float(found[2])
        return float(found[1]), 1 / inverse if inverse else 0.0

    def _degrees(self, x: Points, y: Points) -> tuple[Points, Points]:
        if not self.crs.is_geographic:
            return self._warped(x, y, LON_LAT)
        unit = float(np.degrees(self.crs.units_factor[1]))
        return x * unit, y * unit

    def _warped(self, x: Points, y: Points, into: str) -> tuple[Points, Points]:
        try:
            found = part("rasterio.warp").transform(self.crs, into, x.tolist(), y.tolist())
        except Exception as error:  # PROJ's own, by way of GDAL's: there is no list
            raise DataError(f"its coordinates cannot be turned into longitude and latitude: {error}") from error
        longitude, latitude = (np.asarray(values, np.float64) for values in found[:2])
        if not (np.isfinite(longitude).all() and np.isfinite(latitude).all()):
            raise DataError("some of its coordinates have no longitude and latitude")
        return longitude, latitude


def ellipsoid_area(
    longitude: Points, latitude: Points, semi_major: float = _WGS84[0], flattening: float = _WGS84[1]
) -> float:
    """Return the square metres inside a closed ring of degrees; positive if it runs clockwise, on a map."""
    steps = np.diff(np.radians(longitude))
    steps = (steps + np.pi) % (2 * np.pi) - np.pi  # across the date line the short way
    q = _authalic(np.sin(np.radians(latitude)), float(np.sqrt(flattening * (2 - flattening))))
    return float(semi_major**2 / 2 * (steps * (q[:-1] + q[1:]) / 2).sum())


def _authalic(sine: Points, e: float) -> Points:
    if e == 0:
        return 2 * sine
    found: Points = (1 - e**2) * (sine / (1 - (e * sine) ** 2) - np.log((1 - e * sine) / (1 + e * sine)) / (2 * e))
    return found


def _shoelace(x: Points, y: Points) -> float:
    """Signed area of a closed ring; around its first corner, as squares of map coordinates would lose digits."""
    x, y = x - x[0], y - y[0]
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2)
