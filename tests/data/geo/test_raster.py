"""Scenes of every kind are read as their file says: samples, bands, transparency, pixels without data, coordinates."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.geo.made import METRES, SHIFTED, rasterio, values_of, write_scene
from vision_ssm.data.geo import raster
from vision_ssm.data.geo.raster import open_raster, read_raster
from vision_ssm.errors import DataError, VisionSSMNotice

LAYOUTS: dict[str, dict[str, Any]] = {
    "striped": {"interleave": "pixel"},
    "planar": {"interleave": "band"},
    "tiled": {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
    "tiled and planar": {"tiled": True, "blockxsize": 16, "blockysize": 32, "compress": "lzw", "interleave": "band"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bands", [1, 4, 16])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_samples_are_those_of_the_file(kind: str, bands: int, layout: str, tmp_path: Path) -> None:
    values = values_of(kind, bands)
    path = write_scene(tmp_path / "scene.tif", values, photometric="MINISBLACK", **LAYOUTS[layout])
    found = read_raster(path)
    assert found.values.dtype == (np.uint8 if kind == "uint8" else np.float32)
    np.testing.assert_array_equal(found.values, values.transpose(1, 2, 0).astype(found.values.dtype))
    assert (found.samples, found.size, len(found.bands)) == (kind.replace("64", "32"), (56, 40), bands)
    assert found.valid is None
    assert found.grid is not None and found.grid.crs == METRES and found.grid.transform == SHIFTED
    with open_raster(path) as opened:
        part = opened.read(5, 7, 11, 13)
        stripes = np.concatenate([stripe.values for stripe in opened.stripes()])
    np.testing.assert_array_equal(part.values, found.values[5:16, 7:20])
    np.testing.assert_array_equal(stripes, found.values)


@pytest.mark.parametrize(
    ("nodata", "kind", "every"),
    [
        # Zero and the like may also be the darkest or brightest of a pixel: all bands must say so.
        (0, "uint8", True), (255, "uint8", True), (1, "uint16", True), (32768, "float64", True),
        # No band can be these and mean it.
        (-9999, "float32", False), (-32768, "int16", False), (float("nan"), "float32", False),
    ],
)  # fmt: skip
def test_pixels_without_data_are_told(nodata: float, kind: str, every: bool, tmp_path: Path) -> None:
    values = values_of(kind, 2) + np.dtype(kind).type(2)
    values[:, :10], values[0, 20] = nodata, nodata
    expected = np.ones((40, 56), bool)
    expected[:10] = False
    expected[20] = every
    found = read_raster(write_scene(tmp_path / "scene.tif", values, nodata=nodata))
    assert found.valid is not None
    np.testing.assert_array_equal(found.valid, expected)


def test_what_is_no_number_is_no_data_even_if_nobody_says_so(tmp_path: Path) -> None:
    values = values_of("float32", 1)
    values[0, 3, 4], values[0, 5, 6] = np.nan, np.inf
    found = read_raster(write_scene(tmp_path / "scene.tif", values))
    assert found.valid is not None and np.argwhere(~found.valid).tolist() == [[3, 4], [5, 6]]


def test_a_scene_without_any_data(tmp_path: Path) -> None:
    found = read_raster(write_scene(tmp_path / "scene.tif", np.zeros((4, 20, 20), np.uint16), nodata=0))
    assert found.valid is not None and not found.valid.any()
    assert found.picture().getextrema() == ((255, 255),) * 3


def test_transparency_is_no_band_and_near_infrared_is_one(tmp_path: Path) -> None:
    values = values_of("uint8", 4)
    near = read_raster(write_scene(tmp_path / "near.tif", values, colours=("red", "green", "blue", "undefined")))
    assert near.bands == ("red", "green", "blue", "band 4") and near.valid is None
    named = ("red", "green", "blue", "near infrared")
    assert (
        read_raster(write_scene(tmp_path / "named.tif", values, names=named, photometric="MINISBLACK")).bands == named
    )
    values[3] = 255
    values[3, :10] = 0
    clear = read_raster(write_scene(tmp_path / "clear.tif", values, colours=("red", "green", "blue", "alpha")))
    assert clear.bands == ("red", "green", "blue")
    assert clear.valid is not None and not clear.valid[:10].any() and clear.valid[10:].all()


def test_a_band_that_is_called_transparency_by_mistake_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raster, "_told", set())
    path = write_scene(tmp_path / "naip.tif", values_of("uint8", 4), colours=("red", "green", "blue", "alpha"))
    with pytest.warns(VisionSSMNotice, match=r"naip.tif marks as transparency a band that holds values of its own"):
        assert read_raster(path).bands == ("red", "green", "blue", "band 4")
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        assert read_raster(path).valid is None


def test_scales_that_the_file_states_are_applied(tmp_path: Path) -> None:
    values = values_of("int16", 2)
    values[:, 0] = -9999
    found = read_raster(write_scene(tmp_path / "scene.tif", values, scales=(0.0001, 0.5), nodata=-9999))
    assert found.samples == "float32"
    expected = values.transpose(1, 2, 0) * np.array([0.0001, 0.5])
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)
    assert found.valid is not None and not found.valid[0].any() and found.valid[1:].all()


def test_indices_of_a_palette_become_its_colours(tmp_path: Path) -> None:
    path = tmp_path / "scene.tif"
    facts = {"driver": "GTiff", "dtype": "uint8", "count": 1, "height": 4, "width": 4, "crs": METRES}
    with rasterio.open(path, "w", **facts, transform=rasterio.Affine(*SHIFTED)) as file:
        file.write(np.full((1, 4, 4), 3, np.uint8))
        file.write_colormap(1, {3: (10, 20, 30, 255)})
    found = read_raster(path)
    assert found.bands == ("red", "green", "blue") and found.values[0, 0].tolist() == [10, 20, 30]


def test_places_of_all_kinds_are_kept(tmp_path: Path) -> None:
    values = values_of("uint8", 1)
    turned = (0.4, 0.3, 400000.0, 0.3, -0.4, 5000000.0)
    grid = read_raster(write_scene(tmp_path / "turned.tif", values, transform=turned)).grid
    assert grid is not None and grid.transform == pytest.approx(turned)
    points = [
        rasterio.control.GroundControlPoint(row, column, 10 + column / 100, 50 - row / 100)
        for row, column in ((0, 0), (0, 56), (40, 0), (40, 56))
    ]
    gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    path = write_scene(tmp_path / "points.tif", values, crs=None, transform=None, gcps=gcps)
    grid = read_raster(path).grid
    assert grid is not None and grid.transform is None and len(grid.gcps) == 4
    x, y = grid.to_map(np.array([0.0, 56.0]), np.array([0.0, 40.0]))
    assert x == pytest.approx([10, 10.56]) and y == pytest.approx([50, 49.6])
    assert read_raster(write_scene(tmp_path / "nowhere.tif", values, crs=None, transform=None)).grid is None
    grid = read_raster(write_scene(tmp_path / "no_crs.tif", values, crs=None)).grid
    assert grid is not None and grid.crs is None and grid.transform == SHIFTED


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones((17, 8, 8), np.uint8), "it has 17 bands, and 1 to 16 are read"),
        (np.ones((1, 8, 8), np.complex64), "its samples are complex64; whole numbers of 8, 16 or 32 bits or real ones"),
        (np.ones((1, 8, 8), np.int64), "its samples are int64"),
    ],
)
def test_what_is_not_read_is_said(values: np.ndarray[Any, Any], told: str, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", values)
    with pytest.raises(DataError, match=rf"cannot read image '.*scene\.tif': {told}"):
        read_raster(path)


def test_a_damaged_scene_is_named(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif", values_of("uint8", 4), compress="deflate")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read image '.*scene\.tif': "):
        read_raster(path)
    with pytest.raises(DataError, match=r"nothing\.tif': no such file"):
        read_raster(tmp_path / "nothing.tif")


def test_a_picture_shows_colours_by_name_and_stretches_the_rest(tmp_path: Path) -> None:
    values = values_of("uint8", 4)
    path = write_scene(tmp_path / "scene.tif", values, colours=("undefined", "blue", "green", "red"))
    np.testing.assert_array_equal(np.asarray(read_raster(path).picture()), values[[3, 2, 1]].transpose(1, 2, 0))
    deep = read_raster(write_scene(tmp_path / "deep.tif", values_of("uint16", 1))).picture()
    low, high = np.asarray(deep).min(), np.asarray(deep).max()
    assert (deep.size, low, high) == ((56, 40), 0, 255)
