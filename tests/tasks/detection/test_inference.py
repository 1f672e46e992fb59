"""Windows find what the whole image shows: nothing twice, nothing in halves, nothing lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.tasks.detection.oracle import Oracle, scene
from vision_ssm.tasks.detection.inference import Found, Testing, detect
from vision_ssm.tasks.detection.masks import Patch, joined, patch_of
from vision_ssm.tasks.outlines import run_lengths

Boxes = list[tuple[int, int, int, int]]


def found_in(boxes: Boxes, labels: list[int], testing: Testing, size: tuple[int, int], **changes: object) -> Found:
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    model = Oracle(labels, areas, **changes)  # type: ignore[arg-type]
    return detect(model, scene(*size, boxes), size, testing)


def as_set(found: Found) -> set[tuple[int, ...]]:
    return {(int(label), *map(int, box.tolist())) for box, label in zip(found.boxes, found.labels, strict=True)}


def random_boxes(count: int, height: int, width: int, most: int, seed: int) -> Boxes:
    numbers = np.random.default_rng(seed)
    taken = np.zeros((height, width), bool)
    boxes: Boxes = []
    while len(boxes) < count:
        h, w = numbers.integers(3, most, 2)
        top, left = numbers.integers(0, height - h), numbers.integers(0, width - w)
        if not taken[top : top + h, left : left + w].any():
            taken[top : top + h, left : left + w] = True
            boxes.append((int(left), int(top), int(left + w), int(top + h)))
    return boxes


@pytest.mark.parametrize("least", [0.0, 0.4])
@pytest.mark.parametrize(("window", "stride", "most"), [(64, None, 20), (64, 40, 24), (100, 60, 40), (64, 32, 32)])
def test_windows_find_each_object_once_and_whole(window: int, stride: int | None, most: int, least: float) -> None:
    size = (210, 333)
    boxes = random_boxes(70, *size, most, seed=window + most)
    labels = [index % 3 for index in range(len(boxes))]
    found = found_in(boxes, labels, Testing(window, stride), size, least=least)
    assert as_set(found) == {(label, *box) for label, box in zip(labels, boxes, strict=True)}
    assert len(found.boxes) == len(boxes)
    assert found.masks is not None
    for box, mask in zip(found.boxes.int().tolist(), found.masks, strict=True):
        whole = run_lengths(mask.packed(*size), *size)
        assert whole.sum() == (box[2] - box[0]) * (box[3] - box[1])
        assert whole[box[1] : box[3], box[0] : box[2]].all()
    assert (found.scores.diff() <= 0).all()


def test_objects_larger_than_the_windows_are_joined() -> None:
    boxes = [(10, 20, 290, 60), (30, 80, 60, 190)]
    found = found_in(boxes, [0, 1], Testing(64, 40), (200, 300))
    assert as_set(found) == {(0, *boxes[0]), (1, *boxes[1])}
    assert found.masks is not None
    areas = sorted(int(mask.bits.sum()) for mask in found.masks)
    assert areas == sorted((right - left) * (bottom - top) for left, top, right, bottom in boxes)


def test_neighbours_of_a_class_at_a_seam_stay_two() -> None:
    boxes = [(30, 10, 62, 30), (63, 10, 95, 30), (30, 31, 95, 50)]
    assert as_set(found_in(boxes, [0, 0, 0], Testing(64, 40), (64, 160))) == {(0, *box) for box in boxes}


def test_an_image_within_the_window_is_taken_whole() -> None:
    boxes: Boxes = [(3, 4, 9, 9)]
    model = Oracle([0], [30])
    found = detect(model, scene(40, 50, boxes), (80, 100), Testing(64))
    assert model.seen == [(40, 50)]
    assert found.boxes.tolist() == [[6, 8, 18, 18]]
    assert found.size == (80, 100)


def test_windows_of_a_resized_image_give_pixels_of_the_file() -> None:
    boxes: Boxes = [(10, 20, 50, 60), (100, 5, 130, 45)]
    areas = [1600, 1200]
    found = detect(Oracle([0, 1], areas), scene(100, 150, boxes), (200, 300), Testing(64, 40))
    assert as_set(found) == {(0, 20, 40, 100, 120), (1, 200, 10, 260, 90)}
    assert found.masks is not None
    assert sorted(int(mask.bits.sum()) for mask in found.masks) == [4800, 6400]


def test_nothing_is_found_where_nothing_is() -> None:
    found = found_in([], [], Testing(64), (100, 150))
    assert found.boxes.shape == (0, 4)
    assert found.masks == []
    assert found_in([], [], Testing(64), (100, 150), masks=False).masks is None


def test_patches() -> None:
    mask = torch.zeros(9, 7, dtype=torch.bool)
    assert patch_of(mask).bits.size == 0
    assert patch_of(mask).packed(9, 7) == Patch(3, 3, np.zeros((0, 0), bool)).packed(9, 7)
    mask[2:5, 3:6] = True
    mask[3, 4] = False
    patch = patch_of(mask)
    assert (patch.top, patch.left, patch.bits.shape) == (2, 3, (3, 3))
    assert (run_lengths(patch.packed(9, 7), 9, 7) == mask.numpy()).all()
    both = joined([patch, patch.shifted(2, 1), Patch(0, 0, np.zeros((0, 0), bool))])
    expected = mask.numpy().copy()
    expected[4:7, 4:7] |= mask.numpy()[2:5, 3:6]
    assert (run_lengths(both.packed(9, 7), 9, 7) == expected).all()
    large = patch.resized(2, 3, 18, 21)
    assert (run_lengths(large.packed(18, 21), 18, 21) == mask.numpy().repeat(2, 0).repeat(3, 1)).all()
