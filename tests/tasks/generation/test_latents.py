"""Models of latents with a real autoencoder of diffusers, tiny and of random weights, from a folder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vision_ssm
from tests.tasks.generation.toys import tiny, write_images
from vision_ssm.errors import CheckpointError, ConfigError
from vision_ssm.tasks.generation.latents import Autoencoder, Latents
from vision_ssm.training import train

HUB = "stabilityai/sd-vae-ft-ema"


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("autoencoder"), channels=4)


def saved(folder: Path, channels: int) -> Path:
    """Halves the side twice; latents of some channels."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    network = AutoencoderKL(
        **kinds, block_out_channels=(4, 4, 4), norm_num_groups=2, latent_channels=channels, scaling_factor=0.5
    )
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on images of 32 pixels, which are latents of 8."""
    place = tmp_path_factory.mktemp("latents")
    wanted = {"model.name": "dig_s2", "model.img_size": 32, "latents.autoencoder": str(autoencoder)}
    config = tiny(write_images(place / "images", 4), place, **wanted)
    return train(config.replace(**{"schedule.epochs": 1})).folder


def test_the_folder_says_what_its_latents_are(autoencoder: Path) -> None:
    found = Autoencoder(str(autoencoder))
    assert found.latents == Latents(str(autoencoder), 0.5, 4, 4)
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    latents = found.encode(images, 0.5, sample=False)
    assert latents.shape == (2, 4, 4, 6)
    assert found.decode(latents, 0.5).shape == images.shape
    network = found._network
    torch.testing.assert_close(latents, network.encode(images).latent_dist.mode() * 0.5)
    torch.testing.assert_close(found.decode(latents, 0.5), network.decode(latents / 0.5).sample)
    torch.manual_seed(0)
    drawn = found.encode(images, 0.5, sample=True)
    torch.manual_seed(0)
    torch.testing.assert_close(drawn, network.encode(images).latent_dist.sample() * 0.5)
    assert pickle.loads(pickle.dumps(found)).latents == found.latents


def test_training_and_sampling(run: Path, autoencoder: Path) -> None:
    made = vision_ssm.sample(run, "dark", count=2, steps=3, sampler="ddim")
    assert [image.size for image in made.images] == [(32, 32)] * 2
    loaded = vision_ssm.load_model(run)
    assert loaded.info.record["latents"] == Latents(str(autoencoder), 0.5, 4, 4).record()
    assert loaded.info.preprocessing.input_size == (3, 32, 32)
    assert loaded.model.img_size == 8  # type: ignore[comparison-overlap]
    weights = load_file(run / "best.safetensors")
    assert not any("encoder" in name for name in weights)  # it is not trained and not kept


def test_the_autoencoder_may_have_moved(run: Path, autoencoder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in autoencoder.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    options = {"count": 1, "steps": 2, "sampler": "ddim"}
    here = vision_ssm.sample(run, "dark", **options).images[0]
    there = vision_ssm.sample(run, "dark", autoencoder=str(moved), **options).images[0]
    assert np.array_equal(here, there)
    with pytest.raises(CheckpointError, match=r"the autoencoder '.*gone' cannot be opened: .* --autoencoder FOLDER"):
        vision_ssm.sample(run, "dark", autoencoder=str(tmp_path / "gone"), **options)


def test_another_kind_of_latents_is_refused(run: Path, tmp_path: Path) -> None:
    other = saved(tmp_path, channels=2)
    with pytest.raises(ConfigError, match=r"the model takes latents of 4 channels and 1/4 .* gives 2 channels"):
        vision_ssm.sample(run, "dark", autoencoder=str(other), steps=2)


def test_offline_nothing_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = tiny(write_images(tmp_path / "images", 4), tmp_path, **{"model.name": "dig_s2", "model.img_size": 64})
    with pytest.raises(CheckpointError, match=rf"the autoencoder '{HUB}' cannot be opened: .* --autoencoder FOLDER"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_where_an_autoencoder_has_no_use_or_does_not_fit(autoencoder: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 4)
    with pytest.raises(ConfigError, match=r"dig_nano denoises pixels, so it has no use for the autoencoder"):
        train(tiny(images, tmp_path, **{"latents.autoencoder": str(autoencoder)}))
    odd = {"model.name": "dig_s2", "model.img_size": 30, "latents.autoencoder": str(autoencoder)}
    with pytest.raises(ConfigError, match=r"img_size must be a multiple of 4, so that latents are whole, got 30"):
        train(tiny(images, tmp_path, **odd))


@pytest.mark.parametrize("wrong", [{"scale": "1"}, {"reduction": 0}, {"channels": None}, {"autoencoder": 3}])
def test_a_damaged_record(wrong: dict[str, object]) -> None:
    record = json.loads(json.dumps(Latents("here", 0.5, 4, 4).record()))
    assert Latents.recorded(record) == Latents("here", 0.5, 4, 4)
    with pytest.raises(CheckpointError, match=r"a record of latents says"):
        Latents.recorded({**record, **wrong})
