"""Pictures: drawn for any number of classes and any names, whole or not at all."""

from __future__ import annotations

import json
import math
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vision_ssm.errors import DataError
from vision_ssm.inference.evaluate import Evaluation, Guess
from vision_ssm.tasks.classification.pictures import Tile, draw_confusion, draw_curve, draw_predictions, draw_sheet


def scored(names: list[str], count: int = 60, wrong: int = 10) -> Evaluation:
    true = np.arange(count) % len(names)
    predicted = true.copy()
    predicted[:wrong] = (true[:wrong] + 1) % len(names)
    confusion = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(confusion, (true, predicted), 1)
    guesses = tuple(Guess(i, int(true[i]), int(predicted[i]), 0.9) for i in range(count))
    rows = tuple(tuple(row) for row in confusion.tolist())
    return Evaluation(1 - wrong / count, 1.0, (), rows, count, tuple(names), guesses)


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


def log_lines(epochs: int, per_epoch: int = 5, scores: bool = True) -> list[str]:
    lines = [json.dumps({"event": "run_started"})]
    for epoch in range(1, epochs + 1):
        for step in range(1, per_epoch + 1):
            update = (epoch - 1) * per_epoch + step
            event = {"event": "step_done", "epoch": epoch, "update": update, "loss": 2 / update, "learning_rate": 1e-3}
            lines.append(json.dumps(event))
        result = {"top1": 1 - 0.5**epoch, "loss": 1 / epoch} if scores else None
        event = {"event": "epoch_done", "epoch": epoch, "update": epoch * per_epoch, "train_loss": 1 / epoch}
        lines.append(json.dumps({**event, "scores": result, "ema_scores": result}))
    return lines


@pytest.mark.parametrize(("epochs", "scores"), [(1, True), (3, False), (60, True)])
def test_curve(tmp_path: Path, epochs: int, scores: bool) -> None:
    (tmp_path / "log.jsonl").write_text("\n".join(log_lines(epochs, scores=scores)))
    draw_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").std() > 5


def test_curve_of_an_interrupted_and_a_diverged_run(tmp_path: Path) -> None:
    lines = log_lines(1)[:-1]
    lines.append(json.dumps({"event": "step_done", "epoch": 1, "update": 6, "loss": math.nan, "learning_rate": 0.0}))
    (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"event": "step_do']))
    draw_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").std() > 5


def test_logs_that_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read log"):
        draw_curve(tmp_path / "none.jsonl", tmp_path / "curve.png")
    log = tmp_path / "log.jsonl"
    log.write_text(log_lines(0)[0])
    with pytest.raises(DataError, match="no training step yet"):
        draw_curve(log, tmp_path / "curve.png")
    log.write_text("not json\n" + log_lines(1)[0])
    with pytest.raises(DataError, match="damaged in line 1"):
        draw_curve(log, tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == [log]


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
    few = scored(["a", "b"])
    rows = tuple((*row, *[0] * 998) for row in few.confusion) + tuple((0,) * 1000 for _ in range(998))
    many = Evaluation(few.top1, 1.0, (), rows, few.count, ("a", "b", *map(str, range(998))), few.guesses)
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
