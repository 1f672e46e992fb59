"""Which files are scenes is decided by what they say; without the extra they are pictures, and that is told."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.geo.made import values_of, write_scene
from vision_ssm.data import scenes
from vision_ssm.data.geo.raster import Raster
from vision_ssm.data.scenes import check_any, is_scene, read_any
from vision_ssm.errors import DataError, VisionSSMNotice

NOWHERE: dict[str, Any] = {"crs": None, "transform": None}


@pytest.mark.parametrize(
    ("kind", "bands", "options", "expected"),
    [
        ("uint8", 3, {}, True),  # it has coordinates
        ("uint8", 3, {**NOWHERE, "nodata": 0}, True),
        ("uint8", 3, NOWHERE, False),
        ("uint8", 1, NOWHERE, False),
        ("uint16", 1, NOWHERE, False),
        ("uint8", 4, {**NOWHERE, "photometric": "RGB", "ALPHA": "YES"}, False),  # as pictures have it
        ("uint8", 4, {**NOWHERE, "photometric": "RGB", "ALPHA": "NO"}, True),
        ("uint8", 6, {**NOWHERE, "photometric": "MINISBLACK"}, True),
        ("int16", 1, NOWHERE, True),
        ("float32", 1, NOWHERE, True),
    ],
)
def test_scenes_say_where_they_are_or_hold_what_no_picture_does(
    kind: str, bands: int, options: dict[str, Any], expected: bool, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "image.tif", values_of(kind, bands), **options)
    assert is_scene(path) is expected
    assert isinstance(read_any(path), Raster if expected else Image.Image)
    assert check_any(path) == (56, 40)


def test_a_file_of_coordinates_beside_it_makes_a_scene(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "image.tif", values_of("uint8", 3), **NOWHERE)
    path.with_suffix(".tfw").write_text("0.5\n0\n0\n-0.5\n400000.25\n4999999.75\n")
    found = read_any(path)
    assert isinstance(found, Raster) and found.grid is not None
    assert found.grid.transform == (0.5, 0, 400000, 0, -0.5, 5000000)


def test_other_files_are_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "no.tif").write_bytes(b"II*\0")
    assert not is_scene(tmp_path / "a.png") and not is_scene(tmp_path / "no.tif")
    assert not is_scene(tmp_path / "missing.tif")
    with pytest.raises(DataError, match=r"no\.tif"):
        read_any(tmp_path / "no.tif")


def test_without_the_extra_coordinates_are_lost_and_that_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = values_of("uint8", 3)
    path = write_scene(tmp_path / "scene.tif", values)
    monkeypatch.setattr(scenes, "is_installed", lambda: False)
    scenes._tell_of_loss.cache_clear()
    with pytest.warns(VisionSSMNotice, match=r"coordinates are lost.*pip install 'vision-ssm\[geo\]'"):
        picture = read_any(path)
    assert isinstance(picture, Image.Image)
    np.testing.assert_array_equal(np.asarray(picture), values.transpose(1, 2, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_any(path)
    scenes._tell_of_loss.cache_clear()


def test_an_unread_kind_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scene(tmp_path / "scene.tif", values_of("float32", 2))
    monkeypatch.setattr(scenes, "is_installed", lambda: False)
    monkeypatch.setattr("vision_ssm.data.strips_tiff.is_installed", lambda: False)
    monkeypatch.setattr(scenes, "_tell_of_loss", lambda: None)
    with pytest.raises(DataError, match=r"32-bit floating-point.*bands are read with pip install 'vision-ssm\[geo\]'"):
        read_any(path)
