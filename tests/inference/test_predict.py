"""Prediction: right classes for everything readable, and a reason for everything else."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vision_ssm.device import choose_device
from vision_ssm.errors import ConfigError, DataError, ShapeError
from vision_ssm.inference.predict import predict
from vision_ssm.weights.files import Loaded
from vision_ssm.weights.opening import open_model


def test_files_and_folders(weights: Path, colour_folder: Callable[..., Path]) -> None:
    root = colour_folder()
    predictions = predict(weights, [root / "red", root / "blue" / "0.png"], top_k=2, batch_size=3)
    assert not predictions.failures
    assert [Path(result.path).name for result in predictions.results] == ["0.png", "1.png", "2.png", "3.png", "0.png"]
    assert [result.classes[0][0] for result in predictions.results] == ["red"] * 4 + ["blue"]
    for result in predictions.results:
        (_, first), (_, second) = result.classes
        assert 1 >= first > second >= 0


def test_probabilities_sum_to_one_and_do_not_depend_on_the_batch(
    loaded: Loaded, colour_folder: Callable[..., Path]
) -> None:
    root = colour_folder()
    alone, together = (predict(loaded, root, batch_size=size, top_k=99) for size in (1, 12))
    for one, other in zip(alone.results, together.results, strict=True):
        assert len(one.classes) == 3
        assert sum(p for _, p in one.classes) == pytest.approx(1, abs=1e-5)
        assert dict(one.classes) == pytest.approx(dict(other.classes), abs=1e-5)


def test_images_in_memory(loaded: Loaded) -> None:
    pixels = np.zeros((9, 7, 3), dtype=np.uint8)
    pixels[..., 1] = 255
    images = [Image.new("RGB", (5, 5), "red"), pixels, Image.new("L", (1, 1)), np.zeros((4, 4))]
    predictions = predict(loaded, images)
    assert [result.path for result in predictions.results] == ["image 0", "image 1", "image 2"]
    assert [result.classes[0][0] for result in predictions.results[:2]] == ["red", "green"]
    assert predictions.failures[0].path == "image 3"
    assert "uint8 of shape [H, W]" in predictions.failures[0].reason


def test_unreadable_files_do_not_stop_the_others(
    loaded: Loaded, colour_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = colour_folder("red")
    (root / "red" / "1.png").write_bytes(b"")
    (root / "red" / "2.png").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    seen = []
    predictions = predict(
        loaded,
        [root, tmp_path / "none.png", tmp_path / "empty"],
        batch_size=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [Path(result.path).name for result in predictions.results] == ["0.png", "3.png"]
    reasons = {Path(failure.path).name: failure.reason for failure in predictions.failures}
    assert set(reasons) == {"1.png", "2.png", "none.png", "empty"}
    assert "0 bytes" in reasons["1.png"]
    assert "not an image" in reasons["2.png"]
    assert "no such file" in reasons["none.png"]
    assert reasons["empty"] == "no image files in this folder"
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_another_size_than_in_training(loaded: Loaded) -> None:
    image = Image.new("RGB", (50, 50), "red")
    for size in (16, (8, 20), 9):
        (result,) = predict(loaded, image, img_size=size).results
        assert sum(p for _, p in result.classes) == pytest.approx(1, abs=1e-5)


def test_sizes_below_a_patch_and_below_one_pixel(loaded: Loaded) -> None:
    image = Image.new("RGB", (50, 50))
    with pytest.raises(ShapeError, match="smaller than a patch"):
        predict(loaded, image, img_size=2)
    for size in (0, -5, (8, -1)):
        with pytest.raises(ConfigError, match="at least 1 pixel"):
            predict(loaded, image, img_size=size)


def test_an_image_smaller_than_a_patch_is_enlarged(loaded: Loaded) -> None:
    assert predict(loaded, Image.new("RGB", (1, 1), "red")).results[0].classes[0][0] == "red"


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"batch_size": -2}, {"top_k": 0}])
def test_refused_numbers(loaded: Loaded, option: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(option))} must be at least 1"):
        predict(loaded, Image.new("RGB", (1, 1)), **option)


def test_an_option_that_the_task_does_not_have(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"'topk'.*Did you mean 'top_k'\?"):
        predict(loaded, Image.new("RGB", (1, 1)), topk=3)


def test_results_drawn_on_the_images(loaded: Loaded, colour_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = colour_folder("red", "green", count=1)
    predict(loaded, [root, Image.new("RGB", (30, 20), "blue")], pictures=tmp_path / "drawn")
    drawn = sorted((tmp_path / "drawn").iterdir())
    assert [path.name for path in drawn] == ["0.png", "0_2.png", "image_1.png"]
    with Image.open(drawn[2]) as image:
        assert image.getpixel((15, 10)) == (0, 0, 255)
        assert image.height > 20, "the caption is below the image, which stays whole"


def test_nothing_to_predict_and_bad_choices(loaded: Loaded) -> None:
    with pytest.raises(DataError, match="no images; give image files or folders"):
        predict(loaded, [])
    with pytest.raises(ConfigError, match=r"unknown amp 'bf61'.*Did you mean 'bf16'"):
        predict(loaded, Image.new("RGB", (1, 1)), amp="bf61")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(ConfigError, match=r"'cuda:99' is not available"):
        choose_device("cuda:99")


def test_bf16_gives_nearly_the_same(loaded: Loaded) -> None:
    image = Image.new("RGB", (8, 8), "green")
    exact, rough = (predict(loaded, image, amp=amp).results[0] for amp in ("none", "bf16"))
    assert dict(rough.classes) == pytest.approx(dict(exact.classes), abs=0.05)


def test_broken_weights_are_noticed(loaded: Loaded, weights: Path) -> None:
    broken = open_model(weights)
    with torch.no_grad():
        broken.model.head.bias.fill_(float("nan"))
    predictions = predict(broken, Image.new("RGB", (8, 8)))
    assert predictions.failures[0].reason == "the model's output is not finite"


def test_json_and_csv(loaded: Loaded, colour_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = colour_folder("red", count=1)
    odd = root / 'comma, "quote" \udcff.png'
    Image.new("RGB", (4, 4), "blue").save(odd)
    predictions = predict(loaded, [root, tmp_path / "none.png"], top_k=2)
    predictions.write(tmp_path / "out" / "a.json")
    content = json.loads((tmp_path / "out" / "a.json").read_text())
    assert {Path(result["path"]).name for result in content["results"]} == {"0.png", odd.name}
    assert content["results"][0]["classes"][0].keys() == {"class", "probability"}
    assert content["failures"][0]["path"].endswith("none.png")
    predictions.write(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2", ""]
    assert {Path(row["path"]).name for row in rows} == {"0.png", odd.name, "none.png"}
    assert "no such file" in rows[-1]["error"]
    with pytest.raises(ConfigError, match=r"\.json or \.csv"):
        predictions.write(tmp_path / "a.txt")


def test_output_that_cannot_be_written(loaded: Loaded, tmp_path: Path) -> None:
    predictions = predict(loaded, Image.new("RGB", (8, 8)))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot write '.*file/a\.json'"):
        predictions.write(tmp_path / "file" / "a.json")
