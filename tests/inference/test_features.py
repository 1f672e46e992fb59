"""Feature extraction: the model's own vectors and maps, in memory or in files, and a reason for every failure."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vision_ssm
from vision_ssm.errors import CheckpointError, ConfigError, DataError
from vision_ssm.inference.features import features
from vision_ssm.inference.naming import free_name
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.classification.transforms import build_eval_transform
from vision_ssm.weights.files import Loaded, WeightsInfo

DEEP = {"num_classes": 3, "depth": 3, "embed_dim": 16, "img_size": 8}


@pytest.fixture
def deep(loaded: Loaded) -> Loaded:
    """Three blocks, so that there is something to choose."""
    torch.manual_seed(0)
    info = WeightsInfo("vim_nano", DEEP, "classification", loaded.info.record, loaded.info.preprocessing)
    return Loaded(create_model("vim_nano", **DEEP).eval(), info)


def prepared(loaded: Loaded, image: Image.Image) -> torch.Tensor:
    return build_eval_transform(loaded.info.preprocessing)(image)[None]


def test_vectors_and_maps_are_those_of_the_model(deep: Loaded) -> None:
    images = [Image.new("RGB", (12, 12), colour) for colour in ("red", "blue", "green")]
    found = vision_ssm.features(deep, images, layers=[2, 0, -1], batch_size=2)
    assert (found.model, found.layers, found.failures) == ("vim_nano", (0, 2), ())
    assert [result.path for result in found.results] == ["image 0", "image 1", "image 2"]
    for image, result in zip(images, found.results, strict=True):
        with torch.inference_mode():
            tokens, maps = deep.model.forward_intermediates(prepared(deep, image), indices=[0, 2])
            vector = deep.model.forward_head(tokens, pre_logits=True)[0]
        assert result.file is None
        assert result.embedding.dtype == np.float32
        np.testing.assert_allclose(result.embedding, vector.numpy(), rtol=1e-4, atol=1e-5)
        assert list(result.maps) == [0, 2]
        for layer, expected in zip((0, 2), maps, strict=True):
            np.testing.assert_allclose(result.maps[layer], expected[0].numpy(), rtol=1e-4, atol=1e-4)
    assert all(not result.maps for result in features(deep, images).results)
    assert features(deep, images, layers=None).layers == (0, 1, 2)


def test_files_are_named_after_the_images(deep: Loaded, colour_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = colour_folder("red", "blue", count=2)
    (root / "red" / "1.png").write_bytes(b"")
    output = tmp_path / "out"
    found = features(deep, [root, tmp_path / "none.png", Image.new("RGB", (9, 9))], layers=[1], output=output)
    assert [result.file for result in found.results] == ["0.npz", "1.npz", "0_2.npz", "image_2.npz"]
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["index.json", *(result.file or "" for result in found.results)]
    )
    kept = features(deep, root / "red" / "0.png", layers=[1]).results[0]
    with np.load(output / "0_2.npz") as arrays:
        assert set(arrays) == {"embedding", "map_1"}
        np.testing.assert_allclose(arrays["embedding"], kept.embedding, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(arrays["map_1"], kept.maps[1], rtol=1e-4, atol=1e-5)
    assert not found.results[0].maps
    index = json.loads((output / "index.json").read_text())
    assert index == found.to_dict()
    assert index["results"][2] == {"path": str(root / "red" / "0.png"), "file": "0_2.npz", "length": 16}
    assert (index["model"], index["layers"]) == ("vim_nano", [1])
    assert {Path(failure["path"]).name for failure in index["failures"]} == {"1.png", "none.png"}


def test_own_size_and_other_families(loaded: Loaded, deep: Loaded) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (21, 34, 3), dtype=np.uint8)
    (result,) = features(deep, pixels, img_size="native", layers=[-1]).results
    patch = deep.model.patch_embed.patch_size[0]
    assert result.maps[2].shape == (16, -(-21 // patch), -(-34 // patch))
    name = "efficientvmamba_nano"
    info = WeightsInfo(name, {}, "classification", {"class_names": list("abcdefghij")}, loaded.info.preprocessing)
    model = create_model(name).eval()
    (result,) = features(Loaded(model, info), pixels, img_size="native", layers=None).results
    assert len(result.embedding) == model.num_features
    assert [map_.shape[0] for map_ in result.maps.values()] == [entry["num_chs"] for entry in model.feature_info]


def test_refused_options(deep: Loaded, tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    for layer in (3, -4):
        with pytest.raises(ConfigError, match=rf"maps of the layers 0 to 2 \(or -3 to -1\), got {layer}\."):
            features(deep, image, layers=[layer])
    with pytest.raises(ConfigError, match="batch_size must be at least 1"):
        features(deep, image, batch_size=0)
    with pytest.raises(DataError, match="no images"):
        features(deep)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write to output folder"):
        features(deep, image, output=tmp_path / "file")


def test_models_that_pool_nothing_or_give_no_maps(deep: Loaded) -> None:
    image = Image.new("RGB", (8, 8))
    unpooled = Loaded(create_model("vim_nano", **DEEP, global_pool="").eval(), deep.info)
    with pytest.raises(ConfigError, match="the model pools nothing"):
        features(unpooled, image)

    class Plain(torch.nn.Module):
        pass

    with pytest.raises(ConfigError, match="Plain gives no maps of its layers; leave layers out"):
        features(Loaded(Plain(), deep.info), image, layers=[0], device="cpu")


def test_broken_weights_are_noticed(deep: Loaded) -> None:
    with torch.no_grad():
        deep.model.norm.weight.fill_(float("nan"))
    found = features(deep, Image.new("RGB", (8, 8)))
    assert found.failures[0].reason == "the model's output is not finite"


def test_names_of_models_ask_for_their_published_weights() -> None:
    with pytest.raises(CheckpointError, match="no weights were published for vim_nano"):
        features("vim_nano", Image.new("RGB", (8, 8)))
    with pytest.raises(CheckpointError, match=r"'vim_tiny_patch16_24'.*Did you mean 'vim_tiny_patch16_224'\?"):
        features("vim_tiny_patch16_24", Image.new("RGB", (8, 8)))


def test_names_near_the_limit_of_file_systems() -> None:
    used: set[str] = set()
    stems = ["n" * 251, "n" * 255, "\u732b" * 85, "short"]
    names = [free_name(f"folder/{stem}.png", ".npz", used) for stem in stems * 2]
    assert all(len(name.encode()) <= 255 and name.endswith(".npz") for name in names)
    assert len({name.lower() for name in names}) == 8
    assert (names[0], names[3], names[7]) == ("n" * 251 + ".npz", "short.npz", "short_2.npz")
