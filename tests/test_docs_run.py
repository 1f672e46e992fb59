"""The blocks of README.md and docs/ run as they are written, each by itself, in a folder with what they name.

Python blocks that train or are as large as published segmentors, and all commands, are marked slow. Those of
docs/integrations.md need other packages: tests/integrations/test_how_to.py.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vision_ssm
from tests.tasks.detection import boards
from tests.tasks.segmentation.scenes import folder as scenes
from vision_ssm import checkpoints
from vision_ssm.checkpoints import hub
from vision_ssm.cli.main import main
from vision_ssm.training.config import TrainConfig
from vision_ssm.weights.shipped import DEFAULT, shipped_weights

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if path.name != "integrations.md"
]
VIM, SEGMENTOR = "vim_t_midclstok_76p1acc.pth", "upernet_vssm_4xb4-160k_ade20k-512x512_tiny_s_iter_160000.pth"
LARGE = (SEGMENTOR, "train(config", "vision_ssm.export(")  # what marks a Python block as slow
SAVES, LOADS = 'save(program, "model.pt2")', 'load("model.pt2")'  # of two blocks, of which the second runs the first
NOT_RUN = {
    "vision-ssm data index imagenet-wds/": "tests/cli/test_data.py runs it on tar files",
    "pip install": "an installation of its own: make check-wheel",
    "vision-ssm bench --models vim_tiny_patch16_224": "minutes; tests/cli/test_bench.py runs a small one",
    "vision-ssm bench --preset vim": "minutes",
    "vision-ssm bench --show results/mine.json": "shows what the first line measured",
    "vision-ssm train digits --recipe": "minutes to an hour; smaller runs take their place",
    "vision-ssm train scenes/ --task segmentation --recipe segmentation_nano": "an hour; a smaller run takes its place",
    "torchrun --standalone": "tests/training/test_distributed.py runs one",
    "vision-ssm train --resume runs/my-run": "tests/cli/test_train.py resumes a run",
}


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, text) of all blocks."""
    found = []
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for number, block in enumerate(re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)):
            found.append((f"{page}-{number}", block))
    return found


def python_blocks() -> list[object]:
    return [
        pytest.param(block, id=name, marks=[pytest.mark.slow] if any(word in block for word in LARGE) else [])
        for name, block in blocks("python")
        if SAVES not in block
    ]


def commands() -> list[object]:
    """Every line that is a command, with those before it of the same block that it may need."""
    found = []
    for name, block in blocks("bash"):
        lines = block.replace("\\\n", " ").splitlines()
        words = [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]
        typed = [line for line in words if line and not any(shlex.join(line).startswith(start) for start in NOT_RUN)]
        if typed:
            found.append(pytest.param(typed, id=name))
    return found


@pytest.fixture(scope="module")
def stocked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files and runs that the pages name."""
    place = tmp_path_factory.mktemp("pages")
    numbers = np.random.default_rng(0)

    def picture(path: str, size: tuple[int, int] = (40, 36)) -> None:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 255, (*size, 3), dtype=np.uint8)).save(place / path)

    for name in ("photo.jpg", "cat.jpg", "street.jpg", "board.jpg", "photos/a.jpg", "photos/b.png"):
        picture(name)
    for name in ("scan.tif", "scene.tif", "scans/one.tif"):
        picture(name, (90, 130))
    np.save(place / "scan.npy", numbers.integers(0, 255, (50, 60), dtype=np.uint8))
    for name in ("cat", "dog"):
        for number in range(5):
            picture(f"images/{name}/{number}.jpg")
    for synset in ("n01440764", "n01443537"):
        picture(f"imagenet/val/{synset}/a.jpg")
    weights = shipped_weights()[DEFAULT]
    shutil.copy(weights, place / "best.safetensors")
    for run in ("demo", "vim_tiny_patch16_224-images"):
        (place / "runs" / run).mkdir(parents=True)
        shutil.copy(weights, place / "runs" / run / "best.safetensors")
    (place / "my.yaml").write_text("model: {name: vim_nano}\nschedule: {epochs: 1}\ndata: {workers: 0}\n")
    return place


@pytest.fixture
def here(stocked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory, and published files without a network."""
    place = tmp_path / "here"
    shutil.copytree(stocked, place)
    monkeypatch.chdir(place)
    for module in (hub, checkpoints):  # looked up in the second one
        monkeypatch.setattr(module, "download", lambda repo, filename, *_, **__: published(place, filename))
        monkeypatch.setattr(module, "download_url", lambda url, *_: published(place, url.rpartition("/")[2]))
    torch.manual_seed(0)
    return place


def published(place: Path, filename: str) -> Path:
    """A file of the published name with numbers of its model."""
    model = {VIM: "vim_tiny_patch16_224", SEGMENTOR: "vmamba_tiny_s1l8_upernet_ade20k"}[filename]
    torch.save({"model": vision_ssm.create_model(model).state_dict()}, place / filename)
    return place / filename


def train_a_segmentor(place: Path) -> None:
    scenes(place / "scenes", [f"{split}/{number}" for split in ("train", "val") for number in range(2)])
    values = {"data.path": "scenes", "model.name": "vim_nano", "model.img_size": 32, "schedule.epochs": 1}
    small = {"data.batch_size": 2, "data.workers": 0, "head.channels": 8, "head.auxiliary_channels": 0}
    options = {"model.options": {"depth": 4, "embed_dim": 16}, "task": "segmentation"}
    vision_ssm.train(TrainConfig.load(None, {**values, **small, **options}))


def train_a_mapper(place: Path) -> None:
    train_a_segmentor(place)
    shutil.copytree(place / "runs" / "vim_nano-scenes", place / "runs" / "land")


def train_a_detector(place: Path) -> None:
    boards.coco(place / "boards", {part: boards.scenes(2) for part in ("train", "val")}, size=(64, 72))
    values = {"data.path": "boards", "model.name": "vim_nano", "model.img_size": 64, "schedule.epochs": 1}
    small = {"data.batch_size": 2, "data.workers": 0, "head.channels": 8, "head.fc_channels": 16, "head.proposals": 20}
    options = {"model.options": {"depth": 1, "embed_dim": 16}, "task": "detection"}
    vision_ssm.train(TrainConfig.load(None, {**values, **small, **options}))


def train_a_denoiser(_: Path) -> None:
    values = {"task": "generation", "data.path": "digits", "model.name": "dig_nano", "model.img_size": 8}
    small = {"model.options": {"embed_dim": 16, "depth": 2}, "data.workers": 0, "schedule.epochs": 1, "ema.decay": 0.9}
    vision_ssm.train(TrainConfig.load(None, {**values, **small}))


def train_a_classifier_of_digits(_: Path) -> None:
    vision_ssm.train(TrainConfig.load("digits", {"schedule.epochs": 1}))


RUNS = {
    "vim_nano-scenes": train_a_segmentor,
    "runs/land": train_a_mapper,
    "vim_nano-boards": train_a_detector,
    "dig_nano-digits": train_a_denoiser,
    "vim_nano-digits": train_a_classifier_of_digits,
}


def learned_first(here: Path, text: str) -> None:
    """The runs and published files that a block takes for granted."""
    for name in (VIM, SEGMENTOR):
        if name in text:
            published(here, name)
    for run, made in RUNS.items():
        if run in text:
            made(here)


@pytest.mark.parametrize("block", python_blocks())
def test_python(here: Path, block: str) -> None:
    learned_first(here, block)
    if "train(config" in block:
        shutil.rmtree(here / "runs")  # its run would be there already
    if LOADS in block:
        (before,) = [text for _, text in blocks("python") if SAVES in text]
        exec(before, {"__name__": "block"})
    assert re.search(r"^(import|from) ", block, re.MULTILINE), "whoever copies a block needs its imports"
    exec(compile(block, "block", "exec"), {"__name__": "block"})


@pytest.mark.slow
@pytest.mark.parametrize("typed", commands())
def test_commands(here: Path, typed: list[list[str]]) -> None:
    text = " ".join(shlex.join(words) for words in typed)
    learned_first(here, text)
    for words in typed:
        assert words[0] == "vision-ssm", f"{shlex.join(words)} is neither a command of ours nor in NOT_RUN"
        arguments = [*words[1:], "--overwrite"] if words[1] == "train" and "--schema" not in words else words[1:]
        assert main(arguments) in ((0, 1) if words[1] == "data" else (0,)), shlex.join(words)
