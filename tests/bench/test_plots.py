"""The pictures: every model that has points is drawn, in every panel."""

from __future__ import annotations

from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vision_ssm.bench import draw_memory, draw_speed
from vision_ssm.bench.plots import COLOURS
from vision_ssm.errors import ConfigError


def report(models: int, sizes: tuple[int, ...], dtypes: tuple[str, ...] = ("float32",), last_fails: bool = False):
    names = [f"model {index}" for index in range(models)]
    rows = [
        {
            **{"model": name, "height": side, "width": side, "batch": 1, "dtype": dtype, "threads": 2},
            "images_per_second": None if last_fails and name == names[-1] else 1e5 / side / (1 + index),
            "memory": None if last_fails and name == names[-1] else {"peak_bytes": 1000 * side**2 * (1 + index)},
        }
        for dtype in dtypes
        for side in sizes
        for index, name in enumerate(names)
    ]
    about = {
        "device": "A Processor",
        "circumstances": {"started": "2026-01-02T03:04:05"},
        "versions": {"torch": "2.11"},
    }
    return {"settings": {"mode": "inference", "models": names}, "rows": rows, **about}


def colours(path: Path) -> set[str]:
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    return {
        colour for colour in COLOURS[:-1] if (pixels == np.array(matplotlib.colors.to_rgb(colour)) * 255).all(1).any()
    }


@pytest.mark.parametrize("draw", [draw_speed, draw_memory])
def test_one_line_per_model(tmp_path, draw):
    draw(report(3, (224, 512, 1248), ("float32", "bfloat16", "float16")), tmp_path / "p.png")
    assert colours(tmp_path / "p.png") == set(COLOURS[:3])


def test_machine_and_day_are_named_and_many_models_below(tmp_path, monkeypatch):
    kept = []
    write = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (kept.append(self), write(self, *a, **k))[1])
    draw_memory(report(9, (224, 512)), tmp_path / "p.png")
    texts = [text.get_text() for text in kept[0].texts]
    assert texts == ["Peak memory of inference beyond weights and\ninput, MiB", "A Processor; 2026-01-02; torch 2.11"]
    (legend,) = kept[0].legends
    assert len(legend.get_texts()) == 9
    assert len({(line.get_color(), line.get_marker()) for line in kept[0].axes[0].lines}) == 9


def test_a_model_without_points_is_left_out(tmp_path):
    draw_speed(report(3, (224, 512), last_fails=True), tmp_path / "p.png")
    assert colours(tmp_path / "p.png") == set(COLOURS[:2])


def test_one_size_is_no_plot(tmp_path):
    with pytest.raises(ConfigError, match="two sizes or more"):
        draw_memory(report(2, (224,)), tmp_path / "p.png")
    assert not list(tmp_path.iterdir())
