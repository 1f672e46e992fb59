"""The training curve: drawn from any log, for whatever the task scores."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vision_ssm.errors import DataError
from vision_ssm.plots import png_figure
from vision_ssm.training.curve import draw_curve

ACCURACY = {"name": "top1", "title": "top-1", "unit": "%", "higher_is_better": True}


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def log_lines(epochs: int, per_epoch: int = 5, scores: bool = True) -> list[str]:
    lines = [json.dumps({"event": "run_started", "scores": [ACCURACY]})]
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


def test_accuracies_have_one_axis_however_little_they_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        line.replace('"top1": 0.5,', '"top1": 0.10,').replace('"top1": 0.75', '"top1": 0.13') for line in log_lines(2)
    ]
    about = {"folder": "runs/pets", "model": "vim_nano", "train_images": 1200, "val_images": 30}
    lines[0] = json.dumps({**json.loads(lines[0]), **about})
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    drawn: list[Figure] = []

    @contextmanager
    def seen(*arguments: Any, **options: Any) -> Iterator[Figure]:
        with png_figure(*arguments, **options) as figure:
            yield figure
            drawn.append(figure)

    monkeypatch.setattr("vision_ssm.training.curve.png_figure", seen)
    draw_curve(tmp_path / "log.jsonl", tmp_path / "curve.png")
    losses, axes, _ = drawn[0].axes
    assert drawn[0].get_suptitle() == "pets: vim_nano, 1,200 images to learn from, 30 held out"
    assert losses.get_legend_handles_labels()[1] == ["single updates", "their mean", "held-out"]
    assert axes.get_title(loc="left") == "Held-out top-1 (%)"
    assert axes.get_ylim() == (0, 101)


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
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="it is a named pipe"):
        draw_curve(tmp_path / "pipe", tmp_path / "curve.png")


DAMAGE = [
    "[1]",
    "3",
    "null",
    "[" * 100_000,
    "\ufffd\x00",
    '{"event": "step_done"}',
    '{"event": "step_done", "epoch": "1", "update": 1, "loss": 1, "learning_rate": 1}',
    '{"event": "step_done", "epoch": 1, "update": 1, "loss": "x", "learning_rate": 1}',
    '{"event": "step_done", "epoch": 1, "update": 1, "loss": 1, "learning_rate": Infinity}',
    '{"event": "step_done", "epoch": 0, "update": 1, "loss": 1, "learning_rate": 1}',
    '{"event": "step_done", "epoch": 1, "update": [1], "loss": 1, "learning_rate": 1}',
    '{"event": "epoch_done", "epoch": 1, "update": 5, "train_loss": 1, "scores": [1]}',
    '{"event": "epoch_done", "epoch": 1, "update": 5, "train_loss": 1, "scores": {"top1": "x"}}',
    '{"event": "run_started", "scores": [{"nonsense": 1}]}',
    '{"event": "run_started", "scores": 5}',
]


@pytest.mark.parametrize("line", DAMAGE)
def test_a_damaged_line_is_named_and_the_last_one_left_out(tmp_path: Path, line: str) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("\n".join([*log_lines(1), line, *log_lines(2)]))
    with pytest.raises(DataError, match=r"log\.jsonl' is damaged in line 8: "):
        draw_curve(log, tmp_path / "curve.png")
    log.write_text("\n".join([*log_lines(1), line]))
    draw_curve(log, tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").std() > 5


def test_a_log_that_is_no_text(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes("\n".join(log_lines(1)).encode() + b"\n\xff\xfe\x00\n" + log_lines(0)[0].encode())
    with pytest.raises(DataError, match="damaged in line 8"):
        draw_curve(log, tmp_path / "curve.png")


def test_names_with_characters_that_end_lines_elsewhere(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    started = json.dumps({"event": "run_started", "scores": [ACCURACY], "knows": "a\u2028b\x85c"}, ensure_ascii=False)
    log.write_text("\n".join([started, *log_lines(1)]) + "\n", encoding="utf-8")
    draw_curve(log, tmp_path / "curve.png")
    assert picture(tmp_path / "curve.png").std() > 5
