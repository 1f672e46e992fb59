"""COCO files: outlines become masks, the smaller on top, and what does not fit together is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.segmentation.scenes import image
from vision_ssm.errors import DataError, VisionSSMNotice
from vision_ssm.tasks.segmentation.sources import open_masks

SQUARE = [[1, 1, 5, 1, 5, 5, 1, 5]]
INNER = [[2, 2, 4, 2, 4, 4, 2, 4]]


def content(annotations: list[dict[str, Any]], names: tuple[str, ...] = ("car", "tree"), **image_keys: Any) -> Any:
    listed = [{"id": number, "image_id": 3, "iscrowd": 0, **entry} for number, entry in enumerate(annotations)]
    return {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 8, "height": 6, **image_keys}],
        "categories": [{"id": 2 * number + 1, "name": name} for number, name in enumerate(names)],
        "annotations": listed,
    }


def write(root: Path, train: Any, val: Any = None, *, images: str = "") -> Path:
    for part, given in (("train", train), ("val", val if val is not None else train)):
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        text = given if isinstance(given, str) else json.dumps(given)
        (root / "annotations" / f"instances_{part}2017.json").write_text(text)
        image(root / images / f"{part}2017" / "a.jpg")
    return root


@pytest.mark.parametrize("images", ["", "images"])
def test_outlines_become_classes_with_the_smaller_on_top(tmp_path: Path, images: str) -> None:
    annotations = [
        {"category_id": 3, "segmentation": INNER, "area": 4},
        {"category_id": 1, "segmentation": SQUARE, "area": 16},
    ]
    samples = open_masks(write(tmp_path, content(annotations), images=images))
    assert samples.class_names == ("background", "car", "tree")
    assert len(samples.palette) == 3
    picture, mask = samples[0]
    assert picture.size == (8, 6)
    assert mask.tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 1, 2, 2, 1, 0, 0, 0],
        [0, 1, 2, 2, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
    ]


def test_of_equal_areas_the_later_is_on_top(tmp_path: Path) -> None:
    annotations = [{"category_id": key, "segmentation": SQUARE, "area": 16} for key in (3, 1)]
    assert open_masks(write(tmp_path, content(annotations))).mask(0)[1, 1] == 1


def test_run_lengths_and_a_background_of_its_own(tmp_path: Path) -> None:
    counts = {"size": [6, 8], "counts": [6, 12, 30]}
    given = content([{"category_id": 1, "segmentation": counts, "area": 12}], ("thing", "Background"))
    samples = open_masks(write(tmp_path, given))
    assert samples.class_names == ("Background", "thing")
    assert samples.mask(0)[2].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]


def test_parts_and_files_beside_their_images(tmp_path: Path) -> None:
    given = json.dumps(content([{"category_id": 1, "segmentation": SQUARE, "area": 16}]))
    for part in ("train", "valid"):
        image(tmp_path / part / "a.jpg")
        (tmp_path / part / "_annotations.coco.json").write_text(given)
    assert len(open_masks(tmp_path, "train")) == len(open_masks(tmp_path, "val")) == 1
    assert len(open_masks(tmp_path, "all")) == 2
    assert Path(open_masks(tmp_path, "val").paths[0]).parent.name == "valid"


def test_boxes_are_no_masks(tmp_path: Path) -> None:
    boxes = [{"category_id": 1, "bbox": [1, 1, 2, 2], "area": 4}]
    with pytest.raises(DataError, match=r"instances_train2017\.json.*1 boxes and no outline"):
        open_masks(write(tmp_path / "boxes", content(boxes)))
    outlines = [*boxes, {"category_id": 1, "segmentation": SQUARE, "area": 16}]
    with pytest.warns(VisionSSMNotice, match="1 annotations without an outline"):
        open_masks(write(tmp_path / "mixed", content(outlines)))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("{", "no JSON text"),
        ("[" * 100000, "no JSON text"),
        (content([{"category_id": 1, "segmentation": SQUARE, "area": 1}], width=-8), "the size 6 x -8 of an image"),
        (content([{"category_id": 1, "segmentation": SQUARE, "area": 1}], width=10**9), "the size 6 x 1000000000"),
        ({"images": []}, "no COCO file of instances.*KeyError 'categories'"),
        (content([{"category_id": 2, "segmentation": SQUARE, "area": 1}]), "no COCO file.*KeyError 2"),
        (content([{"category_id": 1, "segmentation": SQUARE, "area": 1, "image_id": 9}]), "no COCO file.*KeyError 9"),
        (content([{"category_id": 1, "segmentation": SQUARE, "area": 1}], file_name="b.jpg"), "'b.jpg'.*is missing"),
        (content([{"category_id": 1, "segmentation": SQUARE, "area": 1}], file_name="../b.jpg"), "not in the data"),
        (content([{"category_id": 1, "segmentation": SQUARE, "area": 1}], ("a", "a")), "two categories called 'a'"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, given: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        open_masks(write(tmp_path, given))


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [([[1, 1, 2, 2]], "three or more corners"), ({"size": [6, 9], "counts": [54]}, r"of \[6, 9\] pixels")],
)
def test_an_outline_that_cannot_be_filled_is_named(tmp_path: Path, segmentation: Any, reason: str) -> None:
    samples = open_masks(write(tmp_path, content([{"category_id": 1, "segmentation": segmentation, "area": 1}])))
    with pytest.raises(DataError, match=rf"annotation 0 of .*train2017\.json' cannot be filled: .*{reason}"):
        samples[0]


def test_categories_that_differ_are_refused(tmp_path: Path) -> None:
    square = [{"category_id": 1, "segmentation": SQUARE, "area": 16}]
    write(tmp_path, content(square), content(square, ("car", "bush")))
    with pytest.raises(DataError, match="differ: background, car, tree, and background, car, bush"):
        open_masks(tmp_path, "val")


def test_a_size_other_than_the_image_is_refused(tmp_path: Path) -> None:
    given = content([{"category_id": 1, "segmentation": SQUARE, "area": 16}], width=9)
    with pytest.raises(DataError, match=r"a\.jpg' has 6 x 8 pixels and its mask, .*json', 6 x 9"):
        open_masks(write(tmp_path, given))[0]
