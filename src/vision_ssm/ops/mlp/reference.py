"""The definition of correct: addition and norm, two products and the exact GELU between them, in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from vision_ssm.ops.add_norm.reference import forward as add_norm
from vision_ssm.ops.mlp.contract import MlpWeights

__all__ = ["forward"]


def forward(x: Tensor, added: Tensor, weights: MlpWeights) -> Tensor:
    """Return [..., C] for x and added [..., C]; differentiable as torch's operations are."""
    norm = weights.norm
    stream, normed = add_norm(x, added, norm.weight, norm.bias, norm.eps, norm.kind)
    hidden = F.gelu(F.linear(normed, weights.fc1_weight, weights.fc1_bias))
    return stream + F.linear(hidden, weights.fc2_weight, weights.fc2_bias)
