"""Vim's token mixer: gated, convolved, scanned along the sequence in one or both directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vision_ssm.layers.norms import NORMS, described_norm
from vision_ssm.layers.options import check_choice, has_global_hooks, is_plain
from vision_ssm.layers.ssm import SelectiveSSM
from vision_ssm.ops import Branch, BranchWeights, SsmWeights, Traversal, causal_conv1d

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

SSM_PARAMETERS = SsmWeights._fields[:5]


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

    def residual_branch(self, norm: nn.Module) -> Branch | None:
        """Describe x + self(norm(x)) to the operators that run it in one call, or return None.

        None where a module inside has hooks or has been replaced or patched: those must see what passes.
        """
        if has_global_hooks() or type(self).forward is not VimMixer.forward:
            return None
        of_norm = described_norm(norm) if type(norm) in NORMS.values() else None
        if of_norm is None:
            return None
        modules = self._modules
        ssm, in_proj, out_proj = modules["ssm"], modules["in_proj"], modules["out_proj"]
        if type(ssm) is not SelectiveSSM or type(in_proj) is not nn.Linear or type(out_proj) is not nn.Linear:
            return None
        if not (is_plain(self) and is_plain(ssm) and is_plain(in_proj) and is_plain(out_proj)):
            return None
        if in_proj.bias is not None or out_proj.bias is not None:
            return None
        # The modules' own dictionaries: looking every weight up as an attribute takes as long as several tokens.
        of_ssm, own = ssm._parameters, self._parameters
        try:
            weights = BranchWeights(
                of_norm,
                in_proj._parameters["weight"],
                SsmWeights(*[of_ssm[n] for n in SSM_PARAMETERS], own["conv_weight"], own["conv_bias"]),
                out_proj._parameters["weight"],
                self.gamma,
            )
        except KeyError:  # a weight is computed instead
            return None
        return Branch(weights, 0.5 if self.halve else 1.0, self.walks_reversed, self.convolutions_reversed)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens x [B, L, D] along L; returns [B, L, D]."""
        length = x.shape[1]
        hidden, z = self.in_proj(x).chunk(2, dim=-1)
        walks = [Traversal.sequence(length, reverse=backwards) for backwards in self.walks_reversed]
        conv, reverse = (self.conv_weight, self.conv_bias), self.convolutions_reversed
        y = self.ssm.one_pass(hidden, z, walks, conv_weight=conv[0], conv_bias=conv[1], reverse=reverse)
        if y is None:
            y = self.ssm(causal_conv1d(hidden, *conv, reverse=reverse), z, walks)
        out: Tensor = self.out_proj(y)
        if self.halve:
            # Exact in binary, and cheaper here than on the inner width; nothing needs the unscaled result.
            out = out.mul_(0.5)
        return out if self.gamma is None else out * self.gamma
