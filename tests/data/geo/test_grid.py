"""Areas on the ground agree with what is known of them, in degrees, in metres and on maps that are not to scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.data.geo.made import rasterio
from vision_ssm.data.geo.grid import Grid, ellipsoid_area
from vision_ssm.errors import DataError


def grid(crs: str | None, *transform: float) -> Grid:
    return Grid(None if crs is None else rasterio.crs.CRS.from_string(crs), transform)


def ring(left: float, low: float, right: float, high: float) -> tuple[Any, Any]:
    return np.array([left, right, right, left, left]), np.array([low, low, high, high, low])


def test_the_ellipsoid_has_the_area_that_is_published() -> None:
    quarters = sum(abs(ellipsoid_area(*ring(90 * q, -90, 90 * q + 90, 90))) for q in range(4))
    assert quarters == pytest.approx(510_065_621_724_088.44, rel=1e-12)  # WGS 84, square metres
    sphere = abs(ellipsoid_area(*ring(0, -90, 90, 90), 1000.0, 0.0))
    assert sphere == pytest.approx(math.pi * 1e6)


def test_a_degree_shrinks_towards_the_poles_and_across_the_date_line_it_stays_one() -> None:
    equator, north = (abs(ellipsoid_area(*ring(10, low, 11, low + 1))) for low in (0, 60))
    assert north / equator == pytest.approx(math.cos(math.radians(60.5)), rel=0.02)
    assert abs(ellipsoid_area(*ring(179.5, 0, -179.5, 1))) == pytest.approx(equator)


def test_metres_feet_and_degrees() -> None:
    assert grid("EPSG:32633", 0.5, 0, 4e5, 0, -0.5, 5e6).pixel_areas(3, 2).tolist() == [0.25] * 3  # type: ignore[union-attr]
    feet = grid("EPSG:2263", 1, 0, 9e5, 0, -1, 2e5).pixel_areas(1, 1)
    assert feet is not None and feet[0] == pytest.approx((1200 / 3937) ** 2)
    turned = grid("EPSG:32633", 0.3, 0.4, 4e5, 0.4, -0.3, 5e6).pixel_areas(1, 1)
    assert turned is not None and turned[0] == pytest.approx(0.25)
    degrees = grid("EPSG:4326", 0.01, 0, 10, 0, -0.01, 50).pixel_areas(2, 4)
    assert degrees is not None
    expected = [abs(ellipsoid_area(*ring(10, 50 - 0.01 * (row + 1), 10.01, 50 - 0.01 * row))) for row in (0, 1)]
    assert degrees == pytest.approx(expected) and degrees[0] < degrees[1]


def test_a_map_that_is_not_to_scale_is_measured_on_the_ground() -> None:
    mercator = grid("EPSG:3857", 10, 0, 1.5e6, 0, -10, 8.4e6)  # at 60 degrees north, twice as large as it is
    areas = mercator.pixel_areas(1, 1)
    assert areas is not None and areas[0] == pytest.approx(25, rel=0.02)
    x, y = ring(1.5e6, 8.4e6 - 1000, 1.5e6 + 1000, 8.4e6)
    (longitude, _), (latitude, _) = ((part, None) for part in mercator.to_lon_lat(x, y))
    assert mercator.polygon_area(x, y) == pytest.approx(abs(ellipsoid_area(longitude, latitude)))


def test_nothing_is_known_without_a_reference_system() -> None:
    nowhere = grid(None, 1, 0, 0, 0, -1, 0)
    assert nowhere.pixel_areas(2, 2) is None and nowhere.polygon_area(*ring(0, 0, 1, 1)) is None
    with pytest.raises(DataError, match="no coordinate reference system"):
        nowhere.to_lon_lat(*ring(0, 0, 1, 1))


def test_a_square_of_utm_is_one_on_the_ground() -> None:
    utm = grid("EPSG:32633", 1, 0, 5e5, 0, -1, 5e6)
    x, y = ring(5e5, 5e6, 5e5 + 500, 5e6 + 500)
    longitude, latitude = utm.to_lon_lat(x, y)
    assert utm.polygon_area(x, y) == 250_000
    assert abs(ellipsoid_area(longitude, latitude)) == pytest.approx(250_000, rel=1e-3)
