"""EfficientVMamba's token mixer ES2D: a gated scan over four interleaved quarters of the map (atrous, skip sampling).

    u, z = Linear_u(x), Linear_z(x)                              x [B, H, W, D] to [B, H, W, E], one product
    u = SiLU(DWConv3x3(u))
    y[i, j] = SSM_k(u over the k-th quarter)[i, j]               k = i mod 2 + 2 (j mod 2), parameters per quarter
    ES2D(x) = Linear_out(LayerNorm(y) ⊙ SiLU(z))

Source: EfficientVMamba, arXiv:2403.09977, section 3.2; the recurrence is layers/ssm.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vision_ssm.errors import ConfigError, ShapeError
from vision_ssm.layers.one_call import halves
from vision_ssm.layers.options import checked_inner
from vision_ssm.layers.ssm import ScanParameters
from vision_ssm.layers.untouched import built_of, untouched
from vision_ssm.ops import SsmWeights, Traversal, selective_scan, selective_ssm, selective_ssm_applies
from vision_ssm.ops.gate import check_tensors

__all__ = ["AtrousSSM", "EfficientSS2D", "atrous_traversals"]

STEP = 2


def atrous_traversals(height: int, width: int) -> list[Traversal]:
    """The four walks over an even ``height x width`` map: every pixel is on exactly one of them, k = row + 2 column.

    Offsets (0, 0) and (0, 1) go row by row, (1, 0) and (1, 1) column by column; none is reversed.
    """
    return [
        Traversal.subgrid(height, width, step=STEP, row=row, column=column, column_major=row == 1)
        for column in range(STEP)
        for row in range(STEP)
    ]


@built_of()
class AtrousSSM(ScanParameters):
    """Selective scan in which each token belongs to one of four groups with parameters of their own.

    A token's step, input and output matrices come from its own group's weights, so there is one of each per token and
    a scan of the four groups costs as much as one of the whole map. The tokens are not sorted into groups: all are
    multiplied by the weights of all four (a narrow product), and what is not their own is left out of the result.

    Args:
        channels: C, the inner width.
        states: N per channel.
        rank: R, the width of the step-size bottleneck.
        step: distance of the tokens of a group along rows and columns; 2 only.

    Raises:
        ConfigError: another step.

    Source: EfficientVMamba, arXiv:2403.09977, section 3.2, with the offsets of its code (eq. 5 of the paper gives
    others).
    """

    def __init__(self, channels: int, *, states: int = 16, rank: int | None = None, step: int = STEP) -> None:
        if step != STEP:
            raise ConfigError(
                f"scan_step must be 2, got {step!r}: there are four groups of weights, which cover a map in steps "
                "of 2 and no other (a step of 3 would leave 5 of 9 pixels without a result)"
            )
        super().__init__(channels, directions=STEP * STEP, states=states, rank=rank)

    def forward(self, u: Tensor) -> Tensor:
        """Project and scan a map u [B, H, W, C] of even height and width; returns the same shape.

        Raises:
            ShapeError: the map's height or width is odd, or a parameter is not floating or elsewhere than u.
        """
        batch, height, width, channels = u.shape
        if height % STEP or width % STEP:
            raise ShapeError(f"an atrous scan takes maps of even height and width, got {height} x {width}")
        # Torch's product of a tensor with one that has no memory, on the meta device, is of any values.
        check_tensors("an atrous scan", u, u=u, **dict(zip(SsmWeights._fields, self.weights(), strict=False)))
        walks = atrous_traversals(height, width)
        flat, weights = u.flatten(1, 2), self.weights()
        if selective_ssm_applies(flat, walks, weights):
            return selective_ssm(flat, None, *weights, traversals=walks).view(u.shape)
        # Every width is written out: with no images, -1 would be ambiguous.
        tokens, squares = (batch, 1, height * width), (batch, height // STEP, STEP, width // STEP, STEP)
        ranks, pair = self.directions * self.rank, 2 * self.states
        down, up = self.x_proj_weight[:, : self.rank], self.x_proj_weight[:, self.rank :]
        # Only the own group's part of the bottleneck is let through, so one product with the weights of all widens it.
        low_rank = F.linear(u, down.flatten(0, 1)).view(*squares, ranks) * self._own(u)
        delta = F.linear(low_rank.view(*tokens, ranks), self.dt_proj_weight.transpose(0, 1).flatten(1))
        # [row parity, column parity] of a token against those of a group: the diagonals are the own group's.
        every = F.linear(u, up.flatten(0, 1)).view(*squares, STEP, STEP, pair)
        own = every.diagonal(dim1=2, dim2=6).diagonal(dim1=3, dim2=4).permute(0, 1, 4, 2, 5, 3)
        b, c = own.reshape(*tokens, pair).chunk(2, dim=-1)
        # The recurrence's own constants stay in float32 (float64 in a float64 model) whatever autocast does.
        A = -torch.exp(self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)))
        u = u.reshape(*tokens, channels)
        y = selective_scan(u, delta, A, b, c, self.D, None, self.dt_proj_bias, traversals=walks)
        return y.view(batch, height, width, channels)

    def _own(self, like: Tensor) -> Tensor:
        """Return [row parity, 1, column parity, 4R]: one at the R columns of group k = row + 2 column, else zero."""
        one_hot = torch.eye(self.directions, dtype=like.dtype, device=like.device).repeat_interleave(self.rank, dim=1)
        return one_hot.view(STEP, 1, STEP, -1).transpose(0, 2)


@built_of(in_proj=nn.Linear, conv=nn.Conv2d, ssm=AtrousSSM, out_norm=nn.LayerNorm, out_proj=nn.Linear)
class EfficientSS2D(nn.Module):
    """in_proj, depthwise 3 x 3 convolution, SiLU, atrous scan, LayerNorm, gate by SiLU(z), out_proj.

    An odd height or width is rounded up with zeros after the convolution, and the result cropped. As published, the
    zeros are tokens like the others: they bring in nothing, but the state decays on passing them.

    Args:
        channels: D, the width of the tokens; the step rank is ceil(D / 16).
        states: N per channel.
        ratio: inner width over D.
        step: see :class:`AtrousSSM`.

    Source: EfficientVMamba, arXiv:2403.09977, section 3.2, and its code (TerryPei/EfficientVMamba,
    classification/models/vmamba_efficient.py).
    """

    def __init__(self, channels: int, *, states: int = 16, ratio: float = 2.0, step: int = STEP) -> None:
        super().__init__()
        inner = checked_inner(channels, ratio, states)
        # The rows of in_proj are the scanned half, then the gate; multiplied apart, each result is a whole map.
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.ssm = AtrousSSM(inner, states=states, rank=math.ceil(channels / 16), step=step)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix tokens x [B, H, W, D]; returns the same shape."""
        height, width = x.shape[1:3]
        u, z = halves(self.in_proj, x)
        # Maps of this size cost more to allocate than to compute; nobody else has those of untouched layers.
        overwrite = not torch.is_grad_enabled() and untouched(self, inside=True)
        # A map with channels last is an image in the channels_last format: the permutations are views.
        u = F.silu(self.conv(u.permute(0, 3, 1, 2)), inplace=overwrite).permute(0, 2, 3, 1)
        bottom, right = height % STEP, width % STEP
        if bottom or right:
            u = F.pad(u, (0, 0, 0, right, 0, bottom))
        y = self.out_norm(self.ssm(u)[:, :height, :width])
        z = F.silu(z, inplace=overwrite)
        result: Tensor = self.out_proj(y.mul_(z) if overwrite else y * z)
        return result
