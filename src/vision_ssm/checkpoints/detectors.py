"""The published detectors' layouts and ours, around the backbone, as pure functions from dict to dict.

Two are read: that of mmdetection 3 (VMamba's and EfficientVMamba's Mask R-CNN), and that of detectron2 (Vim's Cascade
Mask R-CNN). Both only name the same tensors differently. What the backbone's entries are called behind ``backbone.`` is
its family's layout and stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from vision_ssm.checkpoints.naming import inverse, replaced

__all__ = ["is_published", "to_ours", "to_published"]

_LEVELS, _STAGES, _CONVS = range(4), range(3), range(4)

# Published -> ours, by the beginning of the name.
_MMDET = {
    **{f"neck.lateral_convs.{i}.conv": f"neck.laterals.{i}" for i in _LEVELS},
    **{f"neck.fpn_convs.{i}.conv": f"neck.outputs.{i}" for i in _LEVELS},
    "rpn_head.rpn_conv": "rpn.convs.0",
    "rpn_head.rpn_cls": "rpn.logits",
    "rpn_head.rpn_reg": "rpn.deltas",
    "roi_head.bbox_head.shared_fcs": "stages.box_heads.0.fcs",
    "roi_head.bbox_head.fc_cls": "stages.box_heads.0.classes",
    "roi_head.bbox_head.fc_reg": "stages.box_heads.0.boxes",
    **{f"roi_head.mask_head.convs.{i}.conv": f"stages.mask_heads.0.convs.{i}" for i in _CONVS},
    "roi_head.mask_head.upsample": "stages.mask_heads.0.upsample",
    "roi_head.mask_head.conv_logits": "stages.mask_heads.0.logits",
}
_DETECTRON2 = {
    "backbone.net": "backbone",
    **{f"backbone.simfp_{i + 2}": f"neck.levels.{i}" for i in _LEVELS},
    **{f"proposal_generator.rpn_head.conv.conv{i}": f"rpn.convs.{i}" for i in range(2)},
    "proposal_generator.rpn_head.objectness_logits": "rpn.logits",
    "proposal_generator.rpn_head.anchor_deltas": "rpn.deltas",
    **{f"roi_heads.box_head.{k}.conv{i + 1}": f"stages.box_heads.{k}.convs.{i}" for k in _STAGES for i in _CONVS},
    **{f"roi_heads.box_head.{k}.fc1": f"stages.box_heads.{k}.fcs.0" for k in _STAGES},
    **{f"roi_heads.box_predictor.{k}.cls_score": f"stages.box_heads.{k}.classes" for k in _STAGES},
    **{f"roi_heads.box_predictor.{k}.bbox_pred": f"stages.box_heads.{k}.boxes" for k in _STAGES},
    **{f"roi_heads.mask_head.mask_fcn{i + 1}": f"stages.mask_heads.0.convs.{i}" for i in _CONVS},
    "roi_heads.mask_head.deconv": "stages.mask_heads.0.upsample",
    "roi_heads.mask_head.predictor": "stages.mask_heads.0.logits",
}
_PUBLISHED = (
    *("rpn_head.", "roi_head.", "neck.lateral_convs.", "neck.fpn_convs."),
    *("proposal_generator.", "roi_heads.", "backbone.net.", "backbone.simfp_"),
)
_ROTARY = "backbone.net.rope."  # tables of cosines and sines, which the model computes
_PYRAMID = "neck.levels."


def is_published(state: Mapping[str, Tensor]) -> bool:
    """Tell whether the names around the backbone are of a published layout."""
    return any(name.startswith(_PUBLISHED) for name in state)


def to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map the published names to ours; a dict that is ours already comes back unchanged."""
    table = {**_MMDET, **_DETECTRON2}
    return {replaced(name, table): tensor for name, tensor in state.items() if not name.startswith(_ROTARY)}


def to_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Map our names to those of the layout that has such a neck; a dict that is published comes back unchanged."""
    if is_published(state):
        return dict(state)
    table = inverse(_DETECTRON2 if any(name.startswith(_PYRAMID) for name in state) else _MMDET)
    return {replaced(name, table): tensor for name, tensor in state.items()}
