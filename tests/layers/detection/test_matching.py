"""Matching against a loop over every pair, and sampling."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from tests.layers.detection.test_boxes_and_anchors import some_boxes
from vision_ssm.layers.detection import matching
from vision_ssm.layers.detection.matching import match, sample


def by_hand(boxes, objects, below, above, least_best, takes_over):
    """The rules one pair at a time; (object, kind) per box."""
    overlap = box_iou(objects, boxes).tolist()
    found = []
    for column in range(len(boxes)):
        values = [row[column] for row in overlap]
        best = max(values)
        found.append([values.index(best), 0 if best < below else 1 if best >= above else -1])
    for number, row in enumerate(overlap):
        if least_best is not None and max(row) >= least_best and max(row) > 0:
            for column, value in enumerate(row):
                if value == max(row):
                    found[column] = [number if takes_over else found[column][0], 1]
    return found


@pytest.mark.parametrize("least_best", [None, 0.0, 0.3])
@pytest.mark.parametrize("takes_over", [True, False])
@pytest.mark.parametrize("at_once", [1, 100, 2**22])
def test_boxes_are_matched_by_the_rules(least_best, takes_over, at_once, monkeypatch) -> None:
    monkeypatch.setattr(matching, "_AT_ONCE", at_once)
    boxes = some_boxes(60)
    boxes = torch.cat([boxes, boxes[:20]])  # ties
    objects = torch.cat([some_boxes(9), boxes[3:5] + 1, boxes[3:4] + 2, torch.tensor([[900.0, 900, 901, 901]])])
    found = match(boxes, objects, below=0.3, above=0.5, least_best=least_best, best_takes_over=takes_over)
    expected = by_hand(boxes, objects, 0.3, 0.5, least_best, takes_over)
    assert [list(pair) for pair in zip(found.objects.tolist(), found.kinds.tolist(), strict=True)] == expected
    assert {1, 0, -1} == {*found.kinds.tolist()}


def test_without_objects_everything_is_background_and_without_boxes_there_is_nothing() -> None:
    found = match(some_boxes(5), torch.zeros(0, 4, dtype=torch.float64), below=0.3, above=0.7, least_best=0.0)
    assert found.kinds.tolist() == [0] * 5
    assert len(match(torch.zeros(0, 4), torch.ones(2, 4), below=0.3, above=0.7, least_best=0.0).kinds) == 0


def test_a_sample_is_of_the_asked_size_and_share() -> None:
    kinds = torch.tensor([1] * 30 + [0] * 500 + [-1] * 50)[torch.randperm(580)]
    positive, negative = sample(kinds, 64, 0.25)
    assert (len(positive), len(negative)) == (16, 48)
    assert kinds[positive].unique().tolist() == [1]
    assert kinds[negative].unique().tolist() == [0]
    assert positive.unique().tolist() == positive.tolist()
    assert negative.unique().tolist() == negative.tolist()
    few, rest = sample(kinds, 256, 0.5)
    assert (len(few), len(rest)) == (30, 226), "what the objects leave is filled with background"
    drawn = {tuple(sample(kinds, 64, 0.25)[0].tolist()) for _ in range(5)}
    assert len(drawn) > 1
