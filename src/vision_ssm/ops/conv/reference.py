"""The definition of correct: one multiply-add of a shifted view per tap.

    y[t] = bias + sum over j of weight[j] x[t - (T - 1) + j]        x = 0 before the first token

with SiLU over it. It runs in any floating dtype on any device, and where no kernel does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["forward"]


def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: Sequence[bool], activation: bool) -> Tensor:
    """Return [B, K, L, C], the directions outermost in memory, for x [B, L, C], weight [K, C, T] and bias [K, C]."""
    tokens, taps = x.shape[1], weight.shape[2]
    past = taps - 1
    padded = F.pad(x, (0, 0, past, past))
    results = []
    for k, backwards in enumerate(reverse):
        y = bias[k]
        for tap in range(taps):
            # Tap j reaches `past - j` tokens back; going backwards it reaches as far ahead.
            first = 2 * past - tap if backwards else tap
            y = torch.addcmul(y, padded[:, first : first + tokens], weight[k, :, tap])
        results.append(F.silu(y) if activation else y)
    # Directions outermost in memory: each is then one contiguous operand of the products that follow.
    return torch.stack(results).transpose(0, 1)
