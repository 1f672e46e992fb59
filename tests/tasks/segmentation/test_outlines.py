"""Polygons and run lengths against masks that can be told without them."""

from __future__ import annotations

import numpy as np
import pytest

from vision_ssm.errors import DataError
from vision_ssm.tasks.segmentation.outlines import fill_polygons, run_lengths, unpacked_counts


def packed(lengths: list[int]) -> str:
    """Pack run lengths as COCO does: what `unpacked_counts` undoes."""
    text = ""
    for number, length in enumerate(lengths):
        value = length - lengths[number - 2] if number > 2 else length
        while True:
            code, value = value & 31, value >> 5
            more = value != (-1 if code & 16 else 0)
            text += chr(48 + code + 32 * more)
            if not more:
                break
    return text


def test_a_rectangle_is_the_pixels_between_its_corners() -> None:
    inside = fill_polygons([[2, 3, 6, 3, 6, 8, 2, 8]], 10, 9)
    expected = np.zeros((10, 9), bool)
    expected[3:8, 2:6] = True
    assert (inside == expected).all()


def test_pixels_are_inside_by_their_centres() -> None:
    rows, columns = np.mgrid[:40, :50] + 0.5
    # A triangle by its three edges, each a half plane.
    corners = np.array([[3.2, 4.1], [45.7, 10.3], [20.9, 38.8]])
    expected = np.ones((40, 50), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        expected &= (x1 - x0) * (rows - y0) - (y1 - y0) * (columns - x0) > 0
    assert expected.sum() > 500
    assert (fill_polygons([corners.ravel().tolist()], 40, 50) == expected).all()


def test_several_polygons_are_joined_and_what_leaves_the_image_is_cut() -> None:
    both = fill_polygons([[-5, -5, 2, -5, 2, 2, -5, 2], [1, 1, 90, 1, 90, 90, 1, 90]], 4, 5)
    expected = np.zeros((4, 5), bool)
    expected[:2, :2] = expected[1:, 1:] = True
    assert (both == expected).all()


def test_a_polygon_that_crosses_itself_is_inside_by_odd_and_even() -> None:
    ring = [0, 0, 8, 0, 8, 8, 0, 8, 0, 0, 2, 2, 6, 2, 6, 6, 2, 6, 2, 2]
    expected = np.ones((8, 8), bool)
    expected[2:6, 2:6] = False
    assert (fill_polygons([ring], 8, 8) == expected).all()


@pytest.mark.parametrize(
    "polygon", [[1, 2, 3, 4], [0, 0, 1, 1, 2], [0, 0, 5, 0, float("nan"), 5], [0, 0, 5, 0, 1e300, 5]]
)
def test_what_is_no_polygon_is_refused(polygon: list[float]) -> None:
    with pytest.raises(DataError, match="three or more corners"):
        fill_polygons([polygon], 8, 8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("as_text", [False, True])
def test_run_lengths_give_the_mask_back(seed: int, as_text: bool) -> None:
    generator = np.random.default_rng(seed)
    mask = np.repeat(generator.random((30, 50)) < 0.4, generator.integers(1, 60, 50), axis=1)
    columns = mask.T.ravel()
    edges = np.flatnonzero(np.diff(columns)) + 1
    lengths = np.diff([0, *edges, len(columns)]).tolist()
    lengths = [0, *lengths] if columns[0] else lengths
    counts = packed(lengths) if as_text else lengths
    assert (run_lengths(counts, *mask.shape) == mask).all()


def test_packed_lengths_by_hand() -> None:
    # 6 fits into five bits with its sign; 20 does not: 20 = 0b10100 low, then 0. The fourth is 2 less than the second.
    assert unpacked_counts("6d06N") == [6, 20, 6, 18]


@pytest.mark.parametrize(
    ("counts", "reason"),
    [([3, 4], "add up to the 2 x 4 pixels"), ([9, -1], "add up"), ("T", "end within"), ("\x01", "character")],
)
def test_wrong_run_lengths_are_refused(counts: list[int] | str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        run_lengths(counts, 2, 4)
