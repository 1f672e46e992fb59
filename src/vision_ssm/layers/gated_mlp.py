"""The gated MLP (SwiGLU).

    MLP(x) = W2 (SiLU(a) ⊙ b),   (a, b) = W1 x                   x [..., C], a and b [..., I]

Source: arXiv:2002.05202, eq. 6; its width is two thirds of 4C, rounded up.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.layers.one_call import halves
from vision_ssm.layers.untouched import built_of

__all__ = ["GatedMlp"]


@built_of(fc1=nn.Linear, fc2=nn.Linear)
class GatedMlp(nn.Module):
    """fc1 to both halves, SiLU of the first times the second, fc2; no biases.

    Args:
        channels: C.
        multiple: the hidden width I is the whole part of 8C / 3, rounded up to a multiple of this.
    """

    def __init__(self, channels: int, multiple: int) -> None:
        super().__init__()
        hidden = -(-(8 * channels // 3) // multiple) * multiple
        self.fc1 = nn.Linear(channels, 2 * hidden, bias=False)
        self.fc2 = nn.Linear(hidden, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform x [..., C]."""
        gate, value = halves(self.fc1, x)
        result: Tensor = self.fc2(F.silu(gate) * value)
        return result
