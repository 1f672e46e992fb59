"""Segmentation from a folder of images and masks to class maps, through what users call."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vision_ssm
from vision_ssm.data.batches import Sample
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.settings import from_mapping
from vision_ssm.tasks.segmentation.masks import IGNORE
from vision_ssm.tasks.segmentation.settings import SegmentationSettings
from vision_ssm.tasks.segmentation.task import Segmentation
from vision_ssm.training import train
from vision_ssm.training.assembly import assemble
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes

BACKBONE = {"patch_size": 4, "embed_dim": 16, "depth": 4}
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes with a bright rectangle on dark ground, whose border belongs to nothing."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    numbers = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "annotations" / split).mkdir(parents=True)
        for number in range(count):
            height, width = 40 + 4 * (number % 3), 52 + 3 * (number % 2)
            pixels = numbers.integers(0, 80, (height, width, 3)).astype(np.uint8)
            mask = np.zeros((height, width), np.uint8)
            top, left = 4 + number, 5 + 2 * number
            pixels[top : top + 20, left : left + 24] += 150
            mask[top : top + 20, left : left + 24] = 1
            mask[:2] = IGNORE
            Image.fromarray(pixels).save(folder / "images" / split / f"{number:02}.png")
            Image.fromarray(mask).save(folder / "annotations" / split / f"{number:02}.png")
    (folder / "classes.json").write_text(json.dumps(["ground", "thing"]))
    return folder


@pytest.fixture
def configured(scenes: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        values = {
            "task": "segmentation", "model.name": "vim_nano", "model.img_size": 32, "model.options": BACKBONE,
            "data.path": str(scenes), "data.batch_size": 5, "data.workers": 0, "head.channels": 8,
            "head.auxiliary_channels": 4, "schedule.epochs": 3, "optim.lr": 3e-3, "run.output": str(tmp_path / "runs"),
            "run.name": "run", "run.device": "cpu", "run.log_every": 1,
        }  # fmt: skip
        return TrainConfig.load(None, values | changes)

    return make


def test_from_training_to_maps(configured: Callable[..., TrainConfig], scenes: Path, tmp_path: Path) -> None:
    result = train(configured(**{"schedule.epochs": 12}))
    weights = str(result.best_weights)
    found = vision_ssm.evaluate(weights, scenes)
    assert found.scores["miou"] == pytest.approx(result.best_scores["miou"])
    assert found.scores["miou"] > 0.6
    assert {"curve.png", "confusion.png", "predictions.png"} <= {path.name for path in result.folder.iterdir()}
    logged = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert {"decode", "auxiliary"} == set(next(e["losses"] for e in logged if e["event"] == "step_done"))

    pictures = tmp_path / "drawn"
    files = scenes / "images" / "val"
    predicted = vision_ssm.predict(weights, files, pictures=pictures)
    assert not predicted.failures
    for prediction in predicted.results:
        with Image.open(prediction.path) as image:
            assert prediction.classes.shape == image.size[::-1]
        areas = prediction.to_dict()
        assert sum(row["pixels"] for row in areas["classes"]) == prediction.classes.size
    assert len(list(pictures.iterdir())) == 4

    again = vision_ssm.predict(vision_ssm.load_model(weights), files)
    for one, other in zip(predicted.results, again.results, strict=True):
        assert np.array_equal(one.classes, other.classes)
    for options in ({"img_size": 30}, {"window": 32, "stride": 16}, {"flips": True, "scales": (1.0, 1.5)}):
        other = vision_ssm.predict(weights, files, **options)
        same = [np.mean(a.classes == b.classes) for a, b in zip(predicted.results, other.results, strict=True)]
        assert 0.6 < np.mean(same) < 1, options
    cut = vision_ssm.evaluate(weights, scenes, window=32)
    assert cut.scores["miou"] > 0.5
    with pytest.raises(ConfigError, match="stride is the distance of windows"):
        vision_ssm.predict(weights, files, stride=8)
    with pytest.raises(ConfigError, match=r"^stride must not be larger than window, got 40 and 32"):
        vision_ssm.predict(weights, files, window=32, stride=40)
    with pytest.raises(ConfigError, match="as large as the model's patches, got 3 and 4"):
        vision_ssm.predict(weights, files, window=3)
    with pytest.raises(ConfigError, match="shorter side as one number"):
        vision_ssm.predict(weights, files, img_size=(20, 30))
    with pytest.raises(ConfigError, match="windw"):
        vision_ssm.evaluate(weights, scenes, windw=32)


def test_a_held_out_image_smaller_than_a_patch_is_scored(
    configured: Callable[..., TrainConfig], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_ssm.training.results.write_pictures", lambda *_: None)
    folder = tmp_path / "with_a_dot"
    shutil.copytree(scenes, folder)
    for kind, value in (("images", (9, 9, 9)), ("annotations", 0)):
        Image.new("RGB" if kind == "images" else "L", (1, 1), value).save(folder / kind / "val" / "dot.png")
    result = train(configured(**{"data.path": str(folder), "schedule.epochs": 1}))
    assert result.best_weights is not None


def test_a_killed_run_goes_on_to_the_bit(
    configured: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vision_ssm.training.results.write_pictures", lambda *_: None)
    whole = train(configured(**{"run.name": "whole"}))

    def kill(event: Any) -> None:
        if getattr(event, "update", 0) == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        train(configured(**{"run.name": "cut", "run.checkpoint_minutes": 0}), on_event=kill)
    resumed = train(configured(**{"run.name": "cut", "run.resume": str(tmp_path / "runs" / "cut")}))
    one, other = (load_file(run.folder / "last.safetensors") for run in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_one_image_a_step_trains_and_one_without_classes_changes_nothing(
    configured: Callable[..., TrainConfig],
) -> None:
    config = configured(**{"data.batch_size": 1, "model.img_size": 32, "model.options": {**BACKBONE, "patch_size": 8}})
    parts = assemble(config, ALONE, resuming=False)
    batch = next(iter(parts.train))
    parts.model.train()
    losses = parts.task.losses(parts.model, batch)
    assert all(bool(loss.isfinite()) and loss.item() > 0 for loss in losses.values())
    nothing = batch._replace(targets=torch.full_like(batch.targets, IGNORE))
    for average in ("all", "valid"):
        task = Segmentation(from_mapping(SegmentationSettings, {"loss": {"average": average}}))
        assert [loss.item() for loss in task.losses(parts.model, nothing).values()] == [0, 0]


def test_gradients_reach_every_parameter(configured: Callable[..., TrainConfig]) -> None:
    parts = assemble(configured(), ALONE, resuming=False)
    sum(parts.task.losses(parts.model.train(), next(iter(parts.train))).values()).backward()
    assert not [name for name, p in parts.model.named_parameters() if p.grad is None]


def test_class_weights_weigh(configured: Callable[..., TrainConfig]) -> None:
    parts = assemble(configured(), ALONE, resuming=False)
    batch = next(iter(parts.train))
    model = parts.model.eval().train(False)
    model.forward = lambda images: (torch.zeros(len(images), 2, *images.shape[2:]),)  # type: ignore[method-assign]

    def loss(weights: tuple[float, ...] | None) -> float:
        task = Segmentation(from_mapping(SegmentationSettings, {"loss": {"class_weights": weights}}))
        return float(task.losses(model, batch)["decode"])

    share = float((batch.targets == 1).float().mean()), float((batch.targets == 0).float().mean())
    assert loss((0.0, 1.0)) == pytest.approx(np.log(2) * share[0], rel=1e-5)
    assert loss((3.0, 0.0)) == pytest.approx(3 * np.log(2) * share[1], rel=1e-5)
    with pytest.raises(ConfigError, match="factor for each of the 2 classes, got 3"):
        assemble(configured(**{"loss.class_weights": [1, 1, 1]}), ALONE, resuming=False)


def test_a_single_class_is_refused(tmp_path: Path, configured: Callable[..., TrainConfig]) -> None:
    for kind, value in (("images", 90), ("masks", 0)):
        (tmp_path / "one" / kind).mkdir(parents=True)
        for number in range(6):
            Image.new("L", (20, 20), value).save(tmp_path / "one" / kind / f"{number}.png")
    (tmp_path / "one" / "classes.json").write_text(json.dumps(["all"]))
    with pytest.raises((DataError, ConfigError), match="class"):
        assemble(configured(**{"data.path": str(tmp_path / "one")}), ALONE, resuming=False)


def test_images_of_several_sizes_stay_a_list() -> None:
    task = Segmentation(SegmentationSettings())
    samples = [Sample(torch.zeros(3, n, 5), torch.zeros(n, 5, dtype=torch.int64), (n, 5), n) for n in (4, 6)]
    batch = task.collate(samples)
    assert [tuple(x.shape) for x in batch.images] == [(3, 4, 5), (3, 6, 5)]
    assert [tuple(x.shape) for x in batch.targets] == [(4, 5), (6, 5)]
    alike = task.collate([samples[0]._replace(target=None)] * 2)
    assert alike.images.shape == (2, 3, 4, 5)
    assert alike.targets == [None, None]


NAME = "vmamba_tiny_s1l8_upernet_ade20k"
RECORD = {"class_names": ["a", "b"], "palette": [[0, 0, 0], [255, 0, 0]]}


def test_a_record_is_restored() -> None:
    told = {**RECORD, "heads": {"channels": 3}, "test": {"window": 64}, "short_side": 48}
    task = Segmentation.restore(told, SegmentationSettings())
    assert task.heads["channels"] == 3
    assert (task.testing.window, task.short_side, task.native) == (64, 48, False)
    assert Segmentation.restore(json.loads(json.dumps(task.record())), SegmentationSettings()).record() == task.record()
    assert Segmentation.restore(RECORD, SegmentationSettings()).native
    without = from_mapping(SegmentationSettings, {"test": {"window": "none"}})
    assert without.test.window is None and Segmentation(without).record()["test"]["window"] is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"class_names": "ab"},
        {"class_names": [1, 2]},
        {"palette": [[0, 0, 0]]},
        {"palette": [[0, 0, 0], [0, 0, 256]]},
        {"palette": [[0, 0, 0], "red"]},
        {"heads": {"channels": -1}},
        {"heads": {"chanels": 3}},
        {"heads": 3},
        {"test": {"window": 0}},
        {"short_side": 0},
        {"short_side": "512"},
    ],
)
def test_a_damaged_record_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="segmentor's"):
        Segmentation.restore({**RECORD, **wrong}, SegmentationSettings())


def test_a_published_segmentor_knows_ade20k() -> None:
    with torch.device("meta"):
        model = vision_ssm.create_model("vmamba_tiny_s1l8_upernet_ade20k")
    record = Segmentation.published_record(model)
    assert len(record["class_names"]) == 150
    assert record["class_names"][0] == "wall"
    assert Segmentation.restore(record, SegmentationSettings()).short_side == 512


def test_offline_a_published_segmentor_says_where_its_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("vision_ssm.checkpoints.hub._reachable", lambda *_: False)
    with pytest.raises(
        CheckpointError, match=rf"could not get upernet_vssm_4xb4-160k.*tiny_s_iter_160000\.pth.*model='{NAME}'"
    ):
        vision_ssm.load_model(NAME)


def test_a_split_is_the_datas_own_or_none(scenes: Path, tmp_path: Path) -> None:
    def splits(path: Path) -> tuple[str, ...]:
        return Segmentation(from_mapping(SegmentationSettings, {"data": {"path": str(path)}})).own_splits()

    assert splits(scenes) == ("train", "val", "test")
    for name in ("flat", "test"):
        for kind in ("images", "masks"):
            (tmp_path / name / kind).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (8, 8), number).save(tmp_path / name / kind / f"{number}.png")
    assert splits(tmp_path / "flat") == ()
    assert splits(tmp_path / "test") == ("val", "test")
