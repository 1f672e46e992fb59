"""Scenes from training to maps: bands and pixels without data, windows from disk, coordinates of what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vision_ssm
from tests.data.geo.made import rasterio, write_scene
from vision_ssm.cli.images import print_failures
from vision_ssm.data.geo.maps import read_map
from vision_ssm.data.geo.raster import open_raster
from vision_ssm.errors import ConfigError, DataError, VisionSSMNotice
from vision_ssm.tasks import fitting
from vision_ssm.tasks.segmentation import scenes as module
from vision_ssm.tasks.segmentation.inference import Testing, segment
from vision_ssm.tasks.segmentation.results import Segments
from vision_ssm.tasks.segmentation.scenes import segment_scene
from vision_ssm.tasks.segmentation.transforms import EvalTransform
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig
from vision_ssm.weights.files import Loaded, load_weights

NAMES = ("field", "pond")


def ground(number: int, height: int = 40, width: int = 48) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Four bands of 16 bits [4, H, W] with a pond that only the fourth shows, and its mask; three rows are empty."""
    numbers = np.random.default_rng(number)
    values = numbers.integers(800, 1200, (4, height, width)).astype(np.uint16)
    mask = np.zeros((height, width), np.uint8)
    top, left = 8 + number, 6 + 2 * number
    mask[top : top + 20, left : left + 22] = 1
    values[3][mask == 1] += 4000
    values[:, :3] = 0
    return values, mask


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "ground"
    for number in range(12):
        split = "train" if number < 9 else "val"
        values, mask = ground(number)
        write_scene(folder / "images" / split / f"{number:02}.tif", values, nodata=0, photometric="MINISBLACK")
        (folder / "annotations" / split).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / "annotations" / split / f"{number:02}.png")
    (folder / "classes.json").write_text(json.dumps(NAMES))
    return folder


@pytest.fixture(scope="module")
def configured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TrainConfig]:
    runs = tmp_path_factory.mktemp("runs")

    def make(**changes: Any) -> TrainConfig:
        values = {
            "task": "segmentation", "model.name": "vim_nano", "model.img_size": 32, "data.path": str(data),
            "model.options": {"patch_size": 4, "embed_dim": 16, "depth": 4}, "data.batch_size": 3, "data.workers": 0,
            "head.channels": 8, "head.auxiliary_channels": 4, "schedule.epochs": 14, "optim.lr": 4e-3,
            "augment.ratio": [1, 1],
            "run.output": str(runs), "run.name": "run", "run.device": "cpu", "run.eval_every": 14,
        }  # fmt: skip
        return TrainConfig.load(None, values | changes)

    return make


@pytest.fixture(scope="module")
def trained(configured: Callable[..., TrainConfig]) -> Loaded:
    result = train(configured())
    assert result.best_weights is not None
    log = (result.folder / "log.jsonl").read_text()
    assert "The images have 4 bands of whole numbers of 16 bits; mean and deviation, measured on 9 images" in log
    return load_weights(result.best_weights)


def test_a_model_learns_from_the_band_that_no_picture_has(trained: Loaded, data: Path) -> None:
    prepared = trained.info.preprocessing
    assert (prepared.input_size, prepared.samples) == ((4, 32, 32), "uint16")
    assert 900 < prepared.mean[0] < 1100 < prepared.mean[3]
    found = vision_ssm.evaluate(trained, data)
    assert found.scores["miou"] > 0.5  # without that band all is field, which scores 0.38
    assert int(found.meter.confusion.sum()) == 3 * 37 * 48  # rows without data do not count


def test_a_map_lies_on_the_grid_of_its_scene(trained: Loaded, data: Path, tmp_path: Path) -> None:
    path = sorted((data / "images" / "val").iterdir())[0]
    (found,) = vision_ssm.predict(
        trained, path, results=tmp_path / "maps", pictures=tmp_path / "drawn", polygons="geojson"
    ).results
    assert sorted(file.name for file in (tmp_path / "maps").iterdir()) == ["09.geojson", "09.tif"]
    with rasterio.open(path) as scene, rasterio.open(tmp_path / "maps" / "09.tif") as written:
        assert (written.crs, written.transform, written.shape) == (scene.crs, scene.transform, scene.shape)
        assert written.nodata == 255
        classes = written.read(1)
    np.testing.assert_array_equal(classes, found.classes)
    assert (classes[:3] == 255).all() and (classes[3:] < 2).all()  # nothing is said where there is nothing
    assert sum(area.pixels for area in found.areas) == 37 * 48
    assert [area.square_metres for area in found.areas] == [area.pixels / 4 for area in found.areas]
    listed = json.loads((tmp_path / "maps" / "09.geojson").read_text())["features"]
    assert sum(feature["properties"]["area_m2"] for feature in listed) == pytest.approx(37 * 48 / 4)
    assert {"area_m2", "pixels"} <= set(found.to_dict()["classes"][0]) and "m²" in found.row()["classes"]
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "09.png"))
    assert (drawn[:9, :48] == 255).all()  # enlarged: without data is white


def test_windows_from_disk_give_what_windows_from_memory_give(
    trained: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.concatenate([np.concatenate([ground(n)[0] for n in row], 2) for row in ((0, 1, 2), (3, 4, 5))], 1)
    path = write_scene(tmp_path / "large.tif", values, nodata=0, photometric="MINISBLACK", crs=None)
    monkeypatch.setattr(module, "TILE", 16)
    monkeypatch.setattr(module, "_BYTES", 3 * 4 * 2 * 32 * 64)  # parts of 64 columns
    testing = Testing(window=32, stride=20)
    model: Any = trained.model
    rows: list[tuple[int, int]] = []
    with open_raster(path) as scene, torch.inference_mode():
        found = segment_scene(
            model, scene, trained.info.preprocessing, testing, NAMES, ((0, 0, 0), (1, 1, 1)),
            path=tmp_path / "map.tif", on_progress=lambda done, total: rows.append((done, total)),
        )  # fmt: skip
        raster = scene.whole()
        image, _ = EvalTransform(trained.info.preprocessing, None)(raster, None)
        assert raster.valid is not None
        expected = segment(model, image[None], (80, 144), testing, torch.from_numpy(raster.valid))
    assert (read_map(tmp_path / "map.tif") != expected.classes.numpy()).mean() < 1e-3
    assert found.confidence == pytest.approx(float(expected.confidence), rel=1e-3)
    assert sum(area.pixels for area in found.areas) == int(raster.valid.sum())
    assert all(area.square_metres is None for area in found.areas)
    assert rows.count((80, 80)) == 3


def test_several_scales_are_averaged_within_windows(trained: Loaded, data: Path) -> None:
    path = sorted((data / "images" / "val").iterdir())[0]
    one, many = (
        vision_ssm.predict(trained, path, window=32, scales=scales, flips=flips).results[0].classes
        for scales, flips in (((1.0,), False), ((0.75, 1.0, 1.25), True))
    )
    assert 0 < (one != many).sum() < 0.5 * one.size


def test_a_large_scene_goes_by_windows_unless_asked_otherwise(
    trained: Loaded, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sorted((data / "images" / "val").iterdir())[0]
    monkeypatch.setattr(fitting, "WHOLE", 1000)
    with pytest.warns(VisionSSMNotice, match=r"has 48 x 40 pixels, more than are taken in one piece .* windows of 256"):
        (found,) = vision_ssm.predict(trained, path, results=tmp_path).results
    assert found.file == tmp_path / "09.tif" and found.classes.shape == (40, 48)
    (whole,) = vision_ssm.predict(trained, path, window="none").results
    assert isinstance(whole.result, Segments)
    np.testing.assert_array_equal(whole.classes, found.classes)  # one window that holds all of it


def test_what_does_not_fit_is_a_failure_that_says_both_numbers(trained: Loaded, tmp_path: Path) -> None:
    three = write_scene(tmp_path / "three.tif", ground(0)[0][:3], photometric="MINISBLACK")
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.png")
    for window in (None, 32):
        found = vision_ssm.predict(trained, [three, tmp_path / "picture.png"], window=window)
        told = {Path(failure.path).name: failure.reason for failure in found.failures}
        assert "it has 3 bands (band 1, band 2, band 3), and this model takes 4 channels" in told["three.tif"]
        assert "a picture of 3 colours of 8 bits, and this model takes 4 bands" in told["picture.png"]


def test_a_scene_without_any_data_has_no_classes(trained: Loaded, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "empty.tif", np.zeros((4, 40, 40), np.uint16), nodata=0, photometric="MINISBLACK")
    for window in (None, 32):
        (found,) = vision_ssm.predict(trained, path, window=window, results=tmp_path / "maps").results
        assert (found.classes == 255).all() and found.areas == [] and found.row()["classes"] == "none"
        assert found.confidence is None and "mean_confidence" not in found.to_dict()
        assert found.mask().getextrema() == (255, 255)


def test_polygons_need_a_folder_and_geojson_coordinates(
    trained: Loaded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_scene(tmp_path / "nowhere.tif", ground(0)[0], crs=None, transform=None, photometric="MINISBLACK")
    with pytest.raises(ConfigError, match=r"polygons are written to files; give a folder of results"):
        vision_ssm.predict(trained, path, polygons="gpkg")
    found = vision_ssm.predict(trained, path, polygons="geojson", results=tmp_path / "maps")
    assert len(found.results) == 1 and "GeoJSON is in longitude and latitude" in found.failures[0].reason
    assert (tmp_path / "maps" / "nowhere.png").exists()
    assert found.complete == 0
    print_failures(found.failures, found.complete)
    assert "1 of 1 could not be used" in capsys.readouterr().err


def test_an_unlike_image_among_those_of_training_is_named(
    configured: Callable[..., TrainConfig], data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mixed"
    for number in range(4):  # one is held out, whichever it is
        values, mask = ground(number)
        write_scene(folder / f"{number}.tif", values[: 3 + number % 2], photometric="MINISBLACK")
        Image.fromarray(mask).save(folder / f"{number}_mask.png")
    with pytest.raises(DataError, match=r"\.tif' has [34] bands .*\.tif' has [34] bands"):
        train(configured(**{"data.path": str(folder), "run.name": "mixed"}))


def test_a_setting_that_contradicts_the_bands_says_both(configured: Callable[..., TrainConfig]) -> None:
    with pytest.raises(ConfigError, match="in_chans is 3, and the images have 4 channels"):
        train(configured(**{"model.options.in_chans": 3, "run.name": "contradicted"}))


def test_preprocessing_of_a_turned_scene_keeps_its_grid(trained: Loaded, tmp_path: Path) -> None:
    turned = (0.4, 0.3, 400000.0, 0.3, -0.4, 5000000.0)
    path = write_scene(tmp_path / "turned.tif", ground(0)[0], transform=turned, photometric="MINISBLACK", nodata=0)
    (found,) = vision_ssm.predict(trained, path, results=tmp_path / "maps").results
    with rasterio.open(tmp_path / "maps" / "turned.tif") as written:
        assert tuple(written.transform)[:6] == pytest.approx(turned)
    assert sum(area.square_metres for area in found.areas) == pytest.approx(37 * 48 * 0.25)


def test_output_that_is_not_finite_is_a_failure_and_leaves_no_map(
    trained: Loaded, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sorted((data / "images" / "val").iterdir())[0]
    monkeypatch.setattr(module, "image_logits", lambda _, crop, __: crop.new_full((1, 2, *crop.shape[2:]), torch.nan))
    found = vision_ssm.predict(trained, path, window=32, results=tmp_path)
    assert [failure.reason for failure in found.failures] == ["the model's output is not finite"]
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".tif"]
