"""Detection from a folder of annotated images to finds, through what users call."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

import vision_ssm
from tests.tasks.detection.boards import SCENE, changed, coco, scenes
from vision_ssm.cli.main import main
from vision_ssm.errors import CheckpointError, ConfigError, DataError, VisionSSMNotice
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.detection.settings import DetectionSettings
from vision_ssm.tasks.detection.task import Detection
from vision_ssm.training import train
from vision_ssm.training.assembly import assemble
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes

BACKBONE = {"patch_size": 8, "embed_dim": 16, "depth": 4}
HEAD = {
    "head.channels": 16, "head.fc_channels": 32, "head.anchor_scale": 3.0, "head.proposals": 50, "head.mask_convs": 1,
    "head.box_fcs": 1,
}  # fmt: skip
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def boards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Red and blue rectangles with outlines; one image of each part has none."""
    parts = {"train": scenes(9, seed=1), "val": scenes(4, seed=2)}
    return coco(tmp_path_factory.mktemp("data") / "boards", parts, outlines="packed", ids=(3, 7), size=(64, 72))


@pytest.fixture
def configured(boards: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        values = {
            "task": "detection", "model.name": "vim_nano", "model.img_size": 64, "model.options": BACKBONE, **HEAD,
            "data.path": str(boards), "data.batch_size": 3, "data.workers": 0, "schedule.epochs": 1, "optim.lr": 2e-3,
            "run.output": str(tmp_path / "runs"), "run.name": "run", "run.device": "cpu", "run.log_every": 1,
        }  # fmt: skip
        return TrainConfig.load(None, values | changes)

    return make


def test_from_training_to_finds(
    configured: Callable[..., TrainConfig],
    boards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = train(configured(**{"test.score_threshold": 0.0, "test.detections": 20}))
    assert {"curve.png", "confusion.png", "predictions.png", "precision_recall.png"} <= {
        path.name for path in result.folder.iterdir()
    }
    logged = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    losses = next(event["losses"] for event in logged if event["event"] == "step_done")
    assert {"loss_rpn_cls", "loss_cls_stage0", "loss_cls_stage2", "loss_mask"} <= set(losses)
    weights = str(result.best_weights)
    found = vision_ssm.evaluate(weights, boards)
    for name, value in result.best_scores.items():
        other = found.scores[name]
        assert value == pytest.approx(other, abs=1e-9) or (math.isnan(value) and math.isnan(other)), name
    assert {"ap", "mask_ap50"} <= set(found.scores)

    files = boards / "val"
    predicted = vision_ssm.predict(weights, files, score=0.0, batch_size=4)
    assert not predicted.failures
    assert sum(len(one.boxes) for one in predicted.results) > 0
    again = vision_ssm.predict(vision_ssm.load_model(weights), files, score=0.0, batch_size=1)
    for one, other in zip(predicted.results, again.results, strict=True):  # nothing depends on the batch
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        assert one.labels.tolist() == other.labels.tolist()
    cut = vision_ssm.predict(weights, files, score=0.0, window=48, stride=32)
    assert [one.size for one in cut.results] == [(64, 72)] * 4
    with pytest.raises(ConfigError, match="stride is the distance of windows"):
        vision_ssm.predict(weights, files, stride=8)

    arguments = [weights, str(files), "--score", "0", "--export", f"coco={tmp_path / 'found.json'}"]
    assert (
        main(
            [
                "predict",
                *arguments,
                "--export",
                f"yolo={tmp_path / 'yolo'}",
                "--pictures",
                str(tmp_path),
                "--img-size",
                "96",
            ]
        )
        == 0
    )
    assert "written to" in capsys.readouterr().out
    content = json.loads((tmp_path / "found.json").read_text())
    assert {entry["category_id"] for entry in content["annotations"]} <= {3, 7}
    assert len(list((tmp_path / "yolo").glob("*.txt"))) == 5
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert main(["predict", *arguments[:2], "--export", "xml=out"]) == 2
    assert "have no format 'xml'" in capsys.readouterr().err
    assert main(["predict", *arguments[:2], "--export", f"yolo={tmp_path / 'one.txt'}"]) == 2
    assert "give a folder instead" in capsys.readouterr().err

    monkeypatch.setattr("vision_ssm.cli.images._memory_of_this_machine", lambda: 2**20)
    told = {}
    for window in ("none", "48"):
        assert main(["predict", *arguments[:2], "--window", window]) == 0
        told[window] = re.search(r"64 pixels: at its own size it may take ([\d.]+) MiB", capsys.readouterr().err)
    assert float(told["none"][1]) > float(told["48"][1])  # type: ignore[index]


def test_a_killed_run_goes_on_to_the_bit(
    configured: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_ssm.training.results.write_pictures", lambda *_: None)
    boxes = {"head.masks": False, "head.cascade": False}
    whole = train(configured(**{"run.name": "whole", **boxes}))

    def kill(event: Any) -> None:
        if getattr(event, "update", 0) == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(configured(**{"run.name": "cut", "run.checkpoint_minutes": 0, **boxes}), on_event=kill)
    resumed = train(configured(**{"run.name": "cut", "run.resume": str(tmp_path / "runs" / "cut"), **boxes}))
    one, other = (load_file(run.folder / "last.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("masks", [True, False])
def test_a_batch_without_objects_trains_and_so_do_five_hundred(
    configured: Callable[..., TrainConfig], masks: bool
) -> None:
    parts = assemble(configured(**{"head.masks": masks}), ALONE, resuming=False)
    batch = next(iter(parts.train))
    parts.model.train()
    names = set()
    for count in (0, 500):
        corners = torch.rand(count, 2) * 40
        target = {"boxes": torch.cat([corners, corners + 6], 1), "labels": torch.arange(count) % 2}
        if masks:
            target["masks"] = torch.ones(count, *batch.images[0].shape[1:], dtype=torch.bool)
        losses = parts.task.losses(parts.model, batch._replace(images=batch.images[:1], targets=[target]))
        assert all(bool(loss.isfinite()) for loss in losses.values())
        sum(losses.values()).backward()
        names.add(tuple(losses))
    assert len(names) == 1


def test_data_without_outlines_have_no_masks(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    coco(tmp_path / "boxes", {"train": [SCENE, ()], "val": [SCENE]}, outlines=None)
    path = {"data.path": str(tmp_path / "boxes"), "data.batch_size": 1}
    parts = assemble(configured(**path), ALONE, resuming=False)
    assert parts.task.with_masks is False
    assert [score.name for score in parts.task.scores][-1] == "ar_large"
    with pytest.raises(DataError, match="2 of the 2 objects of 'boxes' have a box only"):
        assemble(configured(**{**path, "head.masks": True}), ALONE, resuming=False)
    annotations = coco(tmp_path / "some", {"train": [SCENE, ()], "val": [SCENE]}) / "annotations" / "train.json"
    changed(annotations, annotations=lambda all_: [{**all_[0], "segmentation": None}, *all_[1:]])
    with pytest.warns(VisionSSMNotice, match=r"boxes alone are learned: 1 of the 2 objects of 'some' .* on 1.png"):
        parts = assemble(configured(**{**path, "data.path": str(tmp_path / "some")}), ALONE, resuming=False)
    assert parts.task.with_masks is False
    parts.task.with_masks = True
    with pytest.warns(VisionSSMNotice, match=r"masks are not scored: 1 of the 2 objects"):
        parts.task.open("train")
    coco(tmp_path / "none", {"train": [(), ()], "val": [SCENE]})
    with pytest.raises(DataError, match="no object is annotated in 'none'"):
        assemble(configured(**{"data.path": str(tmp_path / "none")}), ALONE, resuming=False)


def test_a_trained_model_scores_data_with_some_of_its_classes(
    configured: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    task = Detection(configured(**{"data.path": str(tmp_path)}).settings)
    task.class_names, task.category_ids, task.with_masks = ("blue", "green", "red"), (1, 2, 3), True
    coco(tmp_path, {"train": [SCENE]})
    assert task.open("all")[0][1].labels.tolist() == [2, 0]


RECORD = {"class_names": ["a", "b"], "category_ids": [3, 5], "masks": True}


def test_a_record_is_restored() -> None:
    told = {**RECORD, "heads": {"channels": 3, "anchor_ratios": [1, 2]}, "test": {"window": 64}, "short_side": 48}
    task = Detection.restore(told, DetectionSettings())
    assert (task.heads.channels, task.heads.anchor_ratios) == (3, (1, 2))
    assert (task.testing.window, task.sides.short, task.native) == (64, 48, False)
    task.ask({"window": 32})  # windows cut images at their own size
    assert task.native
    task.ask({"window": "none"})
    assert not task.native
    assert Detection.restore(json.loads(json.dumps(task.record())), DetectionSettings()).record() == task.record()
    assert Detection.restore(RECORD, DetectionSettings()).native
    assert task.knows() == "masks of 2 classes of objects (a, b)"


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_names": "ab"},
        {"category_ids": [1]},
        {"category_ids": [1, "2"]},
        {"masks": None},
        {"heads": {"channels": -1}},
        {"heads": {"chanels": 3}},
        {"heads": 3},
        {"test": {"window": 0}},
        {"short_side": 0},
        {"long_side": 10},
    ],
)
def test_a_damaged_record_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="detector's record"):
        Detection.restore({**RECORD, **wrong}, DetectionSettings())


def test_a_published_detector_knows_coco() -> None:
    with torch.device("meta"):
        model = vision_ssm.create_model("vmamba_tiny_s1l8_mask_rcnn_coco")
    record = Detection.published_record(model)
    assert (len(record["class_names"]), record["category_ids"][-1]) == (80, 90)
    task = Detection.restore(record, DetectionSettings())
    assert (task.sides.short, task.sides.long, task.with_masks) == (800, 1333, True)
    task.with_masks = False
    with torch.device("meta"), pytest.raises(ConfigError, match="learns masks, and not every object of these data"):
        task.build("vmamba_tiny_s1l8_mask_rcnn_coco")
    with torch.device("meta"), pytest.raises(ConfigError, match="is a model of the task segmentation, and this is"):
        task.build("vmamba_tiny_s1l8_upernet_ade20k")


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [
        ("vmamba_tiny_mask_rcnn_3x_coco", 49_755_312),
        ("vim_tiny_cascade_coco", 60_080_078),
        ("efficientvmamba_base_mask_rcnn_coco", 53_223_384),
    ],
)
def test_recipes_make_the_published_detectors(recipe: str, parameters: int) -> None:
    config = TrainConfig.load(recipe)
    task = Detection(config.settings)  # type: ignore[arg-type]
    task.class_names = tuple(map(str, range(80)))
    size = {"img_size": config.model.img_size} if config.model.img_size else {}
    with torch.device("meta"):
        model = task.build(config.model.name, **size, **config.model.options)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_an_image_of_one_row_is_looked_through(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    parts = assemble(configured(), ALONE, resuming=False)
    Image.new("RGB", (50, 1)).save(tmp_path / "row.png")
    transform = parts.task.transform(parts.preprocessing, train=False, native=True)
    with Image.open(tmp_path / "row.png") as image:
        prepared, _ = transform(image.convert("RGB"), None)
    batch = next(iter(parts.val))._replace(images=[prepared], targets=[None], sizes=torch.tensor([[1, 50]]))
    with torch.inference_mode():
        (found,) = parts.task.predict(parts.model.eval(), batch)
    assert found.size == (1, 50)
    assert bool((found.boxes[:, 3] <= 1).all())


def test_settings_that_contradict_each_other() -> None:
    for values, said in (
        ({"data": {"long_side": 5}}, "data.long_side bounds data.short_side"),
        ({"augment": {"jitter": [2.0, 1.0]}}, "augment.jitter must be"),
        ({"augment": {"crop_branch": True}}, "augment.crop_branch belongs to resize choice"),
        ({"test": {"stride": 3}}, "test.stride is the distance of windows"),
    ):
        with pytest.raises(ConfigError, match=said):
            from_mapping(DetectionSettings, values)
