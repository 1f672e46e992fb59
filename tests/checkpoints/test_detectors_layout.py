"""The published detectors' names and ours, there and back; what does not fit is told in the file's names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vision_ssm.checkpoints import convert, detectors, vim, vmamba
from vision_ssm.errors import CheckpointError
from vision_ssm.models.registry import create_model

GOLDEN = Path(__file__).parent.parent / "golden" / "dense"
FILES = {
    "vmamba_tiny_mask_rcnn_320x416": ("vmamba_tiny_s1l8_mask_rcnn_coco", vmamba, {}),
    "vim_tiny_cascade_320": ("vim_tiny_cascade_mask_rcnn", vim, {"img_size": 320}),
}


def published(name: str) -> dict[str, torch.Tensor]:
    """Shapes of a published file, without content."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        keys = json.loads(str(file["keys"]))
    return {key: torch.empty(shape, device="meta") for key, shape, _ in keys}


@pytest.mark.parametrize("name", FILES)
def test_every_published_tensor_has_its_place(name: str) -> None:
    model_name, layout, options = FILES[name]
    given = published(name)
    with torch.device("meta"):
        model = create_model(model_name, **options)
    convert(model, given)
    own = model.state_dict()
    inside = {key.removeprefix("backbone.model."): x for key, x in own.items() if key.startswith("backbone.")}
    whole = {key: x for key, x in own.items() if not key.startswith("backbone.")}
    whole |= {f"backbone.{key}": x for key, x in layout.to_published(inside).items()}
    back = {key: x.shape for key, x in detectors.to_published(whole).items()}
    assert back == {key: x.shape for key, x in given.items() if ".rope." not in key}
    assert not detectors.is_published(own)
    convert(model, own)


def test_what_does_not_fit_is_told_in_the_names_of_the_file() -> None:
    with torch.device("meta"):
        model = create_model("vim_tiny_cascade_mask_rcnn", img_size=320)
    given = published("vim_tiny_cascade_320")
    del given["roi_heads.box_head.1.fc1.bias"]
    given["roi_heads.mask_head.deconv.extra"] = torch.empty(1, device="meta")
    given["backbone.simfp_2.5.weight"] = torch.empty(2, 2, device="meta")
    with pytest.raises(CheckpointError) as caught:
        convert(model, given)
    told = str(caught.value)
    assert "1 missing: roi_heads.box_head.1.fc1.bias" in told
    assert "1 unexpected: roi_heads.mask_head.deconv.extra" in told
    assert "backbone.simfp_2.5.weight is [2, 2] instead of [256, 256, 3, 3]" in told


def test_a_detector_of_the_other_layout_does_not_fit() -> None:
    with torch.device("meta"):
        model = create_model("vmamba_tiny_s1l8_mask_rcnn_coco")
    with pytest.raises(CheckpointError, match="VMamba"):
        convert(model, published("vim_tiny_cascade_320"))
    other = {**published("vmamba_tiny_mask_rcnn_320x416")}
    other["roi_head.bbox_head.fc_reg.weight"] = torch.empty(4, 1024, device="meta")
    with pytest.raises(CheckpointError, match=r"fc_reg\.weight is \[4, 1024\] instead of \[320, 1024\]"):
        convert(model, other)
