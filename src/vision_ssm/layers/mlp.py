"""The two-layer perceptron of a block, kept in the cache on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from vision_ssm.layers.norms import described_norm
from vision_ssm.layers.options import has_global_hooks, is_plain
from vision_ssm.ops import MlpWeights

__all__ = ["TiledMlp"]

# What a TiledMlp is made of, unless somebody has changed it.
PARTS: dict[str, type[nn.Module]] = {
    "fc1": nn.Linear,
    "act": nn.GELU,
    "drop1": nn.Dropout,
    "norm": nn.Identity,
    "fc2": nn.Linear,
    "drop2": nn.Dropout,
}

# Hidden values per tile: 1 MiB of float32, about what a core's second-level cache holds beside the weights.
HIDDEN_VALUES = 2**18
LEAST_ROWS = 256  # below this, reading the weights again for every tile costs more than the cache saves


class TiledMlp(Mlp):
    """Linear, GELU, linear over the last axis.

    The hidden values are four times as many as the tokens have. On a CPU without gradients they are computed a tile of
    tokens at a time, so that those of a large map never go through main memory; the result is the same.
    """

    def described(self, norm: nn.Module) -> MlpWeights | None:
        """Describe self(norm(x)) to the operator that runs it in one call, or return None.

        None where a module inside has hooks or has been replaced or patched, or where a dropout is at work: those must
        see what passes.
        """
        if has_global_hooks() or type(self) is not TiledMlp:
            return None
        modules: dict[str, Any] = {name: self._modules[name] for name in PARTS}
        if any(type(modules[name]) is not kind for name, kind in PARTS.items()):
            return None
        dropped = any(modules[name].p > 0 and modules[name].training for name in ("drop1", "drop2"))
        if dropped or modules["act"].approximate != "none" or not all(map(is_plain, (self, *modules.values()))):
            return None
        fc1, fc2 = modules["fc1"], modules["fc2"]
        of_norm = described_norm(norm)
        if of_norm is None or fc1.bias is None or fc2.bias is None:
            return None
        return MlpWeights(of_norm, fc1.weight, fc1.bias, fc2.weight, fc2.bias)

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
