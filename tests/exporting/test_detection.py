"""A detector that was exported finds what the weights find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import vision_ssm
from tests.tasks.detection import boards
from vision_ssm.data.preprocessing import Preprocessing
from vision_ssm.errors import ConfigError, DataError, ShapeError
from vision_ssm.exporting import export, onnx_files
from vision_ssm.layers.detection.suppression import BEST
from vision_ssm.tasks.detection.exported import ExportedDetector, compared, compared_by_overlap, detector_form
from vision_ssm.tasks.exported import Form
from vision_ssm.weights.files import Loaded, WeightsInfo, restored_task
from vision_ssm.weights.runtimes import OnnxRuntime

HEADS = {"channels": 16, "fc_channels": 16, "mask_convs": 1, "proposals": 20, "anchor_scale": 4.0}


def detector(*, masks: bool, cascade: bool) -> Loaded:
    """An untrained detector with scores and boxes that differ from place to place."""
    torch.manual_seed(0)
    options = {"depths": (1, 1, 1, 1), "embed_dim": 16, "patch_size": 4, "img_size": 64}
    record = {
        "class_names": list(boards.NAMES),
        "category_ids": [1, 2],
        "masks": masks,
        "heads": {**HEADS, "cascade": cascade},
        "test": {"detections": 12, "score_threshold": 0.4},
        "short_side": None,
    }
    info = WeightsInfo("vmamba_nano", options, "detection", record, Preprocessing(input_size=(3, 64, 64)))
    model = restored_task(info).build(info.model, **options)
    heads = (model.rpn.logits, model.rpn.deltas, *(part for head in model.stages.box_heads for part in head.children()))
    for module in heads:
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)
    return Loaded(model.eval(), info)


class Run:
    """The form in the place of its file."""

    size = (64, 64)

    def __init__(self, form: Form) -> None:
        self.form = form

    def __call__(self, images):
        assert images.shape[2:] == self.size
        return dict(zip(self.form.outputs, self.form.module(images), strict=True))


@pytest.mark.parametrize(("masks", "cascade"), [(True, False), (False, True)])
def test_fixed_numbers_of_rows_give_the_same_objects(masks, cascade):
    model, info = detector(masks=masks, cascade=cascade)
    stand_in = ExportedDetector(Run(detector_form(model)), model.stages.score_threshold)
    images = list(torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    sizes = [(64, 64), (32, 128), (100, 90)]
    with torch.inference_mode():
        ours, theirs = model(images, sizes=sizes), stand_in(images, sizes=sizes)
    assert sum(len(mine["boxes"]) for mine in ours) > 5
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            torch.testing.assert_close(other[name], value, atol=1e-4, rtol=1e-5)
    smaller = stand_in([images[0][:, :40, :56]])[0]["boxes"]
    assert len(smaller) > 0
    assert bool((smaller <= smaller.new_tensor([56, 40, 56, 40])).all())
    assert restored_task(info).stand_in(stand_in.run).threshold == 0.4


def test_detections_are_compared_by_their_nearest():
    scores = torch.zeros(1, 2, 4)
    scores[0, 0, 0], scores[0, 1, 1], scores[0, 1, 2] = 0.9, 0.6, 0.5
    boxes = torch.tensor([[[0.0, 0, 10, 10], [10, 10, 50, 50], [0, 50, 100, 100], [0, 0, 0, 0]]])
    turned = [scores[:, :, [1, 0, 2, 3]], boxes[:, [1, 0, 2, 3]]]
    assert compared(turned, [scores, boxes]) == (0.0, 3, 3)
    moved = boxes.clone()
    moved[0, 2, 0] += 20
    error, same, count = compared([scores, moved], [scores, boxes])
    assert (round(error, 4), same, count) == (0.2, 2, 3)
    more = scores.clone()
    more[0, 0, 3] = 0.3
    assert compared([more, boxes], [scores, boxes])[::2] == (1.0, 4)
    error, same, _ = compared([scores.flip(1), boxes], [scores, boxes])
    assert error > 0.5
    assert same == 0
    nothing = torch.zeros(1, 2, 4)
    assert compared([nothing, boxes], [nothing, boxes]) == (0.0, 1, 1)
    assert compared([scores, boxes], [nothing, boxes])[1] == 0
    torch.testing.assert_close(compared([scores, boxes * torch.nan], [scores, boxes])[0], torch.nan, equal_nan=True)


def test_in_int8_confident_detections_are_compared_by_their_overlap():
    scores = torch.zeros(1, 2, 4)
    scores[0, 0, 0], scores[0, 1, 1], scores[0, 1, 2], scores[0, 1, 3] = 0.9, 0.6, 0.5, 0.2
    boxes = torch.tensor([[[0.0, 0, 10, 10], [10, 10, 50, 50], [0, 50, 100, 100], [0, 0, 5, 5]]])
    turned = [scores[:, :, [1, 0, 2, 3]], boxes[:, [1, 0, 2, 3]]]
    assert compared_by_overlap(turned, [scores, boxes]) == (0.0, 6, 6)
    moved = boxes.clone()
    moved[0, 0, 2], moved[0, 3] = 8, 90  # of the last one nobody is sure
    error, same, count = compared_by_overlap([scores, moved], [scores, boxes])
    assert (round(error, 6), same, count) == (round(2 * 0.2 / 6, 6), 6, 6)
    doubtful = scores.clone()
    doubtful[0, 0, 0] = 0.4  # of 0.9: seen by the one and hardly by the other
    error, same, count = compared_by_overlap([doubtful, boxes], [scores, boxes])
    assert (round(error, 6), same, count) == (round(1 / 6, 6), 5, 6)
    assert compared_by_overlap([scores.flip(1), boxes], [scores, boxes]) == (1.0, 0, 6)
    nothing = torch.zeros(1, 2, 4)
    assert compared_by_overlap([nothing, boxes], [nothing, boxes]) == (0.0, 1, 1)
    assert compared_by_overlap([nothing, boxes], [scores, boxes]) == (1.0, 0, 3)
    assert compared_by_overlap([scores, boxes], [nothing, boxes]) == (1.0, 0, 3)
    torch.testing.assert_close(
        compared_by_overlap([scores, boxes * torch.nan], [scores, boxes])[0], torch.nan, equal_nan=True
    )


def test_in_int8_masks_are_compared_within_their_boxes():
    scores, boxes = torch.tensor([[[0.9]]]), torch.tensor([[[0.0, 0, 10, 10]]])
    masks = torch.zeros(1, 1, 28, 28)
    masks[..., :14, :] = 1
    half = masks.clone()
    half[..., :7, :] = 0.1
    assert compared_by_overlap([scores, boxes, 0.6 * masks], [scores, boxes, masks]) == (0.0, 2, 2)
    assert compared_by_overlap([scores, boxes, half], [scores, boxes, masks]) == (0.5, 2, 2)
    assert compared_by_overlap([scores, boxes, 1 - masks], [scores, boxes, masks]) == (1.0, 0, 2)


class Boxes(torch.nn.Module):
    def forward(self, images):
        corners = 8 * images[0, 0].reshape(-1, 2).sigmoid()
        boxes = torch.cat([corners, corners + 4], dim=1)
        rows = torch.arange(len(boxes))
        kept = BEST(boxes, images[0, 1].reshape(-1)[rows], rows % 2, 0.3, -0.5, 12)
        regions = torch.cat([torch.zeros(len(boxes), 1), boxes], dim=1)
        features = torch.ops.torchvision.roi_align(images, regions, 0.5, 3, 3, 0, True)
        return kept.float()[None], features[None]


def test_suppression_and_regions_leave_as_they_are(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    images = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    form = Form(Boxes(), ("kept", "features"))
    onnx_files.write(tmp_path / "boxes.onnx", form, images, dynamic=(), step=1, target="portable")
    runtime = OnnxRuntime(tmp_path / "boxes.onnx")
    for seed in range(3):
        given = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
        for found, expected in zip(runtime(given), form.module(given), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        kept = form.module(given)[0]
        assert 2 < int((kept >= 0).sum()) < 12


def test_what_is_left_open_and_sizes_that_are_padded_are_refused(tmp_path):
    loaded = detector(masks=False, cascade=False)
    for left, message in (("size", "bound to one size"), ("batch", "take images one by one")):
        with pytest.raises(ConfigError, match=message):
            export(loaded, tmp_path / "m.onnx", dynamic=[left])
    with pytest.raises(ConfigError, match="have no form in torch's own operators alone"):
        export(loaded, tmp_path / "m.pt2", format="torch")
    with pytest.raises(ConfigError, match="pads images of 60x60 to 64x64; give --img-size that"):
        detector_form(loaded.model).module(torch.zeros(1, 3, 60, 60))
    with pytest.raises(ShapeError, match="does not learn"):
        ExportedDetector(Run(detector_form(loaded.model)), 0.5)([torch.zeros(3, 64, 64)], targets=[])


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino"])
@pytest.mark.parametrize(("masks", "cascade"), [(True, False), (False, True)])
def test_files_find_what_the_weights_find(masks, cascade, format, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    loaded = detector(masks=masks, cascade=cascade)
    found = export(loaded, tmp_path / {"onnx": "m.onnx", "openvino": "m.xml"}[format], format=format)
    assert found.check.error < 1e-4
    assert found.check.agreement > 0.98
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    ours, theirs = (vision_ssm.predict(each, image, window=64).results[0] for each in (loaded, found.path))
    assert len(ours.boxes) > 0
    np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-2)
    np.testing.assert_array_equal(theirs.labels, ours.labels)


def test_classes_that_the_detector_does_not_know_are_refused_before_it_is_converted(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(onnx_files, "write", lambda *_, **__: pytest.fail("it was converted"))
    data = boards.coco(tmp_path / "data", {"train": boards.scenes(2)}, size=(64, 72))
    listing = data / "annotations" / "train.json"
    listing.write_text(listing.read_text().replace(boards.NAMES[0], "green"))
    with pytest.raises(DataError, match="unknown to the weights: 'green'"):
        export(detector(masks=False, cascade=False), tmp_path / "m.onnx", precision="int8", calibrate=data)


@pytest.mark.slow
def test_int8_is_judged_by_what_is_found(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime", "faster_coco_eval"):
        pytest.importorskip(package)
    loaded = detector(masks=True, cascade=False)
    data = boards.coco(tmp_path / "data", {part: boards.scenes(4) for part in ("train", "val")}, size=(64, 72))
    found = export(loaded, tmp_path / "m.onnx", precision="int8", calibrate=data)
    assert {layer["kept"] for layer in found.record.quantised["layers"]} == {False}
    assert 0 < found.check.error < 0.5
    assert found.check.agreement > 0.7
    sure = vision_ssm.predict(found.path, data / "val" / "1.png", window=64).results[0]
    assert len(sure.boxes) > 0
