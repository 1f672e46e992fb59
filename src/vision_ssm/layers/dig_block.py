"""DiG's block: two branches that the timestep and the class modulate and gate, then a convolution of the stream.

    b_1, a_1, c_1, b_2, a_2, c_2 = W c                           c [B, D]: SiLU of both embeddings; each [B, D]
    x' = W_skip [x, s]                                           s: of an earlier block, where there is one; else x
    h = x' + c_1 ⊙ mixer(modulate(x', b_1, a_1))                 x, h [B, H, W, D], maps
    y = DWConv3x3(h + c_2 ⊙ MLP(modulate(h, b_2, a_2)))

The mixer is layers/directed_gla.py, the MLP layers/gated_mlp.py, modulate layers/conditioning.py. The convolution is of
the stream itself, to which it is not added, laid out in the order of the block's walk: here its kernel turns instead.

Source: DiG, arXiv:2405.18428, and its code (hustvl/DiG at e3ac0ba, models_dig.py).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.layers.conditioning import modulate
from vision_ssm.layers.directed_gla import DirectedGLA, Order
from vision_ssm.layers.gated_mlp import GatedMlp

__all__ = ["DiGBlock"]

MLP_MULTIPLE = 256


class DiGBlock(nn.Module):
    """Modulated mixer and MLP with gates, then a depthwise convolution; perhaps a joint with an earlier block.

    Args:
        channels: D, an even number.
        head_dim: value channels of a head.
        order: of the tokens.
        joins: the order in which the stream of an earlier block comes, which this one joins; None for no joint.

    Raises:
        ConfigError: the width does not divide into heads.
    """

    def __init__(self, channels: int, *, head_dim: int, order: Order, joins: Order | None = None) -> None:
        super().__init__()
        self.order, self.joins = order, joins
        self.skip = nn.Linear(2 * channels, channels) if joins is not None else None
        self.modulation = nn.Linear(channels, 6 * channels)
        self.mixer = DirectedGLA(channels, head_dim=head_dim, order=order)
        self.mlp = GatedMlp(channels, MLP_MULTIPLE)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, condition: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Run the block on a map x [B, H, W, D], told ``condition`` [B, D], with the ``earlier`` map that it joins."""
        if self.skip is not None and self.joins is not None and earlier is not None:
            x = self.skip(torch.cat([x, self.order.meeting(self.joins, earlier)], dim=-1))
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition).chunk(6, dim=1)
        x = x + gate1[:, None, None] * self.mixer(modulate(x, shift1, scale1))
        x = x + gate2[:, None, None] * self.mlp(modulate(x, shift2, scale2))
        # Channel-last tokens are an image in channels_last format, so both permutes are views.
        image = x.permute(0, 3, 1, 2)
        kernel = self.order.turned(self.conv.weight)
        return F.conv2d(image, kernel, self.conv.bias, padding=1, groups=self.conv.groups).permute(0, 2, 3, 1)
