"""Boxes and the deltas between them, anchors, and which map a region reads."""

from __future__ import annotations

import math

import pytest
import torch

from vision_ssm.errors import ConfigError
from vision_ssm.layers.detection.anchors import anchor_boxes, cells_inside
from vision_ssm.layers.detection.boxes import apply_deltas, clipped, deltas_between, has_area, rescaled
from vision_ssm.layers.detection.conventions import DETECTRON2, MMDET, convention_named
from vision_ssm.layers.detection.necks import STRIDES
from vision_ssm.layers.detection.regions import levels_of, region_features

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def some_boxes(count: int) -> torch.Tensor:
    torch.manual_seed(count)
    corner = torch.rand(count, 2, dtype=torch.float64) * 200
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, dtype=torch.float64) * 100], dim=1)


def test_deltas_move_a_box_onto_the_other() -> None:
    boxes, onto = some_boxes(20), some_boxes(20).flip(0)
    deltas = deltas_between(boxes, onto, WEIGHTS)
    moved = apply_deltas(deltas[:, None], boxes, WEIGHTS, bounded_below=False)
    torch.testing.assert_close(moved[:, 0], onto)
    by_hand = deltas_between(torch.tensor([[0.0, 0, 10, 20]]), torch.tensor([[5.0, 0, 25, 10]]), WEIGHTS)
    expected = [10 * 10 / 10, 10 * -5 / 20, 5 * math.log(2), 5 * math.log(0.5)]
    torch.testing.assert_close(by_hand, torch.tensor([expected]))


@pytest.mark.parametrize("bounded_below", [True, False])
def test_growth_is_bounded_and_shrinking_where_the_convention_says_so(bounded_below: bool) -> None:
    box = torch.tensor([[0.0, 0, 16, 16]])
    wild = torch.tensor([[[0.0, 0, 99, 99], [0, 0, -99, -99]]])
    grown, shrunk = apply_deltas(wild, box, (1, 1, 1, 1), bounded_below=bounded_below)[0]
    assert (grown[2] - grown[0]).item() == pytest.approx(1000, rel=1e-5)
    assert (shrunk[2] - shrunk[0]).item() == pytest.approx(16 * 16 / 1000 if bounded_below else 0, abs=1e-3)


def test_boxes_are_cut_to_the_image_and_resized_with_it() -> None:
    boxes = torch.tensor([[-5.0, -5, 500, 500], [10, 20, 30, 40], [50, 60, 70, 60]])
    assert clipped(boxes, (100, 200)).tolist() == [[0, 0, 200, 100], [10, 20, 30, 40], [50, 60, 70, 60]]
    assert rescaled(boxes[1:], (100, 200), (50, 400)).tolist() == [[20, 10, 60, 20], [100, 30, 140, 30]]
    assert has_area(boxes).tolist() == [True, True, False]
    assert has_area(torch.tensor([[0, 0, math.nan, 5]])).tolist() == [False]


def test_anchors_lie_around_the_corners_of_cells() -> None:
    found = anchor_boxes([(3, 2)], [8])[0].reshape(3, 2, 3, 4)
    for row in range(3):
        for column in range(2):
            for index, ratio in enumerate((0.5, 1, 2)):
                x1, y1, x2, y2 = found[row, column, index].tolist()
                assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((column * 8, row * 8), abs=1e-5)
                assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio)
                assert (y2 - y1) * (x2 - x1) == pytest.approx(64 * 64)
    inside = cells_inside([(3, 2)], [8], (16, 5), 3)
    assert inside.reshape(3, 2, 3).all(dim=2).tolist() == [[True, False], [True, False], [False, False]]


@pytest.mark.parametrize("convention", [MMDET, DETECTRON2])
def test_a_box_of_112_pixels_reads_the_second_map(convention) -> None:
    sides = torch.tensor([1.0, 111.9, 112.0, 223.9, 224.0, 447.9, 448.0, 5000.0])
    boxes = torch.stack([torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert levels_of(boxes, convention).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_features_come_in_the_order_of_the_boxes() -> None:
    """A constant map gives its constant: here the number of its level, plus ten times that of its image."""
    maps = [
        torch.stack([torch.full((1, 512 // s, 512 // s), level + 10.0 * image) for image in range(2)])
        for level, s in enumerate(STRIDES)
    ]
    boxes = [torch.tensor([[0.0, 0, 300, 300], [9, 9, 20, 20]]), torch.tensor([[0.0, 0, 500, 500], [0, 0, 150, 150]])]
    found = region_features(maps, boxes, 7, MMDET)
    assert found.shape == (4, 1, 7, 7)
    assert found[:, 0, 3, 3].tolist() == [2, 0, 13, 11]
    assert region_features(maps, [torch.zeros(0, 4)] * 2, 7, MMDET).shape == (0, 1, 7, 7)


def test_an_unknown_convention_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'detectron2'"):
        convention_named("detectron")
