"""Detection in scenes: bands that only they have, from training to finds in map coordinates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

import vision_ssm
from tests.data.geo.made import SHIFTED, write_scene
from tests.tasks.detection.boards import Rect, coco
from tests.tasks.detection.oracle import Oracle, scene
from tests.tasks.detection.test_task import BACKBONE, HEAD
from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.geo.raster import open_raster
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.scenes import read_any
from vision_ssm.errors import VisionSSMNotice
from vision_ssm.tasks import fitting
from vision_ssm.tasks.detection.exports import export
from vision_ssm.tasks.detection.inference import Testing, detect, detect_in_windows
from vision_ssm.tasks.detection.results import Detections
from vision_ssm.tasks.detection.scenes import windows_of_scene
from vision_ssm.tasks.detection.sources import open_objects
from vision_ssm.tasks.detection.transforms import Augment, EvalTransform, Sides, TrainTransform
from vision_ssm.training import train
from vision_ssm.training.config import TrainConfig

PLACES = [(Rect(0, (8, 10, 28, 32)),), (Rect(0, (30, 20, 52, 44)),), ()]
PREPARED = Preprocessing(input_size=(4, 32, 32), mean=(1e3,) * 4, std=(5e2,) * 4, samples="uint16")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four bands of 16 bits; the fourth shows the things."""
    root = coco(tmp_path_factory.mktemp("data") / "trees", dict.fromkeys(("train", "val"), PLACES), size=(56, 64))
    numbers = np.random.default_rng(0)
    for part in ("train", "val"):
        listing = root / "annotations" / f"{part}.json"
        listing.write_text(listing.read_text().replace(".png", ".tif"))
        for picture, rects in zip(sorted((root / part).iterdir()), PLACES, strict=True):
            values = numbers.integers(800, 1200, (4, 56, 64)).astype(np.uint16)
            for _, (left, top, right, bottom) in rects:
                values[3, top:bottom, left:right] += 4000
            write_scene(picture.with_suffix(".tif"), values, photometric="MINISBLACK")
            picture.unlink()
    return root


def test_from_training_to_finds_in_map_coordinates(
    trees: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "task": "detection", "model.name": "vim_nano", "model.img_size": 64, "model.options": BACKBONE, **HEAD,
        "data.path": str(trees), "data.batch_size": 3, "data.workers": 0, "schedule.epochs": 1,
        "augment.photometric": True, "run.output": str(tmp_path), "run.name": "run", "run.device": "cpu",
    }  # fmt: skip
    train(TrainConfig.load(None, settings))
    loaded = vision_ssm.load_model(tmp_path / "run")
    assert loaded.info.preprocessing.input_size[0] == 4
    assert loaded.info.preprocessing.samples == "uint16"
    found = vision_ssm.predict(loaded, trees / "val", score=0.0)
    assert not found.failures
    assert found.results[0].grid.crs.to_epsg() == 32633
    found.export("geojson", tmp_path / "found")
    assert len(list((tmp_path / "found").glob("*.geojson"))) == len(PLACES)
    places = sorted((trees / "val").iterdir())
    with pytest.warns(VisionSSMNotice, match="has 64 x 56 pixels, more than are taken in one piece .* windows of 256"):
        monkeypatch.setattr(fitting, "WHOLE", 1000)
        (large,) = vision_ssm.predict(loaded, places[0], score=0.0).results
    assert large.result.to_dict() == found.results[0].result.to_dict()  # one window that holds all of it
    assert large.grid == found.results[0].grid
    picture = trees.parent / "picture.png"
    vision_ssm.data.scenes.read_any(next((trees / "val").iterdir())).picture().save(picture)
    assert "this model takes 4 bands" in vision_ssm.predict(loaded, picture).failures[0].reason


def test_a_scene_is_read_window_by_window(tmp_path: Path) -> None:
    boxes = [(5, 8, 25, 20), (70, 30, 100, 62), (150, 90, 170, 118), (110, 10, 118, 15)]
    image = scene(120, 180, boxes)
    values = image[:2].numpy().astype(np.uint16)
    values[1] = 7
    values[:, 70:, :60] = 0  # no data there
    path = write_scene(tmp_path / "scene.tif", values, nodata=0, photometric="MINISBLACK")
    plain = Preprocessing(input_size=(2, 32, 32), mean=(0.0,) * 2, std=(1.0,) * 2, samples="uint16")
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in boxes]
    expected = detect(Oracle([0, 1, 0, 1], areas), image, (120, 180), Testing(48))
    model, heard, read = Oracle([0, 1, 0, 1], areas), [], []
    with open_raster(path) as opened:
        windows = windows_of_scene(opened, plain, torch.device("cpu"))

        def watched(*corners: int) -> torch.Tensor | None:
            read.append(windows(*corners))
            return read[-1]

        found = detect_in_windows(model, watched, (120, 180), 48, on_progress=lambda *rows: heard.append(rows))
        nothing = detect_in_windows(model, lambda *_: None, (120, 180), 48)
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert all(part is None or part.shape == (2, 48, 48) for part in read)
    assert len(model.seen) == sum(part is not None for part in read) < len(read)
    assert heard == [(48, 120), (80, 120), (112, 120), (120, 120)]
    assert nothing.boxes.shape == (0, 4)
    assert nothing.size == (120, 180)


def test_geojson_of_a_scene_is_in_its_coordinates() -> None:
    rasterio = pytest.importorskip("rasterio")
    grid = Grid(rasterio.CRS.from_epsg(32633), SHIFTED)
    boxes, labels = np.array([[10, 20, 30, 60]], np.float32), np.array([0])
    one = Detections((80, 90), boxes, labels, np.array([0.5], np.float32), None, ("tree",), (1,), ((0, 0, 0),))
    content = json.loads(export("geojson", [("a.tif", one.placed(grid))])["a.geojson"])
    assert content["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32633"
    (feature,) = content["features"]
    west, east, north, south = 400005.0, 400015.0, 4999990.0, 4999970.0
    corners = [[west, north], [east, north], [east, south], [west, south], [west, north]]
    assert feature["geometry"]["coordinates"] == [corners]
    assert (feature["properties"]["x"], feature["properties"]["y"]) == (400010.0, 4999980.0)


def test_bands_move_with_their_boxes_and_keep_their_numbers(trees: Path) -> None:
    samples = open_objects(trees, "train")
    image, target = samples[0]
    planes, _ = EvalTransform(PREPARED, Sides())(image, target)
    expected = (np.asarray(read_any(samples.paths[0])).transpose(2, 0, 1) - 1e3) / 5e2
    np.testing.assert_allclose(planes.numpy(), expected, rtol=1e-5)
    moved = TrainTransform(PREPARED, Sides(), Augment(jitter=(1.5, 1.5), crop=(200, 200), hflip=1.0, vflip=1.0))
    planes, found = moved(image, target)
    left, top, right, bottom = (int(value) for value in found["boxes"][0])
    assert planes.shape == (4, 84, 96)
    assert planes[3, top + 2 : bottom - 2, left + 2 : right - 2].min() > 6
    assert planes[:3].max() < 1
