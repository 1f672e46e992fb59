"""Vim's token mixer: all of a Vim block between its norm and its addition.

    x = Linear_x(T'),  z = Linear_z(T')                          T' [B, L, D] to x, z [B, L, E], one product
    for o in (forward, backward):                                backward: everything from the last token
        x'_o = SiLU(Conv1d_o(x))                                 causal, four taps
        B_o, C_o = Linear_B_o(x'_o), Linear_C_o(x'_o)            [B, L, N]
        Δ_o = softplus(Linear_Δ_o(x'_o) + bias_Δ_o)              [B, L, E], through R values
        y_o = SSM(exp(Δ_o A_o), Δ_o B_o, C_o)(x'_o)              [B, L, E]
        y'_o = y_o ⊙ SiLU(z)
    mixer(T') = Linear_T(y'_forward + y'_backward)               [B, L, D], halved in the published "v2"

Source: Vim, arXiv:2401.09417, Alg. 1; the block adds T to it (blocks.py), the loop is layers/ssm.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vision_ssm.layers.options import check_choice
from vision_ssm.layers.ssm import SelectiveSSM
from vision_ssm.layers.untouched import built_of
from vision_ssm.ops import Traversal

__all__ = ["MIXER_DIRECTIONS", "STEP_INITS", "VimMixer"]

TAPS = 4
EXPANSION = 2

# Per name: which way each scan walks (True: from the last token), and which way each convolution looks.
MIXER_DIRECTIONS: dict[str, tuple[tuple[bool, ...], tuple[bool, ...]]] = {
    "bidirectional": ((False, True), (False, True)),
    "shared": ((False, True), (False,)),
    "forward": ((False,), (False,)),
    "backward": ((True,), (True,)),
}

STEP_INITS = ("published", "fixed")


@built_of(in_proj=nn.Linear, ssm=SelectiveSSM, out_proj=nn.Linear)
class VimMixer(nn.Module):
    """in_proj, then per direction convolution, SiLU and selective scan, gated by SiLU(z), summed, out_proj.

    Args:
        channels: D, the width of the tokens; the inner width is E = 2D, the step rank R = ceil(D / 16).
        states: N per channel.
        direction: 'bidirectional' (own convolution, projections, A and D for the way back: the published v2),
            'shared' (only A differs, and the skip D * u counts once per direction: v1), 'forward' or 'backward'.
        halve: average the two directions instead of adding them; only 'bidirectional' does, as published.
        layer_scale: initial value of a learned factor per output channel, or None for no such factor.
        backward_step: how the backward direction's step bias starts. 'published': at zero, so its first steps are
            about 0.69, 7 to 700 times the forward ones; 'fixed': drawn like the forward direction's.
        depth: number of layers of the network; out_proj starts smaller by its square root.

    Source: Vim, arXiv:2401.09417, Alg. 1.
    """

    def __init__(
        self,
        channels: int,
        *,
        states: int = 16,
        direction: str = "bidirectional",
        halve: bool = True,
        layer_scale: float | None = None,
        backward_step: str = "published",
        depth: int = 1,
    ) -> None:
        super().__init__()
        for option, value, allowed in (
            ("direction", direction, MIXER_DIRECTIONS),
            ("backward_step", backward_step, STEP_INITS),
        ):
            check_choice(option, value, allowed)
        inner = EXPANSION * channels
        self.walks_reversed, self.convolutions_reversed = MIXER_DIRECTIONS[direction]
        self.halve = halve and direction == "bidirectional"
        self.depth, self.layer_scale = depth, layer_scale
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(len(self.convolutions_reversed), inner, TAPS))
        self.conv_bias = nn.Parameter(torch.empty(len(self.convolutions_reversed), inner))
        self.ssm = SelectiveSSM(
            inner,
            directions=len(self.walks_reversed),
            states=states,
            rank=math.ceil(channels / 16),
            share_projections=direction == "shared",
            zero_step_bias=(False, backward_step == "published") if direction == "bidirectional" else None,
        )
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the published initial values: torch's defaults but for out_proj and the SSM."""
        self.in_proj.reset_parameters()
        self.conv_weight.uniform_(-(TAPS**-0.5), TAPS**-0.5)
        self.conv_bias.uniform_(-(TAPS**-0.5), TAPS**-0.5)
        self.ssm.reset_parameters()
        self.out_proj.reset_parameters()
        self.out_proj.weight.div_(math.sqrt(self.depth))
        if self.gamma is not None and self.layer_scale is not None:
            self.gamma.fill_(self.layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens x [B, L, D] along L; returns [B, L, D]."""
        length = x.shape[1]
        x, z = self.in_proj(x).chunk(2, dim=-1)
        walks = [Traversal.sequence(length, reverse=backwards) for backwards in self.walks_reversed]
        # Everything of the loop over o, and the sum of the y'_o.
        y = self.ssm(x, z, walks, conv=(self.conv_weight, self.conv_bias), reverse=self.convolutions_reversed)
        out: Tensor = self.out_proj(y)
        if self.halve:
            out = 0.5 * out
        return out if self.gamma is None else out * self.gamma
