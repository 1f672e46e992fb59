"""What is said of a class map, and how it is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from vision_ssm.tasks.legend import with_legend
from vision_ssm.tasks.segmentation.legend import blended
from vision_ssm.tasks.segmentation.results import Segments

NAMES = ("sky", "road", "car", "tree", "pole", "sign")
PALETTE = ((0, 0, 200), (100, 100, 100), (200, 0, 0), (0, 200, 0), (200, 200, 0), (0, 200, 200))


def segments(classes: object, confidence: float | None = None) -> Segments:
    return Segments(np.array(classes, np.uint8), NAMES, PALETTE, confidence)


def test_areas_are_shares_of_what_has_a_class() -> None:
    found = segments([[1, 1, 1, 0], [255, 255, 255, 255]], 0.75)
    assert json.loads(json.dumps(found.to_dict())) == {
        "size": [2, 4],
        "classes": [
            {"class": "road", "index": 1, "pixels": 3, "share": 0.75},
            {"class": "sky", "index": 0, "pixels": 1, "share": 0.25},
        ],
        "mean_confidence": 0.75,
    }
    assert found.row() == {"size": "2 x 4", "classes": "road 75.0 %, sky 25.0 %"}
    assert found.records() == [
        {"class": "road", "pixels": 3, "share": "0.750000"},
        {"class": "sky", "pixels": 1, "share": "0.250000"},
    ]


def test_a_row_stays_short() -> None:
    assert segments([[0, 0, 1, 2, 3, 4, 5, 5, 5]]).row()["classes"] == (
        "sign 33.3 %, sky 22.2 %, road 11.1 %, car 11.1 %, 2 more"
    )


def test_an_image_without_any_class() -> None:
    found = segments([[255, 255]])
    assert found.to_dict() == {"size": [1, 2], "classes": []}
    assert (found.row()["classes"], found.records()) == ("none", [])


def test_the_mask_is_a_picture_of_indices() -> None:
    mask = segments([[0, 2], [255, 1]]).mask()
    assert mask.mode == "P"
    assert np.asarray(mask).tolist() == [[0, 2], [255, 1]]
    assert np.asarray(mask.convert("RGB"))[0].tolist() == [[0, 0, 200], [200, 0, 0]]


def test_colours_lie_half_over_the_image_and_not_where_no_class_is() -> None:
    over = blended(Image.new("RGB", (2, 1), (100, 50, 0)), np.array([[2, 255]], np.uint8), PALETTE)
    assert over.getpixel((0, 0)) == (150, 25, 0)
    assert over.getpixel((1, 0)) == (100, 50, 0)


def test_a_map_is_scaled_to_the_image() -> None:
    over = blended(Image.new("RGB", (4, 2)), np.array([[0, 2]], np.uint8), PALETTE)
    assert [over.getpixel((x, 1)) for x in range(4)] == [(0, 0, 100)] * 2 + [(100, 0, 0)] * 2


@pytest.mark.parametrize("size", [(3, 2), (480, 360), (3000, 200), (60, 4000)])
def test_the_legend_is_below_the_image_and_has_every_colour(size: tuple[int, int]) -> None:
    classes = np.resize(np.arange(6, dtype=np.uint8), (size[1], size[0]))
    drawn = segments(classes).draw(Image.new("RGB", size))
    factor = max(1, -(-160 // max(size)))
    below = drawn.crop((0, size[1] * factor, drawn.width, drawn.height))
    colours = {colour for _, colour in below.getcolors(2**24)}
    assert set(PALETTE) <= colours
    assert drawn.width >= size[0] * factor
    # Letters take a similar share of the picture at any size; they are never smaller than 12 pixels.
    assert below.height >= 12


def test_a_long_legend_goes_over_several_lines_and_long_names_are_cut() -> None:
    image = Image.new("RGB", (240, 20))
    few = with_legend(image, [("short", (1, 2, 3))])
    many = with_legend(image, [(f"a long name {number}", (9, number, 0)) for number in range(20)])
    longest = with_legend(image, [("n" * 500, (1, 2, 3))])
    assert (few.width, many.width, longest.width) == (240, 240, 240)
    assert many.height - 20 >= 10 * (few.height - 20) * 0.6
    assert longest.height == few.height
