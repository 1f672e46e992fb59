"""One scene in every form of annotation reads the same; what is wrong in annotations is named."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tasks.detection.boards import COLOURS, GREY, NAMES, SCENE, Rect, changed, coco, picture, save
from vision_ssm.analysis import check_data
from vision_ssm.errors import DataError, VisionSSMNotice
from vision_ssm.tasks.detection.layouts import recognise
from vision_ssm.tasks.detection.sources import matched, open_objects, own_splits
from vision_ssm.tasks.detection.things import filled
from vision_ssm.tasks.registry import task_of

PARTS = ("train", "val")


def yolo(root: Path, *, yaml: bool = True, polygons: bool = False) -> Path:
    for part in PARTS:
        save(root / "images" / part / "a.png")
        save(root / "images" / part / "empty.png", rects=())
        lines = []
        for label, (left, top, right, bottom) in SCENE:
            x0, y0, x1, y1 = left / 40, top / 30, right / 40, bottom / 30
            box = [(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]
            lines.append(" ".join(map(str, [label, *([x0, y0, x1, y0, x1, y1, x0, y1] if polygons else box)])))
        (root / "labels" / part).mkdir(parents=True)
        (root / "labels" / part / "a.txt").write_text("\n".join(lines) + "\n")
    if yaml:
        text = "path: somewhere/else\ntrain: images/train\nval: ../images/val\nnames:\n  0: red\n  1: blue\n"
        (root / "data.yaml").write_text(text)
    else:
        (root / "labels" / "classes.txt").write_text("red\nblue\n")
    return root


def voc(root: Path, *, lists: bool = True) -> Path:
    (root / "Annotations").mkdir(parents=True)
    for name, rects in (("a", SCENE), ("empty", ()), ("b", SCENE), ("nothing", ())):
        save(root / "JPEGImages" / f"{name}.png", rects=rects)
        things = "".join(
            f"<object><name>{'zebra' if label else 'ant'}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
            f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, (left, top, right, bottom) in rects
        )
        size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.png</filename>{size}{things}</annotation>"
        (root / "Annotations" / f"{name}.xml").write_text(text)
    if lists:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        (root / "ImageSets" / "Main" / "train.txt").write_text("a\nempty\n")
        (root / "ImageSets" / "Main" / "val.txt").write_text("b  1\nnothing -1\n")
    return root


def cocos(outlines: str | None, beside: bool = False) -> Callable[[Path], Path]:
    def make(root: Path) -> Path:
        coco(root, {part: [SCENE, ()] for part in PARTS}, outlines=outlines)
        if beside:
            for part in PARTS:
                (root / "annotations" / f"{part}.json").rename(root / part / "_annotations.coco.json")
            (root / "annotations").rmdir()
        return root

    return make


FORMS: dict[str, tuple[Callable[[Path], Path], bool]] = {
    "coco, polygons": (cocos("polygons"), True),
    "coco, run lengths": (cocos("runs"), True),
    "coco, packed": (cocos("packed"), True),
    "coco, boxes": (cocos(None), False),
    "coco beside the images": (cocos("polygons", beside=True), True),
    "yolo": (yolo, False),
    "yolo, polygons": (lambda root: yolo(root, polygons=True), True),
    "yolo, no yaml": (lambda root: yolo(root, yaml=False), False),
    "voc": (voc, False),
}


@pytest.mark.parametrize("form", FORMS)
def test_one_scene_in_every_form(form: str, tmp_path: Path) -> None:
    make, outlined = FORMS[form]
    root = make(tmp_path / "data" / "below")
    for split in ("train", "val"):
        samples = open_objects(tmp_path / "data", split)
        assert len(samples) == 2
        assert samples.class_names == (("ant", "zebra") if form == "voc" else NAMES)
        image, objects = samples[0]
        assert np.asarray(image).shape == (30, 40, 3)
        np.testing.assert_allclose(objects.boxes.numpy(), [rect.box for rect in SCENE], atol=1e-5)
        assert objects.labels.tolist() == [0, 1]
        np.testing.assert_allclose(objects.areas.numpy(), [60, 168], rtol=1e-5)
        assert not objects.crowd.any()
        assert samples[1][1].boxes.shape == (0, 4)
        if outlined:
            for outline, (label, box) in zip(objects.outlines, SCENE, strict=True):
                known = np.asarray(picture(30, 40, (Rect(label, box),)))[..., 0] != GREY
                assert outline is not None
                assert (filled(outline, 30, 40) == known).all()
        assert samples.outlined == (2, 2 if outlined else 0)
    assert own_splits(root) == ("train", "val", "test")
    assert task_of(root) == "detection"
    assert recognise(root)


def test_without_parts_some_images_are_held_out(tmp_path: Path) -> None:
    coco(tmp_path / "d", {"all": [SCENE] * 10})
    (tmp_path / "d" / "annotations" / "all.json").rename(tmp_path / "d" / "instances.json")
    (tmp_path / "d" / "all").rename(tmp_path / "d" / "images")
    train, val, whole = (open_objects(tmp_path / "d", split, val_fraction=0.3) for split in ("train", "val", "all"))
    assert (len(train), len(val), len(whole)) == (7, 3, 10)
    assert sorted(train.paths + val.paths) == sorted(whole.paths)
    assert own_splits(tmp_path / "d") == ()
    assert train.fingerprint != val.fingerprint


def test_classes_are_matched_by_name_and_may_be_taken_for_one(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE]}, ids=(3, 7))
    samples = open_objects(tmp_path, "all")
    assert samples.category_ids == (3, 7)
    other = matched(samples, ("green", "blue", "red"), (1, 2, 3))
    assert other[0][1].labels.tolist() == [2, 1]
    assert samples[0][1].labels.tolist() == [0, 1]
    with pytest.raises(DataError, match="unknown to the weights: 'blue'"):
        matched(samples, ("red",), (1,))
    one = open_objects(tmp_path, "all", one_class="thing")
    assert one.class_names == ("thing",)
    assert one[0][1].labels.tolist() == [0, 0]
    assert one.fingerprint != samples.fingerprint


def test_crowds_and_difficult_things_are_marked(tmp_path: Path) -> None:
    coco(tmp_path / "c", {"train": [SCENE]})
    changed(
        tmp_path / "c" / "annotations" / "train.json", annotations=lambda all_: [{**all_[0], "iscrowd": 1}, all_[1]]
    )
    assert open_objects(tmp_path / "c", "all")[0][1].crowd.tolist() == [True, False]
    root = voc(tmp_path / "v", lists=False)
    path = root / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert open_objects(root, "all")[0][1].crowd.tolist() == [True, False]


def entry(**values: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda listed: [{**listed[0], **values}, *listed[1:]]


FAULTS = [
    ("annotations", entry(bbox=[-5, 6, 12, 6]), "annotation 1 on 1.png reaches outside the 30 x 40", False),
    ("annotations", entry(bbox=[50, 6, 12, 6]), "annotation 1 on 1.png is outside the 30 x 40", False),
    ("annotations", entry(bbox=[4, 6, 0, 6]), "annotation 1 on 1.png has no area", False),
    ("annotations", entry(id=2), "annotation id 2 occurs more than once", False),
    ("annotations", entry(category_id=9), "annotation 1: its category_id 9 is listed nowhere", True),
    ("annotations", entry(image_id=77), "annotation 1: its image_id 77 is listed nowhere", True),
    ("annotations", entry(bbox=[1, 2]), r"annotation 1: its bbox must be left, .* got \[1, 2\]", True),
    ("annotations", entry(bbox=[1, 2, "wide", 4]), r"annotation 1: its bbox must be left, .* 'wide'", True),
    ("annotations", entry(segmentation={"size": [40, 30], "counts": [1200]}), "annotation 1: .* of .40, 30. pix", True),
    ("annotations", entry(segmentation={"size": [30, 40], "counts": [1199]}), "annotation 1: run lengths must", True),
    ("annotations", entry(segmentation={"size": [30, 40], "counts": "é"}), "annotation 1: .* the character 'é'", True),
    ("annotations", entry(segmentation="all"), "annotation 1: its segmentation must be polygons or run lengths", True),
    ("annotations", lambda all_: [7, *all_[1:]], "annotation number 0: expected an object, got 7", True),
    ("annotations", entry(segmentation=[[1, 2, 3, 4]]), "annotation 1: a polygon must be three or more corners", True),
    ("images", entry(file_name="gone.png"), "image 1: image 'gone.png' of .*train.json' is missing", True),
    ("images", entry(id=2), "image id 2 occurs more than once", True),
    ("images", entry(id=[1]), r"image \[1\]: unhashable type: 'list'", True),
    ("images", lambda all_: all_[1:], r"1.png:? is not listed in train.json: it was never annotated", False),
    ("categories", lambda all_: [all_[0], {"id": 5, "name": "blue"}], "category ids have gaps .2, 3, 4", False),
]  # fmt: skip


@pytest.mark.parametrize(("key", "change", "said", "refused"), FAULTS, ids=[fault[2][:40] for fault in FAULTS])
def test_what_is_wrong_is_named(
    key: str, change: Callable[[list[Any]], list[Any]], said: str, refused: bool, tmp_path: Path
) -> None:
    coco(tmp_path, {"train": [SCENE, (), SCENE], "val": [SCENE]})
    changed(tmp_path / "annotations" / "train.json", **{key: change})
    if key == "categories":
        changed(
            tmp_path / "annotations" / "train.json",
            annotations=lambda all_: [{**one, "category_id": 5 if one["category_id"] == 2 else 1} for one in all_],
        )
    if key == "images" and not refused:
        changed(
            tmp_path / "annotations" / "train.json",
            annotations=lambda all_: [one for one in all_ if one["image_id"] != 1],
        )
    lenient = open_objects(tmp_path, "train", strict=False)
    told = [f"{fault.file} {fault.text}" for fault in lenient.faults]
    assert any(re.search(said, text) for text in told), told
    if refused:
        with pytest.raises(DataError, match=said):
            open_objects(tmp_path, "train")
    else:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_objects(tmp_path, "train")
        spoken = [str(one.message) for one in caught if one.category is VisionSSMNotice]
        assert bool(spoken) == (key != "categories")
        assert all(re.search(said, text) for text in spoken)


@pytest.mark.parametrize("wrong", [{"file_name": "gone.png"}, {"height": 0}, {"id": 3}])
def test_nothing_more_is_said_of_what_belongs_to_an_image_that_cannot_be_used(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    coco(tmp_path, {"train": [SCENE, SCENE, SCENE]})
    own = [] if "id" in wrong else [1]
    changed(
        tmp_path / "annotations" / "train.json",
        images=entry(**wrong),
        annotations=lambda all_: [one for one in all_ if one["image_id"] in (*own, 2, 3)],
    )
    faults = open_objects(tmp_path, "train", strict=False).faults
    alone = [Path(fault.file).name for fault in faults if "never annotated" in fault.text]
    assert alone == (["1.png"] if "file_name" in wrong else [])
    assert [fault.refused for fault in faults].count(True) == 1
    assert len(faults) == 1 + len(alone)


def test_what_is_no_object_is_neither_learned_nor_scored(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE, ()]})
    boxes = ([30, 20, 20, 30], [-0.4, 0, 40.9, 5], [50, 6, 12, 6], [4, 6, 0, 6], [9, 9, -3, 4], [float("nan"), 1, 2, 3])
    changed(
        tmp_path / "annotations" / "train.json",
        annotations=lambda all_: [
            {**all_[0], "id": at, "bbox": box, "area": None, "segmentation": None} for at, box in enumerate(boxes)
        ],
    )
    with pytest.warns(VisionSSMNotice, match="and 4 more"):
        samples = open_objects(tmp_path, "train")
    objects = samples[0][1]
    assert objects.boxes.tolist() == [[30, 20, 40, 30], [-0.4, 0, 40.5, 5]]  # rounding is left as it is
    assert objects.areas.tolist() == [100, pytest.approx(204.5)]
    assert samples.outlined == (2, 0)
    assert "with 2 objects" in samples.found


def test_what_stands_alone_in_voc_folders_is_named(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "z.xml")
    found = check_data(root, "detection")
    told = {(Path(file).name, text) for split in found.splits for file, text in split.faults}
    assert told == {("train.txt", "a.xml is missing"), ("a.png", "has no a.xml: it was never annotated")}
    assert found.problems


def test_harmless_oddities_are_no_problems(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE] * 6, "val": [SCENE] * 6}, ids=(3, 9))
    found = check_data(tmp_path, "detection")
    assert [len(split.asides) for split in found.splits] == [1, 1]
    assert "category ids have gaps (4, 5, 6, 7, 8)" in found.splits[0].asides[0][1]
    assert not any("fault" in problem for problem in found.problems)


def test_data_check_names_file_and_id(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE] * 6, "val": [SCENE]})
    assert check_data(tmp_path, "detection").splits[0].amounts == {"red": 6, "blue": 6}
    changed(tmp_path / "annotations" / "train.json", annotations=entry(bbox=[35, 6, 12, 6]))
    changed(tmp_path / "annotations" / "val.json", images=lambda all_: [*all_, {**all_[0], "file_name": "x.png"}])
    found = check_data(tmp_path, "detection")
    train, val = found.splits
    assert [(Path(file).name, text.split(" on ")[0]) for file, text in train.faults] == [
        ("train.json", "box [35.0, 6.0, 47.0, 12.0] of annotation 1")
    ]
    assert "image id 1 occurs more than once" in val.faults[0][1]
    assert "train: 1 fault in the annotations." in found.problems


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE]})
    save(tmp_path / "train" / "1.png", 31, 40)
    with pytest.raises(DataError, match=r"1.png' has 31 x 40 pixels, and .*train.json' annotates one of 30 x 40"):
        open_objects(tmp_path, "all")[0]


def test_yolo_lines_that_are_wrong_are_named(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    path = root / "labels" / "train" / "a.txt"
    for line, said in (
        ("5 0.5 0.5 0.1 0.1", "line 1 .*: class 5 is not one of the 2"),
        ("0 0.5 0.5 0.1", "expected a class and 4 numbers"),
        ("red 0.5 0.5 0.1 0.1", "line 1"),
        ("0 120 80 40 20", "line 1 .*: expected shares of the image's width and height, from 0 to 1, got 120"),
    ):
        path.write_text(f"{line}\n")
        with pytest.raises(DataError, match=said):
            open_objects(root, "train")
    path.write_text("0 0.95 0.5 0.2 0.1\n")
    with pytest.warns(VisionSSMNotice, match=r"line 1 reaches outside a.png; it is cut"):
        assert open_objects(root, "train")[0][1].boxes[0, 2] == 40
    path.write_text("0 1.5 0.5 0.2 0.1\n")
    with pytest.warns(VisionSSMNotice, match=r"line 1 is outside a.png; it is left out"):
        assert not len(open_objects(root, "train")[0][1].boxes)
    (root / "labels" / "val" / "stray.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    told = {Path(file).name: text for file, text, *_ in open_objects(root, "val", strict=False).faults}
    assert "belongs to no image" in told["stray.txt"]
    assert "has no empty.txt" in told["empty.png"]


def test_folders_that_hold_something_else(tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        save(tmp_path / "images" / name / "1.png")
    with pytest.raises(DataError, match=r"no annotated images in .* expected COCO's annotations/train.json"):
        open_objects(tmp_path)
    assert recognise(tmp_path) is None
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_text(json.dumps({"images": [], "annotations": []}))
    with pytest.raises(DataError, match=r"is no COCO file of instances: .* KeyError 'categories'"):
        open_objects(tmp_path)
    with pytest.raises(DataError, match="unknown split 'trian', expected"):
        open_objects(tmp_path, "trian")


def test_parts_must_have_the_same_classes(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE], "val": [SCENE]})
    changed(tmp_path / "annotations" / "val.json", categories=lambda all_: [all_[0], {"id": 2, "name": "green"}])
    with pytest.raises(DataError, match="differ: red, blue, and red, green"):
        open_objects(tmp_path, "val")


def test_clean_data_say_nothing(tmp_path: Path) -> None:
    coco(tmp_path, {"train": [SCENE, ()], "val": [SCENE]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        samples = open_objects(tmp_path)
    assert "2 images with 2 objects of 2 classes (red, blue), 1 of them without any" in samples.found
    assert COLOURS[0] == tuple(np.asarray(samples[0][0])[8, 6])
