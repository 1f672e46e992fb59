"""A segmentor that was exported gives the maps of the weights, in windows of its size."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import vision_ssm
from tests.tasks.segmentation.scenes import mask
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.exporting import FORMATS, export, quantising
from vision_ssm.tasks.segmentation.exported import segmentor_form
from vision_ssm.weights.files import Loaded, WeightsInfo, restored_task

RECORD = {
    "class_names": ["sky", "sea", "land"],
    "palette": [[0, 0, 255], [0, 255, 0], [255, 0, 0]],
    "heads": {"channels": 8, "auxiliary_channels": 0},
    "short_side": None,
}


@pytest.fixture(scope="module")
def segmentor() -> Loaded:
    torch.manual_seed(0)
    options = {"depth": 1, "embed_dim": 16, "img_size": 32}
    prepared = Preprocessing(input_size=(3, 32, 32), interpolation="bilinear", crop_pct=1.0)
    info = WeightsInfo("vim_nano", options, "segmentation", RECORD, prepared)
    model = restored_task(info).build(info.model, **options)
    for module in model.modules():  # so that the classes differ from pixel to pixel
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.3)
    return Loaded(model.eval(), info)


def test_its_size_cannot_be_left_open(segmentor, tmp_path):
    with pytest.raises(ConfigError, match=r"bound to one size once they are exported.*--img-size"):
        export(segmentor, tmp_path / "m.onnx", dynamic=["size"])


class InTorch:
    """Runs the form of a segmentor, as a file of one size would."""

    size = (32, 32)

    def __init__(self, model):
        self.form = segmentor_form(model)
        self.runs = 0

    def __call__(self, images):
        self.runs += 1
        assert images.shape[2:] == self.size
        return dict(zip(self.form.outputs, self.form.module(images), strict=True))


def test_images_of_other_sizes_are_scored_in_windows_of_the_file(segmentor, tmp_path):
    """As INT8 is judged, whose file takes one size."""
    data = tmp_path / "data"
    for name in ("train/a", "val/b"):
        shades = np.random.default_rng(len(name)).integers(0, 255, (44, 36, 3), dtype=np.uint8)
        mask(data / "images" / f"{name}.png", shades)
        mask(data / "annotations" / f"{name}.png", shades[..., 0] // 100)
    (data / "classes.json").write_text(json.dumps(RECORD["class_names"]))
    found = quantising.score_of(InTorch(segmentor.model), segmentor, data)
    whole = vision_ssm.evaluate(segmentor, data, window=32)
    assert found == (pytest.approx(whole.scores["miou"]), 1)
    file = InTorch(segmentor.model)
    seen = quantising.images_seen(file, segmentor, data)
    assert {tuple(images.shape) for images in seen} == {(1, 3, 32, 32)}
    assert len(seen) > 1 == file.runs  # what the windows show is not asked for
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.slow
@pytest.mark.parametrize(("format", "dynamic"), [("onnx", ()), ("openvino", ("batch",))])
def test_windows_of_an_image_give_the_same_classes(segmentor, format, dynamic, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    found = export(segmentor, tmp_path / f"m{FORMATS[format]}", format=format, dynamic=dynamic)
    assert found.check.error < 1e-4
    assert found.check.agreement > 0.999
    assert {case.batch for case in found.check.cases} == ({1, 2, 3} if dynamic else {1})
    image = np.random.default_rng(0).integers(0, 255, (40, 36, 3), dtype=np.uint8)
    ours, theirs = (vision_ssm.predict(weights, image, window=32).results[0] for weights in (segmentor, found.path))
    assert len(np.unique(ours.classes)) > 1
    assert (ours.classes == theirs.classes).mean() > 0.999
    with pytest.raises(ShapeError, match=r"exported for images of 32x32, got 40x36; .* for maps --window"):
        vision_ssm.predict(found.path, image)
    with pytest.raises(ConfigError, match="holds no vectors of images"):
        vision_ssm.features(found.path, np.zeros((32, 32, 3), np.uint8))
