"""COCO's figures against pycocotools, on predictions of every kind of mistake."""

from __future__ import annotations

import contextlib
import io
import math
from typing import Any

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

from vision_ssm.tasks.detection.coco_scores import FIGURES, Seen, _finds, _truth, coco_scores
from vision_ssm.tasks.outlines import pack_counts, runs_of

SIZE = (200, 250)
CLASSES = 4


def ellipse(box: Any) -> tuple[list[float], str]:
    """A polygon inscribed in a box, and packed run lengths of the ellipse there."""
    left, top, right, bottom = box
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    xs = (left + right) / 2 + (right - left) / 2 * np.cos(angles)
    ys = (top + bottom) / 2 + (bottom - top) / 2 * np.sin(angles)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    inside = ((x - (left + right) / 2) / max(right - left, 1e-6)) ** 2 + (
        (y - (top + bottom) / 2) / max(bottom - top, 1e-6)
    ) ** 2 <= 0.25
    return np.stack([xs, ys], 1).ravel().tolist(), pack_counts(runs_of(inside, 0, 0, *SIZE))


def boxes_of(numbers: np.random.Generator, count: int) -> np.ndarray[Any, Any]:
    sides = np.exp(numbers.uniform(np.log(6), np.log(150), (count, 2)))
    corners = numbers.uniform(0, 1, (count, 2)) * (np.array(SIZE[::-1]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def random_image(seed: int, *, truth: int, finds: int) -> Seen:
    numbers = np.random.default_rng(seed)
    boxes = boxes_of(numbers, truth)
    found, found_labels = boxes_of(numbers, finds), numbers.integers(0, CLASSES, finds)
    labels = numbers.integers(0, CLASSES - 1, truth)  # the last class is never annotated
    if truth:
        meant = numbers.integers(0, truth, finds)
        found = np.where(numbers.random((finds, 1)) < 0.8, boxes[meant] + numbers.normal(0, 2, (finds, 4)), found)
        found_labels = np.where(numbers.random(finds) < 0.8, labels[meant], found_labels)
    found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
    outlines: list[Any] = []
    for number, box in enumerate(boxes):
        polygon, packed = ellipse(box)
        outlines.append([polygon] if number % 2 else {"size": list(SIZE), "counts": packed})
    scores = np.sort(numbers.random(finds).round(2))[::-1].astype(np.float32)  # with ties
    return Seen(
        SIZE, boxes, labels, numbers.random(truth) < 0.15, (boxes[:, 2:] - boxes[:, :2]).prod(1) * 0.8, outlines,
        found.astype(np.float32), found_labels, scores, [ellipse(box)[1] for box in found],
    )  # fmt: skip


def by_pycocotools(seen: dict[int, Seen], masks: bool) -> list[float]:
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = {"info": {}, **_truth(seen, CLASSES, masks)}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(_finds(seen, masks)), "segm" if masks else "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats]


@pytest.mark.parametrize("masks", [False, True], ids=["boxes", "masks"])
def test_figures_are_those_of_pycocotools(masks: bool) -> None:
    seen = {
        0: random_image(1, truth=12, finds=40), 3: random_image(2, truth=0, finds=5),
        4: random_image(3, truth=9, finds=0), 7: random_image(4, truth=30, finds=130),
    }  # fmt: skip
    known = by_pycocotools(seen, masks)
    own = coco_scores(seen, CLASSES, masks=masks)
    assert list(own.figures) == list(FIGURES)
    for name, one, other in zip(FIGURES, own.figures.values(), known, strict=True):
        assert one == pytest.approx(other, abs=1e-6), name
    assert 0.05 < own.figures["ap50"] < 1
    assert math.isnan(own.per_class[CLASSES - 1, 0])
    assert np.nanmean(own.per_class[:, 0]) == pytest.approx(own.figures["ap"])


def test_where_there_is_nothing_to_score() -> None:
    assert all(math.isnan(value) for value in coco_scores({}, 2).figures.values())
    empty = random_image(5, truth=0, finds=3)
    assert math.isnan(coco_scores({0: empty}, CLASSES).figures["ap"])
    unseen = coco_scores({0: random_image(6, truth=5, finds=0)}, CLASSES, masks=True)
    assert unseen.figures["ap"] == 0


def test_more_finds_may_count_than_cocos_hundred() -> None:
    many = random_image(8, truth=150, finds=1)
    perfect = Seen(
        SIZE, many.boxes, many.labels, np.zeros(150, bool), many.areas, many.outlines, many.boxes.astype(np.float32),
        many.labels, np.linspace(1, 0.5, 150).astype(np.float32), None,
    )  # fmt: skip
    assert coco_scores({0: perfect}, CLASSES, most=300).figures["ap"] == pytest.approx(1)


def test_a_missing_scorer_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from vision_ssm.errors import ConfigError
    from vision_ssm.tasks.detection.meter import DetectionMeter

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'vision-ssm\[detection\]'"):
        DetectionMeter(["a"])
