"""What every form of an MLP branch is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from vision_ssm.ops.add_norm.contract import NormWeights

__all__ = ["MlpWeights"]


class MlpWeights(NamedTuple):
    """A norm over C channels, a linear layer to H hidden values [H, C], [H], and one back [C, H], [C]."""

    norm: NormWeights
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """Return the weights in the order of the kernel's."""
        return (self.norm.weight, self.norm.bias, *self[1:])
