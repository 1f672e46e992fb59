"""Polygons and run lengths against masks that can be told without them."""

from __future__ import annotations

import numpy as np
import pytest

from vision_ssm.errors import DataError
from vision_ssm.tasks.outlines import fill_polygons, pack_counts, run_lengths, runs_of, unpacked_counts


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
    counts = pack_counts(lengths) if as_text else lengths
    assert (run_lengths(counts, *mask.shape) == mask).all()


def test_packed_lengths_by_hand() -> None:
    # 6 fits into five bits with its sign; 20 does not: 20 = 0b10100 low, then 0. The fourth is 2 less than the second.
    assert unpacked_counts("6d06N").tolist() == [6, 20, 6, 18]


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([3, 4], "add up to the 2 x 4 pixels"),
        ([9, -1], "add up"),
        ("T", "end within"),
        ("\x01", "character"),
        ("\ud800", "character"),
        ("P" * 12 + "0", "13 characters"),
        ("", "add up"),
    ],
)
def test_wrong_run_lengths_are_refused(counts: list[int] | str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        run_lengths(counts, 2, 4)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_masks_become_run_lengths_and_masks_again(share: float) -> None:
    numbers = np.random.default_rng(1)
    for height, width in ((1, 1), (1, 7), (9, 1), (23, 17)):
        mask = numbers.random((height, width)) < share
        lengths = runs_of(mask, 0, 0, height, width)
        assert (run_lengths(lengths, height, width) == mask).all()
        assert (run_lengths(pack_counts(lengths), height, width) == mask).all()
        assert all(length > 0 for length in lengths[1:])


def test_a_part_of_a_mask_becomes_the_run_lengths_of_all_of_it() -> None:
    part = np.random.default_rng(2).random((5, 4)) < 0.5
    whole = np.zeros((12, 9), bool)
    whole[7:12, 3:7] = part  # down to the last row: runs there may go on in the next column
    assert runs_of(part, 7, 3, 12, 9) == runs_of(whole, 0, 0, 12, 9)


def test_packed_run_lengths_are_cocos() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(3).random((300, 211)) < 0.02
    mask[40:200, 50:120] = True
    known = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert pack_counts(runs_of(mask, 0, 0, 300, 211)) == known
