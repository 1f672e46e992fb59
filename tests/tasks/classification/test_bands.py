"""Images of other bands than three colours are classified: their sizes and crops, and a run from start to end."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vision_ssm
from tests.data.geo.made import write_scene
from vision_ssm.data.geo.raster import Raster
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError, VisionSSMNotice
from vision_ssm.tasks.classification.bands import BandTransform
from vision_ssm.tasks.classification.settings import AugmentSettings
from vision_ssm.tasks.classification.transforms import build_eval_transform
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig

PLAIN = {"mean": (0.0,) * 5, "std": (1.0,) * 5, "samples": "float32", "interpolation": "bilinear"}


def raster(height: int = 30, width: int = 50) -> Raster:
    """Bands that are the row, the column, and three constants."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    rest = [np.full_like(rows, value) for value in (7, 8, 9)]
    names = tuple("abcde")
    return Raster(np.stack([rows, columns, *rest], 2), None, "float32", 32, names, "scene.tif")


def prepared(**changes: Any) -> Preprocessing:
    return Preprocessing(**{"input_size": (5, 16, 16), "crop_pct": 1.0, **PLAIN, **changes})


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.5])
def test_sizes_are_those_of_pictures(mode: str, crop_pct: float) -> None:
    image = raster()
    planes = BandTransform(prepared(crop_mode=mode, crop_pct=crop_pct))(image)
    # The same scene as a picture: its rows and columns in red and green.
    red_green = np.dstack([image.values[..., :2], np.zeros((30, 50))]).astype(np.uint8)
    like = Preprocessing(
        input_size=(3, 16, 16), mean=(0.0,) * 3, std=(1 / 255,) * 3, interpolation="bilinear", crop_mode=mode,
        crop_pct=crop_pct,
    )  # fmt: skip
    expected = build_eval_transform(like)(Image.fromarray(red_green))
    assert planes.shape == (5, 16, 16)
    torch.testing.assert_close(planes[:2], expected[:2], atol=1.6, rtol=0)


@pytest.mark.parametrize("crop", ["resized", "padded", "none"])
def test_training_crops_and_mirrors_all_bands_together(crop: str) -> None:
    random.seed(1)
    torch.manual_seed(1)
    augment = AugmentSettings(crop=crop, hflip=1.0)
    planes = BandTransform(prepared(), augment)(raster())
    assert planes.shape == (5, 16, 16)
    torch.testing.assert_close(planes[2:], torch.tensor([7.0, 8, 9]).view(3, 1, 1).expand(3, 16, 16))
    assert planes[1, 8, 4] > planes[1, 8, 12]  # mirrored
    assert BandTransform(prepared(), native=True)(raster()).shape == (5, 30, 50)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in the fifth band only; the left third holds no data."""
    root = tmp_path_factory.mktemp("bands")
    numbers = np.random.default_rng(0)
    for name, level in (("dry", 0.2), ("wet", 0.8)):
        for number in range(6):
            values = numbers.normal(0.5, 0.1, (5, 12, 15)).astype(np.float32)
            values[4] += np.float32(level)
            values[:, :, :5] = -9999
            write_scene(root / name / f"{number}.tif", values, nodata=-9999)
    return root


def configured(folders: Path, tmp_path: Path, **changes: Any) -> TrainConfig:
    values = {
        "model.name": "vim_nano", "model.img_size": 8, "model.options": {"depth": 1, "embed_dim": 16, "patch_size": 4},
        "data.path": str(folders), "data.batch_size": 4, "data.workers": 0, "schedule.epochs": 8, "optim.lr": 5e-3,
        "run.output": str(tmp_path), "run.name": "run", "run.device": "cpu", "run.eval_every": 8,
    }  # fmt: skip
    return TrainConfig.load(None, values | changes)


def test_five_bands_from_training_to_prediction(folders: Path, tmp_path: Path) -> None:
    with pytest.warns(VisionSSMNotice, match=r"augment.auto_augment left out: .* these images have 5 bands of real"):
        result = train(configured(folders, tmp_path, **{"augment.auto_augment": "rand-m9-mstd0.5-inc1"}))
    assert result.best_scores["top1"] == 1
    loaded = vision_ssm.load_model(result.best_weights)
    assert loaded.info.preprocessing.input_size == (5, 8, 8) and loaded.info.preprocessing.samples == "float32"
    assert loaded.info.preprocessing.mean[4] == pytest.approx(1.0, abs=0.02)  # without the pixels of -9999
    empty = write_scene(tmp_path / "empty.tif", np.full((5, 9, 9), -9999, np.float32), nodata=-9999)
    four = write_scene(tmp_path / "four.tif", np.ones((4, 9, 9), np.float32))
    files = [folders / "wet" / "0.tif", empty, four]
    for size in (None, "native"):
        found = vision_ssm.predict(loaded, files, img_size=size, results=tmp_path / f"results_{size}")
        assert found.results[0].classes[0][0] == "wet"
        assert (tmp_path / f"results_{size}" / "0.json").exists()
        reasons = " ".join(failure.reason for failure in found.failures)
        assert "it has 4 bands" in reasons and "takes 5 channels" in reasons
    assert "not one of its pixels holds data" in vision_ssm.predict(loaded, empty).failures[0].reason
    # Another run starts from these weights, with the first layer adapted.
    three = tmp_path / "three"
    for name in ("dry", "wet"):
        for number in range(2):
            write_scene(three / name / f"{number}.tif", np.random.default_rng(number).random((2, 12, 12), np.float32))
    again = configured(three, tmp_path, **{
        "model.checkpoint": str(result.best_weights), "run.name": "again", "schedule.epochs": 1, "data.batch_size": 2,
        "run.eval_every": 1,
    })  # fmt: skip
    log = (train(again).folder / "log.jsonl").read_text()
    assert "its first layer, of 5 channels, was adapted to 2" in log


@pytest.mark.slow
def test_grey_pictures_may_have_one_channel(tmp_path: Path) -> None:
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            Image.new("L", (10, 12), level + number).save(tmp_path / "data" / name / f"{number}.png")
    result = train(configured(tmp_path / "data", tmp_path, **{"data.grey": True}))
    loaded = vision_ssm.load_model(result.best_weights)
    assert loaded.info.model_options["in_chans"] == 1
    assert loaded.info.preprocessing.mean == pytest.approx([122 / 255], abs=0.01)
    for size in (None, "native"):
        (found,) = vision_ssm.predict(loaded, tmp_path / "data" / "light" / "0.png", img_size=size).results
        assert found.classes[0][0] == "light"


def test_mean_and_deviation_of_bands_are_measured_not_set(folders: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.mean are for pictures in colour"):
        train(configured(folders, tmp_path, **{"data.mean": [0.5, 0.5, 0.5]}))
