"""The selective state-space model along K walks over the tokens.

    B_k, C_k = Linear_B_k(u), Linear_C_k(u)                      u [B, L, C] to [B, L, N], of every token
    Δ_k = softplus(Linear_Δ_k(u) + bias_k)                       [B, L, C], through R values
    h_k[t] = exp(Δ_k[t] A_k) h_k[t-1] + Δ_k[t] B_k[t] u[t]       t along walk k, A_k = -exp(A_log_k)
    y = sum over k of C_k[t] · h_k[t] + D_k u[t]                 gated: y ⊙ SiLU(z)

Source: Mamba, arXiv:2312.00752, Alg. 2 and eq. 2; B is Euler-discretised as in its code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.layers.untouched import built_of
from vision_ssm.ops import Traversal, selective_ssm

__all__ = ["ScanParameters", "SelectiveSSM"]

# Mamba's range of initial step sizes (arXiv:2312.00752, section 3.6) and its floor.
STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4


class ScanParameters(nn.Module):
    """What a selective scan along K directions learns, and its published initial values.

    Parameters are stacked over the directions so that the projections are one product and the scan one call:
    A_log [K, C, N], D [P, C], x_proj_weight [P, R+2N, C], dt_proj_weight [P, C, R], dt_proj_bias [P, C], where
    P = 1 if the directions share everything but A (``share_projections``), else K.

    Args:
        channels: C, the inner width.
        directions: K.
        states: N per channel.
        rank: R, the width of the step-size bottleneck.
        share_projections: one D and one set of projections for all directions.
        zero_step_bias: for each direction, start the step bias at 0 (a step of about 0.69) instead of drawing steps
            log-uniformly from [1e-3, 1e-1]. Vim's published initialisation does that to its backward direction.

    Source: Mamba, arXiv:2312.00752, Alg. 2 and section 3.6.
    """

    def __init__(
        self,
        channels: int,
        *,
        directions: int = 1,
        states: int = 16,
        rank: int | None = None,
        share_projections: bool = False,
        zero_step_bias: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        if channels < 1 or directions < 1 or states < 1:
            raise ConfigError(
                f"channels, directions and states must be positive, got {channels}, {directions} and {states}"
            )
        self.channels, self.directions, self.states = channels, directions, states
        self.rank = rank or math.ceil(channels / 32)
        projections = 1 if share_projections else directions
        self.zero_step_bias = tuple(zero_step_bias or (False,) * projections)
        if len(self.zero_step_bias) != projections:
            raise ConfigError(f"zero_step_bias needs {projections} entries, got {len(self.zero_step_bias)}")
        self.A_log = nn.Parameter(torch.empty(directions, channels, states))
        self.D = nn.Parameter(torch.empty(projections, channels))
        self.x_proj_weight = nn.Parameter(torch.empty(projections, self.rank + 2 * states, channels))
        self.dt_proj_weight = nn.Parameter(torch.empty(projections, channels, self.rank))
        self.dt_proj_bias = nn.Parameter(torch.empty(projections, channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the published initial values."""
        self.A_log.copy_(torch.arange(1, self.states + 1, device=self.A_log.device).log().expand_as(self.A_log))
        self.D.fill_(1.0)
        self.x_proj_weight.uniform_(-(self.channels**-0.5), self.channels**-0.5)
        self.dt_proj_weight.uniform_(-(self.rank**-0.5), self.rank**-0.5)
        span = math.log(STEP_MAX) - math.log(STEP_MIN)
        step = (torch.rand_like(self.dt_proj_bias) * span + math.log(STEP_MIN)).exp().clamp(min=STEP_FLOOR)
        self.dt_proj_bias.copy_(step + (-torch.expm1(-step)).log())  # the inverse of softplus
        for k, zero in enumerate(self.zero_step_bias):
            if zero:
                self.dt_proj_bias[k].zero_()

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the parameters in the order of :class:`vision_ssm.ops.SsmWeights`."""
        return self.A_log, self.D, self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias

    def extra_repr(self) -> str:
        """Show the sizes when printed."""
        return f"{self.channels}, directions={self.directions}, states={self.states}, rank={self.rank}"


@built_of()
class SelectiveSSM(ScanParameters):
    """Data-dependent step, input and output matrices of every token for every direction, and the scan over them.

    Parameters as :class:`ScanParameters`.
    """

    def forward(
        self,
        u: Tensor,
        z: Tensor | None,
        traversals: Sequence[Traversal],
        *,
        conv: tuple[Tensor | None, Tensor | None] = (None, None),
        reverse: Sequence[bool] = (),
        directions: slice | None = None,
    ) -> Tensor:
        """Project and scan.

        Args:
            u: tokens, [B, L, C].
            z: gate, [B, L, C] or None.
            traversals: K walks over the L tokens.
            conv: taps [K or 1, C, T] and biases [K or 1, C] of a causal convolution, with SiLU, that u goes through.
            reverse: for each set of taps, whether it looks towards the end of the sequence.
            directions: run these of the module's directions only, K of them; they must not share projections.

        Returns:
            [B, L, C], the sum of the directions.
        """
        A_log, D, x_proj, dt_proj, dt_bias = self.weights()
        if directions is not None:
            A_log, D, x_proj, dt_proj, dt_bias = (weight[directions] for weight in self.weights())
        return selective_ssm(u, z, A_log, D, x_proj, dt_proj, dt_bias, *conv, traversals=traversals, reverse=reverse)
