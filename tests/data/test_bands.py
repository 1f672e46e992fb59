"""A model gets the numbers that it was trained on, or a sentence that says what it got instead."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from vision_ssm.data.bands import samples_of
from vision_ssm.data.geo.raster import Raster
from vision_ssm.data.normalise import Normalise
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError, DataError

PICTURES = Preprocessing(input_size=(3, 8, 8))


def raster(values: Any, samples: str, valid: Any = None, bits: int = 8) -> Raster:
    values = np.asarray(values)
    names = tuple(f"band {index + 1}" for index in range(values.shape[2]))
    return Raster(values, valid, samples, bits, names, "scene.tif")


def wanted(bands: int, samples: str) -> Preprocessing:
    return Preprocessing(
        input_size=(bands, 8, 8), mean=tuple(10.0 * (1 + b) for b in range(bands)), std=(2.0,) * bands, samples=samples
    )


def test_a_picture_keeps_its_colours_or_becomes_grey() -> None:
    picture = Image.fromarray(np.full((2, 3, 3), (200, 100, 50), np.uint8))
    np.testing.assert_array_equal(samples_of(picture, PICTURES), np.asarray(picture))
    grey = Preprocessing(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    assert samples_of(picture, grey).shape == (2, 3, 1)
    same = Image.fromarray(np.full((2, 3, 3), 77, np.uint8))
    assert samples_of(same, grey)[0, 0, 0] == 77


def test_pixels_without_data_are_the_mean_whatever_they_hold() -> None:
    valid = np.array([[True, False]])
    values = np.array([[[12.0, 21.0], [np.nan, -9999.0]]], np.float32)
    for_model = wanted(2, "float32")
    planes = Normalise(for_model)(samples_of(raster(values, "float32", valid), for_model))
    assert planes[:, 0, 1].tolist() == [0, 0] and planes[:, 0, 0].tolist() == [1, 0.5]
    eight = samples_of(raster(np.zeros((1, 2, 3), np.uint8), "uint8", valid), PICTURES)
    assert eight[0].tolist() == [[0, 0, 0], [round(255 * mean) for mean in PICTURES.mean]]


def test_sixteen_bits_are_scaled_for_a_model_of_pictures_and_twelve_by_what_they_are() -> None:
    values = np.array([[[0.0], [4095.0], [65535.0]]], np.float32)
    assert samples_of(raster(values, "uint16", bits=16), PICTURES)[0, :, 0].tolist() == [0, 16, 255]
    assert samples_of(raster(values[:, :2], "uint16", bits=12), PICTURES)[0].tolist() == [[0] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("image", "model", "told"),
    [
        (raster(np.ones((2, 2, 4), np.uint8), "uint8"), PICTURES,
         r"it has 4 bands \(band 1, band 2, band 3, band 4\), and this model takes 3 channels"),
        (raster(np.ones((2, 2, 3), np.uint8), "uint8"), wanted(4, "uint8"), "it has 3 bands .* takes 4 channels"),
        (raster(np.ones((2, 2, 1), np.uint8), "uint8"), wanted(4, "uint8"), "it has 1 band .* takes 4 channels"),
        (Image.new("RGB", (2, 2)), wanted(4, "uint8"),
         "a picture of 3 colours of 8 bits, and this model takes 4 bands of whole numbers of 8 bits"),
        (Image.new("RGB", (2, 2)), wanted(3, "uint16"), "takes 3 bands of whole numbers of 16 bits"),
        (raster(np.ones((2, 2, 3), np.float32), "float32"), PICTURES,
         "it holds real numbers, and this model was trained on whole numbers of 8 bits"),
        (raster(np.ones((2, 2, 3), np.uint8), "uint8"), wanted(3, "uint16"), "it holds whole numbers of 8 bits"),
        (raster(np.ones((2, 2, 2), np.float32), "int16"), wanted(2, "float32"), "of 16 bits with sign, and .* real"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_with_both_sides(image: Any, model: Preprocessing, told: str) -> None:
    with pytest.raises(DataError, match=told):
        samples_of(image, model)


def test_preprocessing_of_bands_is_kept_and_that_of_pictures_reads_as_before() -> None:
    four = wanted(4, "uint16")
    assert Preprocessing.from_dict(four.to_dict()) == four and four.unit == 1
    assert "samples" not in PICTURES.to_dict() and PICTURES.unit == 255
    assert four.with_size(16).input_size == (4, 16, 16)
    with pytest.raises(ConfigError, match="mean must be 4 finite numbers"):
        Preprocessing(input_size=(4, 8, 8))
    with pytest.raises(ConfigError, match="1 to 16 channels"):
        wanted(17, "uint8")
    with pytest.raises(ConfigError, match="unknown samples 'float64'"):
        wanted(4, "float64")
