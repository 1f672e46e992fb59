"""What users get of an image: rows, drawings, and files that other programs read, read back here."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.errors import ConfigError
from vision_ssm.tasks.detection.exports import export
from vision_ssm.tasks.detection.masks import Patch
from vision_ssm.tasks.detection.results import Detections
from vision_ssm.tasks.detection.sources import open_objects
from vision_ssm.tasks.detection.things import filled
from vision_ssm.tasks.outlines import rings_of, run_lengths, signed_area

BOXES = np.array([[10, 20, 40, 50], [60, 5, 90.5, 25]], np.float32)


def result(masks: bool = False) -> Detections:
    bits = np.ones((30, 30), bool)
    bits[10:20, 10:20] = False  # a ring
    patches = [Patch(20, 10, bits), Patch(5, 60, np.ones((20, 30), bool))] if masks else None
    return Detections(
        (60, 100), BOXES, np.array([1, 0]), np.array([0.9, 0.625], np.float32), patches, ("cat", "dog"), (17, 18),
        ((200, 0, 0), (0, 0, 200)),
    )  # fmt: skip


def nothing() -> Detections:
    return Detections(
        (60, 100), BOXES[:0], np.zeros(0, np.int64), np.zeros(0, np.float32), None, ("cat", "dog"), (17, 18),
        ((200, 0, 0), (0, 0, 200)),
    )  # fmt: skip


def test_as_plain_values() -> None:
    told = result().to_dict()
    assert told["size"] == [60, 100]
    assert told["detections"][1] == {
        "class": "cat", "category_id": 17, "bbox": [60, 5, 30.5, 20], "score": 0.625,
    }  # fmt: skip
    mask = result(masks=True).to_dict()["detections"][0]["segmentation"]
    assert run_lengths(mask["counts"], *mask["size"]).sum() == 800
    assert json.loads(json.dumps(result(masks=True).to_dict()))
    assert result().row() == {"size": "60 x 100", "found": "1 cat, 1 dog", "best score": "90.0 %"}
    assert nothing().row()["found"] == "nothing"
    assert result().records()[0] == {
        "class": "dog", "score": 0.9, "left": 10, "top": 20, "width": 30, "height": 30,
    }  # fmt: skip


def test_the_drawing_has_boxes_masks_and_a_legend() -> None:
    image = Image.new("RGB", (200, 120), (255, 255, 255))
    large = dataclasses.replace(result(masks=True), size=(120, 200))
    drawn = np.asarray(large.draw(image))
    assert drawn.shape[0] > 120
    assert drawn[49, 20].tolist() == [0, 0, 200]  # the lower edge of the dog
    assert drawn[40, 13].tolist() not in ([255, 255, 255], [0, 0, 200])  # its mask, half transparent
    assert drawn[35, 25].tolist() == [255, 255, 255]  # the hole in it
    assert np.asarray(image).min() == 255
    assert np.asarray(nothing().draw(image)).shape[1] == 200


def test_the_drawing_on_a_smaller_picture_of_a_scene_is_in_its_pixels() -> None:
    image = Image.new("RGB", (200, 120), (255, 255, 255))
    bits = np.ones((300, 300), bool)
    bits[100:200, 100:200] = False
    masks = [Patch(200, 100, bits), Patch(50, 600, np.ones((200, 300), bool))]
    ten_times = dataclasses.replace(result(), size=(1200, 2000), boxes=BOXES * 10, masks=masks)
    once = dataclasses.replace(result(masks=True), size=(120, 200))
    np.testing.assert_array_equal(np.asarray(ten_times.draw(image)), np.asarray(once.draw(image)))


def test_coco(tmp_path: Path) -> None:
    for masks in (False, True):
        (text,) = export("coco", [("x/one.jpg", result(masks)), ("x/two.jpg", nothing())]).values()
        content = json.loads(text)
        assert [image["file_name"] for image in content["images"]] == ["one.jpg", "two.jpg"]
        (apart,) = export("coco", [("x/y/one.jpg", nothing()), (str(Path("x/one.jpg").absolute()), nothing())]).values()
        assert [image["file_name"] for image in json.loads(apart)["images"]] == ["y/one.jpg", "one.jpg"]
        assert content["categories"] == [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
        assert [entry["score"] for entry in content["annotations"]] == [0.9, 0.625]
        root = tmp_path / str(masks)
        (root / "images").mkdir(parents=True)
        for name in ("one.jpg", "two.jpg"):
            Image.new("RGB", (100, 60)).save(root / "images" / name)
        (root / "instances.json").write_text(text)
        samples = open_objects(root, "all")
        objects = samples[0][1]
        np.testing.assert_allclose(objects.boxes.numpy(), BOXES, atol=0.01)
        assert [samples.class_names[label] for label in objects.labels] == ["dog", "cat"]
        if masks:
            assert objects.outlines[0] is not None
            assert filled(objects.outlines[0], 60, 100).sum() == objects.areas[0] == 800


@pytest.mark.parametrize("masks", [False, True])
def test_yolo(masks: bool, tmp_path: Path) -> None:
    files = export("yolo", [("one.jpg", result(masks)), ("two.jpg", nothing())])
    assert sorted(files) == ["classes.txt", "one.txt", "two.txt"]
    assert files["two.txt"] == ""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for name, text in files.items():
        (tmp_path / "labels" / name).write_text(text)
        if name != "classes.txt":
            Image.new("RGB", (100, 60)).save(tmp_path / "images" / name.replace("txt", "png"))
    samples = open_objects(tmp_path, "all")
    objects = samples[0][1]
    assert samples.class_names == ("cat", "dog")
    known = [[10, 20, 40, 50], [60, 5, 90, 25]] if masks else BOXES
    np.testing.assert_allclose(objects.boxes.numpy(), known, atol=1e-3)
    assert samples[1][1].boxes.shape == (0, 4)


@pytest.mark.parametrize("masks", [False, True])
def test_label_studio(masks: bool) -> None:
    (task, empty) = json.loads(export("labelstudio", [("one.jpg", result(masks)), ("b.jpg", nothing())])["tasks.json"])
    assert task["data"] == {"image": "one.jpg"}
    first = task["predictions"][0]["result"][0]
    assert (first["original_width"], first["original_height"]) == (100, 60)
    if masks:
        points = np.array(first["value"]["points"])
        assert first["type"] == "polygonlabels"
        assert points.min(0).tolist() == pytest.approx([10, 20 / 0.6])
        assert points.max(0).tolist() == pytest.approx([40, 50 / 0.6])
    else:
        assert first["value"] == {
            "x": 10, "y": pytest.approx(20 / 0.6), "width": 30, "height": 50, "rotation": 0, "rectanglelabels": ["dog"],
        }  # fmt: skip
    assert empty["predictions"][0]["result"] == []


def test_geojson() -> None:
    files = export("geojson", [("a/one.jpg", result()), ("b/one.jpg", result(masks=True))])
    assert list(files) == ["one.geojson", "one_2.geojson"]
    plain, masked = (json.loads(text)["features"] for text in files.values())
    assert plain[1]["geometry"]["coordinates"] == [[[60, 5], [90.5, 5], [90.5, 25], [60, 25], [60, 5]]]
    assert plain[0]["properties"] == {"class": "dog", "category_id": 18, "score": 0.9}
    points = json.loads(export("points", [("a/one.jpg", result(masks=True))])["one.geojson"])["features"]
    assert points[1] == {**plain[1], "geometry": {"type": "Point", "coordinates": [75.25, 15.0]}}
    outer, hole = masked[0]["geometry"]["coordinates"]
    assert signed_area(outer[:-1]) == 900
    assert signed_area(hole[:-1]) == -100
    assert outer[0] == outer[-1]


def test_borders_of_masks_hold_what_the_masks_hold() -> None:
    numbers = np.random.default_rng(0)
    for share in (0.2, 0.5, 0.8):
        mask = numbers.random((17, 23)) < share
        rings = rings_of(mask)
        assert sum(signed_area(ring) for ring in rings) == mask.sum()
        assert all(a[0] == b[0] or a[1] == b[1] for ring in rings for a, b in itertools.pairwise(ring))
    pieces = np.zeros((8, 9), bool)
    pieces[1:3, 1:4] = pieces[5:7, 5:8] = True
    one = Detections(
        (8, 9), np.array([[1, 1, 8, 7]], np.float32), np.array([0]), np.array([1.0], np.float32), [Patch(0, 0, pieces)],
        ("x",), (1,), ((0, 0, 0),),
    )  # fmt: skip
    geometry = json.loads(export("geojson", [("a.png", one)])["a.geojson"])["features"][0]["geometry"]
    assert geometry["type"] == "MultiPolygon"
    assert len(geometry["coordinates"]) == 2
    assert rings_of(np.zeros((3, 3), bool)) == []


def test_an_unknown_format_is_said() -> None:
    with pytest.raises(ConfigError, match=r"no format 'coc'. Did you mean 'coco'"):
        export("coc", [])
