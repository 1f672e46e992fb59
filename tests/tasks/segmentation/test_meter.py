"""Scores of a segmentation against a count by hand, over any division into processes."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vision_ssm.data.batches import Batch
from vision_ssm.errors import ShapeError
from vision_ssm.tasks.segmentation.meter import SegmentationMeter, shrunk

NAMES = ("sky", "road", "car", "never")


def batch(masks: list[torch.Tensor], first: int = 0, *, stacked: bool = False) -> Batch:
    sizes = torch.tensor([list(mask.shape) for mask in masks])
    indices = torch.arange(first, first + len(masks))
    return Batch(None, torch.stack(masks) if stacked else masks, sizes, indices)


def outputs(maps: list[torch.Tensor]) -> list[SimpleNamespace]:
    return [SimpleNamespace(classes=classes) for classes in maps]


def drawn(count: int, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Masks of different sizes with ignored pixels, and predictions; class 3 occurs in neither."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(5 + number, 9 - number % 4) for number in range(count)]
    masks = [torch.randint(0, 3, size, generator=generator) for size in sizes]
    for mask in masks:
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = 255
    return masks, [torch.randint(0, 3, size, generator=generator) for size in sizes]


def test_scores_by_hand() -> None:
    meter = SegmentationMeter(NAMES)
    mask = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 2, 2, 0]])
    meter.update(outputs([predicted]), batch([mask]))
    # sky: 2 of 3, union 3; road: 2 of 3, union 4; car: predicted once, never labelled; "never" is left out.
    assert meter.iou[:3] == pytest.approx([2 / 3, 2 / 4, 0])
    assert meter.accuracy[:2] == pytest.approx([2 / 3, 2 / 3])
    assert math.isnan(meter.iou[3])
    assert math.isnan(meter.accuracy[2])
    assert meter.scores() == pytest.approx({"miou": (2 / 3 + 1 / 2) / 3, "macc": 2 / 3, "aacc": 4 / 6})
    assert meter.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 1, 0], [0] * 4, [0] * 4]
    assert meter.count == 1


def test_before_the_first_pixel_there_are_no_scores() -> None:
    meter = SegmentationMeter(NAMES)
    assert all(math.isnan(value) for value in meter.scores().values())
    meter.update(outputs([torch.zeros(2, 3, dtype=torch.int64)]), batch([torch.full((2, 3), 255)]))
    assert all(math.isnan(value) for value in meter.scores().values())
    assert meter.tables()[0].rows == []
    assert meter.count == 1


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
def test_stacked_targets_and_any_integers(kind: torch.dtype) -> None:
    masks, maps = drawn(1)
    listed, stacked = SegmentationMeter(NAMES), SegmentationMeter(NAMES)
    listed.update(outputs(maps * 2), batch(masks * 2))
    stacked.update(outputs([m.to(kind) for m in maps * 2]), batch(masks * 2, stacked=True))
    assert torch.equal(listed.confusion, stacked.confusion)


def test_what_has_no_prediction_is_not_counted() -> None:
    meter = SegmentationMeter(NAMES)
    meter.update(outputs([torch.tensor([[0, 255]], dtype=torch.uint8)]), batch([torch.tensor([[0, 1]])]))
    assert meter.confusion.sum() == 1


def test_large_maps_are_counted_in_pieces_to_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, maps = drawn(4)
    whole, pieces = SegmentationMeter(NAMES), SegmentationMeter(NAMES)
    whole.update(outputs(maps), batch(masks))
    monkeypatch.setattr("vision_ssm.tasks.segmentation.meter._PIXELS", 14)
    pieces.update(outputs(maps), batch(masks))
    assert torch.equal(whole.confusion, pieces.confusion)


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_together_are_one(processes: int) -> None:
    masks, maps = drawn(40)
    alone = SegmentationMeter(NAMES)
    parts = [SegmentationMeter(NAMES) for _ in range(processes)]
    for number in range(40):
        given = outputs([maps[number]]), batch([masks[number]], number)
        alone.update(*given)
        parts[number % processes].update(*given)
    merged = SegmentationMeter(NAMES)
    merged.merge([part.state() for part in reversed(parts)])
    assert merged.scores() == alone.scores()
    assert merged.count == alone.count == 40
    assert {key: kept.tolist() for key, kept in merged.maps.items()} == {
        key: kept.tolist() for key, kept in alone.maps.items()
    }


@pytest.mark.parametrize("count", [1, 5, 6, 7, 40, 101, 500])
def test_kept_maps_are_few_and_spread(count: int) -> None:
    meter = SegmentationMeter(NAMES)
    for number in range(count):
        predicted = torch.full((2, 2), number % 3)
        meter.update(outputs([predicted]), batch([predicted], number))
    kept = list(meter.maps)
    assert len(kept) == min(6, count)
    assert all(meter.maps[position].tolist() == [[position % 3] * 2] * 2 for position in kept)
    gaps = np.diff([0, *kept, count])
    assert gaps.max() <= max(2, count / 2.5)
    assert len(meter.state()[3]) <= 12


def test_kept_maps_are_small() -> None:
    classes = torch.arange(200)[:, None].expand(200, 1600) % 150
    small = shrunk(classes)
    assert small.shape == (64, 512)
    assert small[:, 0].tolist() == [classes[int((row + 0.5) * 200 / 64), 0] for row in range(64)]
    assert shrunk(classes[:, :300]) is not None
    assert torch.equal(shrunk(classes[:, :300]), classes[:, :300])
    assert shrunk(torch.zeros(1, 5000)).shape == (1, 512)


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"size of its mask, \[2, 3\], got \[3, 2\]"):
        SegmentationMeter(NAMES).update(outputs([torch.zeros(3, 2)]), batch([torch.zeros(2, 3)]))


def test_details_are_json_and_tables_leave_out_what_never_occurs() -> None:
    meter = SegmentationMeter(NAMES)
    mask = torch.tensor([[0, 0, 0, 1]])
    meter.update(outputs([torch.tensor([[0, 0, 2, 1]])]), batch([mask]))
    details = json.loads(json.dumps(meter.details()))
    assert details["iou"] == [pytest.approx(2 / 3), 1.0, 0.0, None]
    assert details["accuracy"] == [pytest.approx(2 / 3), 1.0, None, None]
    assert details["pixels"] == [3, 1, 0, 0]
    (table,) = meter.tables()
    assert table.rows == [
        ("sky", "75.00 %", "66.67 %", "66.67 %"),
        ("road", "25.00 %", "100.00 %", "100.00 %"),
        ("car", "0.00 %", "0.00 %", "-"),
    ]
