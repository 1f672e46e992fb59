"""The operators on boxes as nodes of ONNX: suppression, and the features of regions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
import torchvision  # noqa: F401 -- its operators
from onnxscript import opset18

from vision_ssm.layers.detection.suppression import BEST

__all__ = ["of_boxes"]

op: Any = opset18  # as in `vision_ssm.exporting.onnx_nodes`


def of_boxes() -> dict[Any, Callable[..., Any]]:
    """Return the nodes of each operator."""
    return {BEST: best, torch.ops.torchvision.roi_align.default: roi_align}


def best(boxes: Any, scores: Any, groups: Any, overlap: float, threshold: float, count: int) -> Any:
    """Return the indices [count] of the boxes that are left, -1 where there are no more.

    Boxes of different groups are moved apart, so that they do not suppress each other.
    """
    span = op.Add(op.ReduceMax(boxes, keepdims=0), op.Constant(value_float=1.0))
    apart = op.Add(boxes, op.Unsqueeze(op.Mul(op.CastLike(groups, boxes), span), op.Constant(value_ints=[1])))
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(apart, op.Constant(value_ints=[0])),
        op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
        op.Constant(value_ints=[count]),
        op.Constant(value_floats=[overlap]),
        op.Constant(value_floats=[threshold]),
    )
    rows = op.Squeeze(op.Slice(chosen, *(op.Constant(value_ints=[number]) for number in (2, 3, 1))), [1])
    padded = op.Concat(rows, op.Constant(value_ints=[-1] * count), axis=0)
    first = op.Slice(padded, *(op.Constant(value_ints=[number]) for number in (0, count, 0)))
    first.shape, first.type = ir.Shape([count]), ir.TensorType(ir.DataType.INT64)
    return first


def roi_align(
    maps: Any, regions: Any, scale: float, height: int, width: int, samples: int = -1, aligned: bool = False
) -> Any:
    """Return the features [N, C, height, width] of regions [N, 5], the image first."""
    image = op.Cast(op.Squeeze(op.Slice(regions, [0], [1], [1]), [1]), to=ir.DataType.INT64)
    return op.RoiAlign(
        maps,
        op.Slice(regions, [1], [5], [1]),
        image,
        coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        mode="avg",
        output_height=height,
        output_width=width,
        sampling_ratio=max(samples, 0),
        spatial_scale=scale,
    )
