"""The two-layer perceptron of a block, kept in the cache on a CPU."""

from __future__ import annotations

import torch
from timm.layers.mlp import Mlp
from torch import Tensor

__all__ = ["TiledMlp"]

# Hidden values per tile: 1 MiB of float32, about what a core's second-level cache holds beside the weights.
HIDDEN_VALUES = 2**18
LEAST_ROWS = 256  # below this, reading the weights again for every tile costs more than the cache saves


class TiledMlp(Mlp):
    """Linear, GELU, linear over the last axis.

    The hidden values are four times as many as the tokens have. On a CPU without gradients they are computed a tile of
    tokens at a time, so that those of a large map never go through main memory; the result is the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens x [..., C]."""
        rows = max(HIDDEN_VALUES // int(self.fc1.weight.shape[0]), LEAST_ROWS)
        inference = not (torch.is_grad_enabled() or self.training or torch.compiler.is_compiling())
        if not (inference and x.device.type == "cpu"):
            result: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return result
        if x.numel() <= 2 * rows * x.shape[-1]:
            return self._without_gradient(x)
        tiles = [self._without_gradient(tile) for tile in torch.split(x.flatten(0, -2), rows)]
        return torch.cat(tiles).view(*x.shape[:-1], -1)

    def _without_gradient(self, x: Tensor) -> Tensor:
        # In place: on a CPU, fresh memory for the hidden values costs more than the activation.
        result: Tensor = self.fc2(torch.ops.aten.gelu_(self.fc1(x)))
        return result
