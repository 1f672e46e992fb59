"""Pictures: drawn for any number of classes and any names, whole or not at all."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_ssm.data.batches import Batch
from vision_ssm.errors import DataError
from vision_ssm.tasks.classification.meter import ClassificationMeter
from vision_ssm.tasks.classification.pictures import (
    Tile,
    draw_calibration,
    draw_confusion,
    draw_mistakes,
    draw_predictions,
    draw_sheet,
)


def scored(names: list[str], count: int = 60, wrong: int = 10) -> ClassificationMeter:
    true = torch.arange(count) % len(names)
    predicted = true.clone()
    predicted[:wrong] = (true[:wrong] + 1) % len(names)
    meter = ClassificationMeter(names)
    meter.update(
        5 * torch.nn.functional.one_hot(predicted, len(names)).float(), Batch(None, true, None, torch.arange(count))
    )
    return meter


class Plain:
    """Images of one colour."""

    name = "plain"
    mirror_safe = True

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", self.size, (4 * index % 256, 80, 0)), 0


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("classes", [2, 20, 21, 150])
def test_confusion(tmp_path: Path, classes: int) -> None:
    names = [f"class {number}" for number in range(classes)]
    draw_confusion(scored(names, count=2 * classes, wrong=classes // 2), tmp_path / "a.png", title="data")
    pixels = picture(tmp_path / "a.png")
    assert max(pixels.shape) < 4000
    assert (pixels == (0x12, 0x3D, 0x6D)).all(axis=2).any(), "cells that are always right have the darkest colour"


def test_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    names = ["$a$ b$", "x" * 300, "two\nlines", "狐狸", "_^{", "\\alpha"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_confusion(scored(names), tmp_path / "a.png", title="$" * 3 + "y" * 200)
        draw_predictions(scored(names), Plain((9, 9)), tmp_path / "b.png", title="$x")
    assert max(picture(tmp_path / "a.png").shape) < 1500
    assert picture(tmp_path / "b.png").std() > 5


def test_classes_that_do_not_occur_are_left_out(tmp_path: Path) -> None:
    few, many = scored(["a", "b"]), ClassificationMeter(["a", "b", *map(str, range(998))])
    many.confusion[:2, :2] = few.confusion
    draw_confusion(few, tmp_path / "few.png")
    draw_confusion(many, tmp_path / "many.png")
    assert np.array_equal(picture(tmp_path / "few.png"), picture(tmp_path / "many.png"))


def red_pixels(path: Path) -> int:
    return int((picture(path) == (0xC6, 0x2F, 0x2F)).all(axis=2).sum())


@pytest.mark.parametrize("size", [(8, 8), (500, 120)])
def test_mistakes_are_framed(tmp_path: Path, size: tuple[int, int]) -> None:
    draw_predictions(scored(["a", "b"], wrong=0), Plain(size), tmp_path / "right.png")
    draw_predictions(scored(["a", "b"], wrong=10), Plain(size), tmp_path / "wrong.png")
    assert red_pixels(tmp_path / "right.png") == 0
    assert red_pixels(tmp_path / "wrong.png") > 1000


class Numbered(Plain):
    """Remembers which images were asked for."""

    def __init__(self) -> None:
        super().__init__((9, 9))
        self.asked: list[int] = []

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.asked.append(index)
        return super().__getitem__(index)


def test_no_image_is_shown_twice(tmp_path: Path) -> None:
    images = Numbered()
    draw_predictions(scored(["a", "b"], count=40, wrong=20), images, tmp_path / "a.png", columns=3)
    assert len(images.asked) == len(set(images.asked)) == 9 + 3


def test_mistakes_are_those_it_was_surest_of(tmp_path: Path) -> None:
    meter, images = scored(["a", "b"], count=30, wrong=20), Numbered()
    meter.update(torch.tensor([[0.0, 9.0]]), Batch(None, torch.tensor([0]), None, torch.tensor([30])))
    draw_mistakes(meter, images, tmp_path / "a.png", columns=2)
    assert images.asked == [30, *range(9)]
    draw_mistakes(scored(["a", "b"], wrong=0), images, tmp_path / "none.png")
    assert len(images.asked) == 10
    assert red_pixels(tmp_path / "none.png") == 0


def test_the_reliability_diagram(tmp_path: Path) -> None:
    draw_calibration(scored(["a", "b"]), tmp_path / "a.png", title="$x" * 60)
    draw_calibration(ClassificationMeter(["a", "b"]), tmp_path / "empty.png")
    assert picture(tmp_path / "a.png").std() > picture(tmp_path / "empty.png").std()


def test_sheet_of_unlabelled_images(tmp_path: Path) -> None:
    tiles = [Tile(Image.new("RGB", (30, 20)), "cat", 0.5), Tile(Image.new("L", (1, 1)), "dog", 1.0)]
    draw_sheet([("yours", tiles), ("none", [])], tmp_path / "a.png")
    assert picture(tmp_path / "a.png").std() > 5
    with pytest.raises(DataError, match="no predicted images"):
        draw_sheet([("none", [])], tmp_path / "b.png")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write"):
        draw_sheet([("yours", tiles)], tmp_path / "file" / "a.png")


def test_no_window_and_no_global_state(tmp_path: Path) -> None:
    draw_confusion(scored(["a", "b"]), tmp_path / "a.png")
    assert "matplotlib.pyplot" not in sys.modules
    import matplotlib as mpl

    assert mpl.rcParams["axes.grid"] == mpl.rcParamsDefault["axes.grid"]
