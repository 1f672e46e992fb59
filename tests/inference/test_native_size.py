"""Images at their own size: embedded in strips as they are read, with the results of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.inference.conftest import COLOURS, PREPROCESSING
from vision_ssm.data import strips, strips_tiff
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError, VisionSSMNotice
from vision_ssm.inference.features import features
from vision_ssm.inference.inputs import EmbedsStrips
from vision_ssm.inference.predict import predict
from vision_ssm.models.registry import create_model
from vision_ssm.tasks.classification.transforms import build_eval_transform
from vision_ssm.weights.files import Loaded, WeightsInfo


def picture(height: int, width: int) -> np.ndarray[Any, Any]:
    """Smooth colours with noise: neither end of the image is like another."""
    y, x = np.mgrid[:height, :width]
    shades = np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], axis=2)
    return (shades // 2 + np.random.default_rng(0).integers(0, 128, shades.shape)).astype(np.uint8)


def whole(loaded: Loaded, pixels: np.ndarray[Any, Any]) -> dict[str, float]:
    """Probabilities from the image as one tensor of its size."""
    preprocessing = Preprocessing(
        input_size=(3, *pixels.shape[:2]), mean=PREPROCESSING.mean, std=PREPROCESSING.std, crop_pct=1.0
    )
    image = build_eval_transform(preprocessing)(Image.fromarray(pixels))
    with torch.inference_mode():
        row = loaded.model(image[None])[0].softmax(0)
    return dict(zip(loaded.info.class_names, row.tolist(), strict=True))


def model_of(name: str, **options: Any) -> Loaded:
    torch.manual_seed(0)
    model = create_model(name, num_classes=3, **options).eval()
    record = {"class_names": list(COLOURS)}
    return Loaded(model, WeightsInfo(name, options, "classification", record, PREPROCESSING))


@pytest.mark.parametrize("size", [(64, 64), (61, 43), (5, 90), (4, 4)])
def test_the_result_is_that_of_the_whole_image(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.setattr(strips, "_STRIP_BYTES", 3 * size[1] * 5)
    pixels = picture(*size)
    (result,) = predict(loaded, pixels, img_size="native").results
    assert dict(result.classes) == pytest.approx(whole(loaded, pixels), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vim_nano", {"depth": 1, "embed_dim": 16, "patch_size": 8, "stride": 4, "img_size": 32}),
        ("vmamba_nano", {"depths": (1, 1, 1, 1)}),
        ("efficientvmamba_nano", {}),
        ("resnet10t", {}),
    ],
)
def test_every_family_and_models_that_embed_no_strips(
    monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(strips, "_STRIP_BYTES", 3 * 70 * 5)
    loaded_model = model_of(name, **options)
    assert isinstance(loaded_model.model, EmbedsStrips) == (name != "resnet10t")
    pixels = picture(75, 70)
    (result,) = predict(loaded_model, pixels, img_size="native").results
    assert dict(result.classes) == pytest.approx(whole(loaded_model, pixels), rel=1e-3, abs=1e-5)


def test_each_image_has_its_own_size_and_failures_stop_nobody(loaded: Loaded, tmp_path: Path) -> None:
    Image.fromarray(picture(40, 33)).save(tmp_path / "a.png")
    Image.fromarray(picture(3, 90)).save(tmp_path / "flat.png")
    (tmp_path / "junk.bmp").write_bytes(b"junk")
    np.save(tmp_path / "b.npy", picture(17, 50))
    seen = []
    found = predict(
        loaded,
        tmp_path,
        img_size="native",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert [Path(result.path).name for result in found.results] == ["a.png", "b.npy"]
    reasons = {Path(failure.path).name: failure.reason for failure in found.failures}
    assert "an image of 3x90 is smaller than a patch" in reasons["flat.png"]
    assert "not an image" in reasons["junk.bmp"]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bf16(loaded: Loaded) -> None:
    pixels = picture(60, 52)
    exact, rough = (predict(loaded, pixels, img_size="native", amp=amp).results[0] for amp in ("none", "bf16"))
    assert dict(rough.classes) == pytest.approx(dict(exact.classes), abs=0.05)


def test_a_model_of_one_size_says_so() -> None:
    fixed = model_of("vim_nano", depth=1, embed_dim=16, img_size=32, dynamic_img_size=False)
    found = predict(fixed, [picture(32, 32), picture(40, 32)], img_size="native")
    assert [result.path for result in found.results] == ["image 0"]
    assert "dynamic_img_size=False" in found.failures[0].reason


def test_refused_sizes(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match=r"a side, a \(height, width\) pair or 'native', got 'natve'"):
        predict(loaded, picture(8, 8), img_size="natve")  # type: ignore[arg-type]


def test_arrays_in_files_are_resized_like_any_image(loaded: Loaded, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", picture(40, 40))
    np.save(tmp_path / "b.npy", np.zeros((4, 4)))
    found = predict(loaded, [tmp_path / "a.npy", tmp_path / "b.npy"])
    assert found.results[0].classes == predict(loaded, picture(40, 40)).results[0].classes
    assert "b.npy': an array must be uint8" in found.failures[0].reason


def test_a_slower_reading_is_told(loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips_tiff, "missing_packages", lambda: ["tifffile"])
    Image.fromarray(picture(40, 33)).save(tmp_path / "a.tif", compression="tiff_adobe_deflate")
    with pytest.warns(VisionSSMNotice, match=r"a\.tif' is decoded whole before it is cut into strips; pip install"):
        predict(loaded, tmp_path / "a.tif", img_size="native")


@pytest.mark.slow
def test_16_million_pixels_in_one_pass(loaded: Loaded, tmp_path: Path) -> None:
    pixels = picture(4096, 4096)
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "a.ppm")
    found = predict(loaded, [tmp_path / "a.npy", tmp_path / "a.ppm"], img_size="native")
    expected = whole(loaded, pixels)
    for result in found.results:
        assert dict(result.classes) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    (feature,) = features(loaded, tmp_path / "a.ppm", img_size="native", layers=[-1]).results
    assert feature.maps[0].shape == (16, 1024, 1024)
