"""Maps and polygons keep the grid of their scene, and say of every class where it is and how large."""

from __future__ import annotations

import json
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest

from tests.data.geo.made import rasterio
from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.geo.maps import read_map, writing_map
from vision_ssm.data.geo.polygons import polygons, write_polygons
from vision_ssm.errors import DataError

NAMES, PALETTE = ("land", "water"), ((10, 20, 30), (40, 50, 60))
UTM = Grid(rasterio.crs.CRS.from_epsg(32633), (2.0, 0.0, 4e5, 0.0, -2.0, 5e6))


def classes() -> np.ndarray:  # type: ignore[type-arg]
    """A lake with an island, in land with a corner of no data."""
    found = np.zeros((30, 40), np.uint8)
    found[5:15, 10:30] = 1
    found[8:10, 15:20] = 0
    found[:2, :3] = 255
    return found


def test_a_map_has_the_grid_colours_and_names(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with writing_map(path, (30, 40), UTM, NAMES, PALETTE) as write:
        write(0, 0, classes()[:16])
        write(16, 0, classes()[16:])
    with rasterio.open(path) as file:
        assert (file.crs, file.transform, file.nodata) == (UTM.crs, rasterio.Affine(*UTM.transform), 255)
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        assert file.colormap(1)[1] == (40, 50, 60, 255) and file.colormap(1)[255][3] == 0
        assert json.loads(file.tags()["classes"]) == list(NAMES)
        np.testing.assert_array_equal(file.read(1), classes())
    np.testing.assert_array_equal(read_map(path), classes())
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.tif"]


def test_a_map_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), writing_map(tmp_path / "map.tif", (30, 40), UTM, NAMES, PALETTE) as write:
        write(0, 0, classes())
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_regions_have_their_areas_holes_left_out(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    with writing_map(path, (30, 40), UTM, NAMES, PALETTE) as write:
        write(0, 0, classes())
    for source in (classes(), path):  # from memory, and line by line from the file
        found = sorted(polygons(source, UTM), key=lambda polygon: polygon.pixels)
        assert [(polygon.number, polygon.pixels) for polygon in found] == [(0, 10), (1, 190), (0, 994)]
        assert [polygon.square_metres for polygon in found] == [4 * 10, 4 * 190, 4 * 994]
        lake = found[1].rings[0]
        assert (lake.min(0).tolist(), lake.max(0).tolist()) == ([400020, 4999970], [400060, 4999990])


def test_geojson_is_in_longitude_and_latitude_and_wound_as_its_standard_says(tmp_path: Path) -> None:
    write_polygons(tmp_path / "map.geojson", classes(), UTM, NAMES)
    found = json.loads((tmp_path / "map.geojson").read_text())
    assert found["type"] == "FeatureCollection" and len(found["features"]) == 3
    for feature in found["features"]:
        outer, *holes = [np.array(ring) for ring in feature["geometry"]["coordinates"]]
        assert 13.6 < outer[:, 0].min() < outer[:, 0].max() < 13.8 and 45 < outer[:, 1].min() < 45.2
        for ring, sign in ((outer, 1), *((hole, -1) for hole in holes)):
            x, y = (ring - ring[0]).T
            assert np.sign((x[:-1] * y[1:] - x[1:] * y[:-1]).sum()) == sign
    water = next(f["properties"] for f in found["features"] if f["properties"]["class"] == "water")
    assert water == {"class": "water", "index": 1, "pixels": 190, "area_m2": 760.0}


def test_across_the_date_line_polygons_are_cut(tmp_path: Path) -> None:
    there = Grid(rasterio.crs.CRS.from_epsg(4326), (0.1, 0.0, 179.5, 0.0, -0.1, 10.0))
    write_polygons(tmp_path / "map.geojson", np.zeros((4, 10), np.uint8), there, NAMES)
    (feature,) = json.loads((tmp_path / "map.geojson").read_text())["features"]
    assert feature["geometry"]["type"] == "MultiPolygon"
    longitudes = [[x for x, _ in part[0]] for part in feature["geometry"]["coordinates"]]
    assert sorted((min(each), max(each)) for each in longitudes) == [(-180, -179.5), (179.5, 180)]


def test_a_geopackage_has_the_scenes_own_coordinates(tmp_path: Path) -> None:
    path = tmp_path / "map.gpkg"
    write_polygons(path, classes(), UTM, NAMES)
    with sqlite3.connect(path) as file:
        assert file.execute("PRAGMA application_id").fetchone() == (0x47504B47,)
        assert file.execute("SELECT srs_id, min_x, max_y FROM gpkg_contents").fetchone() == (32633, 4e5, 5e6)
        (blob,) = file.execute("SELECT geom FROM classes WHERE class = 'water'").fetchone()
        areas = dict(file.execute("SELECT class, sum(area_m2) FROM classes GROUP BY class"))
    assert areas == {"land": 4 * 1004, "water": 4 * 190}
    magic, version, flags, system = struct.unpack_from("<2sBBi", blob)
    assert (magic, version, flags, system) == (b"GP", 0, 1, 32633)
    order, kind, rings = struct.unpack_from("<BII", blob, 8)
    assert (order, kind, rings) == (1, 3, 2)


def test_a_geopackage_without_a_region_has_the_columns_of_any_other(tmp_path: Path) -> None:
    columns = []
    for name, found in (("some", classes()), ("none", np.full((4, 5), 255, np.uint8))):
        write_polygons(tmp_path / f"{name}.gpkg", found, UTM, NAMES)
        with sqlite3.connect(tmp_path / f"{name}.gpkg") as file:
            columns.append([row[1:3] for row in file.execute("PRAGMA table_info(classes)")])
    assert columns[0] == columns[1]
    assert columns[0][2:] == [("class", "TEXT"), ("index", "INTEGER"), ("pixels", "INTEGER"), ("area_m2", "DOUBLE")]
    assert file.execute("SELECT min_x FROM gpkg_contents").fetchone() == (None,)


def test_without_coordinates_pixels_are_written_and_geojson_is_refused(tmp_path: Path) -> None:
    write_polygons(tmp_path / "map.gpkg", classes(), None, NAMES)
    with sqlite3.connect(tmp_path / "map.gpkg") as file:
        assert file.execute("SELECT srs_id, max_x, max_y FROM gpkg_contents").fetchone() == (-1, 40, 30)
        assert file.execute("SELECT DISTINCT area_m2 FROM classes").fetchall() == [(None,)]
    with pytest.raises(DataError, match="no coordinates, and GeoJSON is in longitude and latitude; ask for gpkg"):
        write_polygons(tmp_path / "map.geojson", classes(), None, NAMES)
    assert not (tmp_path / "map.geojson").exists()
