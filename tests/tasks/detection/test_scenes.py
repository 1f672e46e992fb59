"""Detection in scenes: bands that only they have, from training to finds in map coordinates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faster_coco_eval", reason="the extra 'detection' is not installed")

import vision_ssm
from tests.data.geo.made import SHIFTED, write_scene
from tests.tasks.detection.boards import Rect, coco
from tests.tasks.detection.test_task import BACKBONE, HEAD
from vision_ssm.data.geo.grid import Grid
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.data.scenes import read_any
from vision_ssm.tasks.detection.exports import export
from vision_ssm.tasks.detection.results import Detections
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


def test_from_training_to_finds_in_map_coordinates(trees: Path, tmp_path: Path) -> None:
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
    picture = trees.parent / "picture.png"
    vision_ssm.data.scenes.read_any(next((trees / "val").iterdir())).picture().save(picture)
    assert "this model takes 4 bands" in vision_ssm.predict(loaded, picture).failures[0].reason


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
