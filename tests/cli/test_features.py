"""`vision-ssm features`, and both commands on large images at their own size."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

import vision_ssm


def test_vectors_and_maps_are_written_with_an_index(run, trained, images, tmp_path):
    output = tmp_path / "out"
    outcome = run("features", trained / "best.safetensors", images / "dark", "--layers=-1", "--output", output)
    assert outcome.code == 0, outcome.err
    assert f"12 images, 32 numbers each, maps of layers 0: {output / 'index.json'}" in outcome.out
    index = json.loads((output / "index.json").read_text())
    assert len(index["results"]) == 12
    called = vision_ssm.features(trained / "best.safetensors", images / "dark", layers=[0])
    for entry, result in zip(index["results"], called.results, strict=True):
        assert entry["path"] == result.path
        with np.load(output / entry["file"]) as arrays:
            np.testing.assert_allclose(arrays["embedding"], result.embedding, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(arrays["map_0"], result.maps[0], rtol=1e-4, atol=1e-4)


def test_json_and_failures(run, trained, images, tmp_path):
    (tmp_path / "zero.png").write_bytes(b"")
    arguments = ["features", trained / "best.safetensors", images / "dark" / "0.png", tmp_path / "zero.png"]
    outcome = run(*arguments, "--output", tmp_path / "out")
    assert outcome.code == 1
    assert "1 of 2 could not be used" in outcome.err
    assert "zero.png" in outcome.err
    outcome = run(*arguments, "--output", tmp_path / "out", "--json")
    assert outcome.code == 1
    assert json.loads(outcome.out) == json.loads((tmp_path / "out" / "index.json").read_text())


def test_the_shipped_weights(run, trained, images, tmp_path, monkeypatch):
    monkeypatch.setattr("vision_ssm.weights.shipped.FOLDER", tmp_path)
    (tmp_path / "vim_nano_cifar10.safetensors").write_bytes((trained / "best.safetensors").read_bytes())
    outcome = run("features", images / "dark" / "0.png", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.err.startswith("no weights named; using vim_nano_cifar10")
    assert (tmp_path / "out" / "0.npz").exists()


def test_a_layer_that_is_not_there(run, trained, images, tmp_path):
    outcome = run("features", trained / "best.safetensors", images, "--layers", "4", "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "this model has maps of the layers 0 to 0 (or -1 to -1), got 4." in outcome.err


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """One picture of 2 million pixels in four formats."""
    tifffile = pytest.importorskip("tifffile")
    folder = tmp_path_factory.mktemp("scans")
    pixels = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    pixels[:, :1024] //= 4
    np.save(folder / "scan.npy", pixels)
    tifffile.imwrite(folder / "scan.tif", pixels, photometric="rgb", compression="deflate", tile=(256, 256))
    Image.fromarray(pixels).save(folder / "scan.ppm")
    Image.fromarray(pixels).save(folder / "scan.png")
    return folder


def test_large_images_at_their_own_size(run, trained, scans, tmp_path):
    weights, files = trained / "best.safetensors", sorted(scans.iterdir())
    assert len(files) == 4
    outcome = run("predict", weights, *files, "--img-size", "native", "--json")
    assert outcome.code == 0, outcome.err
    results = [{e["class"]: e["probability"] for e in r["classes"]} for r in json.loads(outcome.out)["results"]]
    assert all(result == pytest.approx(results[0], abs=1e-6) for result in results)
    assert results[0] != pytest.approx(dict(vision_ssm.predict(weights, scans / "scan.png").results[0].classes))
    outcome = run("features", weights, *files, "--img-size", "native", "--layers", "all", "--output", tmp_path)
    assert outcome.code == 0, outcome.err
    stride = vision_ssm.load_model(weights).model.patch_embed.stride
    maps = []
    for name in ("scan.npz", "scan_2.npz", "scan_3.npz", "scan_4.npz"):
        with np.load(tmp_path / name) as arrays:
            maps.append(arrays["map_0"])
    assert maps[0].shape == (32, 1024 // stride, 2048 // stride)
    assert all(np.array_equal(map_, maps[0]) for map_ in maps)
