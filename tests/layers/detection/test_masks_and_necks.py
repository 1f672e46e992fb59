"""Masks between grid and image, and the maps that everything reads."""

from __future__ import annotations

import math

import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.layers.detection.masks import mask_targets, pasted
from vision_ssm.layers.detection.necks import FPN, SimplePyramid


def value_at(grid, x: float, y: float) -> float:
    """The grid's value at cell coordinates, 0 outside, between the centres of cells."""
    total = 0.0
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < len(grid) and 0 <= column < len(grid):
                total += (1 - abs(y - row)) * (1 - abs(x - column)) * grid[row][column]
    return total


def test_a_mask_is_pasted_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    grids = torch.rand(4, 5, 5, dtype=torch.float64)
    boxes = torch.tensor([[2.3, 1.7, 14.2, 9.9], [0, 0, 20, 12], [19, 11, 20, 12], [4, 4, 4, 9]], dtype=torch.float64)
    found = pasted(grids, boxes, (12, 20))
    assert found.shape == (4, 1, 12, 20)
    assert found.dtype == torch.bool
    for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for row in range(12):
            for column in range(20):
                expected = x2 > x1 and (
                    value_at(
                        grids[index].tolist(),
                        (column + 0.5 - x1) / (x2 - x1) * 5 - 0.5,
                        (row + 0.5 - y1) / (y2 - y1) * 5 - 0.5,
                    )
                    >= 0.5
                )
                assert bool(found[index, 0, row, column]) == expected
    assert pasted(torch.zeros(0, 5, 5), torch.zeros(0, 4), (3, 4)).shape == (0, 1, 3, 4)


def test_targets_are_what_the_object_covers_of_a_region() -> None:
    masks = torch.zeros(2, 40, 40, dtype=torch.bool)
    masks[0, :, :20] = True
    masks[1, 10:30] = True
    boxes = torch.tensor([[10.0, 0, 30, 40], [0, 10, 40, 30], [0, 0, 20, 20]])
    found = mask_targets(boxes, masks, torch.tensor([0, 1, 1]), 4)
    assert found[0].tolist() == [[1, 1, 0, 0]] * 4
    assert found[1].tolist() == [[1] * 4] * 4
    assert found[2].tolist() == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    assert mask_targets(boxes[:0], masks[:0], torch.zeros(0, dtype=torch.long), 4).shape == (0, 4, 4)


def test_fpn_adds_the_nearest_of_the_coarser_map_at_odd_sizes() -> None:
    neck = FPN((1, 1, 1, 1), 1)
    for module in neck.laterals:
        torch.nn.init.ones_(module.weight)
    for module in neck.outputs:
        torch.nn.init.dirac_(module.weight)
    maps = [torch.randn(1, 1, h, w) for h, w in ((21, 9), (11, 5), (6, 3), (3, 2))]
    found = neck(maps)
    assert [tuple(x.shape[2:]) for x in found] == [(21, 9), (11, 5), (6, 3), (3, 2), (2, 1)]
    torch.testing.assert_close(found[3], maps[3])
    torch.testing.assert_close(found[2][0, 0, 5, 2], maps[2][0, 0, 5, 2] + maps[3][0, 0, 2, 1])
    torch.testing.assert_close(found[4][0, 0], maps[3][0, 0, ::2, ::2])


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_one_map_of_any_stride_gives_the_same_five_sizes(stride: int) -> None:
    found = SimplePyramid(8, stride, 6)([torch.randn(1, 8, 64 // stride, 128 // stride)])
    assert [tuple(x.shape) for x in found] == [(1, 6, 64 // s, 128 // s) for s in (4, 8, 16, 32)] + [(1, 6, 1, 2)]


def test_a_pyramid_says_what_it_cannot_be_made_of() -> None:
    with pytest.raises(ConfigError, match="power of two, got 14"):
        SimplePyramid(8, 14, 6)
    with pytest.raises(ConfigError, match="which 5 does not allow"):
        SimplePyramid(10, 16, 6)
