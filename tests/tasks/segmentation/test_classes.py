"""Every form of classes.json, what is refused of it, and the classes of data without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vision_ssm.errors import DataError
from vision_ssm.tasks.legend import default_palette
from vision_ssm.tasks.segmentation.classes import ClassList, ade20k, numbered, read_classes


def read(folder: Path, content: Any) -> ClassList:
    path = folder / "classes.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_classes(path)


def test_names_alone_are_numbered_in_their_order(tmp_path: Path) -> None:
    classes = read(tmp_path, ["sky", " road "])
    assert (classes.names, classes.values, classes.ignored) == (("sky", "road"), (0, 1), (255,))
    assert len(set(classes.palette)) == 2


@pytest.mark.parametrize(
    "content",
    [
        [{"id": 4, "name": "a", "color": [1, 2, 3]}, {"id": 9, "name": "b", "color": "#0405ff"}],
        {"4": {"name": "a", "color": [1, 2, 3]}, "9": {"name": "b", "color": [4, 5, 255]}},
        {"classes": [{"id": 4, "name": "a", "color": [1, 2, 3]}, {"id": 9, "name": "b", "color": [4, 5, 255]}]},
    ],
)
def test_ids_and_colours(tmp_path: Path, content: Any) -> None:
    assert read(tmp_path, content) == ClassList(("a", "b"), ((1, 2, 3), (4, 5, 255)), (4, 9))


def test_a_palette_by_name(tmp_path: Path) -> None:
    classes = read(tmp_path, {"sky": [0, 0, 255], "road": [9, 9, 9]})
    assert classes.colours == {(0, 0, 255): 0, (9, 9, 9): 1}


def test_what_does_not_count(tmp_path: Path) -> None:
    assert read(tmp_path, {"classes": ["a", "b"], "ignore": [7, 8]}).ignored == (7, 8)
    assert read(tmp_path, [{"name": "a", "id": 0}, {"name": "b", "id": 255}]).ignored == ()
    listed = [{"name": "a", "id": 0, "color": [0, 0, 0]}, {"name": "b", "id": 255, "color": [1, 1, 1]}]
    classes = read(tmp_path, {"classes": listed, "ignore_colors": [[2, 2, 2], "#030303"]})
    number = classes.colours[2, 2, 2]
    assert classes.colours[3, 3, 3] == number
    assert number in classes.ignored
    assert number not in classes.values


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[", "is no JSON text"),
        ([], "lists no classes"),
        (7, "lists no classes"),
        (["a"], "the one class 'a'"),
        (["a", 3], "has 3 among its classes"),
        (["a", "a"], "the name 'a' twice"),
        ([{"name": "a", "id": 1}, {"name": "b", "id": 1}], "the id 1 twice"),
        ([{"name": "a", "id": 1}, {"name": "b"}], "an id to some"),
        ([{"name": "a", "id": -1}, {"name": "b", "id": 0}], "whole number from 0 to 65535, got -1"),
        ([{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 3]}], r"the color \(1, 2, 3\) twice"),
        ([{"name": "a", "color": [1, 2, 300]}, "b"], r"color must be \[red, green, blue\] from 0 to 255"),
        ({"classes": ["a", "b"], "ignore": "white"}, "ignore must be a number"),
        ({"classes": ["a", "b"], "ignore": 1}, "the id 1 twice"),
        ({"classes": ["a", "b"], "ignore_colors": 5}, "ignore_colors must be a list"),
        ([f"c{i}" for i in range(256)], "256 classes, and at most 255"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DataError, match=rf"classes\.json.*{reason}|{reason}.*classes\.json"):
        read(tmp_path, content)


def test_numbers_without_names() -> None:
    assert numbered([2, 0, 255]).names == ("class 0", "class 2")
    assert numbered([2, 0, 255]).values == (0, 2)
    assert numbered([2, 0, 255]).ignored == (255,)


def test_black_and_white_is_background_and_foreground() -> None:
    classes = numbered([0, 255])
    assert (classes.names, classes.values, classes.ignored) == (("background", "foreground"), (0, 255), ())


@pytest.mark.parametrize("values", [[], [255], [3], [3, 255]])
def test_one_class_is_nothing_to_learn(values: list[int]) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        numbered(values)


def test_ade20k_is_the_published_list() -> None:
    classes = ade20k()
    assert len(set(classes.names)) == len(classes.names) == len(classes.palette) == 150
    # Facts of the benchmark: first, last, and one in between.
    assert (classes.names[0], classes.names[149], classes.names[20]) == ("wall", "flag", "car")
    assert (classes.palette[0], classes.palette[149], classes.palette[20]) == ((120,) * 3, (92, 0, 255), (0, 102, 200))
    assert (classes.values[0], classes.values[149], classes.ignored) == (1, 150, (0,))


def test_colours_of_classes_without_any_differ() -> None:
    assert len(set(default_palette(510))) == 510
