"""``vision-ssm sample`` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import Outcome, write_images
from vision_ssm.cli.main import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sampled")
    write_images(place / "images", count=4)
    smallest = ["--model.options.embed_dim", "16", "--model.options.depth", "2", "--model.options.head_dim", "16"]
    arguments = ["train", str(place / "images"), "--task", "generation", "--model", "dig_nano", "--img-size", "8"]
    settings = ["--epochs", "1", "--batch-size", "4", "--workers", "0", "--output", str(place), "--name", "run"]
    assert main([*arguments, *settings, *smallest]) == 0
    return place / "run"


def test_a_sheet_and_its_images(run: Callable[..., Outcome], weights: Path, tmp_path: Path) -> None:
    sheet, folder = tmp_path / "new" / "sheet.png", tmp_path / "each"
    quick = ["--steps", "2", "--sampler", "ddim"]
    done = run("sample", weights, "--count", "2", "--seed", "3", "--output", sheet, "--images", folder, *quick)
    assert done.code == 0, done.err
    assert f"4 images by {weights / 'best.safetensors'}: {sheet}" in done.out
    assert Image.open(sheet).size > (64, 64)
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    assert found == ["dark/3.png", "dark/4.png", "light/3.png", "light/4.png"]
    asked = ["--class", "light", "--guidance", "2", "--guide-all", "true"]
    done = run("sample", weights, "--count", "1", "--output", sheet, "--json", *asked, *quick)
    assert json.loads(done.out)["images"] == [{"class": "light", "label": 1, "seed": 0}]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--class", "lihgt"], "these weights know no class 'lihgt'. Did you mean 'light'?"),
        (["--count", "0"], "--count: must be at least 1, got 0"),
        (["--guidance", "-1"], "guidance must be at least 0, got -1"),
        (["--steps", "1001"], "steps must be at least 2 and at most 1000, got 1001"),
        (["--samples", "3"], "unknown option '--samples'"),
        (["--output", "sheet.jpg"], "expected a file name that ends in .png, got 'sheet.jpg'"),
    ],
)
def test_what_cannot_be_asked_for(
    run: Callable[..., Outcome], weights: Path, tmp_path: Path, wrong: list[str], message: str
) -> None:
    done = run("sample", weights, "--output", tmp_path / "sheet.png", *wrong)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "sheet.png").exists()
