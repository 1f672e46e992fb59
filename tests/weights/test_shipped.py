"""The weights inside the package: found by name or by no name at all, and what they promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import vision_ssm
from vision_ssm.cli.images import described
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.inference.evaluate import evaluate
from vision_ssm.inference.predict import predict
from vision_ssm.weights import shipped
from vision_ssm.weights.files import Loaded, save_weights
from vision_ssm.weights.opening import open_model
from vision_ssm.weights.shipped import DEFAULT, find_weights, names_weights, pair_in, shipped_weights

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture
def folder(tmp_path: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model in the place of the shipped one."""
    place = tmp_path / "pretrained"
    save_weights(place / f"{DEFAULT}.safetensors", loaded.model, info=loaded.info)
    monkeypatch.setattr(shipped, "FOLDER", place)
    return place


@pytest.mark.usefixtures("folder")
def test_no_weights_named_and_weights_by_name_are_the_shipped_ones(
    weights: Path, colour_folder: Callable[..., Path]
) -> None:
    root = colour_folder()
    expected = predict(weights, root).results
    for found in (predict(None, root), predict(images=root), predict(DEFAULT, root)):
        assert found.results == expected
        assert found.weights.endswith(f"{DEFAULT}.safetensors")
    assert evaluate(DEFAULT, root, "all").scores["top1"] == 1


@pytest.mark.usefixtures("folder")
def test_weights_without_images() -> None:
    for call in (predict, lambda: predict("cat.jpg")):
        with pytest.raises(DataError, match=r"no images; give image files.*as images=\.\.\."):
            call()


@pytest.mark.usefixtures("folder")
def test_a_model_needs_its_checkpoint() -> None:
    with pytest.raises(ConfigError, match="model='vim_nano' says which model a checkpoint belongs to; name the check"):
        predict(images=Image.new("RGB", (8, 8)), model="vim_nano")


def test_names_and_paths(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shipped_weights() == {DEFAULT: folder / f"{DEFAULT}.safetensors"}
    monkeypatch.chdir(tmp_path)
    Path(DEFAULT).touch()
    assert find_weights(DEFAULT) == find_weights() == folder / f"{DEFAULT}.safetensors"
    assert find_weights(f"./{DEFAULT}/x.pth") == Path(DEFAULT, "x.pth")
    assert find_weights("none.safetensors") == Path("none.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot open weights file 'vim_nano_cifar': No such file.*Did you mean"):
        find_weights("vim_nano_cifar")
    (folder / f"{DEFAULT}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"\(vim_nano_cifar10\) are missing from this installation.*install"):
        find_weights()


def test_which_first_argument_is_weights(folder: Path, tmp_path: Path) -> None:
    for text in ("best.safetensors", "a/b.PTH", "x.pt", "x.bin", "x.ckpt", DEFAULT, "vim_nano_cifar", str(folder)):
        assert names_weights(text), text
    for text in ("cat.jpg", "cat", "gone/", str(tmp_path), "scan.npy"):
        assert not names_weights(text), text
    for text in ("vim_tiny_patch16_224", "vim_tiny_patch16_224.tag", "vim_tiny_patch16_24"):
        assert names_weights(text, models=["vim_tiny_patch16_224"]), text
        assert not names_weights(f"{text}.jpg", models=["vim_tiny_patch16_224"]), text
    for name in ("run/best", "pair/model"):  # what is exported from a run lies beside its weights
        for suffix in (".xml", ".bin"):
            tmp_path.joinpath(name).parent.mkdir(exist_ok=True)
            tmp_path.joinpath(name).with_suffix(suffix).touch()
    (tmp_path / "run" / "best.safetensors").touch()
    pair = tmp_path / "pair"
    assert pair_in(pair) == pair / "model.xml"
    assert names_weights(str(pair))
    assert pair_in(tmp_path / "run") is None
    (pair / "other.xml").touch()
    assert not names_weights(str(pair))
    (pair / "model.xml").unlink()  # annotations of an image, perhaps
    assert not names_weights(str(pair))
    assert names_weights("vim_t.pth.tar", model="vim_tiny_patch16_224")
    assert not names_weights("cat.jpg", model="vim_tiny_patch16_224")


def test_description(loaded: Loaded) -> None:
    told = described(loaded)
    assert told == "a vim_nano that knows 3 classes (blue, green, red); 100.00 % top-1 on its validation images"
    unscored = Loaded(loaded.model, dataclasses.replace(loaded.info, metrics={}))
    assert described(unscored).endswith("(blue, green, red)")


# Name -> task, model, classes, score and the least that was asked of it.
SHIPPED = {
    "aerial_nano": (
        "segmentation",
        "vim_nano",
        ("building", "land (unpaved)", "road", "vegetation", "water"),
        "miou",
        0.50,
    ),
    "nuclei_nano": ("detection", "vmamba_nano", ("nucleus",), "mask_ap50", 0.60),
    "pcb_nano": (
        "detection",
        "vmamba_nano",
        ("open", "short", "mousebite", "spur", "copper", "pin-hole"),
        "ap50",
        0.90,
    ),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_models_of_own_images_are_in_the_package(name: str) -> None:
    task, model, classes, score, least = SHIPPED[name]
    file = find_weights(name)
    assert file.parent == Path(vision_ssm.__path__[-1]) / "pretrained"
    assert file.stat().st_size <= 8_000_000
    loaded = open_model(name)
    info = loaded.info
    assert (info.task, info.model, info.class_names) == (task, model, classes)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    assert info.metrics[score] >= least
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}")
    assert f"{100 * info.metrics[score]:.1f} %" in card
    assert not predict(loaded, Image.new("RGB", (96, 64), "green")).failures


def test_the_file_in_the_package() -> None:
    file = find_weights()
    assert file.parent == Path(vision_ssm.__path__[-1]) / "pretrained"
    assert file.stat().st_size <= 8_000_000
    model, info = open_model()
    assert info.model == "vim_nano"
    assert info.class_names == CIFAR10
    assert info.metrics["top1"] >= 0.85
    card = file.with_suffix(".md").read_text(encoding="utf-8")
    assert card.startswith("# vim_nano_cifar10")
    assert f"{100 * info.metrics['top1']:.2f} %" in card
    (result,) = predict(Loaded(model, info), Image.new("RGB", (64, 48), "green")).results
    assert sum(probability for _, probability in result.classes) <= 1
