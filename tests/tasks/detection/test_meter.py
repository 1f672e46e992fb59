"""Collecting an evaluation: parts of processes make the whole, and confusions are counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

from vision_ssm.data.batches import Batch
from vision_ssm.tasks.detection.inference import Found
from vision_ssm.tasks.detection.masks import Patch
from vision_ssm.tasks.detection.meter import DetectionMeter
from vision_ssm.tasks.detection.sources import Objects

NAMES = ("a", "b", "c")
SIZE = (100, 100)


def objects(boxes: list[list[float]], labels: list[int], crowd: tuple[int, ...] = ()) -> Objects:
    given = torch.tensor(boxes, dtype=torch.float64).view(-1, 4)
    marks = torch.tensor([index in crowd for index in range(len(labels))], dtype=torch.bool)
    areas = (given[:, 2:] - given[:, :2]).prod(1)
    outlines = [[[x0, y0, x1, y0, x1, y1, x0, y1]] for x0, y0, x1, y1 in boxes]
    return Objects(given, torch.tensor(labels, dtype=torch.int64), marks, areas, outlines, SIZE)  # type: ignore[arg-type]


def found(boxes: list[list[float]], labels: list[int], scores: list[float]) -> Found:
    masks = [Patch(int(y0), int(x0), np.ones((int(y1 - y0), int(x1 - x0)), bool)) for x0, y0, x1, y1 in boxes]
    given = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return Found(given, torch.tensor(labels, dtype=torch.int64), torch.tensor(scores), masks, SIZE)


def batch(targets: list[Objects], positions: list[int]) -> Batch:
    return Batch([], targets, torch.tensor([SIZE] * len(targets)), torch.tensor(positions))


A, B = [10, 10, 40, 40], [60, 60, 90, 90]


def test_confusions_are_counted() -> None:
    meter = DetectionMeter(NAMES)
    truth = objects([A, B, [10, 60, 40, 90]], [0, 1, 2], crowd=(2,))
    finds = found(
        [A, A, [62, 60, 90, 90], [12, 62, 38, 88], [50, 0, 60, 9]], [0, 0, 2, 0, 1], [0.9, 0.8, 0.7, 0.6, 0.2]
    )
    meter.update([finds], batch([truth], [0]))
    expected = np.zeros((4, 4), int)
    expected[0, 0] = 1  # found
    expected[3, 0] = 1  # found again; what is found on the crowd does not count
    expected[1, 2] = 1  # taken for another class
    assert meter.confusion().tolist() == expected.tolist()
    meter.update([found([], [], [])], batch([objects([A], [1])], [1]))
    expected[1, 3] = 1
    assert meter.confusion().tolist() == expected.tolist()
    assert meter.details()["objects"] == [1, 2, 0]


def test_masks_are_scored_where_every_object_has_an_outline() -> None:
    meter = DetectionMeter(NAMES, masks=True)
    truth = objects([A, B], [0, 1], crowd=(1,))
    truth.outlines[1] = None  # a crowd may have a box alone
    meter.update([found([A], [0], [0.9])], batch([truth], [0]))
    assert meter.scores()["mask_ap"] == meter.scores()["ap"] == pytest.approx(1)
    boxes_only = objects([B], [1])
    boxes_only.outlines[0] = None
    meter.update([found([B], [1], [0.9])], batch([boxes_only], [1]))
    assert meter.scores()["ap"] == pytest.approx(1)
    assert math.isnan(meter.scores()["mask_ap"])
    assert "class_mask_ap" not in meter.details()
    assert "mask AP" not in meter.tables()[0].columns


def test_processes_together_are_one() -> None:
    pairs = [
        (found([A, B], [0, 1], [0.9, 0.8]), objects([A, B], [0, 0])),
        (found([A], [1], [0.7]), objects([A], [1])),
        (found([B], [1], [0.6]), objects([A], [0])),
    ]
    whole, first, second, merged = (DetectionMeter(NAMES, masks=True) for _ in range(4))
    for position, (one, target) in enumerate(pairs):
        for meter in (whole, second if position == 1 else first):
            meter.update([one], batch([target], [position]))
    merged.merge([second.state(), first.state()])
    assert merged.count == 3
    for name, value in whole.scores().items():
        other = merged.scores()[name]
        assert value == other or (math.isnan(value) and math.isnan(other))
    assert whole.scores()["mask_ap"] == pytest.approx(whole.scores()["ap"])
    assert merged.confusion().tolist() == whole.confusion().tolist()
    rows = whole.tables()[0].rows
    assert [row[0] for row in rows] == ["a", "b"]
    assert len(rows[0]) == len(whole.tables()[0].columns) == 7


def test_scores_follow_what_is_added() -> None:
    meter = DetectionMeter(NAMES)
    meter.update([found([A], [0], [0.9])], batch([objects([A], [0])], [0]))
    assert meter.scores()["ap"] == pytest.approx(1)
    meter.update([found([], [], [])], batch([objects([A], [0])], [1]))
    assert meter.scores()["ap"] == pytest.approx(0.5, abs=0.01)


def test_what_is_kept_does_not_grow_with_the_image() -> None:
    meter = DetectionMeter(NAMES, masks=True, most=2)
    finds = found([A, B, A], [0, 1, 2], [0.9, 0.8, 0.7])._replace(size=(4000, 4000))
    meter.update([finds], batch([objects([A], [0])], [0]))
    kept = meter.state()[0]
    assert len(kept.scores) == 2
    assert kept.masks is not None
    assert max(map(len, kept.masks)) < 300
