"""Pictures of an evaluation: what they show is on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

from tests.tasks.detection.boards import coco, scenes
from vision_ssm.data.batches import Batch
from vision_ssm.tasks.detection.inference import Found
from vision_ssm.tasks.detection.masks import Patch
from vision_ssm.tasks.detection.meter import DetectionMeter
from vision_ssm.tasks.detection.pictures import draw_confusion, draw_precision_recall, draw_predictions
from vision_ssm.tasks.detection.sources import ObjectImages, open_objects


@pytest.fixture
def samples(tmp_path: Path) -> ObjectImages:
    coco(tmp_path / "d", {"train": scenes(3)}, size=(64, 72))
    return open_objects(tmp_path / "d", "all")


def seen(samples: ObjectImages, *, masks: bool, right: bool) -> DetectionMeter:
    meter = DetectionMeter(samples.class_names, masks=masks)
    for position in range(len(samples)):
        target = samples[position][1]
        labels = target.labels if right else 1 - target.labels
        patches = [
            Patch(int(top), int(left), np.ones((int(bottom - top), int(right_ - left)), bool))
            for left, top, right_, bottom in target.boxes.tolist()
        ]
        finds = Found(target.boxes.float(), labels, torch.full((len(labels),), 0.8), patches, target.size)
        meter.update([finds], Batch([], [target], torch.tensor([target.size]), torch.tensor([position])))
    return meter


def test_pictures_show_what_was_found(samples: ObjectImages, tmp_path: Path) -> None:
    sheets = []
    for right in (True, False):
        meter = seen(samples, masks=right, right=right)
        assert meter.scores()["ap50"] == (1 if right else 0)
        draw_predictions(meter, samples, tmp_path / "p.png")
        draw_confusion(meter, tmp_path / "c.png", title="A title")
        draw_precision_recall(meter, tmp_path / "r.png")
        sheets.append([np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("p.png", "c.png", "r.png")])
    for one, other in zip(*sheets, strict=True):
        assert one.std() > 10
        assert one.shape != other.shape or (one != other).any()


def test_an_evaluation_of_nothing_is_drawn_too(samples: ObjectImages, tmp_path: Path) -> None:
    meter = DetectionMeter(samples.class_names)
    draw_precision_recall(meter, tmp_path / "r.png")
    draw_confusion(meter, tmp_path / "c.png")
    draw_predictions(meter, samples, tmp_path / "p.png")
    assert len(list(tmp_path.glob("*.png"))) == 3
