"""What every form of the selective SSM is given: its weights."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["SsmWeights"]


class SsmWeights(NamedTuple):
    """What a selective SSM learns, stacked over its K directions; shapes as in :func:`vision_ssm.ops.selective_ssm`."""

    A_log: Tensor
    D: Tensor
    x_proj_weight: Tensor
    dt_proj_weight: Tensor
    dt_proj_bias: Tensor
    conv_weight: Tensor | None = None
    conv_bias: Tensor | None = None
