"""What a task with masks, a wrapped backbone and images of many sizes needs of everything around it."""

from __future__ import annotations

import importlib
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import vision_ssm
from vision_ssm.cli.main import main
from vision_ssm.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from vision_ssm.tasks.registry import find_task
from vision_ssm.training import train
from vision_ssm.training.assembly import Parts, assemble, make_optimizer
from vision_ssm.training.config import TrainConfig
from vision_ssm.training.distributed import Processes
from vision_ssm.training.engine import Engine
from vision_ssm.weights.files import WeightsInfo, save_weights

HERE = Path(__file__).parent
BACKBONE = {"patch_size": 4, "embed_dim": 16, "depth": 2}
ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both toys as an installed package."""
    package = tmp_path / "site" / "toys-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    names = ("dense_toy", "mean_colour")
    entries = "".join(f"{name} = {name}_entry:TASK\n" for name in names)
    (package / "entry_points.txt").write_text(f"[vision_ssm.tasks]\n{entries}")
    for place in (tmp_path / "site", HERE / "dense_toy", HERE / "third_party"):
        monkeypatch.syspath_prepend(place)


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Images of several sizes with a bright rectangle on a dark ground."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    numbers = np.random.default_rng(0)
    for number in range(24):
        pixels = numbers.integers(0, 80, (9 + number % 5, 10 + number % 4, 3)).astype(np.uint8)
        pixels[2:6, 3 : 5 + number % 3] = 220
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def configured(scenes: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        values = {
            "task": "dense_toy", "model.name": "vim_nano", "model.img_size": 16, "model.options": BACKBONE,
            "data.path": str(scenes), "data.batch_size": 4, "data.workers": 0, "schedule.epochs": 2, "optim.lr": 1e-2,
            "run.output": str(tmp_path / "runs"), "run.name": "run", "run.device": "cpu", "run.log_every": 1,
            "optim.accumulate": 2, "ema.decay": 0.5,
        }  # fmt: skip
        return TrainConfig.load(None, values | changes)

    return make


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vision_ssm.training.results.write_pictures", lambda *_: None)


def test_from_training_to_pictures(configured: Callable[..., TrainConfig], scenes: Path, tmp_path: Path) -> None:
    result = train(configured())
    weights = str(result.best_weights)
    found = vision_ssm.evaluate(weights, scenes)
    assert found.scores["error"] == pytest.approx(result.best_scores["error"])
    assert (result.folder / "masks.png").exists()
    found = vision_ssm.predict(weights, scenes, pictures=tmp_path / "drawn", batch_size=4)
    assert not found.failures
    for prediction in found.results:
        with Image.open(prediction.path) as image, Image.open(tmp_path / "drawn" / Path(prediction.path).name) as drawn:
            assert prediction.mask.shape == image.size[::-1] == drawn.size[::-1]
    alone = vision_ssm.predict(weights, scenes, batch_size=1).results
    native = vision_ssm.predict(weights, scenes, img_size="native").results
    assert all(torch.equal(one.mask, other.mask) for one, other in zip(alone, native, strict=True)), "its own transform"
    (features,) = vision_ssm.features(weights, scenes / "00.png", layers=[0]).results
    assert (features.embedding.shape, len(features.maps)) == ((16,), 1)


@pytest.mark.usefixtures("no_pictures")
def test_start_weights_for_a_model_around_a_backbone(configured: Callable[..., TrainConfig]) -> None:
    def start(checkpoint: Path | None, **changes: Any) -> tuple[Parts, list[str]]:
        config = configured(**{"model.checkpoint": None if checkpoint is None else str(checkpoint)}, **changes)
        parts = assemble(config, ALONE, resuming=False)
        return parts, parts.notices

    dense = train(configured(**{"schedule.epochs": 1, "ema.decay": None})).best_weights
    held = load_file(dense)
    parts, notices = start(dense)
    assert not notices
    assert all(torch.equal(held[name], value) for name, value in parts.model.state_dict().items())

    parts, notices = start(dense, **{"task": "mean_colour"})
    assert len(notices) == 1 and notices[0].endswith(
        "its head does not fit here; a new one starts from random weights."
    )
    assert torch.equal(parts.model.pos_embed, held["backbone.pos_embed"])

    colour = dense.with_name("colour.safetensors")
    save_file({name: value + 1 for name, value in parts.model.state_dict().items()}, colour)
    parts, notices = start(colour)
    assert notices == [f"{colour}: only the backbone was taken from it; the rest starts from random weights."]
    assert torch.equal(parts.model.backbone.pos_embed, held["backbone.pos_embed"] + 1)

    torch.save({name: value for name, value in held.items() if "pos_embed" not in name}, dense.with_name("part.pth"))
    with pytest.raises(CheckpointError, match=r"part\.pth: these weights do not fit Vim: "):
        start(dense.with_name("part.pth"))


def test_its_data_are_recognised(
    scenes: Path, configured: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    advice = "This looks like dense_toy (it has a palette.json): --task dense_toy."
    with pytest.raises(DataError) as told:  # images without class folders
        train(configured(task="classification"))
    assert "looks like" not in str(told.value)
    (scenes / "palette.json").touch()
    with pytest.raises(DataError, match=f"but no class folders.* {re.escape(advice)}$"):
        train(configured(task="classification"))
    for name in ("a", "b"):  # which classification could open
        shutil.copytree(scenes, tmp_path / "classes" / name)
    (tmp_path / "classes" / "palette.json").touch()
    (tmp_path / "recipe.yaml").write_text("model: {name: vim_nano}")
    for recipe in ([], ["--recipe", str(tmp_path / "recipe.yaml")]):
        assert main(["train", str(tmp_path / "classes"), "--output", str(tmp_path / "runs"), *recipe]) == 2
        assert f"{advice} If it is not, say --task classification." in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    main(["train", str(tmp_path / "classes"), "--task", "classification", "--model", "none"])
    assert "there is no model 'none'" in capsys.readouterr().err, "asked for, it is opened"


def test_the_backbone_says_what_does_not_decay(configured: Callable[..., TrainConfig]) -> None:
    parts = assemble(configured(), ALONE, resuming=False)
    backbone = parts.model.backbone

    def decayed(name: str) -> set[str]:
        made = make_optimizer(configured(**{"optim.name": name}), parts.model, 1, backbone=backbone)
        names = {id(parameter): key for key, parameter in parts.model.named_parameters()}
        return {names[id(p)] for group in made.param_groups if group["weight_decay"] for p in group["params"]}

    found = decayed("adamw")
    assert {"backbone.blocks.0.mixer.in_proj.weight", "head.weight"} < found
    assert not found & {f"backbone.{name}" for name in backbone.no_weight_decay()}
    assert decayed("nmuon") == found


@pytest.mark.parametrize("optimizer", ["adamw", "nmuon"])
def test_layers_of_the_backbone_learn_slower_the_deeper_they_are(
    configured: Callable[..., TrainConfig], optimizer: str
) -> None:
    config = configured(**{"optim.layer_decay": 0.5, "optim.name": optimizer})
    parts = assemble(config, ALONE, resuming=False)
    names = {id(p): name for name, p in parts.model.named_parameters()}
    made = make_optimizer(config, parts.model, 1, backbone=parts.model.backbone)
    scales = {names[id(p)]: group["lr_scale"] for group in made.param_groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    assert {scales[name] for name in scales if not name.startswith("backbone.")} == {1.0}
    depth = len(parts.model.backbone.blocks)
    of_blocks = [scales[f"backbone.blocks.{i}.norm.weight"] for i in range(depth)]
    assert of_blocks == [0.5 ** (depth - i) for i in range(depth)]
    assert scales["backbone.patch_embed.proj.weight"] == 0.5 ** (depth + 1)
    assert decays["head.weight"] == config.optim.weight_decay
    assert decays["head.bias"] == decays["backbone.pos_embed"] == 0


def engine_of(config: TrainConfig, monkeypatch: pytest.MonkeyPatch, losses: Any) -> Engine:
    engine = Engine(assemble(config, ALONE, resuming=False), ALONE)
    monkeypatch.setattr(engine.task, "losses", losses)
    return engine


def test_losses_keep_their_names(configured: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(("first", "second"))
    engine = engine_of(
        configured(), monkeypatch, lambda model, batch: {next(names): model(batch.images)[0].square().mean()}
    )
    with pytest.raises(ConfigError, match=r"losses of the task dense_toy .*they were \['first'\] and are \['second'\]"):
        engine.update(engine.batches())


def test_the_loss_that_is_not_finite_is_named(
    configured: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    def losses(model: Any, batch: Any) -> dict[str, torch.Tensor]:
        good = model(batch.images)[0].square().mean()
        return {"good": good, "bad": good * float("nan")}

    engine = engine_of(configured(), monkeypatch, losses)
    with pytest.raises(TrainingDiverged, match=r"the loss is nan \(bad of good, bad\) at update 1"):
        engine.update(engine.batches())


def test_scores_that_are_missing_or_no_number(
    configured: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_task("dense_toy").load()
    meter = importlib.import_module("dense_toy").ConfusionMeter
    monkeypatch.setattr(meter, "scores", lambda self: {"error": math.nan, "pixels": torch.tensor(0.5)})
    notices: list[str] = []
    result = train(configured(), on_event=lambda event: notices.append(getattr(event, "message", "")))
    assert (result.best_weights, result.best_scores) == (None, {})
    assert (result.folder / "masks.png").exists()
    assert not any("could not be drawn" in notice for notice in notices)
    monkeypatch.setattr(meter, "scores", lambda self: {"pixels": 0.5})
    with pytest.raises(ConfigError, match=r"the meter of the task dense_toy lacks the score 'error'; it has"):
        train(configured(**{"run.name": "other"}))


def test_a_damaged_record(configured: Callable[..., TrainConfig], tmp_path: Path) -> None:
    parts = assemble(configured(), ALONE, resuming=False)
    info = WeightsInfo("vim_nano", parts.model_options, "dense_toy", {"class_names": []}, parts.preprocessing)
    save_weights(tmp_path / "odd.safetensors", parts.model, info=info)
    with pytest.raises(
        CheckpointError, match=r"odd\.safetensors': the record of the task dense_toy is damaged \(KeyErr"
    ):
        vision_ssm.load_model(tmp_path / "odd.safetensors")
