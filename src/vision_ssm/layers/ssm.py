"""The selective state-space model between convolution and output projection, for one or several scan directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vision_ssm.errors import ConfigError
from vision_ssm.ops import Traversal, one_pass, one_pass_applies, selective_scan

__all__ = ["ScanParameters", "SelectiveSSM"]

# Mamba's range of initial step sizes (arXiv:2312.00752, section 3.6) and its floor.
STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4

ALL = slice(None)


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

    def scan(
        self,
        u: Tensor,
        delta: Tensor,
        b: Tensor,
        c: Tensor,
        z: Tensor | None,
        traversals: Sequence[Traversal],
        *,
        merge: bool = True,
        directions: slice = ALL,
    ) -> Tensor:
        """Scan tokens whose step, input and output matrices are given; shapes as in :func:`selective_scan`."""
        # The recurrence's own constants stay in float32 (float64 in a float64 model) whatever autocast does.
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        return selective_scan(
            u,
            delta,
            -torch.exp(self.A_log[directions].to(wide)),
            b,
            c,
            self.D[directions].to(wide),
            z,
            self.dt_proj_bias[directions].to(wide),
            traversals=traversals,
            merge=merge,
        )

    def one_pass(
        self,
        x: Tensor,
        z: Tensor | None,
        traversals: Sequence[Traversal],
        *,
        conv_weight: Tensor | None = None,
        conv_bias: Tensor | None = None,
        reverse: Sequence[bool] = (),
        directions: slice = ALL,
    ) -> Tensor | None:
        """Scan tokens x [B, L, C] without intermediate results in memory, or return None where that is not possible.

        Each direction projects the tokens that it visits. Arguments as in :func:`vision_ssm.ops.one_pass`.
        """
        parameters: Sequence[Tensor] = self.weights()
        if directions is not ALL:
            parameters = [parameter[directions] for parameter in parameters]
        convolution = () if conv_weight is None or conv_bias is None else (conv_weight, conv_bias)
        if not one_pass_applies(x, traversals, (*parameters, *convolution), conv_weight):
            return None
        return one_pass(x, z, *parameters, *convolution, traversals=traversals, reverse=reverse)

    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return the parameters in the order of :class:`vision_ssm.ops.SsmWeights`."""
        return self.A_log, self.D, self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias

    def extra_repr(self) -> str:
        """Show the sizes when printed."""
        return f"{self.channels}, directions={self.directions}, states={self.states}, rank={self.rank}"


class SelectiveSSM(ScanParameters):
    """Data-dependent step, input and output matrices of every token for every direction, and the scan over them.

    Parameters as :class:`ScanParameters`; the projections of all directions are one batched product.
    """

    def forward(
        self,
        u: Tensor,
        z: Tensor | None,
        traversals: Sequence[Traversal],
        *,
        merge: bool = True,
        directions: slice = ALL,
    ) -> Tensor:
        """Project and scan.

        Args:
            u: tokens, [B, K or 1, L, C].
            z: gate, [B, L, C] or None.
            traversals: K walks over the L tokens.
            merge: sum the directions.
            directions: run these of the module's directions only, K of them; they must not share projections.

        Returns:
            [B, L, C] if ``merge`` else [B, K, L, C].
        """
        if merge and u.shape[1] == 1:
            y = self.one_pass(u[:, 0], z, traversals, directions=directions)
            if y is not None:
                return y
        batch, _, length, _ = u.shape
        x_proj_weight, dt_proj_weight = self.x_proj_weight[directions], self.dt_proj_weight[directions]
        projections = x_proj_weight.shape[0]
        if u.shape[1] == projections:
            # [P, B*L, C]: one product per direction; no copy if the directions lie outermost in memory.
            flat = u.transpose(0, 1).reshape(projections, batch * length, self.channels)
        else:
            flat = u.reshape(1, batch * length, self.channels).expand(projections, -1, -1)
        projected = torch.bmm(flat, x_proj_weight.transpose(1, 2))
        low_rank, b, c = torch.split(projected, [self.rank, self.states, self.states], dim=-1)
        delta = torch.bmm(low_rank, dt_proj_weight.transpose(1, 2))
        delta, b, c = (x.view(projections, batch, length, x.shape[-1]).transpose(0, 1) for x in (delta, b, c))
        return self.scan(u, delta, b, c, z, traversals, merge=merge, directions=directions)
