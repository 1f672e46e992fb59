"""Mean and deviation of each band are those of the pixels that hold data, and unlike images are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.geo.made import values_of, write_scene
from vision_ssm.data.measuring import measure_bands
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.scenes import read_any
from vision_ssm.errors import DataError


class Files:
    """A data set of image files."""

    def __init__(self, *paths: Path) -> None:
        self.name, self.paths, self.fingerprint = "files", tuple(map(str, paths)), ""

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return read_any(self.paths[index]), None


def test_bands_are_measured_without_pixels_that_hold_no_data(tmp_path: Path) -> None:
    one, other = values_of("uint16", 4), values_of("uint16", 4) + np.uint16(7)
    one[:, :20] = 0
    paths = [write_scene(tmp_path / f"{at}.tif", values, nodata=0) for at, values in enumerate((one, other))]
    found = measure_bands(Files(*paths))
    assert found is not None and (found.count, found.samples, found.images) == (4, "uint16", 2)
    pixels = np.concatenate([one[:, 20:].reshape(4, -1), other.reshape(4, -1)], 1).astype(float)
    assert found.mean == pytest.approx(pixels.mean(1), rel=1e-5)
    assert found.std == pytest.approx(pixels.std(1), rel=1e-5)
    applied = found.applied(Preprocessing(input_size=(3, 32, 48)))
    assert (applied.input_size, applied.samples, applied.mean) == ((4, 32, 48), "uint16", found.mean)
    assert str(found).startswith("The images have 4 bands of whole numbers of 16 bits; mean and deviation, measured on")


def test_eight_bits_are_measured_in_the_units_of_pictures(tmp_path: Path) -> None:
    values = values_of("uint8", 3)
    found = measure_bands(Files(write_scene(tmp_path / "a.tif", values)))
    assert found is not None and found.mean == pytest.approx(values.reshape(3, -1).mean(1) / 255, rel=1e-5)


def test_pictures_keep_what_models_declare_but_grey_ones_are_measured(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    data = Files(tmp_path / "a.png")
    assert measure_bands(data) is None
    found = measure_bands(data, grey=True)
    assert found is not None and (found.count, found.names) == (1, ("grey",))
    assert found.mean == pytest.approx([pixels.mean() / 255]) and found.std == pytest.approx([pixels.std() / 255])


def test_a_band_that_never_changes_is_not_divided_by_nothing(tmp_path: Path) -> None:
    found = measure_bands(Files(write_scene(tmp_path / "a.tif", np.full((2, 8, 8), 3.5, np.float32))))
    assert found is not None and found.mean == (3.5, 3.5) and min(found.std) >= 1


def test_images_that_differ_are_both_named(tmp_path: Path) -> None:
    four = write_scene(tmp_path / "four.tif", values_of("uint8", 4), photometric="MINISBLACK")
    six = write_scene(tmp_path / "six.tif", values_of("uint8", 6), photometric="MINISBLACK")
    deep = write_scene(tmp_path / "deep.tif", values_of("uint16", 4), photometric="MINISBLACK")
    with pytest.raises(DataError, match=r"four\.tif' has 4 bands of .* 8 bits and .*six\.tif' has 6 bands"):
        measure_bands(Files(four, six))
    with pytest.raises(DataError, match=r"four\.tif' has 4 bands of .* 8 bits and .*deep\.tif' has 4 bands .* 16 bits"):
        measure_bands(Files(four, deep))


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    empty = write_scene(tmp_path / "empty.tif", np.zeros((2, 8, 8), np.uint8), nodata=0)
    with pytest.raises(DataError, match="not one pixel of the images of 'files' that were looked at holds data"):
        measure_bands(Files(empty))
    with pytest.raises(DataError, match=r"empty\.tif' is a scene"):
        measure_bands(Files(empty), grey=True)
